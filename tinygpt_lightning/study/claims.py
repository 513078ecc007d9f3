"""What the report of any study says; a study with claims of its own has a subclass."""

from __future__ import annotations

from matplotlib.figure import Figure

from tinygpt_lightning.study.figures import CURVES, curve_figure, exactness_figure
from tinygpt_lightning.study.findings import Contrast, corrected, effects, factor_contrasts
from tinygpt_lightning.study.markdown import listed
from tinygpt_lightning.study.results import Results


class Claims:
    """What can be said of a study of which only the design is known.

    Args:
        results: What came out.

    Attributes:
        contrasts: Every test on exactness, corrected together.
        effects: Every comparison of numbers.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.contrasts = corrected([*factor_contrasts(results), *self.own_contrasts()])
        self.effects = effects(results)

    def own_contrasts(self) -> list[Contrast]:
        """Tests beside those of each factor."""
        return []

    def varying(self, setting: str) -> list[str]:
        """Factors that vary a setting of this name."""
        return [
            factor.name
            for factor in self.results.study.factors
            if any(path.endswith(setting) for patch in factor.levels.values() for path in patch)
        ]

    def shortcoming(self) -> str | None:
        """Why the report is no answer; null if it is one."""
        if not (reason := self.gap()) and not any(contrast.decisive for contrast in self.contrasts):
            return f"{len(self.results.seeds)} seeds establish no effect on exactness"
        return reason

    def gap(self) -> str | None:
        """What is wrong with the runs themselves; null if nothing is."""
        if self.results.missing:
            return "not all runs are there"
        if self.results.diverged:
            return f"{self.results.diverged} of {len(self.results.runs)} runs diverged"
        return None

    @property
    def established(self) -> list[str]:
        """Factors whose effect on exactness stands after the correction."""
        return list(dict.fromkeys(contrast.factor for contrast in self.contrasts if contrast.decisive))

    def sentences(self) -> list[str]:
        """The opening paragraph: what it is, by which evidence, and what else is to be said; five at most."""
        return [*self.headline(), *self.evidence(), *self.remarks()]

    def headline(self) -> list[str]:
        """What decides."""
        if not self.established:
            return [f"**With {len(self.results.seeds)} seeds no factor's effect on exactness is established.**"]
        return [f"**What decides is {listed(self.established)}.**"]

    def evidence(self) -> list[str]:
        """The test with the smallest p-value, if it establishes anything."""
        if not self.established:
            return []
        best = min(self.contrasts, key=lambda contrast: contrast.p)
        first, *others = (f"{level} in {k}" for level, k in zip(best.levels, best.exact, strict=True))
        counts = listed([f"{first} of {best.n} seeds", *others])
        return [
            f"The sentence is exact with {best.factor} {counts} ({best.within}; {best.test}, p = {best.p_holm:.2g} "
            "after Holm)."
        ]

    def remarks(self) -> list[str]:
        """What has no effect on exactness, and what has one on something else."""
        return [*self.without_effect(), *self.effects_sentence()]

    def without_effect(self) -> list[str]:
        """Factors that decide nothing, if there are any."""
        contrasts = [contrast for contrast in self.contrasts if contrast.factor not in self.established]
        if not contrasts:
            return []
        factors = listed(list(dict.fromkeys(contrast.factor for contrast in contrasts)))
        differing = max(contrast.differing for contrast in contrasts)
        seeds = f"{differing} of {len(self.results.seeds)} seeds at most" if differing else "no seed"
        return [f"No effect of {factors} on exactness is established: it makes a difference in {seeds}."]

    def effects_sentence(self) -> list[str]:
        """On which numbers the factors have an effect, if on any."""
        clear: dict[str, dict[str, None]] = {}  # in the order in which they come
        for effect in self.effects:
            if effect.clear:
                clear.setdefault(effect.measure, {})[effect.factor] = None
        parts = [f"{measure} with {listed(list(factors))}" for measure, factors in clear.items()]
        return [f"What differs clearly, everything else being equal: {'; '.join(parts)}."] if parts else []

    def sections(self) -> list[str]:
        """More of the report, in Markdown, after the tables that every report has."""
        return []

    def figures(self) -> dict[str, Figure]:
        """Its pictures, by the name of their file."""
        measured = {name for _, _, outcome in self.results.runs for name in CURVES if name in outcome}
        curves = {name: curve_figure(self.results, name) for name in CURVES if name in measured}
        return {"exactness": exactness_figure(self.results), **curves} if self.results.runs else {}
