"""The report: the answer, tables and figures, as files and in TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from tinygpt_lightning.description import n_parameters
from tinygpt_lightning.study.claims import NAMES, Claims, epochs_spread, spread, table
from tinygpt_lightning.study.claims_frontier import Frontier
from tinygpt_lightning.study.claims_many import Many
from tinygpt_lightning.study.claims_reset import Reset
from tinygpt_lightning.study.claims_riddle import Riddle
from tinygpt_lightning.study.design import Study
from tinygpt_lightning.study.findings import SIGNIFICANCE, Comparison, shown_p
from tinygpt_lightning.study.outcome import IN_TRAINING, Outcome, as_trained
from tinygpt_lightning.study.rows import Results, Row
from tinygpt_lightning.study.statistics import clopper_pearson

CLAIMS: dict[str | None, type[Claims]] = {
    None: Claims, "riddle": Riddle, "reset": Reset, "frontier": Frontier, "many": Many,
}  # fmt: skip


def write_report(study: Study, rows: list[Row], folder: Path, command: str) -> str:
    """Write report.md, the figures and the TensorBoard events of all ``rows`` in ``folder``, in place of earlier ones.

    The report names the ``command``. Returns its opening paragraph.
    """
    results = Results(study, rows)
    claims = CLAIMS[study.plan.claims](results)
    paragraph = " ".join(claims.sentences())
    figures = claims.figures()
    sections = claims.sections()
    report = "\n\n".join(
        [
            f"# {title(claims, folder.name)}",
            paragraph,
            f"Made by `{command}`: {len(study.cells)} cells × {len(results.seeds)} seeds; "
            f"{len(results.runs)} runs, {results.missing} missing.",
            *tuning_section(claims),
            *(link for link in (f"![{name}]({name}.png)" for name in figures) if link not in sections),
            *sections,
            "## Cells",
            cell_table(results),
            CELLS_EXPLAINED,
            *comparison_section(claims, f"Which factor matters for {claims.outcome}", claims.primary),
            *comparison_section(claims, "What else differs", claims.secondary),
            "## How it was made",
            _provenance(rows),
        ]
    )
    (folder / "report.md").write_text(report + "\n", encoding="utf-8")
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
    _to_tensorboard(results, report, figures, folder)
    return paragraph


def tuning_section(claims: Claims) -> list[str]:
    """The value of the tuned setting that each cell has."""
    study = claims.results.study
    if not (study.plan.tune and study.tuned):
        return []
    setting, seeds = study.plan.tune.setting, study.plan.tune.seeds
    values = table(["cell", setting], [[name, str(value)] for name, value in study.tuned.items()])
    by = claims.outcome if study.plan.outcome.startswith("epochs") else NAMES["loss"]
    about = f"`{setting}` of each cell is the best one of {study.plan.tune.choices} by the median of {by} on seeds "
    return [f"{about}{seeds}, which are not among those below.", values]


def title(claims: Claims, name: str) -> str:
    """The title, which says whether the report answers its question."""
    shortcoming = claims.shortcoming()
    answered = f"not answered: {shortcoming}" if shortcoming else "answered"
    return f"{claims.results.study.plan.title or name}, {answered}"


FACTOR = "learning_rate_factor"
CELLS_EXPLAINED = (
    "Median (smallest–largest) over the seeds. *Exact*: greedy decoding from the prompt, with the vocabulary as it is "
    "read back, gives the whole sentence; *in training vocabulary*: the same weights, read with the vocabulary of "
    "their last stage. *Error rate of the generated text*: edits per character of the sentence. *Epochs "
    "to exactness* count from the start of the last stage (of the run, if the study asks about that) to the first "
    "epoch after which, dropout off, every character of the answer is the likeliest one given those before it; their "
    "median is Kaplan–Meier's, with seeds that never were exact as censored. Losses are mean cross-entropies of the "
    "next character, in nats, in the vocabulary of training. Intervals are Clopper–Pearson's exact ones."
)


def cell_table(results: Results) -> str:
    """One line for each cell; it depends on the outcomes only."""
    epochs = "epochs_of_run_to_exact" if results.study.plan.outcome == "epochs_of_run" else "epochs_to_exact"
    columns: dict[str, Callable[[list[Outcome]], str]] = {
        "exact in training vocabulary": lambda found: f"{sum(as_trained(o, 'exact') for o in found)}/{len(found)}",
        "error rate of the generated text": lambda found: spread(o["generated_char_error_rate"] for o in found),
        "first loss of the last stage": lambda found: spread(o["first_loss_of_stage"][-1] for o in found),
        "epochs to exactness": lambda found: epochs_spread(found, epochs),
        "final loss, dropout off": lambda found: spread(o["final_loss_dropout_off"] for o in found),
        "final loss, dropout on": lambda found: spread(o["final_loss_dropout_on"] for o in found),
        "first update of the last stage": lambda found: spread(o.get("first_update_norm") for o in found),
        "learning rate times": lambda found: spread(o[FACTOR] for o in found if FACTOR in o),
    }
    fields = {
        f"exact{IN_TRAINING}": "exact in training vocabulary", "update_norm": "first update of the last stage",
        FACTOR: "learning rate times",
    }  # fmt: skip
    for field in fields.keys() - {name for _, _, outcome in results.runs for name in outcome}:
        del columns[fields[field]]
    rows = []
    for cell, by_seed in results.by_cell.items():
        found = list(by_seed.values())
        n, k = len(found), sum(outcome["exact"] for outcome in found)
        low, high = clopper_pearson(k, n) if n else (0.0, 1.0)
        start = [cell.name, f"{n_parameters(cell.recipe.config):,}", str(n), f"{k}/{n}", f"{low:.3f}–{high:.3f}"]
        rows.append([*start, *(column(found) for column in columns.values())])
    return table(["cell", "parameters", "n", "exact", "95 % interval", *columns], rows)


def comparison_section(claims: Claims, title: str, family: Sequence[Comparison]) -> list[str]:
    """A table with one line for each comparison of a family, and the text that explains it."""
    if not family:
        return []
    rows = [
        [
            each.factor, each.within, each.measure or "exactness", " / ".join(each.levels), " / ".join(each.shown),
            "–" if each.effect is None
            else f"{100 * each.effect:+.3g} %" if each.measure is None else f"× {each.effect:.3g}",
            f"{each.n}" + (f" ({each.left_out} diverged)" if each.left_out else ""),
            shown_p(each.p).removeprefix("= "), shown_p(each.p_holm or 0).removeprefix("= "),
        ]
        for each in family
    ]  # fmt: skip
    header = ["factor", "within", "measure", "levels", "exact runs, or medians", "effect", "seeds", "p", "p (Holm)"]
    explained = (
        f"{COMPARISONS_EXPLAINED} All p-values of this table are corrected together after Holm, without those that are "
        f"1 whatever the labels; below {SIGNIFICANCE} a difference counts as established."
    )
    if claims.cannot_tell(family):
        n = len(claims.results.seeds)
        explained += f" **{n} seeds cannot tell**: no matched pair of cells could be significant."
    return [f"## {title}", table(header, rows), explained]


COMPARISONS_EXPLAINED = (
    "Two-sided tests of two levels in matched cells, which agree in all other factors that both have. Exactness: the "
    "larger p-value of an exact permutation of the labels within each seed and of sign flips of each seed's difference "
    "(McNemar's test if there is one pair). Numbers: each seed's mean "
    "difference of logarithms, with exact sign flips up to 20 seeds and the normal approximation beyond; *effect* is "
    "the ratio of geometric means, first to second. Epochs to exactness: the same for log-rank scores, in which a run "
    "that never became exact is censored; medians are Kaplan–Meier's. Runs of a seed share their first weights, as far "
    "as they are of one shape, and their dropout."
)


def _to_tensorboard(results: Results, report: str, figures: Mapping[str, Figure], folder: Path) -> None:
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
    with SummaryWriter(str(folder)) as writer:
        # Without the links to the figures, which do not work there; the figures follow.
        writer.add_text("report", re.sub(r"!\[[^]]*\]\([^)]*\)\n\n", "", report))
        for name, figure in figures.items():
            writer.add_figure(name, figure)
        for cell, by_seed in results.by_cell.items():
            outcomes = list(by_seed.values())
            curves = np.array([o["loss"] for o in outcomes if o["epochs"] == outcomes[0]["epochs"]], dtype=float)
            if len(curves):
                for epoch, loss in zip(outcomes[0]["epochs"], np.median(curves, axis=0), strict=True):
                    writer.add_scalar(f"median train loss/{cell.name}", loss, epoch)


def _provenance(rows: list[Row]) -> str:
    seconds = timedelta(seconds=round(sum(row.seconds for row in rows)))
    commons = {id(row.common): row.common for row in rows}.values()
    parts = [part for common in commons for part in common.made_with.values()]
    made_with = {", ".join(f"{name} {value}" for name, value in part.items()) for part in parts}
    computing = f"{seconds} of computing, if no run had shared its beginning with another's"
    return "\n".join(f"- {text}" for text in [*sorted(made_with), computing])
