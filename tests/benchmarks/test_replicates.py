"""How fast replicates train together, and one after another: one thread, as each process of a study has it."""

from __future__ import annotations

import pytest
import torch
from beside import DEVICES, Row, seconds
from torch.nn import functional as F

from tinygpt_lightning.commands.main import keep_freed_memory
from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.study.ensemble import Ensemble
from tinygpt_lightning.study.recipe import read_recipe

ROUNDS, STEPS = 5, 20


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("width", "heads", "seeds"), [(3, 1, 128), (4, 1, 128), (64, 4, 32), (768, 12, 4)])
def test_replicate_steps(table: list[Row], device: str, width: int, heads: int, seeds: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    pdrop = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    recipe = read_recipe({"model": {"config": {"n_embd": width, "n_head": heads, "n_positions": 64, **pdrop}}})
    together = Ensemble(recipe, range(seeds), torch.device(device), measure_updates=False)
    lesson = together.lesson
    model = TinyGPT(recipe.config).to(device)
    optimizer, _ = recipe.build_optimizer(0, list(model.parameters()))

    def alone() -> None:
        for _ in range(STEPS):
            loss = F.cross_entropy(model(lesson.inputs[None])[0], lesson.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()

    def stacked() -> None:
        for _ in range(STEPS):
            together.train_epoch()

    alone(), stacked()  # the first call allocates
    turns = sorted((STEPS / seconds(alone), STEPS * seeds / seconds(stacked)) for _ in range(ROUNDS))
    one, many = turns[ROUNDS // 2][0], sorted(fast for _, fast in turns)[ROUNDS // 2]
    work, goal = (
        f"{seeds} replicates together, width {width}, {device}",
        "≥ 10,000/s on two cores" if width == 3 else "–",
    )
    table.append(Row(work, f"{many:,.0f}/s", "one after another", f"{one:,.0f}/s", f"{one / many:.3f}", goal))
