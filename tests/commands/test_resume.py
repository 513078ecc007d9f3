"""Going on with a run on the command line: damage, other settings, hostile files, a full disk."""

from __future__ import annotations

import os
import pickle
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import SENTENCE, Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tinygpt_lightning import TinyGPTModule, read_checkpoint
from tinygpt_lightning.gpt.checkpoint import write_checkpoint
from tinygpt_lightning.gpt.files import locked

FIT = ("fit", "--config", "small.yaml")
RESUME = (*FIT, "--ckpt_path", "last")
RUN = Path("checkpoints/small/version_0")
LOCK = """
import pathlib, sys
from tinygpt_lightning.gpt.checkpoint import write_checkpoint
from tinygpt_lightning.gpt.files import locked
lock = locked(pathlib.Path(sys.argv[1]))
lock.__enter__()
"""


@pytest.fixture
def half(trained: Path, home: Path) -> Path:
    """A copy of the finished run, as if it had been killed between its stages."""
    shutil.copytree(trained / RUN, home / RUN)
    (home / RUN / "stage-2.ckpt").unlink()
    (home / RUN / "last.ckpt").unlink()
    return home


def same_weights(folder: Path, trained: Path) -> bool:
    ours, theirs = (read_checkpoint(path / "last.ckpt")["state_dict"] for path in (folder, trained / RUN))
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_goes_on_in_place_from_its_newest_checkpoint(half: Path, trained: Path, command: Command) -> None:
    result = command(*RESUME)
    assert result.code == 0
    assert f"run        {RUN}" in result.out
    assert result.err.startswith("stage 2/2")
    assert same_weights(RUN, trained)
    assert sorted(path.name for path in RUN.parent.iterdir()) == ["version_0"]


def test_steps_that_come_again_are_shown_once(half: Path, command: Command) -> None:
    assert len(list(RUN.glob("events.*"))) == 1  # of all 60 steps, half of which come again
    command(*RESUME)
    events = EventAccumulator(str(RUN))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(60))


@pytest.mark.parametrize("harm", ["truncated", "empty", "one bit flipped"])
def test_a_damaged_checkpoint_is_named_and_passed_over(half: Path, trained: Path, command: Command, harm: str) -> None:
    whole = (trained / RUN / "last.ckpt").read_bytes()
    flipped = whole[:999] + bytes([whole[999] ^ 4]) + whole[1000:]
    (RUN / "last.ckpt").write_bytes({"truncated": whole[:-1], "empty": b"", "one bit flipped": flipped}[harm])
    result = command(*RESUME)
    first = result.err.splitlines()[0]
    assert first.startswith(f"{RUN}/last.ckpt: is ")
    assert first.endswith(f"resuming from {RUN}/stage-1.ckpt")
    assert same_weights(RUN, trained)


def test_a_run_with_nothing_but_damage_is_not_begun_anew(half: Path, command: Command) -> None:
    (RUN / "stage-1.ckpt").write_bytes(b"PK")
    result = command(*RESUME)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: {RUN}/stage-1.ckpt: is damaged or truncated\n"


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_in_place(
    home: Path, trained: Path, command: Command
) -> None:
    RUN.mkdir(parents=True)
    (RUN / ".last.ckpt.0123abcd.tmp").write_bytes(b"half")
    assert f"run        {RUN}" in command(*RESUME).out
    assert same_weights(RUN, trained)
    assert not list(RUN.glob(".*"))


@pytest.mark.parametrize("file", ["stage-2.ckpt", "last.ckpt"])
@pytest.mark.parametrize("harm", ["older", "damaged", "missing"])
def test_a_run_that_lacks_one_of_its_last_two_files_gets_it_from_the_other(
    half: Path, trained: Path, command: Command, file: str, harm: str
) -> None:
    for name in ("stage-2.ckpt", "last.ckpt"):
        shutil.copy(trained / RUN / name, RUN / name)
    older = (trained / RUN / "stage-1.ckpt").read_bytes()
    (RUN / file).unlink()
    if harm != "missing":
        (RUN / file).write_bytes(older if harm == "older" else b"PK")
    result = command(*RESUME)
    assert (result.code, result.out) == (0, "")
    assert result.err.endswith(f"{RUN} is finished: there is nothing to resume\n")
    assert same_weights(RUN, trained)
    assert command("predict", "--config", "small.yaml").out == SENTENCE + "\n"


