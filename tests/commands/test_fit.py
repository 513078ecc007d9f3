"""How a fit ends: early, on trial, with Lightning's own callbacks, or not at all since a setting cannot work."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from conftest import SENTENCE, Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.swa_utils import SWALR

from tinygpt_lightning import load, read_checkpoint

FIT = ("fit", "--config", "small.yaml")
RUN = Path("checkpoints/small/version_0")
EARLY = {
    "class_path": "EarlyStopping",
    "init_args": {"monitor": "val/exact_match", "mode": "max", "patience": 99, "stopping_threshold": 0.5},
}


def callbacks(*asked: object) -> tuple[str, str]:
    return "--trainer.callbacks", json.dumps(asked)


def go_on(err: str) -> list[str]:
    """The command that a fit prints at its end, as a shell takes it."""
    program, _, command = err.strip().splitlines()[-1].partition("resume with: python -m tinygpt_lightning ")
    assert program.endswith("; ")
    return shlex.split(command)


def same_weights(*runs: Path) -> bool:
    one, other = (read_checkpoint(run / "last.ckpt")["state_dict"] for run in runs)
    return all(torch.equal(one[name], other[name]) for name in other)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> str:
    return '[{"epochs": 30}, {"epochs": 5000}]'


def test_a_time_limit_is_an_ending(home: Path, command: Command, long: str) -> None:
    result = command(*FIT, "--trainer.max_time", "00:00:00:01", "--stages", long)
    assert result.code == 0
    assert f"run        {RUN}\n" in result.out
    last = result.err.splitlines()[-1]
    done = read_checkpoint(RUN / "last.ckpt")["global_step"]
    assert last.startswith(f"ended early by max_time after epoch {done} of 5030; resume with: ")
    assert 0 < done < 5030
    assert go_on(result.err) == ["fit", "--ckpt_path", str(RUN), "--trainer.max_time", "null"]
    assert command("predict", "--config", "small.yaml").out == load(RUN).complete("Question: Xin chào") + "\n"
    events = EventAccumulator(str(RUN))
    events.Reload()
    assert [event.step for event in events.Tensors("what it needs/text_summary")] == [done - 1]


def test_early_stopping_is_an_ending_and_the_printed_command_goes_on(
    home: Path, trained: Path, command: Command
) -> None:
    monitor = {"class_path": "LearningRateMonitor"}
    result = command(*FIT, *callbacks(EARLY, monitor))
    assert result.code == 0
    assert "exact      yes" in result.out
    assert result.err.splitlines()[-1].startswith("ended early by EarlyStopping on val/exact_match after epoch ")
    assert read_checkpoint(RUN / "last.ckpt")["global_step"] < 30
    assert not (RUN / "stage-1.ckpt").exists()
    assert command("predict", "--config", "small.yaml").out == SENTENCE + "\n"
    command_line = go_on(result.err)
    assert command_line[:4] == ["fit", "--ckpt_path", str(RUN), "--trainer.callbacks"]
    assert [callback["class_path"].split(".")[-1] for callback in json.loads(command_line[4])] == [
        "LearningRateMonitor"
    ]
    assert "exact      yes" in command(*command_line).out
    assert same_weights(RUN, trained / RUN), "as if it had never ended"


def test_any_callback_may_end_it(home: Path, command: Command) -> None:
    (home / "stops.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Stops(Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        trainer.should_stop = trainer.current_epoch == 2\n",
        encoding="utf-8",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(home))
        result = command(*FIT, *callbacks({"class_path": "stops.Stops"}))
    assert (result.code, result.err.splitlines()[-1].split(";")[0]) == (
        0,
        "ended early by a callback after epoch 3 of 60",
    )
    assert go_on(result.err) == ["fit", "--ckpt_path", str(RUN)]


def test_an_ending_before_the_first_epoch_leaves_nothing(home: Path, command: Command) -> None:
    result = command(*FIT, "--trainer.max_time", "00:00:00:00")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: ended early by max_time before the first epoch was done; nothing is kept\n"
    assert not Path("checkpoints").exists()


def test_a_newer_run_that_was_killed_is_not_over(home: Path, command: Command) -> None:
    command(*FIT, "--trainer.max_time", "00:00:00:01")
    newer = RUN.with_name("version_1")
    command(*FIT, "--ckpt_path", RUN / "last.ckpt", "--trainer.max_time", "00:00:00:02")
    assert command("validate", "--config", "small.yaml").code == 0
    for file in newer.glob("*.ckpt"):
        file.unlink()
    assert command("predict", "--config", "small.yaml").code == 0


@pytest.mark.parametrize("resume", [False, True])
def test_a_trial_checks_everything_and_leaves_nothing_behind(
    home: Path, trained: Path, command: Command, resume: bool
) -> None:
    if resume:
        assert command(*FIT, "--stages", "[{epochs: 2}]").code == 0
    before = sorted(Path().rglob("*"))
    stages = ("--stages", "[{epochs: 2}, {epochs: 3}]", *(("--ckpt_path", "last") if resume else ()))
    result = command(*FIT, *stages, "--trainer.fast_dev_run", "1")
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines()[-1].endswith("went well; nothing is left behind")
    assert sorted(Path().rglob("*")) == before
    broken = "[{epochs: 2}, {epochs: 3, optimizer: {class_path: SGD, init_args: {lr: -1}}}]"
    result = command(*FIT, "--stages", broken, "--trainer.fast_dev_run", "1")
    assert (result.code, result.err) == (2, "error: stages[1]: Invalid learning rate: -1.0\n")
    assert sorted(Path().rglob("*")) == before


def test_lightnings_model_checkpoint_works(home: Path, command: Command) -> None:
    files = {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss", "filename": "best"}}
    assert command(*FIT, *callbacks(files), "--stages", "[{epochs: 6}]").code == 0
    assert (RUN / "checkpoints/best.ckpt").exists()
    assert load(RUN / "checkpoints/best.ckpt").complete("Question")
    assert {path.name for path in RUN.glob("*.ckpt")} == {"last.ckpt", "stage-1.ckpt"}


def test_a_learning_rate_monitor_works(home: Path, command: Command) -> None:
    assert (
        command(*FIT, *callbacks({"class_path": "LearningRateMonitor"}), "--stages", "[{epochs: 2}, {epochs: 3}]").code
        == 0
    )
    events = EventAccumulator(str(RUN))
    events.Reload()
    assert sorted({event.step for event in events.Scalars("lr-AdamW")}) == list(range(5))


def averaging(start: object) -> tuple[str, str]:
    swa = {"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 1e-3, "swa_epoch_start": start}}
    return callbacks(swa)


@pytest.mark.skipif("state_dict" in vars(SWALR), reason="this torch can save the state of averaging")
def test_averaging_that_could_not_be_saved_is_refused(home: Path, command: Command) -> None:
    result = command(*FIT, *averaging(35))
    assert (result.code, result.out) == (2, "")
    assert "StochasticWeightAveraging: expected torch 2.10 or newer" in result.err


@pytest.mark.skipif("state_dict" not in vars(SWALR), reason="before torch 2.10 its state cannot be saved safely")
def test_weights_are_averaged_within_the_last_stage(home: Path, command: Command) -> None:
    stages = ("--stages", "[{epochs: 30}, {epochs: 12}]")
    result = command(*FIT, *averaging(35), *stages)
    assert "exact      yes" in result.out
    saved = read_checkpoint(RUN / "last.ckpt")
    average = saved["callbacks"]["StochasticWeightAveraging"]["average_model_state"]
    assert saved["callbacks"]["StochasticWeightAveraging"]["n_averaged"] == 8
    assert all(torch.equal(weight, average[name]) for name, weight in saved["state_dict"].items())
    final = read_checkpoint(RUN / "stage-2.ckpt")["state_dict"]
    assert all(torch.equal(weight, final[name]) for name, weight in saved["state_dict"].items())
    # And killed before its end, it goes on to the same weights.
    again = RUN.with_name("version_1")
    again.mkdir()
    for name in ("config.yaml", "vocab.json", "stage-1.ckpt"):
        (again / name).write_bytes((RUN / name).read_bytes())
    assert command("fit", "--ckpt_path", again).code == 0
    assert same_weights(again, RUN)


@pytest.mark.skipif("state_dict" not in vars(SWALR), reason="before torch 2.10 its state cannot be saved safely")
@pytest.mark.parametrize("start", [30, 0.5])
def test_averaging_across_a_boundary_is_refused(home: Path, command: Command, start: object) -> None:
    result = command(*FIT, *averaging(start))
    assert (result.code, result.out) == (2, "")
    assert (
        f"swa_epoch_start: expected 31 or more, so that it averages within the last stage, got {start};" in result.err
    )
    assert not Path("checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            ("--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", "1"),
            "stages[0]: expected an optimizer with fused: false",
        ),
        (("--model.config.n_positions", "62"), "model.config.n_positions: expected 63 or more"),
        (("--trainer.enable_checkpointing", "false"), "enable_checkpointing"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(
    home: Path, command: Command, flags: tuple[str, ...], reason: str
) -> None:
    result = command(*FIT, *flags)
    assert (result.code, result.out) == (2, "")
    assert reason in result.err
    assert len(result.err.splitlines()) <= 2
    assert not list(Path("checkpoints").rglob("version_*"))


def test_mixed_precision_and_clipping_work_with_an_optimizer_that_is_not_fused(home: Path, command: Command) -> None:
    flags = (
        "--trainer.precision",
        "bf16-mixed",
        "--trainer.gradient_clip_val",
        "1",
        "--model.optimizer.fused",
        "false",
    )
    assert "exact      yes" in command(*FIT, *flags).out


def test_the_sentence_needs_no_position_for_its_last_character(home: Path, command: Command) -> None:
    assert "exact      yes" in command(*FIT, "--model.config.n_positions", "63").out
    assert command("predict", "--config", "small.yaml").out == SENTENCE + "\n"


def test_losses_are_shown_with_three_digits_that_count(trained: Path) -> None:
    lines = (trained / "err.txt").read_text(encoding="utf-8").splitlines()
    losses = [line.split("loss ")[1].split(",")[0] for line in lines]
    assert all(len(loss.replace("e-", " ").split()[0].strip("0.")) <= 4 and float(loss) > 0 for loss in losses), losses


@pytest.mark.parametrize("limit", ["max_steps", "max_epochs"])
@pytest.mark.parametrize("amount", [7, 11])
def test_a_limit_ends_a_run_that_can_be_resumed(home: Path, command: Command, limit: str, amount: int) -> None:
    result = command(*FIT, f"--trainer.{limit}", amount, "--stages", "[{epochs: 9}, {epochs: 3}]")
    assert result.code == 0
    assert f"--trainer.{limit} -1" in result.err
    assert "next       " not in result.out, "it is not the run's end"
    assert read_checkpoint(RUN / "last.ckpt")["global_step"] == amount
    assert command("fit", "--ckpt_path", RUN, f"--trainer.{limit}", "-1").code == 0
    assert command(*FIT, "--stages", "[{epochs: 9}, {epochs: 3}]").code == 0
    assert same_weights(RUN, RUN.with_name("version_1"))
