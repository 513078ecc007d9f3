"""A referee's pass: the numbers of README and reports, derived again from the released rows without the package."""

import hashlib
import json
import math
from itertools import product
from statistics import median

import numpy as np
import pytest
from scipy import stats

from .tiny import ROOT

README = (ROOT / "tinygpt_lightning" / "study" / "README.md").read_text(encoding="utf-8")


def rows_of(name):
    folder = ROOT / "checkpoints" / name
    return [json.loads(line) for line in (folder / "rows.jsonl").read_bytes().splitlines()]


def report_of(name):
    return (ROOT / "checkpoints" / name / "report.md").read_text(encoding="utf-8")


def select(rows, **levels):
    return [row for row in rows if all(row.get(f"level.{name}") == level for name, level in levels.items())]


# Of the rows before their form changed, with the fields' names of today.
DIGESTS = {
    "riddle": "e20f83f129414b7e",
    "riddle/full": "2b28f3d4dd56bbb7",
    "reset": "7e776a9a7f73dea7",
    "frontier": "32de012deea99c52",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_outcomes_are_those_that_were_computed(name):
    about = ("cell", "seed", "settings", "seconds")
    runs = [
        [
            row["settings"],
            row["seed"],
            {k: value for k, value in row.items() if k not in about and not k.startswith("level.")},
        ]
        for row in rows_of(name)
    ]
    lines = sorted(json.dumps(run, sort_keys=True) for run in runs)
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest().startswith(DIGESTS[name])


def networks(rows):
    return {(row["seed"], row["final_loss_dropout_off"], tuple(row["loss"])) for row in rows}


def test_the_riddle():
    small, large = rows_of("riddle"), rows_of("riddle/full")
    for rows, n, trained in ((small, 280, 200), (large, 240, 180)):
        assert len(rows) == n
        for row in rows:
            right_vocabulary = row["level.vocabulary"] == "stable" or not row["level.schedule"].startswith("1×")
            assert row["exact"] == right_vocabulary
            assert row.get("exact_in_training_vocabulary", row["exact"])
        assert len(networks(rows)) == trained
    assert f"{len(small)} rows are {len(networks(small))} different networks" in README
    failures = [row for row in small if not row["exact"]]
    assert len(failures) == 60
    assert len({(row["seed"], tuple(row["loss"][:30])) for row in failures}) == 20
    shared = {(row["cell"], row["seed"]) for row in small} & {(row["cell"], row["seed"]) for row in large}
    assert len(shared) == 140
    assert len(networks([*small, *large])) == 280
    # 20 of 20 against 0 of 20 in one pair of cells; six tests of this family can reject.
    assert stats.binomtest(0, 20).pvalue == pytest.approx(2 / 2**20)
    assert (
        "| vocabulary | schedule 1×30 | exactness | stable / resorted | 20/20 / 0/20 | +100 % | 20 | 1.9e-06 |"
        in report_of("riddle")
    )


def test_the_reset():
    rows = rows_of("reset")

    def losses(*levels, cell=None):
        chosen = (
            [row for row in rows if row["cell"] == cell]
            if cell
            else select(rows, **dict(zip(("exp_avg", "exp_avg_sq", "step"), levels, strict=True)))
        )
        assert len(chosen) == 20
        return {row["seed"]: row["final_loss_dropout_off"] for row in chosen}

    kept, new = losses("kept", "kept", "kept"), losses("new", "new", "new")
    assert f"{median(kept.values()):.2g}" == "0.00021"
    assert f"{median(new.values()):.2g}" == "1.7e-06"
    assert f"{median(losses('new', 'new', 'kept').values()):.2g}" == "1.2e-06"
    assert round(median(kept.values()) / median(new.values()), -1) == 120
    larger = losses(cell="everything kept, larger steps")
    share = [math.log(kept[s] / larger[s]) / math.log(kept[s] / new[s]) for s in kept]
    assert f"Step size alone explains {100 * sum(share) / 20:.0f} %" in report_of("reset")
    # The sign-flip test by scipy, over all 2^20 signs of the differences: exact where all have one sign.
    differences = [math.log(kept[s]) - math.log(new[s]) for s in kept]
    assert stats.wilcoxon(differences, method="exact").pvalue == pytest.approx(2 / 2**20)


def test_the_frontier():
    rows = rows_of("frontier")
    assert len(rows) == 26_000
    exact = {}
    for row in rows:
        key = (row.get("level.size"), row.get("level.steps"))
        exact[key] = exact.get(key, 0) + row["exact"]
    assert exact["width 2", "2000"] == 1000
    assert exact["width 3", "250"] == 1000
    assert exact[None, None] == 0  # both controls
    low = stats.binomtest(1000, 1000).proportion_ci(method="exact").low
    assert f"exact in 1000 of 1000 seeds (95 % interval {100 * low:.1f}–100.0 %)" in report_of("frontier")
    at_500 = [row for row in rows if row.get("level.size") == "width 2" and row.get("level.steps") == "500"]
    lost = sum(row["epochs_to_exact"] is not None and not row["exact"] for row in at_500)
    assert f"; {sum(row['epochs_to_exact'] is None for row in at_500)} never, {lost} lost it again |" in report_of(
        "frontier"
    )


def test_the_tuned_rates():
    rows = rows_of("tuned")
    assert len(rows) == 60
    losses = {
        training: {row["seed"]: row["final_loss_dropout_off"] for row in select(rows, training=training)}
        for training in ("reset after 30", "constant rate", "cosine to 0")
    }
    assert [f"{median(by_seed.values()):.2g}" for by_seed in losses.values()] == ["0.00014", "0.00026", "0.00013"]
    reset, constant, _ = losses.values()
    differences = np.array([math.log(reset[seed] / constant[seed]) for seed in range(20)])
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    )
    assert test.pvalue == pytest.approx(0.085, abs=0.01)  # 0.17 after Holm


