"""The command ``show``."""

from __future__ import annotations

import json
import shutil
import webbrowser
from pathlib import Path

import pytest
from conftest import Command
from networks import untrained

from tinygpt_lightning import load
from tinygpt_lightning.callbacks.snapshots import Snapshots
from tinygpt_lightning.page.moments import SNAPSHOTS_KEY
from tinygpt_lightning.trained import save

ROOT = Path(__file__).parents[2]


def test_it_writes_a_page_beside_the_checkpoint(command: Command, tmp_path: Path) -> None:
    save(untrained(), tmp_path / "last.ckpt")
    result = command("show", "--ckpt_path", tmp_path)
    assert (result.code, result.out, result.err) == (0, f"{tmp_path / 'page.html'}\n", "")
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "page.html"]


def test_or_where_it_is_asked_to(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    save(untrained(), tmp_path / "last.ckpt")
    page = tmp_path / "a page.html"
    assert command("show", "--ckpt_path", tmp_path / "last.ckpt", "--output", page, "--open").code == 0
    assert opened == [page.as_uri()]
    first = page.read_bytes()
    assert command("show", "--ckpt_path", tmp_path / "last.ckpt", "--output", page).code == 0
    assert (page.read_bytes(), len(opened)) == (first, 1)


def test_it_takes_the_newest_run_of_a_configuration(
    command: Command, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(trained)
    for options in (["--config", "small.yaml"], []):
        result = command("show", *options, "--output", tmp_path / "page.html")
        assert result.code == 0, result.err
        assert "version_0/" in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--ckpt_path", "absent.ckpt"], "absent.ckpt"),
        (["--config", "absent.yaml"], "absent.yaml"),
        ([], "checkpoints"),
        (["--ckpt_path", "text.ckpt"], "text.ckpt"),
        (["--ckpt_path", "last.ckpt", "--output", "no/page.html"], "no/page.html"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_what_cannot_be_shown_is_said(command: Command, home: Path, options: list[str], named: str) -> None:
    save(untrained(), home / "last.ckpt")
    (home / "text.ckpt").write_text("text", encoding="utf-8")
    before = sorted(home.iterdir())
    result = command("show", *options)
    assert (result.code, result.out) == (2, "")
    assert named in result.err
    assert "Traceback" not in result.err
    assert sorted(home.iterdir()) == before


def test_a_model_of_numbers_that_no_page_can_hold_is_refused(command: Command, tmp_path: Path) -> None:
    save(untrained(layer_norm_epsilon=float("inf")), tmp_path / "last.ckpt")
    result = command("show", "--ckpt_path", tmp_path)
    assert (result.code, result.out) == (2, "")
    assert str(tmp_path / "last.ckpt") in result.err
    assert not (tmp_path / "page.html").exists()


def test_the_moments_are_found_under_the_callbacks_key() -> None:
    assert Snapshots().state_key == SNAPSHOTS_KEY


def test_fit_keeps_snapshots_for_the_page(command: Command, home: Path) -> None:
    result = command("fit", "--config", "small.yaml", "--snapshots", "5")
    assert result.code == 0, result.err
    assert command("show", "--config", "small.yaml").code == 0
    page = (home / "checkpoints" / "small" / "version_0" / "page.html").read_text("utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert data["moments"][0]["step"] == 0
    assert len(data["moments"]) == 5
    assert data["boundaries"] == [30, 60]


def test_more_snapshots_than_a_page_can_hold_are_refused(command: Command, home: Path) -> None:
    result = command("fit", "--config", "small.yaml", "--snapshots", "100")
    assert (result.code, result.out) == (2, "")
    assert "5,000,000" in result.err
    assert command("fit", "--config", "small.yaml", "--snapshots", "1").code == 2


@pytest.mark.parametrize("name", ["page.html", "page-16.html"])
def test_released_pages_are_of_todays_scripts(name: str) -> None:
    from tinygpt_lightning.page.page import _script

    page = (ROOT / "checkpoints" / "smallest" / name).read_text("utf-8")
    assert _script() in page
    assert len(page) < 1_000_000


def test_the_released_snapshots_give_the_released_page_to_the_byte(command: Command, tmp_path: Path) -> None:
    (tmp_path / "smallest").mkdir()
    released = ROOT / "checkpoints" / "smallest"
    shutil.copy(released / "snapshots.ckpt", tmp_path / "smallest")
    assert command("show", "--ckpt_path", tmp_path / "smallest" / "snapshots.ckpt").code == 0
    assert (tmp_path / "smallest" / "page.html").read_bytes() == (released / "page.html").read_bytes()
    weights = [load(released / name).model.state_dict() for name in ("snapshots.ckpt", "last.ckpt")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])
