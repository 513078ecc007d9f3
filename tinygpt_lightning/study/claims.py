"""The text of a report: its opening paragraph, tables and numbers. A study with claims of its own has a subclass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from matplotlib.figure import Figure

from tinygpt_lightning.study.figures import CURVES, curve_figure, exactness_figure
from tinygpt_lightning.study.findings import Contrast, corrected, effects, factor_contrasts
from tinygpt_lightning.study.rows import Results


class Claims:
    """The statements about a study that follow from its design alone.

    Args:
        results: The outcomes.

    Attributes:
        contrasts: All tests on exactness, corrected together.
        effects: All comparisons of numbers.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.contrasts = corrected([*factor_contrasts(results), *self.own_contrasts()])
        self.effects = effects(results)

    def own_contrasts(self) -> list[Contrast]:
        """More tests, beside those of each factor."""
        return []

    def varying(self, setting: str) -> list[str]:
        """Names of the factors that vary a setting whose path ends with ``setting``."""
        return [
            factor.name for factor in self.results.study.factors if any(path.endswith(setting) for path in factor.paths)
        ]

    def shortcoming(self) -> str | None:
        """Why the report gives no answer; None if it gives one."""
        if not (reason := self.gap()) and not any(contrast.decisive for contrast in self.contrasts):
            return f"{len(self.results.seeds)} seeds establish no effect on exactness"
        return reason

    def gap(self) -> str | None:
        """What is wrong with the runs; None if nothing is."""
        if self.results.missing:
            return "not all runs are there"
        if self.results.diverged:
            return f"{self.results.diverged} of {len(self.results.runs)} runs diverged"
        return None

    @property
    def established(self) -> list[str]:
        """Names of the factors whose effect on exactness is significant after the correction."""
        return list(dict.fromkeys(contrast.factor for contrast in self.contrasts if contrast.decisive))

    def sentences(self) -> list[str]:
        """The opening paragraph, at most five sentences: the answer, its evidence, and remarks."""
        return [*self.headline(), *self.evidence(), *self.remarks()]

    def headline(self) -> list[str]:
        """The answer."""
        if not self.established:
            return [f"**With {len(self.results.seeds)} seeds no factor's effect on exactness is established.**"]
        return [f"**What decides is {listed(self.established)}.**"]

    def evidence(self) -> list[str]:
        """The test with the smallest p-value, if it is significant."""
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
        """Factors without an effect on exactness, and effects on other measures."""
        return [*self.without_effect(), *self.effects_sentence()]

    def without_effect(self) -> list[str]:
        """Factors without an established effect, if there are any."""
        contrasts = [contrast for contrast in self.contrasts if contrast.factor not in self.established]
        if not contrasts:
            return []
        factors = listed(list(dict.fromkeys(contrast.factor for contrast in contrasts)))
        differing = max(contrast.differing for contrast in contrasts)
        seeds = f"{differing} of {len(self.results.seeds)} seeds at most" if differing else "no seed"
        return [f"No effect of {factors} on exactness is established: it makes a difference in {seeds}."]

    def effects_sentence(self) -> list[str]:
        """The measures on which the factors have an effect, if there are any."""
        clear: dict[str, dict[str, None]] = {}  # in the order in which they come
        for effect in self.effects:
            if effect.clear:
                clear.setdefault(effect.measure, {})[effect.factor] = None
        parts = [f"{measure} with {listed(list(factors))}" for measure, factors in clear.items()]
        return [f"What differs clearly, everything else being equal: {'; '.join(parts)}."] if parts else []

    def sections(self) -> list[str]:
        """More sections of the report, in Markdown, before the tables that every report has."""
        return []

    def figures(self) -> dict[str, Figure]:
        """The figures, by the name of their file."""
        measured = {name for _, _, outcome in self.results.runs for name in CURVES if name in outcome}
        curves = {name: curve_figure(self.results, name) for name in CURVES if name in measured}
        return {"exactness": exactness_figure(self.results), **curves} if self.results.runs else {}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["cell", "n"], [["1×30", "20"]]))
    | cell | n |
    |---|---|
    | 1×30 | 20 |
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def listed(words: Sequence[str]) -> str:
    """Words with commas and an "and", as in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def shown(value: float | None) -> str:
    """A number with four digits; a dash for None.

    >>> shown(0.0012345), shown(237.0), shown(None)
    ('0.001234', '237', '–')
    """
    return "–" if value is None else f"{value:.4g}"


def spread(values: Iterable[float | None]) -> str:
    """Median and range, and the number of missing values if there are any.

    >>> spread([1, 2, 6]), spread([2, 2]), spread([None, 1.23456]), spread([])
    ('2 (1–6)', '2', '1.235; 1 missing', '–')
    """
    values = list(values)
    known = [value for value in values if value is not None]
    missing = f"{len(values) - len(known)} missing" if len(known) < len(values) else ""
    if not known:
        return missing or "–"
    middle, low, high = (shown(value) for value in (median(known), min(known), max(known)))
    return (middle if low == high else f"{middle} ({low}–{high})") + (f"; {missing}" if missing else "")
