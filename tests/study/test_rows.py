import errno
import json
import os

import pytest

from tinygpt_lightning.study.rows import Common, RowsError, RowWriter, check_same_study, load, save, save_settings

from .tiny import RUN, row_of, schedule, tiny_study

STUDY = tiny_study()
MADE_WITH = {"engine": {"threads": 1}, "versions": {"python": "3"}}
ROWS = [
    row_of(cell, seed, {"exact": True, "final_loss_dropout_off": None}, MADE_WITH)
    for cell in STUDY.cells[:2]
    for seed in range(2)
]


@pytest.fixture
def folder(tmp_path):
    save_settings(tmp_path, [row.common for row in ROWS])
    return tmp_path


def test_an_empty_or_absent_folder_has_no_rows(tmp_path):
    assert load(tmp_path / "absent") == ([], [])


def test_files_of_processes_are_joined_and_removed(folder):
    save(folder, ROWS[:1])
    for part in range(2):
        RowWriter(folder / f"rows-{part}.jsonl").write(ROWS[1 + part :: 2])
    rows, messages = load(folder)
    assert sorted(rows, key=lambda row: row.key) == sorted(ROWS, key=lambda row: row.key)
    assert not messages
    save(folder, rows)
    assert {path.name for path in folder.iterdir()} == {"rows.jsonl", "settings.json"}
    assert load(folder)[0] == rows


def test_a_row_is_one_flat_object(folder):
    """As pandas.read_json(lines=True) needs it: no table inside another one."""
    writer = RowWriter(folder / "rows-0.jsonl")
    writer.write(ROWS[:1])
    writer.write(ROWS[1:])
    lines = [json.loads(line) for line in (folder / "rows-0.jsonl").read_bytes().splitlines()]
    assert len(lines) == len(ROWS)
    for line, row in zip(lines, ROWS, strict=True):
        assert not any(isinstance(value, dict) for value in line.values())
        assert (line["cell"], line["seed"], line["exact"]) == (row.cell, row.seed, True)
        assert line["level.schedule"] == row.levels["schedule"]
    settings = json.loads((folder / "settings.json").read_bytes())
    assert {line["settings"] for line in lines} == set(settings)
    assert settings[lines[0]["settings"]]["settings"] == ROWS[0].common.settings


def test_a_failed_write_leaves_no_half_line_and_loses_no_row(folder, monkeypatch):
    writer = RowWriter(folder / "rows-0.jsonl")
    writer.write(ROWS[:1])

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            writer.write(ROWS[1:2])
    assert load(folder) == (ROWS[:1], [])
    writer.write(ROWS[2:])
    rows, messages = load(folder)
    assert (sorted(rows, key=lambda row: row.key), messages) == (sorted(ROWS, key=lambda row: row.key), [])


@pytest.mark.parametrize("content", ["[]", "{", '{"a": {}}'])
def test_damaged_settings_are_refused(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(RowsError, match=r"settings\.json"):
        load(tmp_path)


def test_a_repeated_run_counts_once(folder):
    save(folder, ROWS)
    RowWriter(folder / "rows-0.jsonl").write(ROWS[:1])
    assert load(folder)[0] == ROWS


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_an_unfinished_last_line_is_dropped_with_a_message(folder, cut):
    RowWriter(folder / "rows-0.jsonl").write(ROWS)
    whole = (folder / "rows-0.jsonl").read_bytes()
    (folder / "rows-0.jsonl").write_bytes(whole[:-cut])
    rows, [message] = load(folder)
    assert rows == ROWS[:-1]
    assert "rows-0.jsonl" in message


@pytest.mark.parametrize(
    "line", ["no json", "[]", '{"cell": "x"}', '{"cell": "x", "seed": 0, "settings": "none", "seconds": 1}']
)
def test_a_broken_line_in_the_middle_is_refused(folder, line):
    save(folder, ROWS)
    first, *others = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "rows.jsonl").write_text("\n".join([first, line, *others, ""]), encoding="utf-8")
    with pytest.raises(RowsError, match=r"rows\.jsonl, line 2: expected a row"):
        load(folder)


def test_a_setting_that_is_newer_than_a_row_has_its_default(folder):
    save(folder, ROWS)
    path = folder / "settings.json"
    settings = json.loads(path.read_bytes())
    for entry in settings.values():
        for stage in entry["settings"]["stages"]:
            assert stage.pop("first_update") == "own"
    path.write_text(json.dumps(settings), encoding="utf-8")
    rows, _ = load(folder)
    assert [row.key for row in rows] == [row.key for row in ROWS]
    save(folder, rows)
    assert [row.key for row in load(folder)[0]] == [row.key for row in ROWS]


def test_rows_made_with_other_settings_are_refused(folder):
    check_same_study([row.common for row in ROWS], STUDY, folder)
    # Other cells and seeds are no other study.
    check_same_study([row.common for row in ROWS], tiny_study(factors=schedule("1×3"), seeds=1, chunk=1), folder)
    other = {**RUN, "model": {**RUN["model"], "config": {**RUN["model"]["config"], "n_inner": 4}}}
    with pytest.raises(RowsError, match=r"expected rows made with model.config.n_inner=4, got one made with None"):
        check_same_study([row.common for row in ROWS], tiny_study(other), folder)


def test_a_varied_class_may_have_other_arguments(folder):
    """A row has all arguments of the class, its level only some."""
    scheduler = {"model.lr_scheduler": {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 5}}}
    study = tiny_study(factors={"rate": {"constant": {"model.lr_scheduler": None}, "cosine": scheduler}})
    check_same_study([Common(cell.recipe.settings, MADE_WITH) for cell in study.cells], study, folder)


def test_varied_settings_may_differ(folder):
    studies = [tiny_study(factors={"model.config.n_embd": widths}) for widths in ([8], [8, 4])]
    rows = [Common(cell.recipe.settings, MADE_WITH) for cell in studies[1].cells]
    for study in studies:
        check_same_study(rows, study, folder)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        RowWriter(tmp_path / "rows-0.jsonl").write([row_of(STUDY.cells[0], 0, {"loss": float("nan")})])
