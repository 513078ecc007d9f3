"""From rows to findings: which factor matters, by tests that were fixed before the results were seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tinygpt_lightning.study.design import Cell, Study, schedule_name
from tinygpt_lightning.study.rows import Row, key
from tinygpt_lightning.study.sharing import Outcome
from tinygpt_lightning.study.statistics import Interval, holm, mcnemar_exact, paired_bootstrap

SIGNIFICANCE = 0.05


class Results:
    """The outcomes of a study's design.

    Args:
        study: Its settings.
        rows: Rows of it; those of cells or seeds outside the design are left aside.
    """

    def __init__(self, study: Study, rows: Iterable[Row]) -> None:
        outcomes = {key(row["config"]): row["outcome"] for row in rows}
        self.study = study
        self.by_cell: dict[Cell, dict[int, Outcome]] = {}
        for cell in study.cells:
            keys = {seed: key(study.config(cell, seed)) for seed in study.seed_list}
            self.by_cell[cell] = {seed: outcomes[k] for seed, k in keys.items() if k in outcomes}

    @property
    def runs(self) -> list[tuple[Cell, int, Outcome]]:
        """All runs, cell after cell."""
        return [(cell, seed, outcome) for cell, seeds in self.by_cell.items() for seed, outcome in seeds.items()]

    @property
    def missing(self) -> int:
        """Runs of the design that have no row."""
        return len(self.study.cells) * len(self.study.seed_list) - len(self.runs)

    @property
    def diverged(self) -> int:
        """Runs whose loss is no number at the end."""
        return sum(outcome["final_loss_dropout_off"] is None for _, _, outcome in self.runs)

    @property
    def predicted(self) -> int:
        """Runs whose exactness is what the vocabularies alone predict."""
        return sum(outcome["exact"] == cell.same_vocabulary for cell, _, outcome in self.runs)


@dataclass(frozen=True)
class FactorTest:
    """McNemar's exact test of one factor on exactness, paired by seed.

    A seed is a success at a level if *all* its runs at that level are exact, so each seed counts once: the
    runs of a seed are alike, and counting each would make the evidence look stronger than it is.

    Args:
        factor: What is varied.
        within: The part of the design that is looked at.
        levels: The two levels that are compared.
        n: Seeds that have all their runs at both levels.
        exact: Seeds that are successes at each level.
        only: Seeds that are a success at this level and not at the other.
        p: Two-sided p-value.
        p_holm: The same, corrected after Holm for all tests of the study; null until it is.
    """

    factor: str
    within: str
    levels: tuple[str, str]
    n: int
    exact: tuple[int, int]
    only: tuple[int, int]
    p: float
    p_holm: float | None = None

    @property
    def decisive(self) -> bool:
        """Whether the factor's effect stands after the correction."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANCE


