"""The riddle itself, at width 64: what is predicted for every cell, and the report that says so."""

import math

import pytest
import torch

from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.original import renumber
from tinygpt_lightning.study.command import parse, study
from tinygpt_lightning.study.report.figures import symbols
from tinygpt_lightning.study.evidence.findings import Results, factor_tests

from .tiny import ROOT, read_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("riddle_small")
    study(["--config", str(ROOT / "configs" / "riddle_small.yaml"), "--output", str(folder)])
    torch.set_num_threads(1)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    study, _ = parse(["--config", str(ROOT / "configs" / "riddle_small.yaml")])
    return Results(study, read_rows(folder))


def test_every_cell_comes_out_as_predicted(results):
    assert not results.missing
    for cell, seed, outcome in results.runs:
        assert outcome["exact"] == (cell.vocabulary == "stable" or cell.staged), (cell.name, seed)
        assert outcome["exact_in_training_vocabulary"], (cell.name, seed)
        assert (outcome["char_error_rate"] == 0) == outcome["exact"]
        assert outcome["epochs_to_exact"] <= cell.schedule[-1]


def test_the_misread_text_is_a_cipher_of_the_answer(results):
    """Each symbol stands where the training vocabulary has the right one."""
    asked = results.study
    made = CharTokenizer.from_text(asked.text)
    enciphered = renumber(made).decode(made.encode(asked.text))
    misread = [outcome["text"] for cell, _, outcome in results.runs if not outcome["exact"]]
    # At this width a misread prompt may lead a seed astray; most say the cipher to the letter.
    answers = ["".join(symbols(text)[len(asked.prompt) :]) for text in misread]
    right = "".join(symbols(enciphered)[len(asked.prompt) :])
    assert answers.count(right) > len(answers) / 2
    assert "iqtbo: Aáic ru <unk>BAtbQ hàie Xewk nsí heyXe!." in right


def test_stage_two_starts_sure_and_wrong(results):
    for cell, _, outcome in results.runs:
        if cell.vocabulary == "resorted" and cell.weights == "carried":
            assert outcome["first_loss_of_stage"][1] > 1.4 * math.log(34)
        if cell.vocabulary == "stable" and cell.weights == "carried":
            assert outcome["first_loss_of_stage"][1] < 0.1


def test_kept_and_carried_is_one_long_run(results):
    [long] = [cell for cell in results.study.cells if cell.schedule == (60,) and cell.vocabulary == "stable"]
    [cell] = [
        cell
        for cell in results.study.cells
        if (cell.vocabulary, cell.optimizer, cell.weights) == ("stable", "kept", "carried")
    ]
    for seed, outcome in results.by_cell[cell].items():
        assert outcome["loss"] == results.by_cell[long][seed]["loss"]


def test_the_tests_say_what_decides(results):
    decisive = {(test.factor, test.within) for test in factor_tests(results) if test.decisive}
    assert decisive == {("the vocabulary on reload", "one stage"), ("the number of stages", "resorted")}


def test_the_report_tells_it(folder):
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# The riddle, answered\n\n**What decides is whether the last stage was trained on the")
    assert "This alone predicts all 140 runs." in report
    assert "| 1×300, resorted | 10 | 0/10 | 0.000–0.308 | 10/10 |" in report
    assert "as read back            Question: Xin chào" in report
    for name in ("exactness", "loss", "cipher"):
        assert f"({name}.png)" in report
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_shows_it_too(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {"exactness", "loss", "cipher"}
    assert tags["tensors"] == ["report/text_summary"]
    curve = events.Scalars("median train loss/2×30, resorted, optimizer new, weights carried")
    assert len(curve) == 60
    assert curve[30].value > math.log(34)
