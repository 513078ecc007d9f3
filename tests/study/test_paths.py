import pytest

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.study.design import change
from tinygpt_lightning.study.rows import first_difference


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.b", {"a": {"b": 9}, "l": [{"e": 1}, {"e": 2}, {"e": 3}]}),
        ("l[0].e", {"a": {"b": 0}, "l": [{"e": 9}, {"e": 2}, {"e": 3}]}),
        ("l[-1].e", {"a": {"b": 0}, "l": [{"e": 1}, {"e": 2}, {"e": 9}]}),
        ("l[1:].e", {"a": {"b": 0}, "l": [{"e": 1}, {"e": 9}, {"e": 9}]}),
        ("l[:2].e", {"a": {"b": 0}, "l": [{"e": 9}, {"e": 9}, {"e": 3}]}),
        ("l[:].new", {"a": {"b": 0}, "l": [{"e": i, "new": 9} for i in (1, 2, 3)]}),
        ("l", {"a": {"b": 0}, "l": 9}),
        ("c.d", {"a": {"b": 0}, "l": [{"e": 1}, {"e": 2}, {"e": 3}], "c": {"d": 9}}),
    ],
)
def test_a_value_is_set_at_its_path(path, expected):
    settings = {"a": {"b": 0}, "l": [{"e": 1}, {"e": 2}, {"e": 3}]}
    assert not change(settings, {path: 9})
    assert settings == expected


@pytest.mark.parametrize("path", ["l[1].e", "l[1:].e"])
def test_a_path_may_match_no_place(path):
    settings = {"l": [{"e": 1}]}
    assert change(settings, {path: 9}) == [path]
    assert settings == {"l": [{"e": 1}]}


def test_a_path_into_a_class_means_its_init_args():
    settings = {"optimizer": {"class_path": "AdamW", "init_args": {"lr": 1}}}
    change(settings, {"optimizer.lr": 2, "optimizer.class_path": "torch.optim.AdamW"})
    assert settings == {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2}}}
    change(settings, {"optimizer.class_path": "SGD", "optimizer.nesterov": True})  # with its own defaults
    assert settings == {"optimizer": {"class_path": "SGD", "init_args": {"nesterov": True}}}


def test_a_value_is_not_shared_between_places():
    settings = {"l": [{}, {}]}
    change(settings, {"l[:].x": {"y": 1}})
    settings["l"][0]["x"]["y"] = 2
    assert settings["l"][1] == {"x": {"y": 1}}


@pytest.mark.parametrize("path", ["", ".a", "a..b", "a[", "a[]", "a[x]", "a]b"])
def test_a_malformed_path_is_refused(path):
    with pytest.raises(UsageError, match="expected the path of a setting"):
        change({"a": [1]}, {path: 1})


@pytest.mark.parametrize(("path", "reason"), [("a.b", "expected settings with a name"), ("a[0]", "expected a list")])
def test_a_path_through_a_plain_value_is_refused(path, reason):
    with pytest.raises(UsageError, match=f"{reason}.*got 5"):
        change({"a": 5}, {path: 1})


def test_the_first_difference_is_named():
    assert first_difference({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}) is None
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ("a.c", 2, 3)
    assert first_difference({"a": 1}, {"a": 1, "b": None}) is None


def test_settings_are_merged_into_a_group_as_on_the_command_line():
    settings = {"config": {"n_embd": 8, "n_positions": 70}, "optimizer": {"class_path": "SGD", "init_args": {"lr": 1}}}
    change(
        settings,
        {"config": {"n_embd": 4}, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0}}},
    )
    assert settings["config"] == {"n_embd": 4, "n_positions": 70}
    assert settings["optimizer"]["init_args"] == {"lr": 1, "momentum": 0}
    change(settings, {"optimizer": {"class_path": "Adam"}})
    assert settings["optimizer"] == {"class_path": "Adam"}
