import pytest
import torch
from conftest import SENTENCE

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.description import n_parameters
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.original import renumber
from tinygpt_lightning.study.design import FabricSettings, Plan
from tinygpt_lightning.study.recipe import read_recipe

from .tiny import RESET, RUN, TEXT, TWO_STAGES, cell_of, schedule, tiny_study

PLATEAU = {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}}


def test_full_factorial_with_boundary_factors_only_at_boundaries():
    cells = tiny_study().cells
    assert len(cells) == len({cell.recipe.key for cell in cells}) == 2 * (1 + 1 + 4 + 4)
    for cell in cells:
        staged = len(cell.recipe.stages) > 1
        assert set(cell.levels) == {"vocabulary", "schedule", *(("optimizer", "weights") if staged else ())}
    cell = cell_of(tiny_study(), vocabulary="resorted", schedule="3×2", optimizer="kept", weights="redrawn")
    assert cell.name == "vocabulary resorted, schedule 3×2, optimizer kept, weights redrawn"
    assert cell.recipe.renumber
    assert [stage.epochs for stage in cell.recipe.stages] == [2, 2, 2]
    assert [stage.reset_optimizer for stage in cell.recipe.stages] == [True, False, False]
    assert [stage.weights for stage in cell.recipe.stages] == ["carried", "redrawn", "redrawn"]


def test_parts_of_the_optimizers_state_and_a_control():
    study = tiny_study(TWO_STAGES, **RESET)
    assert len(study.cells) == 8 + 1
    last = cell_of(study, exp_avg="new", exp_avg_sq="kept", step="kept").recipe.stages[-1]
    assert [last.keeps(name) for name in ("exp_avg", "exp_avg_sq", "step")] == [False, True, True]
    assert not last.keeps_nothing
    assert cell_of(study, exp_avg="new", exp_avg_sq="new", step="new").recipe.stages[-1].keeps_nothing
    control = cell_of(study, control="larger steps")
    assert (control.levels, control.recipe.stages[-1].first_update) == ({}, "as_new")
    assert all(control.recipe.stages[-1].keeps(name) for name in ("exp_avg", "exp_avg_sq", "step"))


def test_vocabularies_are_the_originals():
    study = tiny_study()
    made = CharTokenizer.from_text(TEXT)
    single = cell_of(study, vocabulary="resorted", schedule="1×3").recipe
    assert single.tokenizer(0).vocab == made.vocab  # trained on
    assert single.tokenizer(1).vocab == renumber(made).vocab != made.vocab  # read with
    staged = cell_of(study, vocabulary="resorted", schedule="3×2", optimizer="new", weights="carried").recipe
    assert staged.tokenizer(1).vocab == staged.tokenizer(2).vocab == staged.tokenizer(3).vocab == renumber(made).vocab
    stable = cell_of(study, vocabulary="stable", schedule="1×3").recipe
    assert stable.tokenizer(1).vocab == made.vocab


def test_a_run_has_the_defaults_of_fit():
    recipe = read_recipe({})
    assert (recipe.config, recipe.text, recipe.prompt) == (GPTConfig(), SENTENCE, "Question: Xin chào")
    optimizer, lr_scheduler = recipe.build_optimizer(0, [torch.zeros(1, requires_grad=True)])
    assert (type(optimizer).__name__, optimizer.defaults["lr"], lr_scheduler) == ("AdamW", 3e-4, None)
    assert read_recipe(recipe.settings).key == recipe.key


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"n_embd": 2, "n_inner": 1, "n_positions": 63, "tie_weights": True, "n_head": 1}, 237), ({}, 7_928_064)],
)
def test_parameters_are_counted_once(changes, expected):
    assert n_parameters(GPTConfig(**changes)) == expected


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seeds": 0}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": 10**20}, "seeds"),
        ({"seeds": [2**70]}, "seeds"),
        ({"chunk": 0}, "chunk"),
        ({"threads": 0}, "threads"),
        ({"curve_points": 1}, "curve_points"),
    ],
)
def test_plans_out_of_range_are_named(settings, named):
    with pytest.raises(ValueError, match=f"{named}: expected .* got"):
        Plan(**settings)


