"""The report: the answer, the tables and the pictures, as files and in TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from tinygpt_lightning.gpt.tokenizer import PAD, UNK
from tinygpt_lightning.study.design import Study
from tinygpt_lightning.study.figures import cipher_figure, exactness_figure, example, loss_figure, symbols
from tinygpt_lightning.study.findings import (
    SIGNIFICANCE,
    FactorTest,
    Results,
    answer,
    claims,
    factor_tests,
    reset_effects,
)
from tinygpt_lightning.study.rows import Row
from tinygpt_lightning.study.sharing import Outcome
from tinygpt_lightning.study.statistics import clopper_pearson


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["cell", "n"], [["1×30", "20"]]))
    | cell | n |
    |---|---|
    | 1×30 | 20 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|---" * len(line) + "|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def spread(values: Iterable[float | None]) -> str:
    """Median and range, with the number of missing values if there are any.

    >>> spread([1, 2, 6]), spread([2, 2]), spread([None, 1.23456]), spread([])
    ('2 (1–6)', '2', '1.235; 1 missing', '–')
    """
    values = list(values)
    known = [value for value in values if value is not None]
    missing = f"{len(values) - len(known)} missing" if len(known) < len(values) else ""
    if not known:
        return missing or "–"
    middle, low, high = (f"{value:.4g}" for value in (median(known), min(known), max(known)))
    return (middle if low == high else f"{middle} ({low}–{high})") + (f"; {missing}" if missing else "")


def cell_table(results: Results) -> str:
    """One line for each cell; it depends on what came out and on nothing else."""
    header = [
        "cell", "n", "exact", "95 % interval", "exact in training vocabulary", "character error rate",
        "first loss of the last stage", "epochs to exactness", "final loss, dropout off", "final loss, dropout on",
    ]  # fmt: skip
    rows = []
    for cell, by_seed in results.by_cell.items():
        outcomes = list(by_seed.values())
        n, k = len(outcomes), sum(outcome["exact"] for outcome in outcomes)
        trained = sum(outcome["exact_in_training_vocabulary"] for outcome in outcomes)
        low, high = clopper_pearson(k, n) if n else (0.0, 1.0)
        rows.append(
            [
                cell.name, str(n), f"{k}/{n}", f"{low:.3f}–{high:.3f}", f"{trained}/{n}",
                spread(outcome["char_error_rate"] for outcome in outcomes),
                spread(outcome["first_loss_of_stage"][-1] for outcome in outcomes),
                *(
                    spread(outcome[name] for outcome in outcomes)
                    for name in ("epochs_to_exact", "final_loss_dropout_off", "final_loss_dropout_on")
                ),
            ]
        )  # fmt: skip
    return table(header, rows)


def factor_table(results: Results) -> str:
    """One line for each test of a factor."""
    rows = [
        [
            test.factor, test.within, f"{test.levels[0]} / {test.levels[1]}",
            f"{test.exact[0]}/{test.n} / {test.exact[1]}/{test.n}", f"{test.only[0]} / {test.only[1]}",
            f"{test.p:.3g}", f"{test.p_holm:.3g}",
        ]
        for test in factor_tests(results)
    ]  # fmt: skip
    return table(["factor", "within", "levels", "seeds exact", "seeds exact at one only", "p", "p (Holm)"], rows)


def effect_table(results: Results) -> str:
    """One line for each interval of the optimizer reset's effect."""
    rows = []
    for effect in reset_effects(results):
        mean = "–" if effect.mean is None else f"{effect.mean:+.3g}"
        interval = "–" if effect.interval is None else f"{effect.interval.low:+.3g} to {effect.interval.high:+.3g}"
        rows.append([effect.where, effect.measure, str(effect.n), str(effect.left_out), mean, interval])
    return table(["cells", "measure", "pairs", "left out", "new − kept, mean", "95 % interval"], rows)


def cipher(outcome: Outcome, text: str) -> str:
    """Both readings below the sentence, one place for each symbol: □ is the padding, ■ the unknown."""
    marks = {PAD: "□", UNK: "■", "\n": "⏎"}
    readings = [
        ("the sentence", text),
        ("vocabulary of training", outcome["text_in_training_vocabulary"]),
        ("as read back", outcome["text"]),
    ]
    lines = [
        f"{name:22}  {''.join(marks.get(symbol, symbol) for symbol in symbols(reading))}" for name, reading in readings
    ]
    return "\n".join(["```", *lines, "```"])


