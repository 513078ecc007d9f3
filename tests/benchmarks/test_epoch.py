"""What an epoch of one step costs beyond its arithmetic, with everything on: validation, TensorBoard, stages."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import pytest
import torch
from beside import Row, seconds, spread
from torch.nn import functional as F

from tinygpt_lightning.commands.main import main
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT

STAGED = Path(__file__).resolve().parents[2] / "configs/staged.yaml"
EPOCHS, START = 300, 30
FIT = ("--model.config.n_embd", "4", "--model.config.n_head", "1", "--model.config.n_positions", "64")
SELDOM = ("--trainer.check_val_every_n_epoch", "50", "--trainer.log_every_n_steps", "50")


def fit(epochs: int, *flags: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        stages = ("--stages", f"[{{epochs: {epochs}}}]", "--trainer.default_root_dir", folder)
        return seconds(lambda: main(["fit", "--config", str(STAGED), *FIT, *stages, *flags]))


def plain(epochs: int) -> float:
    model = TinyGPT(GPTConfig(n_embd=4, n_head=1, n_positions=64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    ids = torch.randint(34, (1, 64))

    def loop() -> None:
        for _ in range(epochs):
            loss = F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    loop()
    return seconds(loop)


@pytest.mark.parametrize(
    ("work", "flags", "goal"),
    [("one-step epoch, width 4", (), "≤ +4 ms"), ("the same, validated and logged every 50th", SELDOM, "≤ +1.5 ms")],
)
def test_an_epoch(table: list[Row], work: str, flags: tuple[str, ...], goal: str) -> None:
    ours, reference = [], []
    for _ in range(5):
        # What only a fit's beginning and end take is in both of them.
        ours.append((fit(START + EPOCHS, *flags) - fit(START, *flags)) / EPOCHS)
        reference.append(plain(EPOCHS) / EPOCHS)
    more = statistics.median(a - b for a, b in zip(ours, reference, strict=True))
    table.append(Row(work, spread(ours), "plain loop", spread(reference), f"{1e3 * more:+.1f} ms", goal))
