"""Started from anywhere: threads, replaced streams, launchers, other folders, strange files and settings."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import SENTENCE, Command, quiet_trainer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tinygpt_lightning import QADataModule, Stage, StagedTraining, TinyGPTModule, load, read_checkpoint
from tinygpt_lightning import __main__ as package_main
from tinygpt_lightning.commands.main import main
from tinygpt_lightning.commands.runs import Run
from tinygpt_lightning.commands.settings import Settings
from tinygpt_lightning.gpt import files

FIT = ("fit", "--config", "small.yaml")
SHORT = ("--stages", "[{epochs: 2}]")
RUN = Path("checkpoints/small/version_0")


def program(*args: str | Path, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tinygpt_lightning", *map(str, args)],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip


# Inside another program


def test_main_works_where_stdout_is_replaced(home: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main([*FIT, *SHORT])
    assert f"run        {RUN}" in out.getvalue()
    assert err.getvalue().startswith("stage 1/1: 2 epochs")


def test_main_works_in_a_thread_and_leaves_signals_alone(home: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    errors: list[BaseException] = []

    def run() -> None:
        try:
            main([*FIT, *SHORT])
        except BaseException as error:  # to be shown by the test
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []
    assert load(RUN).complete("Question")
    assert {number: signal.getsignal(number) for number in before} == before


def test_main_works_in_an_asyncio_loop(home: Path) -> None:
    async def run() -> None:
        main([*FIT, *SHORT])

    asyncio.run(run())
    assert load(RUN).complete("Question")


# Launchers and clusters


@pytest.mark.parametrize(
    "rank", ["RANK", *(pytest.param(name, marks=pytest.mark.slow) for name in ("LOCAL_RANK", "SLURM_PROCID"))]
)
def test_a_rank_that_another_program_left_counts_for_nothing(trained: Path, home: Path, rank: str) -> None:
    result = program("predict", "--ckpt_path", trained / RUN, **{rank: "1"})
    assert (result.returncode, result.stdout) == (0, SENTENCE + "\n")
    result = program(*FIT, *SHORT, **{rank: "1"})
    assert result.returncode == 0, result.stderr
    assert f"run        {RUN}" in result.stdout


@pytest.mark.parametrize("command", ["predict", "validate", "chat"])
def test_of_several_processes_one_speaks(trained: Path, home: Path, command: str) -> None:
    launched = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    result = program(command, "--ckpt_path", trained / RUN, RANK="1", **launched)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGUSR1,
        *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM)),
    ],
)
def test_each_signal_of_a_cluster_is_a_graceful_stop(home: Path, number: signal.Signals) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    fit = [sys.executable, "-m", "tinygpt_lightning", *FIT, "--stages", "[{epochs: 50000}]"]
    (home / "checkpoints").mkdir()
    shutil.copy(home / "small.yaml", home / "checkpoints/hpc_ckpt_1.ckpt")  # would be resumed from
    with subprocess.Popen(
        fit, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, **job}
    ) as it:
        until = time.monotonic() + 120
        while not (RUN / "config.yaml").exists() and time.monotonic() < until:
            time.sleep(0.05)
        it.send_signal(number)
        assert it.stderr
        err = it.stderr.read()
    assert it.returncode == 128 + number, err
    assert f"resume with: python -m tinygpt_lightning fit --ckpt_path {RUN}" in err
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["hpc_ckpt_1.ckpt", "small"]
    assert not list(RUN.glob("hpc*"))


# File systems


def refusing(number: int) -> Any:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_without_locks_a_fit_goes_ahead_with_one_warning(home: Path, command: Command, monkeypatch: Any) -> None:
    monkeypatch.setattr("fcntl.flock", refusing(errno.ENOSYS))
    with pytest.warns(UserWarning, match="has no locks") as warnings:
        assert command(*FIT, *SHORT).code == 0
    assert len(warnings) == 1


def test_folders_that_cannot_be_flushed_are_written_to(tmp_path: Path, monkeypatch: Any) -> None:
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            refusing(errno.EINVAL)()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    with pytest.warns(UserWarning, match="power cut"):
        files.write_whole(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM])
def test_every_error_of_the_system_names_its_path(tmp_path: Path, monkeypatch: Any, number: int) -> None:
    monkeypatch.setattr("fcntl.flock", refusing(number))
    with pytest.raises(OSError, match=os.strerror(number)) as locking, files.locked(tmp_path):
        pass
    monkeypatch.setattr(os, "fsync", refusing(number))
    with pytest.raises(OSError, match=os.strerror(number)) as writing:
        files.write_whole(tmp_path / "file", b"content")
    assert (locking.value.filename, writing.value.filename) == (str(tmp_path), str(tmp_path / "file"))


# Damaged settings among the runs

BROKEN = {
    "edited badly": b"stages: [",
    "Latin-1": "data: {answer: h\xe9}".encode("latin-1"),
    "a foreign tag": b"!!python/name:os.system",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_one_unreadable_run_is_named_and_the_others_are_found(
    trained: Path, home: Path, command: Command, monkeypatch: Any, content: bytes
) -> None:
    shutil.copytree(trained / RUN, home / RUN)
    broken = Run(Path("checkpoints/small/version_1"))
    shutil.copytree(RUN, broken.path)
    broken.config.write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Xin chào\n"))
    for args in (("predict", "--config", "small.yaml"), ("chat",)):
        result = command(*args)
        assert result.code == 0
        assert "kính chào quý khách" in result.out
        assert result.err.startswith(f"warning: {broken.config}: ")
        assert result.err.count("\n") == 1
    result = command("fit", "--ckpt_path", broken.path)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {broken.config}: ")
    assert result.err.count("\n") == 1


# Settings

REFUSED = {
    "an accelerator that is not here": ("--trainer.accelerator", "tpu"),
    "no devices": ("--trainer.devices", "-2"),
    "a profiler of another machine": ("--trainer.profiler", "xla"),
    "a precision of another library": ("--trainer.precision", "transformer-engine"),
    "a strategy that is not here": ("--trainer.strategy", "deepspeed"),
}


@pytest.mark.parametrize("flags", REFUSED.values(), ids=REFUSED.keys())
def test_what_lightning_refuses_is_told_in_a_few_lines(home: Path, command: Command, flags: tuple[str, str]) -> None:
    result = command(*FIT, *flags)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") <= 5
    assert "Traceback" not in result.err
    assert not Path("checkpoints").exists()


def test_a_model_larger_than_the_memory_is_refused_before_it_is_made(home: Path, command: Command) -> None:
    result = command(*FIT, "--model.config.n_embd", "12000000")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: model.config: ")
    assert result.err.count("\n") == 1
    assert not Path("checkpoints").exists()


def test_an_error_keeps_its_type_for_its_cause_to_be_found(home: Path, command: Command, monkeypatch: Any) -> None:
    monkeypatch.setenv("TINYGPT_DEBUG", "1")
    with pytest.raises(Exception, match=r"(?i)transformer.engine"):
        command(*FIT, "--trainer.precision", "transformer-engine")


def test_overfitting_a_batch_works(home: Path, command: Command) -> None:
    result = command(*FIT, "--trainer.overfit_batches", "1", *SHORT)
    assert result.code == 0, result.err
    assert read_checkpoint(RUN / "last.ckpt")["global_step"] == 2


def test_settings_that_are_no_file_name_no_folder(home: Path, command: Command, monkeypatch: Any) -> None:
    assert "run        checkpoints/default/version_0" in command("fit", "--config", "{seed_everything: 1}", *SHORT).out
    assert runs_below("checkpoints") == ["default"]


def runs_below(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_fit_that_is_refused_leaves_no_folder_at_all(home: Path, command: Command) -> None:
    assert command(*FIT, "--data.path", "none.jsonl").code == 2
    assert not Path("checkpoints").exists()
    Path("checkpoints/other").mkdir(parents=True)
    assert command(*FIT, "--data.path", "none.jsonl").code == 2
    assert runs_below("checkpoints") == ["other"]


SUGGESTIONS = {
    ("fit", "--confg", "small.yaml"): "--config",
    ("fti", "--config", "small.yaml"): "fit",
    (*FIT, "--epochs", "5"): "--stages",
    (*FIT, "--lr", "0.1"): "--model.optimizer.lr",
    (*FIT, "--data.questions", "Xin chào"): """--data.questions '["Xin chào"]'""",
    (*FIT, "--model.optimizer.lr", "fast"): "--model.optimizer.lr",
    ("fit", "--config", "study.yaml"): "study",
    ("study", "--config", "small.yaml"): "fit",
}


@pytest.mark.parametrize("args", SUGGESTIONS, ids=" ".join)
def test_a_slip_is_answered_with_the_right_flag(home: Path, command: Command, args: tuple[str, ...]) -> None:
    (home / "study.yaml").write_text("factors: {seed_everything: [1, 2]}\nseeds: 3\n", encoding="utf-8")
    result = command(*args)
    assert (result.code, result.out) == (2, "")
    assert SUGGESTIONS[args] in result.err
    assert "dot import" not in result.err
    assert result.err.count("\n") <= 4


@pytest.mark.parametrize("flag", ["--model.config.n_embd=32", "--stages=[{epochs: 3}]", "--renumber=true"])
def test_settings_without_effect_are_refused(trained: Path, home: Path, command: Command, flag: str) -> None:
    result = command("predict", "--ckpt_path", trained / RUN, flag)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {flag.partition('=')[0]}: ")


@pytest.mark.parametrize("command_name", ["fit", "validate", "predict", "study"])
@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_configuration_in_another_encoding_is_named(
    home: Path, command: Command, command_name: str, encoding: str
) -> None:
    (home / "other.yaml").write_text("data: {answer: 'khách quý'}", encoding=encoding)
    result = command(command_name, "--config", "other.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: other.yaml: ")
    assert result.err.count("\n") == 1


def like_numbers(test: Callable[..., None]) -> Callable[..., None]:
    for text in ("3e8", "1e5", "1_0e2", "12e4567", "0x1F", "1:30", "null", "a\x85b", "~", "#"):
        test = example(text)(test)
    return test


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8"), min_size=1))
@like_numbers
def test_any_text_goes_through_a_runs_settings(tmp_path: Path, text: str) -> None:
    typed = Settings("fit", [f"--data.answer={text}"])
    (tmp_path / "config.yaml").write_text(typed.text, encoding="utf-8", newline="")
    back = Settings("fit", ["--config", str(tmp_path / "config.yaml")])
    assert back.config.data.answer == text
    assert yaml.safe_load(typed.text)["data"]["answer"] == text


def test_a_run_with_a_number_as_its_answer_is_resumed(home: Path, command: Command) -> None:
    assert command(*FIT, "--data.question", "x", "--data.answer", "3e8", *SHORT).code == 0
    (RUN / "stage-1.ckpt").unlink()
    (RUN / "last.ckpt").unlink()
    assert command(*FIT, "--ckpt_path", "last").code == 0
    assert load(RUN).taught.pairs[0].answer == "3e8"


# Folders


def test_a_run_is_resumed_from_another_folder_and_by_another_name_of_its_file(
    home: Path, command: Command, monkeypatch: Any
) -> None:
    Path("d").mkdir()
    pairs = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]
    Path("d/two.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    assert command(*FIT, "--data.path", "d/two.jsonl", *SHORT).code == 0
    longer = ("--stages", "[{epochs: 2}, {epochs: 1}]")
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    run = Path("..") / RUN
    assert command("fit", "--ckpt_path", run, *longer).code == 0
    longest = ("--stages", "[{epochs: 2}, {epochs: 1}, {epochs: 1}]")
    assert command("fit", "--ckpt_path", run, *longest, "--data.path", home / "d/two.jsonl").code == 0
    assert read_checkpoint(run / "last.ckpt")["global_step"] == 4


def test_the_message_says_where_a_file_was_looked_for(home: Path, command: Command) -> None:
    Path("configs").mkdir()
    Path("configs/own.yaml").write_text("data: {path: none.jsonl}", encoding="utf-8")
    result = command("fit", "--config", "configs/own.yaml")
    assert result.code == 2
    assert "none.jsonl" in result.err
    assert str(home / "configs") in result.err


def test_a_tilde_is_the_home_folder_everywhere(trained: Path, home: Path, command: Command, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(home / "user"))
    (home / "user").mkdir()
    (home / "user/pairs.jsonl").write_text('{"question": "a", "answer": "b"}\n', encoding="utf-8")
    (home / "tilde.yaml").write_text(
        "data: {path: ~/pairs.jsonl}\ntrainer: {default_root_dir: ~/runs}", encoding="utf-8"
    )
    result = command(*FIT, "--config", "tilde.yaml", *SHORT)
    assert f"run        {home}/user/runs/small-tilde/version_0" in result.out
    assert list((home / "user/runs/small-tilde/version_0").glob("events*"))
    last = "--ckpt_path=~/runs/small-tilde/version_0/last.ckpt"
    assert command("predict", last, "--output=~/texts.jsonl").code == 0
    assert command("export", last, "--output=~/exported").code == 0
    assert command("import", "--from=~/exported", "--output=~/back.ckpt").code == 0
    names = {path.name for path in (home / "user").iterdir()}
    assert names == {"pairs.jsonl", "runs", "texts.jsonl", "exported", "back.ckpt"}
    assert not list(home.glob("~*"))


def test_a_path_with_spaces_can_be_pasted(home: Path, command: Command) -> None:
    out = command(*FIT, *SHORT, "--trainer.default_root_dir", "my runs").out
    assert "look       tensorboard --logdir 'my runs'\n" in out
    out = command(*FIT, *SHORT, "--trainer.logger", "false").out
    assert "tensorboard" not in out
    assert "next       " in out
    assert "size       " in out


# Pipes


def test_each_line_of_a_pipe_gets_its_answer(trained: Path, home: Path, command: Command, monkeypatch: Any) -> None:
    lines = "\ufeffXin chào\nXin ф\nXin chào\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    result = command("chat", "--ckpt_path", trained / RUN)
    answer = load(trained / RUN).answer("Xin chào")
    assert (result.code, result.out) == (1, f"{answer}\n\n{answer}\n")
    assert "'ф' (U+0444)" in result.err


# Strict Pythons and other machines


@pytest.mark.parametrize("policy", [None, "ACTIVE"])
def test_waiting_threads_sleep_soon_unless_somebody_says_otherwise(monkeypatch: Any, policy: str | None) -> None:
    monkeypatch.setattr(sys, "argv", ["tinygpt", "--help"])
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is as before when the test is over
        monkeypatch.delenv(name)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    package_main.main()
    assert ("GOMP_SPINCOUNT" in os.environ) == (policy is None)


@pytest.mark.parametrize(
    ("flags", "asked"), [((), [1]), (("--model.config.n_embd", "768"), []), (("--threads", "2"), [2])]
)
def test_steps_too_small_to_share_get_one_thread(
    home: Path, command: Command, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], asked: list[int]
) -> None:
    counts: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", counts.append)
    assert command("fit", "--config", "small.yaml", "--stages", "[{epochs: 1}]", *flags).code == 0
    assert counts == asked


def test_a_boundary_says_nothing_of_what_is_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightning.pytorch")
    stages = StagedTraining([Stage(epochs=1), Stage(epochs=1)], tmp_path)
    trainer = quiet_trainer(max_epochs=-1, callbacks=[stages], enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(TinyGPTModule(), QADataModule())
    assert (tmp_path / "stage-2.ckpt").exists()
    assert not [record.message for record in caplog.records if "weights_only" in record.message]


@pytest.mark.slow
def test_a_strict_python_finds_nothing_to_warn_of(home: Path) -> None:
    strict = [sys.executable, "-W", "error", "-m", "tinygpt_lightning"]
    for words in ((*FIT, *SHORT), ("predict", "--ckpt_path", RUN)):
        done = subprocess.run([*strict, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_model_can_be_exported_by_torch() -> None:
    from tinygpt_lightning import GPTConfig, TinyGPT

    model, ids = TinyGPT(GPTConfig(n_embd=8, n_head=2, n_positions=16)).eval(), torch.randint(34, (2, 9))
    exported = torch.export.export(model, (ids,)).module()
    torch.testing.assert_close(exported(ids), model(ids), rtol=0, atol=1e-6)
