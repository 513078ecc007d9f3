import json

import pytest

from tinygpt_lightning.study.evidence.rows import RowsError, append, check_same_study, load, save

from .tiny import tiny_study

STUDY = tiny_study()
ROWS = [
    {"config": STUDY.config(cell, seed), "outcome": {"exact": True}} for cell in STUDY.cells[:2] for seed in range(2)
]


def test_an_empty_or_absent_folder_has_no_rows(tmp_path):
    assert load(tmp_path / "absent") == ([], [])


def test_parts_are_joined_and_removed(tmp_path):
    save(tmp_path, ROWS[:1])
    for number, row in enumerate(ROWS[1:]):
        append(tmp_path / f"rows-{number % 2}.jsonl", row)
    rows, messages = load(tmp_path)
    assert sorted(map(str, rows)) == sorted(map(str, ROWS))
    assert not messages
    save(tmp_path, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert load(tmp_path)[0] == rows


def test_a_run_made_twice_counts_once(tmp_path):
    save(tmp_path, ROWS)
    append(tmp_path / "rows-0.jsonl", ROWS[0])
    assert load(tmp_path)[0] == ROWS


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_an_unfinished_last_line_is_dropped_with_a_message(tmp_path, cut):
    for row in ROWS:
        append(tmp_path / "rows-0.jsonl", row)
    whole = (tmp_path / "rows-0.jsonl").read_bytes()
    (tmp_path / "rows-0.jsonl").write_bytes(whole[:-cut])
    rows, [message] = load(tmp_path)
    assert rows == ROWS[:-1]
    assert "rows-0.jsonl" in message


@pytest.mark.parametrize("line", ["no json", "[]", '{"outcome": {}}'])
def test_a_broken_line_in_the_middle_is_refused(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROWS[0])}\n{line}\n{json.dumps(ROWS[1])}\n", encoding="utf-8")
    with pytest.raises(RowsError, match=r"rows\.jsonl, line 2: expected a row"):
        load(tmp_path)


def test_rows_made_with_other_settings_are_refused(tmp_path):
    check_same_study(ROWS, STUDY.common, tmp_path)
    # Other cells and seeds are no other study.
    check_same_study(ROWS, tiny_study(schedules=[[7]], seeds=1, chunk=1).common, tmp_path)
    with pytest.raises(RowsError, match=r"expected rows made with learning_rate=0\.5, got one made with 0\.01"):
        check_same_study(ROWS, tiny_study(learning_rate=0.5).common, tmp_path)


def test_what_is_no_number_never_reaches_the_disk(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        append(tmp_path / "rows-0.jsonl", {"outcome": {"loss": float("nan")}})