def title(results: Results, tests: Sequence[FactorTest]) -> str:
    """What the report may call itself: an answer only if it is one."""
    if results.missing:
        return "The riddle: not all runs are there"
    if results.diverged:
        return f"The riddle, not answered: {results.diverged} of {len(results.runs)} runs diverged"
    if not any(test.decisive for test in tests):
        return f"The riddle, not answered: {len(results.study.seed_list)} seeds establish no effect"
    return "The riddle, answered"


def write(study: Study, rows: list[Row], folder: Path, command: str) -> str:
    """Write report.md, the figures and the TensorBoard events into ``folder``.

    Args:
        study: Its settings.
        rows: All that were made.
        folder: Where to write; the last report in it is replaced.
        command: What makes it again.

    Returns:
        The answer, in one paragraph.
    """
    results = Results(study, rows)
    tests, effects = factor_tests(results), reset_effects(results)
    paragraph = answer(results, tests, effects)
    shown = example(results)
    figures = {"exactness": exactness_figure(results), "loss": loss_figure(results)} if shown else {}
    sections = [
        f"# {title(results, tests)}",
        paragraph,
        f"Made by `{command}`: {len(study.cells)} cells × {len(study.seed_list)} seeds; "
        f"{len(results.runs)} runs, {results.missing} missing.",
        "## Cells",
        "![Exact reproduction by cell](exactness.png)",
        cell_table(results),
        "Median (smallest–largest) over the seeds. *Exact*: greedy decoding from the prompt, with the vocabulary as "
        "it is read back, gives the whole sentence; *in training vocabulary*: the same weights, read with the "
        "vocabulary of their last stage. *Character error rate*: edits per character of the sentence, of the text as "
        "printed. *Epochs to exactness* count from the start of the last stage to the first "
        "epoch after which, dropout off, every character of the answer is the likeliest one given those before it. "
        "Losses are mean cross-entropies of the next character, in nats, in the vocabulary of training. Intervals "
        "are Clopper–Pearson's exact ones.",
        "## Which factor matters",
        factor_table(results),
        "McNemar's exact test, two-sided, paired by seed: a seed is a success at a level if *all* its runs at that "
        f"level are exact. All {len(tests)} p-values are corrected together after Holm; "
        f"below {SIGNIFICANCE} an effect counts as established. Runs of a seed that differ in one factor share "
        "their first weights and their dropout, so nothing else tells them apart.",
    ]
    if effects:
        sections += [
            "## What the optimizer's reset changes",
            effect_table(results),
            "Paired by seed; percentile bootstrap of the mean, 10,000 resamples, fixed seed. Each interval stands "
            "for itself, without a correction for their number. Pairs that lack the measure are left out and counted.",
        ]
    sections += [
        "## What holds of the original's findings",
        table(["claim", "verdict", "evidence"], [[c.claim, c.verdict, c.evidence] for c in claims(results, tests)]),
    ]
    if shown:
        cell, seed = shown
        figures["cipher"] = cipher_figure(results, cell, seed)
        sections += [
            "## The loss",
            "![Loss by epoch](loss.png)",
            "## What the network said",
            f"{cell.name}, seed {seed}: one set of weights, read with two vocabularies.",
            "![The cipher](cipher.png)",
            cipher(results.by_cell[cell][seed], study.text),
        ]
    sections += ["## How it was made", _provenance(rows)]
    report = "\n\n".join(sections) + "\n"
    (folder / "report.md").write_text(report, encoding="utf-8")
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
    with SummaryWriter(str(folder)) as board:
        # Without the pictures' links, which lead nowhere there; the pictures follow.
        board.add_text("report", re.sub(r"!\[[^]]*\]\([^)]*\)\n\n", "", report))
        for name, figure in figures.items():
            board.add_figure(name, figure)
        for cell, by_seed in results.by_cell.items():
            curves = np.array([outcome["loss"] for outcome in by_seed.values()], dtype=float)
            if len(curves):
                for epoch, loss in enumerate(np.median(curves, axis=0), start=1):
                    board.add_scalar(f"median train loss/{cell.name}", loss, epoch)
    return paragraph


def _provenance(rows: list[Row]) -> str:
    seconds = timedelta(seconds=round(sum(row["seconds"] for row in rows)))
    engines = {", ".join(f"{name} {value}" for name, value in row["engine"].items()) for row in rows}
    versions = {", ".join(f"{name} {value}" for name, value in row["versions"].items()) for row in rows}
    return "\n".join(
        [f"- {text}" for text in sorted(versions) + sorted(engines)]
        + [f"- {seconds} of computing, if no run had shared its beginning with another's"]
    )