def test_a_file_from_the_end_needs_another_stage_to_go_on(half: Path, trained: Path, command: Command) -> None:
    shutil.copy(trained / RUN / "stage-2.ckpt", half / "end.ckpt")
    result = command(*FIT, "--ckpt_path", "end.ckpt")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: end.ckpt: all stages are done; append another one to continue\n"
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    longer = '[{"epochs": 30}, {"epochs": 30}, {"epochs": 2}]'
    assert "version_1" in command(*FIT, "--ckpt_path", "end.ckpt", "--stages", longer).out


def test_a_file_is_gone_on_from_in_a_new_run(half: Path, trained: Path, command: Command) -> None:
    before = (RUN / "stage-1.ckpt").read_bytes()
    result = command(*FIT, "--ckpt_path", RUN / "stage-1.ckpt")
    assert "run        checkpoints/small/version_1" in result.out
    assert same_weights(Path("checkpoints/small/version_1"), trained)
    assert (RUN / "stage-1.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (("--data.answer", "khách quý"), "data.answer: expected 'Công ty BICweb kính chào quý khách!'"),
        (("--seed_everything", "7"), "seed_everything: expected 0"),
        (("--model.config.n_embd", "32"), "model.config.n_embd: expected 64"),
        (("--model.optimizer.lr", "0.02"), "model.optimizer.init_args.lr: expected 0.01"),
        (("--stages", '[{"epochs": 29}, {"epochs": 30}]'), "stages[0].epochs: expected 30"),
    ],
)
def test_a_run_cannot_change_on_its_way(half: Path, command: Command, changed: tuple[str, str], reason: str) -> None:
    before = (RUN / "config.yaml").read_bytes()
    result = command(*RESUME, *changed)
    assert (result.code, result.out) == (2, "")
    assert reason in result.err
    assert len(result.err.splitlines()) <= 5
    assert (RUN / "config.yaml").read_bytes() == before
    assert command(*RESUME).code == 0  # nothing is lost


@pytest.mark.parametrize(
    "changed",
    [
        ("--trainer.precision", "bf16-mixed"),
        ("--trainer.gradient_clip_val", "1"),
        ("--trainer.accumulate_grad_batches", "2"),
        ("--trainer.limit_val_batches", "0"),
        ("--trainer.check_val_every_n_epoch", "5"),
        ("--trainer.deterministic", "true"),
        ("--model.config.embd_pdrop", "0.2"),
        ("--model.lr_scheduler", '{"class_path": "ExponentialLR", "init_args": {"gamma": 0.5}}'),
        ("--model.optimizer", "SGD"),
        ("--threads", "2"),
        ("--rebuild", "false"),
        ("--renumber", "true"),
        ("--trainer.devices", "2"),
        ("--trainer.callbacks", '[{"class_path": "lightning.pytorch.callbacks.GradientAccumulationScheduler", '
         '"init_args": {"scheduling": {"0": 2}}}]'),
    ],
    ids=lambda changed: changed[0],
)  # fmt: skip
def test_whatever_decides_what_is_computed_is_refused_by_name(
    half: Path, command: Command, changed: tuple[str, str]
) -> None:
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in RUN.iterdir()}
    result = command("fit", "--ckpt_path", RUN, *changed)
    assert (result.code, result.out) == (2, "")
    reason, how = result.err.splitlines()
    assert reason.startswith(f"error: {changed[0].removeprefix('--')}")
    assert re.search(f": expected .*, with which {RUN} was begun, got ", reason)
    assert how == f"To resume it as it was begun: python -m tinygpt_lightning fit --ckpt_path {RUN}"
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in RUN.iterdir()} == before


