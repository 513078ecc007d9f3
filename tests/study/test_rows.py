import pytest

from tinygpt_lightning.study.rows import Common, Row, RowsError, RowWriter, check_same_study, load, save

from .tiny import RUN, schedule, tiny_study

STUDY = tiny_study()
MADE_WITH = {"engine": {"threads": 1}, "versions": {"python": "3"}}
ROWS = [
    Row(Common(cell.recipe.settings, MADE_WITH), seed, 0.5, {"exact": True, "final_loss_dropout_off": None})
    for cell in STUDY.cells[:2]
    for seed in range(2)
]


def test_an_empty_or_absent_folder_has_no_rows(tmp_path):
    assert load(tmp_path / "absent") == ([], [])


def test_files_of_processes_are_joined_and_removed(tmp_path):
    save(tmp_path, ROWS[:1])
    for part in range(2):
        RowWriter(tmp_path / f"rows-{part}.jsonl").write(ROWS[1 + part :: 2])
    rows, messages = load(tmp_path)
    assert sorted(rows, key=lambda row: row.key) == sorted(ROWS, key=lambda row: row.key)
    assert not messages
    save(tmp_path, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert load(tmp_path)[0] == rows


def test_shared_settings_have_one_line(tmp_path):
    writer = RowWriter(tmp_path / "rows-0.jsonl")
    writer.write(ROWS[:1])
    writer.write(ROWS[1:])
    lines = (tmp_path / "rows-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert [line.startswith('{"run": ') and '"settings"' in line for line in lines] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]


def test_a_repeated_run_counts_once(tmp_path):
    save(tmp_path, ROWS)
    RowWriter(tmp_path / "rows-0.jsonl").write(ROWS[:1])
    assert load(tmp_path)[0] == ROWS


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_an_unfinished_last_line_is_dropped_with_a_message(tmp_path, cut):
    RowWriter(tmp_path / "rows-0.jsonl").write(ROWS)
    whole = (tmp_path / "rows-0.jsonl").read_bytes()
    (tmp_path / "rows-0.jsonl").write_bytes(whole[:-cut])
    rows, [message] = load(tmp_path)
    assert rows == ROWS[:-1]
    assert "rows-0.jsonl" in message


@pytest.mark.parametrize("line", ["no json", "[]", '{"outcome": {}}', '{"run": "none", "seed": 0}'])
def test_a_broken_line_in_the_middle_is_refused(tmp_path, line):
    save(tmp_path, ROWS)
    first, *others = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([first, line, *others, ""]), encoding="utf-8")
    with pytest.raises(RowsError, match=r"rows\.jsonl, line 2: expected a row"):
        load(tmp_path)


def test_a_setting_that_is_newer_than_a_row_has_its_default(tmp_path):
    save(tmp_path, ROWS)
    path = tmp_path / "rows.jsonl"
    text = path.read_text(encoding="utf-8")
    assert '"first_update": "own"' in text
    path.write_text(text.replace(', "first_update": "own"', ""), encoding="utf-8")
    assert [row.key for row in load(tmp_path)[0]] == [row.key for row in ROWS]


def test_rows_made_with_other_settings_are_refused(tmp_path):
    check_same_study(ROWS, STUDY, tmp_path)
    # Other cells and seeds are no other study.
    check_same_study(ROWS, tiny_study(factors=schedule("1×3"), seeds=1, chunk=1), tmp_path)
    other = {**RUN, "model": {**RUN["model"], "config": {**RUN["model"]["config"], "n_inner": 4}}}
    with pytest.raises(RowsError, match=r"expected rows made with model.config.n_inner=4, got one made with None"):
        check_same_study(ROWS, tiny_study(other), tmp_path)


def test_varied_settings_may_differ(tmp_path):
    studies = [tiny_study(factors={"model.config.n_embd": widths}) for widths in ([8], [8, 4])]
    rows = [Row(Common(cell.recipe.settings, MADE_WITH), 0, 0.5, {}) for cell in studies[1].cells]
    for study in studies:
        check_same_study(rows, study, tmp_path)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        RowWriter(tmp_path / "rows-0.jsonl").write([Row(ROWS[0].common, 0, 0.5, {"loss": float("nan")})])
