"""A referee's pass: every cell and every p-value of the released reports, derived from the rows by other code."""

import json
import re

import numpy as np
import pytest
from scipy import stats
from scipy.special import comb

from .tiny import ROOT

REPORTS = ("riddle", "riddle/full", "reset", "dose", "tuned", "many", "many/again", "frontier")
EPOCHS = ("epochs of the last stage to exactness", "epochs to exactness")
FIELDS = {
    "final loss, dropout off (nats)": "final_loss_dropout_off",
    "final loss, dropout on (nats)": "final_loss_dropout_on",
    "first update of the last stage (norm)": "first_update_norm",
    EPOCHS[0]: "epochs_to_exact",
    EPOCHS[1]: "epochs_of_run_to_exact",
}


def released(name):
    """The rows, and for each section of the report the lines of its table."""
    folder = ROOT / "checkpoints" / name
    settings = json.loads((folder / "settings.json").read_bytes())
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_bytes().splitlines()]
    for row in rows:
        lengths = [stage["epochs"] for stage in settings[row["settings"]]["settings"]["stages"]]
        row["ends"] = dict(zip(EPOCHS, (lengths[-1], sum(lengths)), strict=True))
        row["levels"] = {key.removeprefix("level."): row[key] for key in row if key.startswith("level.")}
        row["levels"]["the number of stages"] = "one" if len(lengths) == 1 else "several"
    sections = re.split(r"^## ", (folder / "report.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    tables = {}
    for section in sections[1:]:
        lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
        tables[section.partition("\n")[0]] = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    return rows, tables


def strata_of(rows, line):
    """Seed to its strata, each with the rows of the first level and those of the second."""
    factor, within, levels = line["factor"], line["within"], line["levels"].split(" / ")
    own = factor == "the number of stages"  # a contrast of the riddle, of all runs in a vocabulary
    if own:
        within = {"ids kept": "vocabulary stable"}.get(within, "vocabulary resorted")
    names = {name for row in rows for name in row["levels"]} - {"the number of stages"}
    part = next(((name, within[len(name) + 1 :]) for name in names if within.startswith(f"{name} ")), ("", ""))
    chosen = [row for row in rows if row["levels"].get(part[0], part[1]) == part[1]]
    chosen = [row for row in chosen if row["levels"].get(factor) in levels and row["levels"].keys() & names]
    common = [n for n in sorted(names - {factor}) if not own and all(n in row["levels"] for row in chosen)]
    found = {}
    for row in chosen:
        stratum = found.setdefault(row["seed"], {}).setdefault(tuple(row["levels"][n] for n in common), ([], []))
        stratum[levels.index(row["levels"][factor])].append(row)
    return {seed: [s for s in strata.values() if all(s)] for seed, strata in found.items()}


def flip(differences):
    """Two-sided p-value of a mean over all signs of the differences."""
    values = np.array([value for value in differences if value])
    if len(values) > 20:
        return 2 * stats.norm.sf(abs(values.sum()) / np.sqrt((values**2).sum()))
    if abs(values.sum()) == abs(values).sum():
        return 2 / 2 ** max(1, len(values))
    signs = 1 - 2 * ((np.arange(2 ** (len(values) - 1))[:, None] >> np.arange(len(values))) & 1)
    return float(np.mean(abs(signs @ values) >= abs(values.sum()) * (1 - 1e-9)))


def exactness(strata):
    """The p-value, and whether any labels could give another one."""
    counts = {key: [[[row["exact"] for row in side] for side in s] for s in seed] for key, seed in strata.items()}
    differences = [sum(np.mean(a) - np.mean(b) for a, b in seed) for seed in counts.values()]
    informative = any(len({*a, *b}) > 1 for seed in counts.values() for a, b in seed)
    null, observed, centre = np.ones(1), 0, 0.0
    for seed in counts.values():
        observed += sum(sum(a) for a, _ in seed)
        if {(len(a), len(b)) for a, b in seed} == {(1, 1)}:  # labels are exchanged in all strata together
            first, second = (sum(side[0] for side in sides) for sides in zip(*seed, strict=True))
            draws = np.bincount([first, second], minlength=2) / 2
        else:
            [(a, b)] = seed
            exact = sum(a) + sum(b)
            ways = comb(exact, drawn := np.arange(len(a) + 1)) * comb(len(a) + len(b) - exact, len(a) - drawn)
            draws = ways / ways.sum()
        centre += draws @ np.arange(len(draws))
        null = np.convolve(null, draws)
    far = abs(np.arange(len(null)) - centre) >= abs(observed - centre) - 1e-9
    return max(flip(differences), min(1, null[far].sum())), informative


def numbers(strata, measure):
    """The same for a number, on the scale of its test."""
    scale = {}
    for stratum in zip(*strata.values(), strict=True):  # the matched cells of all seeds
        rows = [row for sides in stratum for side in sides for row in side]
        values = [row.get(FIELDS[measure]) for row in rows]
        if measure in EPOCHS:
            end = min(row["ends"][measure] for row in rows)
            events = np.array([value is not None and value <= end for value in values])
            times = np.array([value if event else end for value, event in zip(values, events, strict=True)])
            distinct, place = np.unique(times, return_inverse=True)
            hazard = [(events & (times == time)).sum() / (times >= time).sum() for time in distinct]
            values = events - np.cumsum(hazard)[place]
        else:
            values = [None if value is None else np.log10(max(value, 1e-12)) for value in values]
        scale |= {id(row): value for row, value in zip(rows, values, strict=True)}
    differences = [
        np.mean([np.mean([scale[id(r)] for r in a]) - np.mean([scale[id(r)] for r in b]) for a, b in seed])
        for seed in strata.values()
        if all(scale[id(row)] is not None for sides in seed for side in sides for row in side)
    ]
    return flip(differences), any(differences)


def shown(p):
    return "< 1e-10" if p < 1e-10 else f"{p:.2g}"


@pytest.mark.parametrize("name", REPORTS)
def test_every_cell(name):
    rows, tables = released(name)
    assert tables["Cells"]
    for line in tables["Cells"]:
        here = [row for row in rows if row["cell"] == line["cell"]]
        k, n = sum(row["exact"] for row in here), len(here)
        interval = stats.binomtest(k, n).proportion_ci(method="exact")
        assert (line["n"], line["exact"]) == (str(n), f"{k}/{n}")
        assert line["95 % interval"] == f"{interval.low:.3f}–{interval.high:.3f}"
        for column, field in (
            ("final loss, dropout off", "final_loss_dropout_off"),
            ("error rate of the generated text", "generated_char_error_rate"),
        ):
            values = [row[field] for row in here if row[field] is not None]
            assert re.split(r" \(|;", line[column])[0] == f"{np.median(values):.4g}"


@pytest.mark.parametrize("name", [*REPORTS[:-1], pytest.param(REPORTS[-1], marks=pytest.mark.slow)])
def test_every_p_value(name):
    rows, tables = released(name)
    for title, lines in tables.items():
        if not title.startswith(("Which factor matters", "What else differs")):
            continue
        found = []
        for line in lines:
            strata, measure = strata_of(rows, line), line["measure"]
            found.append(exactness(strata) if measure == "exactness" else numbers(strata, measure))
            assert line["p"] == shown(found[-1][0]), line
        ranked = sorted(p for p, informative in found if informative)
        adjusted = np.maximum.accumulate([min(1, p * (len(ranked) - i)) for i, p in enumerate(ranked)])
        for line, (p, informative) in zip(lines, found, strict=True):
            assert line["p (Holm)"] == shown(adjusted[ranked.index(p)] if informative else 1), line