def test_what_decides_nothing_may_change(half: Path, trained: Path, command: Command) -> None:
    free = (
        "--save_every_n_seconds", "7", "--trainer.max_time", "00:10:00:00", "--trainer.log_every_n_steps", "3",
        "--trainer.enable_model_summary", "false", "--trainer.profiler", "simple", "--generation.max_length", "32",
        "--data.prompts", '["Question"]', "--trainer.callbacks", '[{"class_path": "ModelCheckpoint"}, '
        '{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 99}}]',
    )  # fmt: skip
    assert command("fit", "--ckpt_path", RUN, *free).code == 0
    assert same_weights(RUN, trained)
    assert yaml.safe_load((RUN / "config.yaml").read_text(encoding="utf-8"))["trainer"]["max_time"] == "00:10:00:00"


def test_going_on_needs_nothing_but_the_run(home: Path, command: Command) -> None:
    """Whatever flags it was begun with: what Ctrl-C prints can be pasted."""
    flags = (
        "--stages", "[{epochs: 3}, {epochs: 4, reset_optimizer: false}]", "--model.config.n_embd", "32",
        "--trainer.default_root_dir", "else where", "--model.optimizer.lr", "0.003", "--seed_everything", "5",
        "--data.answer", "Chào \"bạn\"", "--save_every_n_seconds", "0",
    )  # fmt: skip
    assert command(*FIT, *flags).code == 0
    whole, run = Path("else where/small/version_0"), Path("else where/small/version_1")
    stopped = home / "stops.py"
    stopped.write_text(
        "import os, signal\n"
        "from lightning.pytorch import Callback\n"
        "class Stops(Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.current_epoch == 1:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n",
        encoding="utf-8",
    )
    begin = [
        sys.executable,
        "-m",
        "tinygpt_lightning",
        *FIT,
        *flags,
        "--trainer.callbacks",
        '[{"class_path": "stops.Stops"}]',
    ]
    done = subprocess.run(
        begin,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{home}:{os.environ.get('PYTHONPATH', '')}"},
        check=False,
    )
    assert done.returncode == 130, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line == (
        "stopped after epoch 2 of 7; resume with: "
        "python -m tinygpt_lightning fit --ckpt_path 'else where/small/version_1'"
    )
    # As begun: the run's own settings say that it is to be stopped in the second epoch, which is over.
    pasted = shlex.split(line.partition("resume with: ")[2])
    done = subprocess.run(
        [sys.executable, *pasted[1:]],
        env={**os.environ, "PYTHONPATH": f"{home}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_checkpoint(folder / "last.ckpt") for folder in (run, whole))
    assert ours["global_step"] == theirs["global_step"] == 7
    assert all(torch.equal(ours["state_dict"][name], weight) for name, weight in theirs["state_dict"].items())


def test_a_folder_that_is_no_run_is_refused(half: Path, command: Command) -> None:
    result = command("fit", "--ckpt_path", RUN.parent)
    assert result == (
        2,
        "",
        f"error: {RUN.parent}: expected the folder of a run, with a config.yaml in it, found none\n",
    )


def test_a_checkpoint_full_of_nonsense_is_refused_whoever_reads_it(half: Path, command: Command) -> None:
    saved = read_checkpoint(RUN / "stage-1.ckpt")
    saved["tinygpt"]["config"]["n_embd"] = 200_000
    write_checkpoint(saved, RUN / "stage-1.ckpt")
    for args in ((*FIT, "--ckpt_path", RUN / "stage-1.ckpt"), ("predict", "--ckpt_path", RUN / "stage-1.ckpt"), RESUME):
        result = command(*args)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"error: {RUN}/stage-1.ckpt: is ")
        assert len(result.err.splitlines()) == 1


def test_a_run_whose_folder_goes_away_says_so_in_a_line(home: Path) -> None:
    fit = [
        sys.executable,
        "-m",
        "tinygpt_lightning",
        *FIT,
        "--stages",
        "[{epochs: 50000}]",
        "--save_every_n_seconds",
        "50000",
    ]
    with subprocess.Popen(fit, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while not (RUN / "config.yaml").exists():
            time.sleep(0.01)
        RUN.rename("elsewhere")  # at once: a folder being emptied may be written to meanwhile
        assert process.stderr
        err = process.stderr.read()
    assert process.returncode == 2
    assert re.fullmatch(rf"(stage 1/1: .*\n)?error: {RUN}/events\S+: No such file or directory\n", err), err


def test_a_run_does_not_go_on_without_stages(half: Path, command: Command) -> None:
    before = sorted(path.name for path in RUN.iterdir())
    for checkpoint in ("last", RUN / "stage-1.ckpt"):
        result = command(*FIT, "--ckpt_path", checkpoint, "--stages", "[]")
        assert (result.code, result.err) == (2, "error: stages: expected at least one stage, got none\n")
    assert sorted(path.name for path in RUN.iterdir()) == before


def test_a_stage_to_come_may_change(half: Path, command: Command) -> None:
    assert command(*RESUME, "--stages", '[{"epochs": 30}, {"epochs": 4}]').code == 0
    assert read_checkpoint(RUN / "stage-2.ckpt")["global_step"] == 34


def test_a_checkpoint_of_another_vocabulary_is_refused(half: Path, command: Command) -> None:
    result = command(*FIT, "--ckpt_path", RUN / "stage-1.ckpt", "--data.answer", "Xin chàp")
    assert result.code == 2
    assert f"{RUN}/stage-1.ckpt: is of another vocabulary" in result.err
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]


def test_one_folder_is_trained_in_by_one_process(half: Path, command: Command) -> None:
    holding = [sys.executable, "-c", f"{LOCK}print('locked', flush=True)\ninput()", RUN]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        result = command(*RESUME)
        other.communicate(b"\n")
    assert (result.code, result.err) == (2, f"error: {RUN}: another process is writing there; wait for its end\n")
    assert command(*RESUME).code == 0


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LOCK, tmp_path], check=True)
    with locked(tmp_path):
        pass


