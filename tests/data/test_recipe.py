"""The settings that follow from pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from own_files import made

from tinygpt_lightning.data.noise import SPARE
from tinygpt_lightning.data.recipe import NARROWEST, WIDEST, recipe_for
from tinygpt_lightning.data.text import QAPair, Taught, Template
from tinygpt_lightning.gpt.model import GPTConfig


@pytest.mark.parametrize("seed", range(20))
def test_there_is_room_for_every_text_and_for_a_longer_question(seed: int) -> None:
    pairs = made(seed)[:300]
    recipe = recipe_for(pairs)
    taught = Taught.of(pairs, Template(recipe.template), end_symbol=True)
    assert taught.max_length is not None
    assert recipe.n_positions == taught.max_length + SPARE
    assert NARROWEST <= recipe.n_embd <= WIDEST
    GPTConfig(n_positions=recipe.n_positions, n_embd=recipe.n_embd, n_head=recipe.n_head)  # they divide each other


def test_answers_begin_at_one_position_but_for_the_longest_questions() -> None:
    pairs = [QAPair("Q" * length, "A") for length in (3, 4, 5, 6, 7, 8, 9, 10, 11, 200)]
    recipe = recipe_for(pairs)
    template = Template(recipe.template)
    assert {len(template.prompt(pair.question)) for pair in pairs[:-1]} == {11 + SPARE + 1}
    assert recipe.n_positions < 200 + 2 * SPARE + 4


def test_more_pairs_get_a_wider_model_and_larger_batches() -> None:
    recipes = [recipe_for(made(0, pairs=count, kind="sentences")) for count in (1, 30, 300, 2000)]
    widths, batches = [recipe.n_embd for recipe in recipes], [recipe.batch_size for recipe in recipes]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    assert batches == sorted(batches)


def test_a_template_that_is_given_is_kept_and_a_trained_model_keeps_its_sizes() -> None:
    pairs = [QAPair("Q", "A")]
    recipe = recipe_for(pairs, template="{question}={answer}")
    assert (recipe.template, recipe.n_positions) == ("{question}={answer}", 4 + SPARE)
    config = GPTConfig(n_positions=99, n_embd=48, n_head=6)
    more = recipe.beginning_with(config)
    assert (more.n_positions, more.n_embd, more.n_head) == (99, 48, 6)
    assert recipe.beginning_with(replace(config, n_positions=2)).n_positions == recipe.n_positions
    assert more.settle < recipe.settle
