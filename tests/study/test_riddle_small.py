"""The riddle itself, at width 64: what is predicted for every cell, and the report that says so."""

import math

import pytest
import torch

from tinygpt_lightning.original import renumber
from tinygpt_lightning.study.claims_riddle import Riddle, same_vocabulary, symbols
from tinygpt_lightning.study.command import parse, study
from tinygpt_lightning.study.findings import comparisons
from tinygpt_lightning.study.outcome import as_trained
from tinygpt_lightning.study.rows import Results

from .tiny import ROOT, cell_of, read_rows

pytestmark = pytest.mark.slow  # a quarter of a minute


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
        assert outcome["exact"] == same_vocabulary(cell), (cell.name, seed)
        assert as_trained(outcome, "exact"), (cell.name, seed)
        assert (outcome["generated_char_error_rate"] == 0) == outcome["exact"]
        assert outcome["epochs_to_exact"] <= cell.recipe.stages[-1].epochs


def test_the_inexact_text_is_a_cipher_of_the_answer(results):
    """Each symbol stands where the training vocabulary has the right one."""
    recipe = results.study.cells[0].recipe
    made, prompt = recipe.vocabulary, len(recipe.prompt)
    enciphered = renumber(made).decode(made.encode(recipe.text))
    misread = [outcome["text"] for _, _, outcome in results.runs if not outcome["exact"]]
    # At this width a misread prompt may lead a seed astray; most say the cipher to the letter.
    answers = ["".join(symbols(text)[prompt:]) for text in misread]
    right = "".join(symbols(enciphered)[prompt:])
    assert answers.count(right) > len(answers) / 2
    assert "iqtbo: Aáic ru <unk>BAtbQ hàie Xewk nsí heyXe!." in right


def test_after_renumbering_stage_two_starts_above_a_uniform_guess(results):
    for cell, _, outcome in results.runs:
        if cell.levels.get("weights") == "carried":
            if cell.recipe.renumber:
                assert outcome["first_loss_of_stage"][1] > 1.4 * math.log(34)
            else:
                assert outcome["first_loss_of_stage"][1] < 0.1


def test_kept_and_carried_equals_one_long_run(results):
    long = cell_of(results.study, vocabulary="stable", schedule="1×60")
    cell = cell_of(results.study, vocabulary="stable", optimizer="kept", weights="carried")
    for seed, outcome in results.by_cell[cell].items():
        assert outcome["loss"] == results.by_cell[long][seed]["loss"]


def test_the_tests_find_what_decides(results):
    claims = Riddle(results)
    assert {test.factor for test in claims.primary if test.established} == {
        "vocabulary", "schedule", "the number of stages",
    }  # fmt: skip
    assert len(claims.primary) == len(comparisons(results, None)) + 2


def test_the_report_names_what_decides(folder):
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# The riddle, answered\n\n**What decides is whether the last stage was trained on the")
    assert "This alone predicts all 140 runs." in report
    assert "| vocabulary resorted, schedule 1×300 | 58,560 | 10 | 0/10 | 0.000–0.308 | 10/10 |" in report
    assert "as read back            Question: Xin chào" in report
    for name in ("exactness", "loss", "cipher"):
        assert f"({name}.png)" in report
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_holds_the_report(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {"exactness", "loss", "cipher"}
    assert tags["tensors"] == ["report/text_summary"]
    curve = events.Scalars("median train loss/vocabulary resorted, schedule 2×30, optimizer new, weights carried")
    assert len(curve) == 60
    assert curve[30].value > math.log(34)
