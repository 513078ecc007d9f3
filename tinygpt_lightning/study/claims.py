"""The text of a report: its opening paragraph, tables and numbers. A study with claims of its own has a subclass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from matplotlib.figure import Figure

from tinygpt_lightning.study.figures import CURVES, curve_figure, exactness_figure
from tinygpt_lightning.study.findings import SIGNIFICANCE, Comparison, families, shown_p
from tinygpt_lightning.study.outcome import Outcome, as_trained
from tinygpt_lightning.study.rows import Results

TO_EXACTNESS = "the epochs to exactness"
NAMES = {"exactness": "exactness", "loss": "the final loss", "epochs": TO_EXACTNESS, "epochs_of_run": TO_EXACTNESS}


class Claims:
    """The statements about a study that follow from its design alone.

    Attributes:
        primary: The comparisons that answer the question of the study, corrected together.
        secondary: All others, corrected together.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.primary, self.secondary = families(results, self.own_contrasts())

    def own_contrasts(self) -> list[Comparison]:
        """More comparisons on exactness, beside those of each factor."""
        return []

    @property
    def outcome(self) -> str:
        """Name of the outcome that the study is about."""
        return NAMES[self.results.study.plan.outcome]

    @property
    def established(self) -> list[str]:
        """Names of the factors whose effect on the outcome is significant after the correction."""
        return list(dict.fromkeys(each.factor for each in self.primary if each.established))

    def cannot_tell(self, family: Sequence[Comparison]) -> bool:
        """Whether so few seeds cannot make any difference between two matched cells significant."""
        tests = sum(each.informative for each in family)
        least_p: float = 2 / 2 ** len(self.results.seeds)
        return least_p * max(1, tests) >= SIGNIFICANCE

    def varying(self, setting: str) -> list[str]:
        """Names of the factors that vary a setting whose path ends with ``setting``."""
        factors = self.results.study.factors
        return [factor.name for factor in factors if any(path.endswith(setting) for path in factor.paths)]

    def shortcoming(self) -> str | None:
        """Why the report gives no answer; None if it gives one."""
        if (reason := self.gap()) or self.established:
            return reason
        verb = "cannot establish an" if self.cannot_tell(self.primary) else "establish no"
        return f"{len(self.results.seeds)} seeds {verb} effect on {self.outcome}"

    def gap(self) -> str | None:
        """What is wrong with the runs; None if nothing is."""
        if self.results.missing:
            return "not all runs are there"
        if self.results.diverged:
            return f"{self.results.diverged} of {len(self.results.runs)} runs diverged"
        return None

    def sentences(self) -> list[str]:
        """The opening paragraph, at most five sentences: the answer, its evidence, and remarks."""
        return [*self.headline(), *self.evidence(), *self.remarks()]

    def headline(self) -> list[str]:
        """The answer."""
        if not self.established:
            return [f"**With {len(self.results.seeds)} seeds no factor's effect on {self.outcome} is established.**"]
        return [f"**What decides on {self.outcome} is {listed(self.established)}.**"]

    def evidence(self) -> list[str]:
        """The comparison with the smallest p-value, if it is significant."""
        if not self.established:
            return []
        best = min((each for each in self.primary if each.established), key=lambda each: each.p)
        said = f"{best.factor} {best.levels[0]} gives {best.shown[0]}, {best.levels[1]} {best.shown[1]}"
        what = "Runs that are exact" if best.measure is None else f"Median of the {best.measure}"
        return [f"{what}: {said} ({best.within}; p {shown_p(best.p_holm or 0)} after Holm)."]

    def remarks(self) -> list[str]:
        """Factors without an effect on the outcome, effects on other measures, and what the plan says of its test."""
        stated = ["This is the one hypothesis of the plan, stated before these runs; all other tests are secondary."]
        clear: dict[str, dict[str, None]] = {}  # in the order of the comparisons
        for each in self.secondary:
            if each.established:
                clear.setdefault(each.measure or NAMES["exactness"], {})[each.factor] = None
        parts = [f"{measure} with {listed(list(factors))}" for measure, factors in clear.items()]
        others = [f"Other significant differences: {'; '.join(parts)}."] if parts else []
        return [*self.without_effect(), *(stated if self.results.study.plan.confirm else []), *others]

    def without_effect(self) -> list[str]:
        """Factors without an established effect on the outcome, if there are any."""
        others = [each for each in self.primary if each.factor not in self.established]
        if not others:
            return []
        factors = listed(list(dict.fromkeys(each.factor for each in others)))
        same = "" if any(each.informative for each in others) else ": no pair of runs differs in it"
        return [f"No effect of {factors} on {self.outcome} is established{same}."]

    def sections(self) -> list[str]:
        """More sections of the report, in Markdown, before the tables that every report has."""
        return []

    def figures(self) -> dict[str, Figure]:
        """The figures, by the name of their file."""
        measured = {name for _, _, outcome in self.results.runs for name in CURVES if name in outcome}
        if any(cell.recipe.trainer.callbacks for cell in self.results.by_cell):
            measured = set()  # one may end a run when it is exact: a median over the seeds is one over the slow ones
        curves = {name: curve_figure(self.results, name) for name in CURVES if name in measured}
        return {"exactness": exactness_figure(self.results), **curves} if self.results.runs else {}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def listed(words: Sequence[str]) -> str:
    """Words with commas and an "and", as in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def shown(value: float | None) -> str:
    """A number with four digits; a dash for None."""
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


def epochs_spread(outcomes: Sequence[Outcome], name: str = "epochs_to_exact") -> str:
    """Kaplan–Meier median and range of the epochs to exactness, and the seeds without it or that lost it again.

    >>> outcomes = [{"epochs_to_exact": epochs, "exact": epochs == 3} for epochs in (3, 5, None)]
    >>> epochs_spread(outcomes)
    '5 (3–5); 1 never, 1 lost it again'
    """
    known = sorted(o[name] for o in outcomes if o.get(name) is not None)
    if not known:
        return "never" if outcomes else "–"
    # All seeds of a cell are censored at the same epoch: half of them are exact by the median.
    half, never = (len(outcomes) - 1) // 2, len(outcomes) - len(known)
    middle = shown(known[half]) if half < len(known) else "never in half of the seeds"
    lost = sum(o.get(name) is not None and not as_trained(o, "exact") for o in outcomes)
    notes = [f"{count} {what}" for count, what in ((never, "never"), (lost, "lost it again")) if count]
    text = middle if known[0] == known[-1] and not never else f"{middle} ({known[0]}–{known[-1]})"
    return "; ".join([text, *([", ".join(notes)] if notes else [])])
