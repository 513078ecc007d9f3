"""What is written into a page."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from networks import learnt, untrained

from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.page import page as page_module
from tinygpt_lightning.page.moments import NONE, Moment, Moments, read_moments
from tinygpt_lightning.page.page import describe, render

from .engine import Scripts

HOSTILE = "</script><img src=x onerror=alert(1)>'\"\u2028\u2029\u202e\ud83d"


class Elements(HTMLParser):
    """The elements of a page, and the texts of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:  # within a script or a style
            self.texts.setdefault(self.cdata_elem, []).append(data)


def test_it_loads_nothing_and_lets_nothing_else_run() -> None:
    page = Elements(render(untrained(), "a model"))
    assert not [attrs for tag, attrs in page.tags if tag != "a" and ({"src", "action"} & set(attrs))]
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]
    assert not re.search(r"https?://(?!www\.w3\.org)", "".join(page.texts["script"] + page.texts["style"]))
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    script, style = page.texts["script"][-1], page.texts["style"][0]
    for text in (script, style):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy


def test_no_text_breaks_out_of_the_data() -> None:
    taught = untrained([QAPair(HOSTILE.replace("\ud83d", ""), "</script>")])
    plain, hostile = Elements(render(untrained(), "x")), Elements(render(taught, HOSTILE))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    data = json.loads(hostile.texts["script"][0])
    assert data["name"] == HOSTILE
    assert data["symbols"] == [*taught.tokenizer.vocab]
    render(taught, HOSTILE).encode()  # a lone surrogate, which no file holds


def test_a_number_that_json_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        render(untrained(layer_norm_epsilon=float("inf")), "x")


def test_of_many_pairs_some_can_be_chosen() -> None:
    data = describe(untrained([QAPair(str(n), "!") for n in range(1000)]), "x")
    assert (len(data["prompts"]), data["pairs"]) == (page_module.MOST_PROMPTS, 1000)


def test_pairs_that_a_model_cannot_read_are_passed_over() -> None:
    trained = untrained([QAPair("a", "b")])
    pairs = (QAPair("ß", "b"), QAPair("a" * 100, "b"), QAPair("a", "b"))
    other = type(trained)(trained.model, trained.tokenizer, dataclasses.replace(trained.taught, pairs=pairs))
    assert describe(other, "x")["prompts"] == [trained.taught.prompts[0]]


def test_a_model_that_nobody_knows_the_pairs_of_begins_with_a_character() -> None:
    trained = untrained()
    unknown = type(trained)(trained.model, trained.tokenizer)
    assert describe(unknown, "x")["prompts"] == [next(iter(trained.tokenizer.vocab))]


def test_a_large_model_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = learnt()
    whole = Scripts(trained)
    ids = trained.tokenizer.encode(trained.complete(trained.taught.prompts[0]))
    passed = whole(f"forward(model, {ids})")
    monkeypatch.setattr(page_module, "LARGEST", 1000)
    data = describe(trained, "x")
    assert data["weights"] is None
    assert data["recorded"]["text"] == trained.complete(trained.taught.prompts[0])
    assert set(data["recorded"]["without"]) == {"attn", "mlp", "wte", "wpe", "head 0", "head 1", "head 2", "head 3"}
    recorded = Scripts(trained)("recordedPass(model, data.recorded)")
    assert recorded.keys() == passed.keys()
    assert recorded["ids"] == ids
    for name in recorded.keys() - {"ids", "att"}:
        torch.testing.assert_close(torch.tensor(recorded[name]), torch.tensor(passed[name]), rtol=2e-3, atol=2e-3)
    for t, heads in enumerate(passed["att"]):
        got = torch.tensor(recorded["att"][t])[:, : t + 1]
        torch.testing.assert_close(got, torch.tensor(heads), rtol=2e-3, atol=2e-3)


def test_a_recorded_pass_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = learnt()
    monkeypatch.setattr(page_module, "LARGEST", 1000)
    size = 10 * sum(
        len(base64.b64decode(rows)) // 2 // T for T, rows in describe(trained, "x")["recorded"]["rows"].values()
    )
    monkeypatch.setattr(page_module, "MOST_NUMBERS", size)
    assert {T for T, _ in describe(trained, "x")["recorded"]["rows"].values()} == {10}


def state(**more: Any) -> dict[str, Any]:
    weights = {f"model.{name}": weight for name, weight in untrained().model.state_dict().items()}
    return {"moments": [{"step": 3, "loss": 0.5, "weights": weights}], "boundaries": [7], **more}


def test_moments_come_into_the_page() -> None:
    trained = untrained()
    moments = read_moments({"callbacks": {"Snapshots": state()}}, trained.model.config, "x.ckpt")
    data = describe(trained, "x", moments)
    assert [(moment["step"], moment["loss"]) for moment in data["moments"]] == [(3, 0.5)]
    assert data["boundaries"] == [7]
    assert data["moments"][0]["weights"] == data["weights"]


def test_a_checkpoint_without_moments_has_none() -> None:
    config = untrained().model.config
    assert read_moments({}, config, "x") == read_moments({"callbacks": {}}, config, "x") == NONE == Moments()
    assert Moment(1, 2.0, {}).step == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"moments": 3}, {"moments": [{}]}, {"boundaries": ["</script>"]}, {"boundaries": [-1]},
        {"moments": [{**state()["moments"][0], "loss": float("nan")}]},
        {"moments": [{**state()["moments"][0], "step": True}]},
        {"moments": [{**state()["moments"][0], "weights": {"model.wte.weight": torch.zeros(2, 2)}}]},
    ],
)  # fmt: skip
def test_moments_that_are_none_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="bad.ckpt"):
        read_moments({"callbacks": {"Snapshots": state(**changes)}}, untrained().model.config, "bad.ckpt")


def test_both_languages_say_the_same_things() -> None:
    scripts = Scripts(untrained())
    english, vietnamese = scripts("WORDS.en"), scripts("WORDS.vi")
    assert english.keys() == vietnamese.keys()
    for key, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", vietnamese[key])), key
    template = render(untrained(), "x")
    for key in re.findall(r'data-(?:word|label)="(\w+)"', template):
        assert key in english
    used = re.findall(r'say\("(\w+)"', template)
    assert set(used) <= english.keys()


def test_the_arithmetic_can_be_read() -> None:
    model = page_module.files("tinygpt_lightning.page").joinpath("model.js").read_text("utf-8")
    assert len(model.splitlines()) <= 250