def factor_tests(results: Results) -> list[FactorTest]:
    """Every factor in every part of the design where it varies; corrected together."""
    cells = results.study.cells
    single = [cell for cell in cells if not cell.staged]
    staged = [cell for cell in cells if cell.staged]
    tests = []

    def compare(factor: str, within: str, first: tuple[str, list[Cell]], second: tuple[str, list[Cell]]) -> None:
        seeds = [
            seed
            for seed in results.study.seed_list
            if first[1] and second[1] and all(seed in results.by_cell[cell] for cell in first[1] + second[1])
        ]
        pairs = [
            tuple(all(results.by_cell[cell][seed]["exact"] for cell in group) for _, group in (first, second))
            for seed in seeds
        ]
        if pairs:
            exact = (sum(a for a, _ in pairs), sum(b for _, b in pairs))
            only = (sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))
            levels = (first[0], second[0])
            tests.append(FactorTest(factor, within, levels, len(pairs), exact, only, mcnemar_exact(*only)))

    def having(group: list[Cell], **levels: object) -> list[Cell]:
        return [cell for cell in group if all(getattr(cell, name) == level for name, level in levels.items())]

    for within, group in (("one stage", single), ("several stages", staged)):
        stable, resorted = having(group, vocabulary="stable"), having(group, vocabulary="resorted")
        compare("the vocabulary on reload", within, ("stable", stable), ("resorted", resorted))
    lengths = sorted({cell.schedule for cell in single})
    for vocabulary in results.study.vocabulary:
        ones, more = having(single, vocabulary=vocabulary), having(staged, vocabulary=vocabulary)
        compare("the number of stages", vocabulary, ("several", more), ("one", ones))
        if len(lengths) > 1:
            shortest, longest = (
                (schedule_name(schedule), having(ones, schedule=schedule)) for schedule in (lengths[0], lengths[-1])
            )
            compare("the length of a single stage", vocabulary, longest, shortest)
        for factor, name, levels in (
            ("the optimizer at the boundary", "optimizer", ("new", "kept")),
            ("the weights at the boundary", "weights", ("carried", "redrawn")),
        ):
            first, second = ((level, having(more, **{name: level})) for level in levels)
            compare(factor, vocabulary, first, second)
    tests.sort(key=lambda test: test.factor)
    corrected = holm([test.p for test in tests])
    return [replace(test, p_holm=p) for test, p in zip(tests, corrected, strict=True)]


@dataclass(frozen=True)
class ResetEffect:
    """What a new optimizer changes against a kept one, paired by seed.

    Args:
        measure: What is measured, in words, with its unit.
        where: The cells that are compared, in words.
        n: Pairs of which both have the measure.
        left_out: Pairs of which one lacks it: a run never became exact, or its loss diverged.
        mean: Mean of new minus kept; null without pairs.
        interval: Its 95 % bootstrap interval; null with fewer than two pairs.
    """

    measure: str
    where: str
    n: int
    left_out: int
    mean: float | None
    interval: Interval | None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)


MEASURES = {
    "final_loss_dropout_off": "final loss, dropout off (nats)",
    "final_loss_dropout_on": "final loss, dropout on (nats)",
    "epochs_to_exact": "epochs of the last stage to exactness",
}


def reset_effects(results: Results) -> list[ResetEffect]:
    """The optimizer reset's effect wherever the design has both levels."""
    effects = []
    for new in results.study.cells:
        kept = replace(new, optimizer="kept")
        if new.optimizer != "new" or kept not in results.by_cell:
            continue
        first, second = results.by_cell[new], results.by_cell[kept]
        where = f"{schedule_name(new.schedule)}, {new.vocabulary}, weights {new.weights}"
        for name, measure in MEASURES.items():
            pairs = [(first[seed][name], second[seed][name]) for seed in first if seed in second]
            differences = [a - b for a, b in pairs if a is not None and b is not None]
            mean = sum(differences) / len(differences) if differences else None
            interval = paired_bootstrap(differences) if len(differences) > 1 else None
            left_out = len(pairs) - len(differences)
            effects.append(ResetEffect(measure, where, len(differences), left_out, mean, interval))
    return effects


def answer(results: Results, tests: list[FactorTest], effects: list[ResetEffect]) -> str:
    """The riddle's answer in one paragraph, by rules over the numbers."""
    runs = len(results.runs)
    decisive = [test for test in tests if test.decisive]
    factors = list(dict.fromkeys(test.factor for test in decisive))
    all_predicted = results.predicted == runs
    if all_predicted and "the vocabulary on reload" in factors:
        sentences = [
            "**What decides is whether the last stage was trained on the vocabulary that is used to read.** "
            f"This alone predicts all {runs} runs."
        ]
    else:
        share = f"The vocabularies alone predict {results.predicted} of {runs} runs."
        if factors:
            sentences = [f"**What decides is {' and '.join(factors)}.** {share}"]
        else:
            seeds = len(results.study.seed_list)
            sentences = [f"**With {seeds} seeds no factor's effect on exactness is established.** {share}"]
    for test in decisive:
        (first, second), (a, b) = test.levels, test.exact
        sentences.append(
            f"Of {test.factor} ({test.within}), {first} is exact in {a} of {test.n} seeds and {second} in {b} "
            f"({_p(test.p_holm)})."
        )
    for factor in dict.fromkeys(test.factor for test in tests if test.factor not in factors):
        found = [test for test in tests if test.factor == factor]
        differing = " and ".join(f"{sum(test.only)} of {test.n} ({test.within})" for test in found)
        sentences.append(f"No effect of {factor} on exactness is established: seeds that differ are {differing}.")
    misread = [outcome for _, _, outcome in results.runs if not outcome["exact"]]
    if misread:
        rescued = sum(outcome["exact_in_training_vocabulary"] for outcome in misread)
        sentences.append(
            f"Of the {len(misread)} runs that are not exact, {rescued} are when the same weights are read with the "
            "vocabulary they were trained on."
        )
    if effects:
        sentences.append(_reset_sentence(effects))
    return " ".join(sentences)