def test_the_dose():
    rows = [row for row in rows_of("dose") if row["level.last stage"] == "30 epochs"]
    medians = {
        (weights, optimizer): median(
            row["epochs_to_exact"] for row in select(rows, weights=weights, optimizer=optimizer)
        )
        for weights, optimizer in product(("carried", "redrawn"), ("new", "kept"))
    }
    assert list(medians.values()) == [11, 12, 7, 10]
    assert (
        "needs 11 epochs with a new optimizer and 12 with the old one; with weights redrawn it needs 7 and 10" in README
    )
    epochs = {
        key: {r["seed"]: r["epochs_to_exact"] for r in select(rows, weights=key[0], optimizer=key[1])}
        for key in medians
    }
    differences = [epochs["carried", "new"][s] - epochs["redrawn", "new"][s] for s in range(20)]
    assert min(differences) > 0  # all on one side: the smallest p-value of 20 seeds
    assert "| carried / redrawn | 11 / 7 | – | 20 | 1.9e-06 |" in report_of("dose")


def test_many_pairs():
    rows = rows_of("many")
    medians, better, misses = {}, [0, 0], 0
    for pairs in dict.fromkeys(row["level.pairs"] for row in rows):
        epochs = [
            {
                row["seed"]: row["epochs_of_run_to_exact"] or math.inf
                for row in select(rows, pairs=pairs, optimizer=level)
            }
            for level in ("kept", "new")
        ]
        middle = [sorted(by_seed.values())[4] for by_seed in epochs]  # of ten seeds half are exact by then
        medians[pairs] = ["more than 250" if value == math.inf else str(value) for value in middle]
        if pairs == "1":
            assert epochs[0] == epochs[1]
            assert max(epochs[0].values()) <= 10  # before the first reset
            continue
        better[0] += sum(kept < epochs[1][seed] for seed, kept in epochs[0].items())
        better[1] += sum(kept > epochs[1][seed] for seed, kept in epochs[0].items())
        misses += list(epochs[0].values()).count(math.inf)
    for pairs, (kept, new) in medians.items():
        assert f"| {pairs.replace(' in', ', in')} | {kept} | {new} |" in README
    assert f"in {better[0]} of the 40 comparisons of a seed, and saves some in {better[1]}:" in README
    assert f"misses {misses} of these 40 runs" in README
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    (kept, new), (kept_50, new_50) = medians["10"], medians["50"]
    assert f"10 pairs take {new} epochs with resets and {kept} without, 50 pairs {new_50} and {kept_50}" in front
    assert "makes no established difference with 1, 10, 50, 50 in batches of 10 and 200 in" in report_of("many")
    assert len(rows) == 100
    # A tuning of its own, on seeds that are not reported.
    assert {row["seed"] for index in range(3) for row in rows_of(f"many/tuning/{index}")} == {100, 101}
    assert {row["seed"] for row in rows} == set(range(10))


def test_the_hypothesis_of_many_pairs_on_new_seeds():
    rows = rows_of("many/again")
    seeds = sorted({row["seed"] for row in rows})
    seen = {row["seed"] for name in ("many", *(f"many/tuning/{i}" for i in range(3))) for row in rows_of(name)}
    assert (len(rows), seeds, seen & {*seeds}) == (60, list(range(10, 20)), set())
    differences, better = np.zeros(len(seeds)), [0, 0]
    for pairs in ("10", "50", "50 in batches of 10"):
        arms = [
            {row["seed"]: row["epochs_of_run_to_exact"] for row in select(rows, pairs=pairs, optimizer=level)}
            for level in ("kept", "new")
        ]
        epochs = [arm[seed] for arm in arms for seed in seeds]
        times, events = np.array([250 if e is None else e for e in epochs]), np.array([e is not None for e in epochs])
        hazard = [(events & (times == time)).sum() / max(1, (times >= time).sum()) for time in range(251)]
        scores = events - np.cumsum(hazard)[times]  # of the log-rank test
        differences += scores[: len(seeds)] - scores[len(seeds) :]
        kept, new = np.split(np.where(events, times, np.inf), 2)
        better[0] += (kept < new).sum()
        better[1] += (kept > new).sum()
    test = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert differences.mean() > 0  # a kept optimizer is exact sooner
    line = f"| optimizer | all runs | epochs to exactness | kept / new | 77 / 99 | – | 10 | {test.pvalue:.2g} |"
    assert line in report_of("many/again")
    words = f"in {better[0]} of the 30 comparisons of a seed, and saves some in {better[1]} (p = {test.pvalue:.1g} for"
    assert words in README
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"({better[0]} of 30 comparisons of a seed, p = {test.pvalue:.1g}; [report]" in front
