"""The command as a user meets it: whole runs, interruptions, processes, wrong input."""

import importlib.util
import signal
import subprocess
import time

import pytest

from tinygpt_lightning.cli import main as program
from tinygpt_lightning.gpt.files import locked
from tinygpt_lightning.study.command import parse
from tinygpt_lightning.study.engine.ensemble import Ensemble

from .tiny import ROOT, command, comparable, read_rows, run, tiny_study, write_config


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
    assert main(["--config", str(write_config(folder))]) == 0
    return folder / "out"


def table(folder):
    return [line for line in (folder / "report.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]


def test_a_row_for_every_run_with_its_whole_configuration(finished):
    study, rows = tiny_study(), read_rows(finished)
    assert [row["config"] for row in rows] == [study.config(c, s) for c in study.cells for s in study.seed_list]
    for row in rows:
        assert set(row["versions"]) == {"python", "tinygpt-lightning", "torch", "lightning"}
        assert row["seconds"] > 0
        assert len(row["outcome"]["loss"]) == sum(row["config"]["schedule"])
    assert {path.name for path in finished.iterdir() if "tfevents" not in path.name} == {
        "rows.jsonl", "report.md", "exactness.png", "loss.png", "cipher.png",
    }  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_of_any_size_give_the_same_rows(finished, tmp_path, chunk):
    """To rounding: a stack of one may take other paths through the linear algebra than a stack of two."""
    assert main(["--config", str(write_config(tmp_path)), "--chunk", str(chunk)]) == 0
    for row, expected in zip(read_rows(tmp_path / "out"), read_rows(finished), strict=True):
        assert row["config"] == expected["config"]
        assert row["outcome"]["loss"] == pytest.approx(expected["outcome"]["loss"], abs=1e-5)
        for name in ("exact", "exact_in_training_vocabulary", "epochs_to_exact"):
            assert row["outcome"][name] == expected["outcome"][name]


def test_two_processes_give_the_same_rows_as_one(finished, tmp_path):
    result = run(write_config(tmp_path), "--fabric.devices", "2")
    assert result.returncode == 0, result.stderr
    assert comparable(read_rows(tmp_path / "out")) == comparable(read_rows(finished))
    assert result.stdout.count("**") == 2  # one answer, by one process


def test_killed_in_mid_run_and_started_again(finished, tmp_path):
    config = write_config(tmp_path)
    part = tmp_path / "out" / "rows-0.jsonl"
    process = subprocess.Popen(command(config), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = part.read_bytes()
    assert 3 <= kept.count(b"\n") < len(read_rows(finished))
    part.write_bytes(kept + b'{"config": {"voc')  # as if it had been killed in mid-line
    result = run(config)
    assert result.returncode == 0, result.stderr
    assert "the last line is not finished and is dropped" in result.stderr
    rows = (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert all(line in rows for line in kept.splitlines())  # kept to the last byte, durations included
    assert comparable(read_rows(tmp_path / "out")) == comparable(read_rows(finished))
    assert table(tmp_path / "out") == table(finished)


def test_finished_rows_are_not_made_again(tmp_path, monkeypatch):
    config = str(write_config(tmp_path, schedules=[[2]]))
    assert main(["--config", config, "--vocabulary", "[stable]"]) == 0
    before = read_rows(tmp_path / "out")
    trained = []
    train_epoch = Ensemble.train_epoch
    monkeypatch.setattr(
        Ensemble, "train_epoch", lambda self, *args: trained.append(self.seeds) or train_epoch(self, *args)
    )
    assert main(["--config", config, "--vocabulary", "[stable]"]) == 0
    assert not trained
    assert main(["--config", config]) == 0  # a larger design: only the new cells
    assert len(trained) == 2 * 2
    assert read_rows(tmp_path / "out")[: len(before)] == before


def test_rows_made_with_other_settings_are_refused_and_kept(finished, tmp_path, capsys):
    before = (finished / "rows.jsonl").read_bytes()
    arguments = ["--config", str(write_config(tmp_path)), "--output", str(finished), "--learning_rate", "0.1"]
    assert main(arguments) == 2
    assert "expected rows made with learning_rate=0.1, got one made with 0.01" in capsys.readouterr().err
    assert (finished / "rows.jsonl").read_bytes() == before


def test_a_failed_cell_is_reported_and_made_on_the_next_run(finished, tmp_path, monkeypatch, capsys):
    config = str(write_config(tmp_path))
    begin_stage = Ensemble.begin_stage

    def fail(self, stage, *, reset_optimizer, redraw_weights):
        if redraw_weights and 2 in self.seeds:
            raise RuntimeError("out of memory\nand a long story")
        begin_stage(self, stage, reset_optimizer=reset_optimizer, redraw_weights=redraw_weights)

    with monkeypatch.context() as patch:
        patch.setattr(Ensemble, "begin_stage", fail)
        assert main(["--config", config]) == 1
    error = capsys.readouterr().err
    assert "failed: 2×3, stable, optimizer new, weights redrawn, seeds [2, 3]: RuntimeError: out of memory\n" in error
    assert "16 runs are missing" in error
    expected = comparable(read_rows(finished))
    lost = [row for row in expected if row["config"]["weights"] == "redrawn" and row["config"]["seed"] in (2, 3)]
    assert comparable(read_rows(tmp_path / "out")) == [row for row in expected if row not in lost]
    assert "not all runs are there" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert main(["--config", config]) == 0
    assert comparable(read_rows(tmp_path / "out")) == expected


def test_two_studies_do_not_write_in_one_folder(finished, tmp_path, capfd):
    before = (finished / "rows.jsonl").read_bytes()
    arguments = ["--config", str(write_config(tmp_path)), "--output", str(finished)]
    with locked(finished):
        assert main(arguments) == 2
    assert capfd.readouterr().err == f"error: {finished}: another process is writing there; wait for its end\n"
    assert (finished / "rows.jsonl").read_bytes() == before
    assert main(arguments) == 0


def test_runs_that_all_diverge_are_no_answer_and_no_success(tmp_path, capfd):
    config = write_config(tmp_path, schedules=[[4]], seeds=1)
    assert main(["--config", str(config), "--learning_rate", "1e30"]) == 1
    assert capfd.readouterr().err.endswith("2 runs diverged\n")
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# The riddle, not answered: 2 of 2 runs diverged\n")


def test_a_size_file_of_fit_can_be_added(tmp_path, monkeypatch):
    medium = str(ROOT / "configs" / "medium.yaml")
    asked, folder = parse(["--config", str(ROOT / "configs" / "riddle_small.yaml"), "--config", medium])
    assert (asked.model.config.n_embd, asked.model.config.n_head, asked.model.config.n_positions) == (1024, 16, 64)
    assert folder.name == "riddle_small-medium"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--vocabulary", "[sorted]"], "vocabulary"),
        (["--seeds", "many"], "seeds"),
        (["--seeds", "99999999999999999999"], "seeds: expected at most 1000000, got 99999999999999999999"),
        (["--optimiser", "[new]"], "--optimiser"),
        (["--schedules", "[[0]]"], "schedules: expected stage lengths of 1 epoch or more, got"),
        (["--model.config.n_head", "5"], "n_head: expected a divisor of n_embd=768, got 5"),
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
    folders = {}
    for path in sorted((ROOT / "configs").glob("riddle*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first == f"# python -m tinygpt_lightning study --config configs/{path.name}"
        study, folder = parse(["--config", str(path)])
        assert len(study.cells) in (14, 24)
        folders[path.stem] = str(folder)
    assert folders == {
        "riddle": "checkpoints/riddle",
        "riddle_full": "checkpoints/riddle/full",
        "riddle_small": "checkpoints/riddle_small",
    }