def _reset_sentence(effects: list[ResetEffect]) -> str:
    parts = []
    for measure in dict.fromkeys(effect.measure for effect in effects):
        about = [effect for effect in effects if effect.measure == measure]
        clear = [effect.mean for effect in about if effect.clear and effect.mean is not None]
        if clear:
            means = f"{min(clear):+.3g} to {max(clear):+.3g}" if len(clear) > 1 else f"{clear[0]:+.3g}"
            parts.append(f"{measure}: {means} on average, clear of zero in {len(clear)} of {len(about)} comparisons")
        else:
            parts.append(f"{measure}: nothing that is clear of zero in {len(about)} comparisons")
    return f"What the optimizer's reset changes, new minus kept: {'; '.join(parts)}."


def _p(value: float | None) -> str:
    return "p not corrected" if value is None else f"McNemar's exact p = {value:.2g} after Holm"


@dataclass(frozen=True)
class Claim:
    """A claim of the original project and what the rows say to it.

    Args:
        claim: In the original's terms.
        verdict: Holds, does not hold, or what else can be said.
        evidence: The numbers behind the verdict.
    """

    claim: str
    verdict: str
    evidence: str


def claims(results: Results, tests: list[FactorTest]) -> list[Claim]:
    """The original's claims that the design can judge."""
    found = []

    def count(cells: list[Cell], outcome: str = "exact") -> tuple[int, int]:
        outcomes = [run for cell in cells for run in results.by_cell[cell].values()]
        return sum(run[outcome] for run in outcomes), len(outcomes)

    original = [cell for cell in results.study.cells if cell.vocabulary == "resorted"]
    staged = [cell for cell in original if (cell.optimizer, cell.weights) == ("new", "carried")]
    for cell in staged:
        k, n = count([cell])
        found.append(
            Claim(
                f"{schedule_name(cell.schedule)} with everything rebuilt reproduces the sentence",
                "holds" if k == n > 0 else "does not hold throughout",
                f"exact in {k} of {n} runs",
            )
        )
    single = [cell for cell in original if not cell.staged]
    if single:
        k, n = count(single)
        m, _ = count(single, "exact_in_training_vocabulary")
        found.append(
            Claim(
                "one stage, however long, does not",
                "holds, as it is read back" if k == 0 < n else "does not hold throughout",
                f"exact in {k} of {n} runs; with the vocabulary of training the same weights are exact in {m}",
            )
        )
    for claim, factor in (
        ("re-initialising the optimizer is a key factor", "the optimizer at the boundary"),
        ("the first stage is essential: it gives the next one better weights", "the weights at the boundary"),
    ):
        about = [test for test in tests if test.factor == factor]
        if about:
            found.append(
                Claim(
                    claim,
                    "holds" if any(test.decisive for test in about) else "no effect on exactness established",
                    "; ".join(
                        f"{test.within}: {test.levels[0]} {test.exact[0]}/{test.n}, "
                        f"{test.levels[1]} {test.exact[1]}/{test.n}, p = {test.p:.2g}"
                        for test in about
                    ),
                )
            )
    return found
