"""A study that takes a second, runs of it, and rows of it that nobody has made."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tinygpt_lightning.study.design import Plan, Study
from tinygpt_lightning.study.recipe import read_recipe
from tinygpt_lightning.study.rows import Common, Results, Row, load

ROOT = Path(__file__).parents[2]
TEXT = "Question: Xin \nAnswer: Chào!."
RUN = {
    "data": {"question": "Xin", "answer": "Chào!"},
    "model": {
        "config": {"n_positions": 32, "n_embd": 8, "n_head": 2},
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.01, "fused": True}},
    },
}
RIDDLE = {
    "title": "The riddle",
    "claims": "riddle",
    "factors": {
        "vocabulary": {"stable": {"renumber": False}, "resorted": {"renumber": True}},
        "schedule": {
            "1×3": {"stages": [{"epochs": 3}]},
            "1×5": {"stages": [{"epochs": 5}]},
            "2×3": {"stages": [{"epochs": 3}, {"epochs": 3}]},
            "3×2": {"stages": [{"epochs": 2}, {"epochs": 2}, {"epochs": 2}]},
        },
        "optimizer": {"new": {"stages[1:].reset_optimizer": True}, "kept": {"stages[1:].reset_optimizer": False}},
        "weights": {"carried": {"stages[1:].weights": "carried"}, "redrawn": {"stages[1:].weights": "redrawn"}},
    },
    "seeds": 4,
    "chunk": 2,
}
RESET = {
    "title": "The reset",
    "claims": "reset",
    "factors": {
        name: {"new": {f"stages[1].keep.{name}": False}, "kept": {f"stages[1].keep.{name}": True}}
        for name in ("exp_avg", "exp_avg_sq", "step")
    },
    "controls": {"larger steps": {"stages[1].reset_optimizer": False, "stages[1].first_update": "as_new"}},
    "measure_updates": True,
}
TWO_STAGES = {**RUN, "stages": [{"epochs": 3}, {"epochs": 3}]}


def schedule(*names):
    """The riddle's factors with some of its schedules only; those of a boundary where there is one."""
    factors = {**RIDDLE["factors"], "schedule": {name: RIDDLE["factors"]["schedule"][name] for name in names}}
    if all(name.startswith("1×") for name in names):
        del factors["optimizer"], factors["weights"]
    return factors


def tiny_study(run=RUN, **plan):
    return Study(Plan(**{**RIDDLE, **plan}), read_recipe(run).settings)


def cell_of(study, **levels):
    """The only cell with these levels, or with this control."""
    control = levels.pop("control", None)
    [cell] = [cell for cell in study.cells if cell.control == control and levels.items() <= cell.levels.items()]
    return cell


def outcome(exact, loss=0.1, epochs=5, **more):
    """What may have come out of a run."""
    return {
        "exact": exact,
        "text": TEXT if exact else "wrong",
        "generated_char_error_rate": 0.0 if exact else 0.5,
        "epochs": [1, 2],
        "loss": [3.5, 1.0],
        "first_loss_of_stage": [3.5],
        "epochs_to_exact": epochs,
        "final_loss_dropout_on": loss,
        "final_loss_dropout_off": loss,
        **more,
    }


def row_of(cell, seed, outcome, made_with=None):
    return Row(Common(cell.recipe.settings, made_with or {}), cell.name, cell.levels, seed, 1.0, outcome)


def results_of(study, decide, keep=lambda _cell, _seed: True):
    """Results in which ``decide`` says what came out of each run."""
    rows = [
        row_of(cell, seed, decide(cell, seed))
        for cell in study.cells
        for seed in study.plan.seed_list
        if keep(cell, seed)
    ]
    return Results(study, rows)


def write_config(folder, **changes):
    """JSON is YAML, too."""
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({**RIDDLE, **RUN, "output": str(folder / "out"), **changes}), encoding="utf-8")
    return path


def command(config, *arguments):
    return [sys.executable, "-m", "tinygpt_lightning", "study", "--config", str(config), *arguments]


def run(config, *arguments):
    # One thread: two processes would fight for the cores, and the numbers must be comparable.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(config, *arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def read_rows(folder):
    return load(folder)[0]


def comparable(rows):
    """Rows without what says how long and on what they were made."""
    return [(row.key, row.outcome) for row in rows]
