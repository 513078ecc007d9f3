import pytest

from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.original import renumber
from tinygpt_lightning.study.design.study import Cell, FabricSettings, Study


def test_full_factorial_with_boundary_factors_only_at_boundaries():
    cells = Study(schedules=[[30], [20, 20, 20]]).cells
    assert len(cells) == len(set(cells)) == 2 * (1 + 4)
    assert all((cell.optimizer is None) == (cell.weights is None) == (len(cell.schedule) == 1) for cell in cells)


def test_vocabularies_are_the_originals():
    made = CharTokenizer.from_text("Aa!")
    single, staged = Cell("resorted", (3,)), Cell("resorted", (3, 3), "new", "carried")
    assert single.tokenizer(0, made).vocab == made.vocab  # trained on
    assert single.tokenizer(1, made).vocab == renumber(made).vocab != made.vocab  # read with
    assert staged.tokenizer(0, made).vocab == made.vocab
    assert staged.tokenizer(1, made).vocab == staged.tokenizer(2, made).vocab == renumber(made).vocab
    assert Cell("stable", (3,)).tokenizer(1, made).vocab == made.vocab


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"prompt": "Answer"}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"vocabulary": []}, "vocabulary"),
        ({"weights": ["carried", "carried"]}, "weights"),
        ({"schedules": [[30], []]}, "schedules"),
        ({"schedules": [[30, 0]]}, "schedules"),
        ({"seeds": 0}, "seed"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": 10**20}, "seeds"),
        ({"seeds": [2**70]}, "seeds"),
        ({"chunk": 0}, "chunk"),
        ({"threads": 0}, "threads"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"text": "Question: Xin chào" + "!" * 1024}, "n_positions"),
    ],
)
def test_settings_out_of_range_are_named(settings, named):
    with pytest.raises(ValueError, match=f"{named}: expected .* got"):
        Study(**settings)


def test_fabric_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"fabric\.devices: expected 1 or more, got 0"):
        FabricSettings(devices=0)


def test_decomposed_text_is_the_same_study():
    assert (
        Study(text="Xin cha\u0300o!", prompt="Xin cha\u0300o").common
        == Study(text="Xin chào!", prompt="Xin chào").common
    )
