"""The riddle's claims: what the original project says of its stages, and what the rows say to it."""

from __future__ import annotations

from matplotlib.figure import Figure
from typing_extensions import override

from tinygpt_lightning.study.cipher import cipher_figure, cipher_text
from tinygpt_lightning.study.claims import Claims
from tinygpt_lightning.study.design import Cell
from tinygpt_lightning.study.findings import Contrast, contrast
from tinygpt_lightning.study.markdown import table
from tinygpt_lightning.study.outcome import as_trained


class Riddle(Claims):
    """Why two stages of 30 epochs give the sentence and one of 300 does not."""

    @property
    def predicted(self) -> int:
        """Runs whose exactness is what the vocabularies alone predict."""
        return sum(outcome["exact"] == same_vocabulary(cell) for cell, _, outcome in self.results.runs)

    @property
    def example(self) -> tuple[Cell, int] | None:
        """The run to show: the first one that is misread and was right in training, or the first one at all."""
        runs = self.results.runs
        misread = [run for run in runs if not run[2]["exact"] and as_trained(run[2], "exact")]
        return next(((cell, seed) for cell, seed, _ in misread or runs), None)

    @override
    def own_contrasts(self) -> list[Contrast]:
        found = []
        for within, renumbered in (("ids kept", False), ("renumbered on reload", True)):
            cells = [cell for cell in self.results.study.cells if cell.recipe.renumber == renumbered]
            groups = {"several": [cell for cell in cells if staged(cell)], "one": [c for c in cells if not staged(c)]}
            found.append(contrast(self.results, "the number of stages", within, groups))
        return [each for each in found if each]

    @override
    def headline(self) -> list[str]:
        runs = len(self.results.runs)
        if self.predicted == runs and set(self.established) & set(self.varying("renumber")):
            return [
                "**What decides is whether the last stage was trained on the vocabulary that is used to read.**",
                f"This alone predicts all {runs} runs.",
            ]
        return [*super().headline(), f"The vocabularies alone predict {self.predicted} of {runs} runs."]

    @override
    def remarks(self) -> list[str]:
        misread = [outcome for _, _, outcome in self.results.runs if not outcome["exact"]]
        rescued = sum(as_trained(outcome, "exact") for outcome in misread)
        rescue = (
            f"Of the {len(misread)} runs that are not exact, {rescued} are when the same weights are read with the "
            "vocabulary they were trained on."
        )
        return [*([rescue] if misread else []), *self.without_effect()]

    @override
    def sections(self) -> list[str]:
        found = [
            "## What holds of the original's findings",
            table(["claim", "verdict", "evidence"], verdicts(self)),
        ]
        if self.example:
            cell, seed = self.example
            found += [
                "## What the network said",
                f"{cell.name}, seed {seed}: one set of weights, read with two vocabularies.",
                "![The cipher](cipher.png)",
                cipher_text(self.results.by_cell[cell][seed], cell.recipe.text),
            ]
        return found

    @override
    def figures(self) -> dict[str, Figure]:
        found = super().figures()
        if self.example:
            cell, seed = self.example
            found["cipher"] = cipher_figure(cell, seed, self.results.by_cell[cell][seed])
        return found


def staged(cell: Cell) -> bool:
    """Whether there is more than one stage."""
    return len(cell.recipe.stages) > 1


def same_vocabulary(cell: Cell) -> bool:
    """Whether the last stage trains on the vocabulary that is used to read: the predicted outcome."""
    return not cell.recipe.renumber or staged(cell)


def verdicts(claims: Riddle) -> list[tuple[str, str, str]]:
    """The original's claims that the design can judge: claim, verdict, evidence."""
    by_cell = claims.results.by_cell
    original = [cell for cell in by_cell if cell.recipe.renumber and by_cell[cell]]
    found = []
    for cell in original:
        later = cell.recipe.stages[1:]
        if later and all(stage.keeps_nothing and stage.weights == "carried" for stage in later):
            exact = [outcome["exact"] for outcome in by_cell[cell].values()]
            lengths = "+".join(str(stage.epochs) for stage in cell.recipe.stages)
            claim = f"stages of {lengths} epochs, with everything rebuilt, reproduce the sentence"
            verdict = "holds" if all(exact) else "does not hold throughout"
            found.append((claim, verdict, f"exact in {sum(exact)} of {len(exact)} runs"))
    single = [outcome for cell in original if not staged(cell) for outcome in by_cell[cell].values()]
    if single:
        k = sum(outcome["exact"] for outcome in single)
        trained = sum(as_trained(outcome, "exact") for outcome in single)
        verdict = "does not hold throughout" if k else "holds, as it is read back"
        evidence = f"exact in {k} of {len(single)} runs; with the vocabulary of training the same weights in {trained}"
        found.append(("one stage, however long, does not", verdict, evidence))
    for claim, setting in (
        ("re-initialising the optimizer is a key factor", "reset_optimizer"),
        ("the first stage is essential: it gives the next one better weights", "weights"),
    ):
        about = [each for each in claims.contrasts if each.factor in claims.varying(setting)]
        if about:
            verdict = "holds" if any(each.decisive for each in about) else "no effect on exactness established"
            found.append((claim, verdict, "; ".join(_evidence(each) for each in about)))
    return found


def _evidence(test: Contrast) -> str:
    counts = ", ".join(f"{level} {k}/{test.n}" for level, k in zip(test.levels, test.exact, strict=True))
    return f"{test.within}: {counts}, p = {test.p:.2g}"
