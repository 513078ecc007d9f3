"""A study that takes a second, and runs of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.study.design.study import ModelSettings, Study

ROOT = Path(__file__).parents[2]
TEXT = "Question: Xin \nAnswer: Chào!."
SETTINGS = {
    "text": TEXT,
    "prompt": "Question: Xin",
    "schedules": [[3], [5], [3, 3], [2, 2, 2]],
    "seeds": 4,
    "chunk": 2,
    "learning_rate": 0.01,
    "model": {"n_positions": 32, "n_embd": 8, "n_head": 2},
}


def tiny_study(**changes):
    settings = {**SETTINGS, **changes}
    return Study(**{**settings, "model": ModelSettings(GPTConfig(**settings["model"]))})


def write_config(folder, **changes):
    """JSON is YAML, too."""
    path = folder / "tiny.yaml"
    settings = {**SETTINGS, "model": {"config": SETTINGS["model"]}, "output": str(folder / "out"), **changes}
    path.write_text(json.dumps(settings), encoding="utf-8")
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
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def comparable(rows):
    """Rows without what says how long and on what they were made."""
    return [{"config": row["config"], "outcome": row["outcome"]} for row in rows]