class Hostile:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("argument", [("predict",), ("validate", "--config", "small.yaml"), FIT])
@pytest.mark.parametrize("forced", [False, True])
def test_no_command_runs_what_a_file_holds(
    home: Path, command: Command, monkeypatch: pytest.MonkeyPatch, argument: tuple[str, ...], forced: bool
) -> None:
    canary = home / "canary"
    torch.save({"hyper_parameters": {"x": Hostile(canary)}, "state_dict": {}}, home / "hostile.ckpt")
    (home / "hostile.pkl").write_bytes(pickle.dumps(Hostile(canary)))
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for file in ("hostile.ckpt", "hostile.pkl", "https://example.org/hostile.ckpt", "s3://bucket/hostile.ckpt"):
        result = command(*argument, "--ckpt_path", file)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"error: {file}: ")
        assert len(result.err.splitlines()) == 1
    assert not canary.exists()
    with pytest.raises(ValueError, match="hostile"):
        TinyGPTModule.load_from_checkpoint(home / "hostile.ckpt")
    assert not canary.exists()


def test_a_disk_that_fills_up_costs_nothing_that_was_saved(home: Path, trained: Path, command: Command) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tinygpt_lightning", *FIT, "--save_every_n_seconds", "0"],
        env={**os.environ, "TMPDIR": "/dev/shm"},  # noqa: S108, on purpose another file system
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while not (RUN / "last.ckpt").exists():
        time.sleep(0.001)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (400_000, 400_000))
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.splitlines()[-1] == f"error: {RUN}/last.ckpt: File too large"
    assert "Traceback" not in err
    assert not list(RUN.glob(".*"))
    assert command(*RESUME).out.startswith("prompt")
    assert same_weights(RUN, trained)


def test_a_prediction_during_training_reads_a_whole_checkpoint(home: Path, command: Command) -> None:
    many = "[{epochs: 20}, {epochs: 2000}]"
    training = subprocess.Popen(
        [sys.executable, "-m", "tinygpt_lightning", *FIT, "--save_every_n_seconds", "0", "--stages", many],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        while not (RUN / "stage-1.ckpt").exists():
            time.sleep(0.01)
        for _ in range(5):
            assert command("predict", "--ckpt_path", RUN / "last.ckpt") == (0, SENTENCE + "\n", "")
        assert training.poll() is None
    finally:
        training.kill()
        training.wait()
