"""The command as a user meets it: whole runs, interruptions, processes, wrong input."""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tinygpt_lightning.commands.main import main as program
from tinygpt_lightning.study import rows, runner
from tinygpt_lightning.study.command import parse
from tinygpt_lightning.study.ensemble import Ensemble

from .tiny import RIDDLE, ROOT, command, comparable, read_rows, run, schedule, tiny_study, write_config

ONE_VOCABULARY = {"factors": {**schedule("1×3"), "vocabulary": {"stable": {"renumber": False}}}}
SMALL = {"factors": schedule("1×3", "2×3")}


@pytest.fixture
def no_report(monkeypatch):
    """For tests of rows: figures take most of the time of a tiny study."""
    monkeypatch.setattr(runner, "write_report", lambda *_: "")


def main(arguments):
    """Type a study: its exit code."""
    try:
        program(["study", *arguments])
    except SystemExit as exit_:
        return int(exit_.code)
    return 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the tiny study, which the others are compared with."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["--config", str(write_config(folder, **SMALL))]) == 0
    return folder / "out"


def start(config):
    return subprocess.Popen(command(config), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(folder, number):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if sum(path.read_bytes().count(b"\n") for path in folder.glob("rows-*.jsonl")) >= number:
            return
        time.sleep(0.005)
    raise TimeoutError(f"{folder} has fewer than {number} rows")


def table(folder):
    return [line for line in (folder / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def test_a_row_for_every_run_with_its_whole_configuration(finished):
    study, found = tiny_study(**SMALL), read_rows(finished)
    assert [(row.common.settings, row.seed) for row in found] == [
        (cell.recipe.settings, seed) for cell in study.cells for seed in study.plan.seed_list
    ]
    for row in found:
        assert set(row.common.made_with["versions"]) == {"python", "tinygpt-lightning", "torch", "lightning"}
        assert row.seconds > 0
        assert len(row.outcome["loss"]) == sum(stage["epochs"] for stage in row.common.settings["stages"])
    assert {path.name for path in finished.iterdir() if "tfevents" not in path.name} == {
        ".lock", "settings.json", "rows.jsonl", "report.md", "exactness.png", "loss.png", "cipher.png",
    }  # fmt: skip


@pytest.mark.usefixtures("no_report")
def test_chunks_of_any_size_give_the_same_rows(finished, tmp_path):
    """To rounding: a stack of three, or of one, may take other paths through the linear algebra than a stack of two."""
    assert main(["--config", str(write_config(tmp_path, **SMALL)), "--chunk", "3"]) == 0
    for row, expected in zip(read_rows(tmp_path / "out"), read_rows(finished), strict=True):
        assert row.key == expected.key
        assert row.outcome["loss"] == pytest.approx(expected.outcome["loss"], abs=1e-5)
        for name in ("exact", "epochs_to_exact"):
            assert row.outcome[name] == expected.outcome[name]


@pytest.mark.slow
def test_two_processes_give_the_same_rows_as_one(finished, tmp_path):
    result = run(write_config(tmp_path, **SMALL), "--fabric.devices", "2")
    assert result.returncode == 0, result.stderr
    assert comparable(read_rows(tmp_path / "out")) == comparable(read_rows(finished))
    assert result.stdout.count("**") == 2  # one answer, by one process


def test_a_killed_study_continues(finished, tmp_path, capsys):
    config = write_config(tmp_path, **SMALL)
    process = start(config)
    wait_for_rows(tmp_path / "out", 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [part] = (tmp_path / "out").glob("rows-*.jsonl")
    kept = part.read_bytes()
    assert 3 <= kept.count(b"\n") < len(read_rows(finished))
    part.write_bytes(kept + b'{"cell": "abc')  # as if it had been killed in mid-line
    assert main(["--config", str(config)]) == 0
    assert "dropped the unfinished last line" in capsys.readouterr().err
    rows = (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert all(line in rows for line in kept.splitlines())  # kept to the last byte, durations included
    assert comparable(read_rows(tmp_path / "out")) == comparable(read_rows(finished))
    assert table(tmp_path / "out") == table(finished)


@pytest.mark.usefixtures("no_report")
def test_finished_runs_are_not_repeated(tmp_path, monkeypatch):
    small = ["--config", str(write_config(tmp_path, **ONE_VOCABULARY))]
    assert main(small) == 0
    before = read_rows(tmp_path / "out")
    trained = []
    train_epoch = Ensemble.train_epoch
    monkeypatch.setattr(Ensemble, "train_epoch", lambda self: trained.append(self.seeds) or train_epoch(self))
    assert main(small) == 0
    assert not trained
    assert main(["--config", str(write_config(tmp_path, factors=schedule("1×3")))]) == 0  # a larger design
    assert len(trained) == 2 * 3  # the new cell only, in two chunks
    assert [row for row in read_rows(tmp_path / "out") if not row.common.settings["renumber"]] == before


def test_rows_made_with_other_settings_are_refused_and_kept(finished, tmp_path, capsys):
    before = (finished / "rows.jsonl").read_bytes()
    config = str(write_config(tmp_path, **SMALL))
    assert main(["--config", config, "--output", str(finished), "--model.optimizer.lr", "0.1"]) == 2
    error = capsys.readouterr().err
    assert "expected rows made with model.optimizer.init_args.lr=0.1, got one made with 0.01" in error
    assert (finished / "rows.jsonl").read_bytes() == before


def test_a_failed_cell_is_reported_and_repeated(finished, tmp_path, monkeypatch, capsys):
    config = str(write_config(tmp_path, **SMALL))
    begin_stage = Ensemble.begin_stage

    def fail(self, recipe, stage):
        if recipe.stages[stage].weights == "redrawn" and 2 in self.seeds:
            raise RuntimeError("out of memory\nand a long story")
        begin_stage(self, recipe, stage)

    with monkeypatch.context() as patch:
        patch.setattr(Ensemble, "begin_stage", fail)
        assert main(["--config", config]) == 1
    error = capsys.readouterr().err
    cell = "vocabulary stable, schedule 2×3, optimizer new, weights redrawn"
    assert f"failed: {cell}, seeds [2, 3]: RuntimeError: out of memory\n" in error
    assert "8 runs are missing" in error
    expected = comparable(read_rows(finished))
    lost = [
        (row.key, row.outcome)
        for row in read_rows(finished)
        if row.seed in (2, 3) and row.common.settings["stages"][-1]["weights"] == "redrawn"
    ]
    assert comparable(read_rows(tmp_path / "out")) == [row for row in expected if row not in lost]
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# The riddle, not answered: not all runs are there\n")
    monkeypatch.setattr(runner, "write_report", lambda *_: "")
    assert main(["--config", config]) == 0
    assert comparable(read_rows(tmp_path / "out")) == expected


@pytest.mark.slow
def test_processes_join_and_leave_at_any_time(finished, tmp_path):
    """Of four processes two are killed and one joins late; the rows are those of one process."""
    config = write_config(tmp_path, seeds=24, chunk=1, **SMALL)
    processes = [start(config) for _ in range(3)]
    wait_for_rows(tmp_path / "out", 5)
    processes.append(start(config))
    processes[0].send_signal(signal.SIGKILL)
    wait_for_rows(tmp_path / "out", 60)
    processes[1].send_signal(signal.SIGKILL)
    for process in processes:  # killed ones, too
        _, error = process.communicate(timeout=300)
        assert process.returncode == (-signal.SIGKILL if process in processes[:2] else 0), error
    alone = tmp_path / "alone"
    assert main(["--config", str(config), "--output", str(alone)]) == 0
    assert comparable(read_rows(tmp_path / "out")) == comparable(read_rows(alone))
    assert [path.name for path in (tmp_path / "out").glob("rows*.jsonl")] == ["rows.jsonl"]


def test_a_killed_process_is_named(capsys):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.kill()
    others = {1: SimpleNamespace(exitcode=process.wait()), 2: SimpleNamespace(exitcode=None)}
    runner._report_deaths(others)
    runner._report_deaths(others)
    assert capsys.readouterr().err == "process 1 was killed (signal 9): the others take over its runs\n"


@pytest.mark.usefixtures("no_report")
def test_a_disk_that_is_full_for_a_moment_costs_no_row(finished, tmp_path, monkeypatch, capfd):
    fsync, calls = os.fsync, []

    def full_once(descriptor):
        calls.append(descriptor)
        if len(calls) in (6, 7):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(rows.os, "fsync", full_once)
    assert main(["--config", str(write_config(tmp_path, **SMALL))]) == 0
    assert "No space left on device" in capfd.readouterr().err
    assert comparable(read_rows(tmp_path / "out")) == comparable(read_rows(finished))


def test_a_study_whose_runs_all_diverge_fails(tmp_path, capfd):
    config = write_config(tmp_path, factors=schedule("1×5"), seeds=1)
    assert main(["--config", str(config), "--model.optimizer.lr", "1e30"]) == 1
    assert capfd.readouterr().err.endswith("2 runs diverged\n")
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# The riddle, not answered: 2 of 2 runs diverged\n")


TEN_LINES = """\
factors:
  model.config.n_head: [1, 2]
  model.optimizer.lr: [0.0001, 0.03, 0.1]
stages:
  - epochs: 25
model:
  config: {n_embd: 16, n_positions: 64}
seeds: 12
chunk: 12
output: out
"""


def test_a_study_of_ten_lines(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heads.yaml").write_text(TEN_LINES, encoding="utf-8")
    assert TEN_LINES.count("\n") == 10
    assert main(["--config", "heads.yaml"]) == 0
    assert "What decides on exactness is model.optimizer.lr" in capfd.readouterr().out
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# out, answered\n\n**What decides on exactness is model.optimizer.lr.** ")
    lines = [line for line in report.splitlines() if line.startswith("| ")]
    for head in ("1", "2"):
        for levels in ("0.0001 / 0.03", "0.0001 / 0.1", "0.03 / 0.1"):
            start = f"| model.optimizer.lr | model.config.n_head {head} | exactness | {levels} |"
            assert any(line.startswith(start) for line in lines), start
    for rate in ("0.0001", "0.03", "0.1"):
        start = f"| model.config.n_head | model.optimizer.lr {rate} | exactness | 1 / 2 |"
        assert any(line.startswith(start) for line in lines), start
    assert sum("| final loss, dropout off (nats) |" in line for line in lines) == 2 * 3 + 3
    assert {path.name for path in (tmp_path / "out").iterdir() if "tfevents" not in path.name} == {
        ".lock", "settings.json", "rows.jsonl", "report.md", "exactness.png", "loss.png",
    }  # fmt: skip


def test_sizes_and_lengths_are_mixed_in_one_study(tmp_path):
    factors = {
        "size": {"one": {"model.config.n_embd": 4}, "other": {"model.config.n_embd": 6, "model.config.bias": False}},
        "steps": {3: {"stages[0].epochs": 3}, 30: {"stages[0].epochs": 30}},
    }
    changes = {"factors": factors, "claims": "frontier", "title": "Sizes", "curve_points": 3}
    assert main(["--config", str(write_config(tmp_path, **changes))]) == 0
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# Sizes, not answered: no network learns the sentence\n\n**None of 16 runs learns")
    rows = read_rows(tmp_path / "out")
    assert {len(row.outcome["loss"]) for row in rows} == {3}
    assert {row.common.settings["model"]["config"]["n_embd"] for row in rows} == {4, 6}


def test_a_row_stays_small(tmp_path):
    stages = {"stages": [{"epochs": 450}]}
    config = write_config(tmp_path, factors={}, seeds=1, measure_updates=True, claims=None, **stages)
    assert main(["--config", str(config)]) == 0
    [row] = (tmp_path / "out" / "rows.jsonl").read_bytes().splitlines()
    assert len(row) < 20_000
    assert len(json.loads(row)["loss"]) == RIDDLE.get("curve_points", 400)


def test_a_size_file_of_fit_can_be_added(tmp_path, monkeypatch):
    medium = str(ROOT / "configs" / "medium.yaml")
    asked, folder = parse(["--config", str(ROOT / "configs" / "riddle_small.yaml"), "--config", medium])
    assert {(c.recipe.config.n_embd, c.recipe.config.n_head, c.recipe.config.n_positions) for c in asked.cells} == {
        (1024, 16, 64)
    }
    assert folder.name == "riddle_small-medium"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--factors", '{"stages[0].weights": [drawn]}'], "stages[0].weights drawn"),
        (["--factors", '{"model.config.heads": [1]}'], "heads"),
        (["--claims", "wild"], "claims"),
        (["--seeds", "many"], "seeds"),
        (["--seeds", "99999999999999999999"], "seeds: expected at most 1000000, got 99999999999999999999"),
        (["--model.optimiser", "[new]"], "model.optimiser"),
        (["--stages", "[{epochs: 0}]"], "epochs: expected 1 or more, got 0"),
        (["--stages", "[{epochs: 3, kept: 1}]"], "did you mean 'keep'?"),
        (["--model.config.n_head", "5"], "n_head: expected a divisor of n_embd=768, got 5"),
        (["--data.answer", "x" * 2000], "model.config.n_positions: expected "),
        (["--fabric.accelerator", "abacus"], "fabric.accelerator"),
        (["--fabric.devices", "0"], "fabric.devices: expected 1 or more, got 0"),
    ],
)
def test_wrong_input_is_named_in_a_few_lines(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    assert captured.err.count("\n") <= 5
    assert not captured.out
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else find_spec(name))
    assert main([]) == 2
    assert capsys.readouterr().err == "error: study needs scipy: pip install -e '.[study]'\n"


def test_every_configuration_is_a_study():
    found = {}
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        if " study " in first:
            assert first == f"# python -m tinygpt_lightning study --config configs/{path.name}"
            study, folder = parse(["--config", str(path)])
            found[path.stem] = (len(study.cells), len(study.plan.seed_list), str(folder))
    assert found == {
        "dose": (2 * 2 * 6, 20, "checkpoints/dose"),
        "many": (5 * 2, 10, "checkpoints/many"),
        "many_again": (3 * 2, 10, "checkpoints/many/again"),
        "frontier": (6 * 4 + 2, 1000, "checkpoints/frontier"),
        "reset": (2**3 + 1, 20, "checkpoints/reset"),
        "riddle": (14, 20, "checkpoints/riddle"),
        "riddle_full": (24, 10, "checkpoints/riddle/full"),
        "tuned": (3, 20, "checkpoints/tuned"),
        "riddle_small": (14, 10, "checkpoints/riddle_small"),
    }