def test_fabric_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"fabric\.devices: expected 1 or more, got 0"):
        FabricSettings(devices=0)


@pytest.mark.parametrize(
    ("factors", "reason"),
    [
        ({"model.config.n_head": []}, "factors.model.config.n_head: expected one or more levels, got none"),
        ({"model.config.n_head": [2, 3]}, "n_head: expected a divisor of n_embd=8, got 3"),
        ({"model.config.heads": [2]}, "model.config.heads 2: .*heads"),
        ({"stages[1].weights": ["carried"]}, r"expected settings that some run has, got stages\[1\].weights"),
        ({"renumber": [True, True]}, "factors.renumber: expected different levels, got true, true"),
        ({"a": {"x": {"stages[0:].epochs": 2}, "y": {"stages[1:].epochs": 3}}}, r"which it lacks"),
        (
            {"a": {"x": {"renumber": True, "stages[2:].weights": "carried"}, "y": {"renumber": False}}},
            r"factors.a: expected settings that the run has, all or none of them, got stages\[2:\].weights",
        ),
        (
            {"a": {"x": {"renumber": True}, "y": {"renumber": True}}},
            "factors: expected different runs, got the same in",
        ),
        ({"stages[0].weights": ["redrawn"]}, r"stages\[0\]: expected no keep"),
        ({"stages[0].epochs": [0]}, "epochs: expected .*1 or more, got 0"),
        ({"model.config.n_positions": [27]}, "n_positions: expected 28 or more"),
        ({"data.answer": [""]}, "data.answer: expected at least one character, got none"),
        ({"model.optimizer.lr": [-1.0]}, r"stages\[0\]: Invalid learning rate"),
        ({"model.lr_scheduler": [PLATEAU]}, "expected a scheduler that needs no metric, got ReduceLROnPlateau"),
    ],
)
def test_impossible_cells_are_refused_by_name(factors, reason):
    with pytest.raises(UsageError, match=reason):
        tiny_study(factors=factors)


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (
            {"until": {"monitor": "train/loss", "stopping_threshold": 0.1}, "weights": "redrawn"},
            "until needs one fit at a time: expected no renumber, keep, weights or first_update",
        ),
        ({"keep": {"momentum": True}}, "keep: expected exp_avg, exp_avg_sq, step of Adam"),
        (
            {"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}, "reset_optimizer": False},
            r"stages\[1\]: reset_optimizer: expected true, .* got SGD after AdamW",
        ),
        ({"optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}, "keep": {"step": True}}, "of SGD"),
    ],
)
def test_an_impossible_boundary_is_refused(stage, reason):
    with pytest.raises(UsageError, match=reason):
        read_recipe({**RUN, "stages": [{"epochs": 3}, {"epochs": 3, **stage}]})


def test_a_control_must_change_something():
    with pytest.raises(UsageError, match=r"controls.nothing: expected settings that the base has, got stages\[5\]"):
        tiny_study(controls={"nothing": {"stages[5].epochs": 3}})


def test_decomposed_text_is_the_same_run():
    keys = {read_recipe({**RUN, "data": {"question": q, "answer": "!"}}).key for q in ("chào", "cha\u0300o")}
    assert len(keys) == 1


def test_later_factors_see_what_earlier_ones_changed():
    study = tiny_study(factors=schedule("1×3", "2×3"))
    assert [cell.name for cell in study.cells][:3] == [
        "vocabulary stable, schedule 1×3",
        "vocabulary stable, schedule 2×3, optimizer new, weights carried",
        "vocabulary stable, schedule 2×3, optimizer new, weights redrawn",
    ]


def test_a_replaced_config_keeps_the_other_sizes():
    """As on the command line of `fit`; it once reset n_positions to 1,024."""
    for cell in tiny_study(factors={"model.config": [{"n_embd": 4}, {"n_embd": 8, "n_head": 1}]}).cells:
        assert cell.recipe.config.n_positions == RUN["model"]["config"]["n_positions"]
