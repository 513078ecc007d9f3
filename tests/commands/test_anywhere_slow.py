"""Launched by torchrun, in a notebook, from a wheel without the clone: what takes minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import SENTENCE, SMALL

from tinygpt_lightning import load, read_checkpoint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RUN = Path("checkpoints/small/version_0")
FIT = ("fit", "--config", "small.yaml", "--stages", "[{epochs: 2}, {epochs: 2}]")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tinygpt_lightning")


def run(*args: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, args)), env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=900
    )


def test_torchrun_trains_one_run_resumes_it_and_speaks_once(home: Path) -> None:
    done = run(sys.executable, *TORCHRUN, *FIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"run        {RUN}") == 1
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]
    (RUN / "stage-2.ckpt").unlink()
    (RUN / "last.ckpt").unlink()
    done = run(sys.executable, *TORCHRUN, *FIT, "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(RUN / "last.ckpt")["global_step"] == 4
    done = run(sys.executable, *TORCHRUN, "predict", "--config", "small.yaml")
    assert (done.returncode, done.stdout) == (0, load(RUN).complete("Question: Xin chào") + "\n")


def test_two_tasks_of_slurm_train_one_run(home: Path) -> None:
    job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NAME": "job", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
           "SLURM_NNODES": "1", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"}  # fmt: skip
    program = [sys.executable, "-m", "tinygpt_lightning", *FIT, "--trainer.devices", "2"]
    tasks = [
        subprocess.Popen(
            program, env={**os.environ, **job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    outputs = [task.communicate(timeout=900) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert [out.count("run        ") for out, _ in outputs] == [1, 0]
    assert [path.name for path in RUN.parent.iterdir()] == ["version_0"]


def test_a_notebook_runs_every_command(home: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cells = [
        "from tinygpt_lightning.commands.main import main",
        f"main({list(FIT)!r})",
        "main(['predict', '--config', 'small.yaml'])",
        "main(['validate', '--config', 'small.yaml'])",
        "import threading; thread = threading.Thread(target=main, args=(['predict', '--config', 'small.yaml'],))\n"
        "thread.start(); thread.join()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(home)}}).execute()
    shown = ["".join(output.get("text", "") for output in cell["outputs"]) for cell in notebook.cells]
    assert "stage 1/2: 2 epochs" in shown[1]
    assert "run        checkpoints/small/version_0" in shown[1]
    assert "\x1b" not in "".join(shown)
    assert "val/exact_match" in shown[3]
    assert load(RUN).complete("Question: Xin chào") in shown[2]


def test_a_wheel_works_without_the_clone_in_a_folder_with_spaces_and_accents(tmp_path: Path) -> None:
    folder = tmp_path / "thư mục của tôi"
    folder.mkdir()
    done = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True, system_site_packages=False)
    python = folder / "venv/bin/python"
    # With the libraries that are installed here, and the package from its wheel alone.
    site = next(path for path in sys.path if path.endswith("site-packages"))
    assert run(python, "-m", "pip", "install", "-q", "--no-deps", wheel, PYTHONPATH="").returncode == 0
    (folder / "libraries.pth").write_text("")
    packages = next((folder / "venv").glob("lib/python*/site-packages"))
    (packages / "libraries.pth").write_text(site + "\n", encoding="utf-8")
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    environment = {"PYTHONPATH": "", "HOME": "/dev/null/none"}  # nothing can be written there, even by root

    def tinygpt(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(folder / "venv/bin/tinygpt"), *args],
            cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert tinygpt("--help").returncode == 0
    for variables in ({}, {"TMPDIR": "/dev/shm"}, {"TMPDIR": "/dev/null/none", "HOME": ""}):  # noqa: S108  # another disk
        environment.update(variables)
        done = tinygpt("fit", "--config", "small.yaml")
        assert done.returncode == 0, done.stderr
    assert tinygpt("predict", "--config", "small.yaml").stdout == SENTENCE + "\n"
    done = tinygpt("fit", "--config", "configs/staged.yaml")
    assert done.returncode == 2
    assert "configs/staged.yaml" in done.stderr
    files = run(python, "-I", "-c", "import tinygpt_lightning as t; print(t.__file__)", PYTHONPATH="").stdout
    assert str(folder) in files
