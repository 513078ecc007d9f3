"""All cells of a chunk of seeds, with every shared beginning computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.text import char_error_rate

from tinygpt_lightning.gpt.generation import GenerationConfig, generate
from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.study.design import Cell, Study
from tinygpt_lightning.study.ensemble import Ensemble

Outcome = dict[str, Any]


def branches(cells: Sequence[Cell], stage: int, share: bool) -> list[list[Cell]]:
    """Cells that go through ``stage`` together, given that they came to it together.

    The first stage is the same for all. A later one differs by what happens at the boundary; how long it
    lasts makes no difference until the shorter one ends.

    >>> [len(group) for group in branches(Study().cells, 0, share=True)]
    [14]
    >>> staged = [cell for cell in Study().cells if cell.staged]
    >>> [len(group) for group in branches(staged, 1, share=True)]
    [1, 1, 1, 1, 1, 1, 1, 1]
    """

    def boundary(cell: Cell) -> Hashable:
        return (cell.vocabulary, cell.optimizer, cell.weights) if stage else ()

    if not share:
        return [[cell] for cell in cells]
    # groupby joins neighbours only; str orders the nulls of single stages too.
    return [list(group) for _, group in groupby(sorted(cells, key=lambda c: str(boundary(c))), key=boundary)]


def epochs_needed(cells: Sequence[Cell], share: bool, stage: int = 0) -> int:
    """Epochs that a seed trains for all of ``cells``.

    >>> epochs_needed(Study().cells, share=True)  # 300, and 8 branches of 30
    540
    >>> epochs_needed(Study().cells, share=False)
    1260
    """
    total = 0
    for group in branches(cells, stage, share):
        total += max(cell.schedule[stage] for cell in group)
        for length in {cell.schedule[stage] for cell in group}:
            going_on = [c for c in group if c.schedule[stage] == length and len(c.schedule) > stage + 1]
            total += epochs_needed(going_on, share, stage + 1)
    return total


class ChunkRunner:
    """Runs cells on a chunk of seeds and hands out the outcomes as they come.

    Args:
        study: Its settings.
        device: Where to compute.
        seeds: The chunk.
        finished: Called with a cell and each seed's outcome.
        failed: Called with a cell, the seeds and what went wrong; the other cells go on.
        tick: Called after every epoch with the number of seeds that trained.
    """

    def __init__(
        self,
        study: Study,
        device: torch.device,
        seeds: list[int],
        finished: Callable[[Cell, dict[int, Outcome]], None],
        failed: Callable[[Cell, list[int], Exception], None],
        tick: Callable[[int], None],
    ) -> None:
        self.study = study
        self.device = device
        self.seeds = seeds
        self.finished = finished
        self.failed = failed
        self.tick = tick
        self._made = CharTokenizer.from_text(study.text)
        self._reader = TinyGPT(study.model.config).to(device)  # lent to one replicate's weights after another

    def run(self, cells: Sequence[Cell]) -> None:
        """Run all of ``cells``."""
        length = len(self.study.text) - 1
        start = Ensemble(self.study.model.config, self.seeds, length, self.study.learning_rate, self.device)
        self._grow(start, cells, 0)

    def _grow(self, parent: Ensemble, cells: Sequence[Cell], stage: int) -> None:
        for group in branches(cells, stage, self.study.share):
            left = list(group)
            # Whatever goes wrong in a cell (memory, arithmetic) must not cost the others their results.
            try:
                branch = parent.fork()
                if stage:
                    branch.begin_stage(
                        stage,
                        reset_optimizer=group[0].stages[stage].reset_optimizer,
                        redraw_weights=group[0].weights == "redrawn",
                    )
                ids = self._ids(group[0].tokenizer(stage, self._made))
                for length in sorted({cell.schedule[stage] for cell in group}):
                    while branch.epoch - parent.epoch < length:
                        branch.train_epoch(ids, len(self.study.prompt))
                        self.tick(len(branch.seeds))
                    here = [cell for cell in left if cell.schedule[stage] == length]
                    left = [cell for cell in left if cell not in here]
                    self._grow(branch, [cell for cell in here if len(cell.schedule) > stage + 1], stage + 1)
                    for cell in here:
                        if len(cell.schedule) == stage + 1:
                            self._finish(branch, cell)
            except Exception as error:
                for cell in left:
                    self.failed(cell, self.seeds, error)

    def _finish(self, branch: Ensemble, cell: Cell) -> None:
        try:
            self.finished(cell, self.read(branch, cell))
        except Exception as error:
            self.failed(cell, self.seeds, error)

    @torch.no_grad()
    def read(self, branch: Ensemble, cell: Cell) -> dict[int, Outcome]:
        """What came out, for each seed; numbers that are no numbers (a diverged loss) become null."""
        trained_on = cell.tokenizer(len(cell.schedule) - 1, self._made)
        read_with = cell.tokenizer(len(cell.schedule), self._made)
        ids = self._ids(trained_on)
        loss_on = branch.loss_with_dropout(ids).tolist()
        loss_off = branch.evaluate(ids, len(self.study.prompt))[0].tolist()
        curves = torch.stack(branch.losses, dim=1).tolist()  # (S, epochs)
        starts = [0, *accumulate(cell.schedule)][:-1]
        outcomes = {}
        for index, (seed, curve) in enumerate(zip(branch.seeds, curves, strict=True)):
            branch.copy_weights(index, self._reader)
            text_in_training = self._continue(trained_on)
            text = text_in_training if read_with.vocab == trained_on.vocab else self._continue(read_with)
            loss = [_finite(value) for value in curve]
            outcomes[seed] = {
                "exact": text == self.study.text,
                "text": text,
                "char_error_rate": char_error_rate([text], [self.study.text]).item(),
                "exact_in_training_vocabulary": text_in_training == self.study.text,
                "text_in_training_vocabulary": text_in_training,
                "char_error_rate_in_training_vocabulary": char_error_rate([text_in_training], [self.study.text]).item(),
                "loss": loss,
                "first_loss_of_stage": [loss[start] for start in starts],
                "epochs_to_exact": branch.exact_after[index],
                "final_loss_dropout_on": _finite(loss_on[index]),
                "final_loss_dropout_off": _finite(loss_off[index]),
                "seconds": branch.seconds / len(branch.seeds),
            }
        return outcomes

    def _ids(self, tokenizer: CharTokenizer) -> Tensor:
        return torch.tensor([tokenizer.encode(self.study.text)], device=self.device)  # (1, T + 1)

    def _continue(self, tokenizer: CharTokenizer) -> str:
        prompt = torch.tensor([tokenizer.encode(self.study.prompt)], device=self.device)
        ids = generate(self._reader, prompt, GenerationConfig(max_length=len(self.study.text)))
        return tokenizer.decode(ids[0].tolist())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
