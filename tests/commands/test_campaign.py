"""A fit that is killed again and again, and goes on each time, is the fit that was never killed.

python -m pytest tests/commands/test_campaign.py -m slow --kills 100 --campaign-seed 1
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import SENTENCE, SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tinygpt_lightning import TinyGPTModule, read_checkpoint
from tinygpt_lightning.commands.main import main

pytestmark = pytest.mark.slow

RUN = Path("checkpoints/small/version_0")
# As many steps as `SMALL` has, in shuffled batches.
MANY = SMALL.replace("epochs: 30", "epochs: 6") + "data: {path: pairs.jsonl, batch_size: 8}\n"
KINDS = ["any time", "right after start", "during a write", "at the boundary"]
# Started once with everything imported, then forked: a fit begins in a fraction of a second.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tinygpt_lightning.commands.main"])


def fit(folder: Path, resume: bool) -> None:
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    main(["fit", "--config", "small.yaml", "--save_every_n_seconds", "0", *(["--ckpt_path", "last"] if resume else [])])


def start(folder: Path, resume: bool) -> BaseProcess:
    process = PROCESSES.Process(target=fit, args=(folder, resume))
    process.start()
    return process


def prepared(folder: Path, config: str) -> Path:
    folder.mkdir()
    (folder / "small.yaml").write_text(config, encoding="utf-8")
    pairs = [{"question": f"câu {i}", "answer": f"chữ {i * i} " * (i % 4 + 1)} for i in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return folder


class Reference(NamedTuple):
    """A fit that is never killed: its settings, where it was, and how long it took, in seconds."""

    config: str
    folder: Path
    duration: float


@pytest.fixture(scope="module", params=[SMALL, MANY], ids=["one sentence", "many pairs"])
def reference(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Reference:
    folder = prepared(tmp_path_factory.mktemp("campaign") / "reference", request.param)
    begun = time.monotonic()
    process = start(folder, resume=False)
    process.join()
    assert process.exitcode == 0, (folder / "log.txt").read_text(encoding="utf-8")
    return Reference(request.param, folder, time.monotonic() - begun)


def until(happened: Callable[[], bool], process: BaseProcess) -> None:
    while process.is_alive() and not happened():
        time.sleep(0.0002)


def wait_for_the_instant(kind: str, folder: Path, process: BaseProcess, duration: float, chance: random.Random) -> None:
    run = folder / RUN
    if kind == "any time":
        process.join(chance.uniform(0, duration))
    elif kind == "right after start":
        until(run.exists, process)
        time.sleep(chance.uniform(0, 0.3))
    elif kind == "during a write":
        process.join(chance.uniform(0, duration))
        until(lambda: any(run.glob(".*.tmp")), process)
        time.sleep(chance.uniform(0, 0.002))
    elif kind == "at the boundary":
        until((run / "stage-1.ckpt").exists, process)
        time.sleep(chance.uniform(0, 0.05))


def check_equal(killed: Path, reference: Path) -> None:
    ours, theirs = (read_checkpoint(folder / RUN / "last.ckpt") for folder in (killed, reference))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "epoch", "tinygpt"):
        assert_same(ours[part], theirs[part], part)
    assert scalars(killed) == scalars(reference)
    module = TinyGPTModule.load_from_checkpoint(killed / RUN / "last.ckpt")
    if len(module.taught.pairs) == 1:  # of many pairs, so few steps teach little
        assert module.complete("Question: Xin chào") == SENTENCE


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert ours == theirs, where


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / RUN), size_guidance={"scalars": 0})
    events.Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert len(curves["train/loss"]) == read_checkpoint(folder / RUN / "last.ckpt")["global_step"] >= 36
    return curves


def test_killed_and_continued_equals_never_killed(
    tmp_path: Path, reference: Reference, request: pytest.FixtureRequest
) -> None:
    config, expected, duration = reference
    chance = random.Random(request.config.getoption("--campaign-seed"))
    wanted = request.config.getoption("--kills")
    kills = run = 0
    while kills < wanted:
        folder = prepared(tmp_path / f"run-{run}", config)
        run += 1
        for _ in range(min(chance.randint(1, 3), wanted - kills)):
            kind = chance.choice(KINDS)
            process = start(folder, resume=(folder / RUN).exists())
            wait_for_the_instant(kind, folder, process, duration, chance)
            killed = process.is_alive()
            process.kill()
            process.join()
            kills += killed
            print(f"run {run}, {kind}: {f'kill {kills}' if killed else 'it was over'}")
        process = start(folder, resume=(folder / RUN).exists())
        process.join()
        assert process.exitcode == 0, (folder / "log.txt").read_text(encoding="utf-8")
        check_equal(folder, expected)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_and_continued_equals_never_stopped(
    tmp_path: Path, reference: Reference, number: signal.Signals, code: int
) -> None:
    folder = prepared(tmp_path / "run", reference.config)
    process = start(folder, resume=False)
    until((folder / RUN / "last.ckpt").exists, process)
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert "; resume with: python -m tinygpt_lightning fit --ckpt_path checkpoints/small/version_0\n" in log
    assert "Traceback" not in log
    process = start(folder, resume=True)
    process.join()
    assert process.exitcode == 0
    check_equal(folder, reference.folder)


SHARDED = [
    "ModelParallelStrategy",
    "--trainer.strategy.data_parallel_size", "2", "--trainer.strategy.tensor_parallel_size", "1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "renumber", "strategy", "instants"),
    [
        (SMALL, "false", ["ddp"], ["last.ckpt", "stage-1.ckpt"]),
        (SMALL, "true", ["ddp"], ["last.ckpt", "stage-1.ckpt"]),
        (MANY, "false", ["ddp"], ["last.ckpt", "stage-1.ckpt"]),
        (SMALL, "false", SHARDED, ["stage-1.ckpt"]),
    ],
)
def test_two_processes_killed_and_continued_equal_two_never_killed(
    tmp_path: Path, config: str, renumber: str, strategy: list[str], instants: list[str]
) -> None:
    command = [
        sys.executable, "-m", "tinygpt_lightning", "fit", "--config", "small.yaml", "--save_every_n_seconds", "0",
        "--renumber", renumber, "--trainer.devices", "2", "--trainer.strategy", *strategy,
    ]  # fmt: skip
    whole, killed = (prepared(tmp_path / name, config) for name in ("whole", "killed"))
    subprocess.run(command, cwd=whole, check=True)
    for instant in instants:
        resume = ["--ckpt_path", "last"] if (killed / RUN).exists() else []
        with subprocess.Popen([*command, *resume], cwd=killed, start_new_session=True) as both:
            while not (killed / RUN / instant).exists():
                time.sleep(0.001)
            os.killpg(both.pid, signal.SIGKILL)
    subprocess.run([*command, "--ckpt_path", "last"], cwd=killed, check=True)
    check_equal(killed, whole)
