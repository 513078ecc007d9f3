"""``validate``: measure a trained model, and show the pairs that it does not give back exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.commands.evaluation import check_texts, evaluation_trainer, open_trained, rows_file
from tinygpt_lightning.commands.parser import lightning_errors
from tinygpt_lightning.commands.settings import Settings
from tinygpt_lightning.data.batches import Batch
from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.trained import BATCH_SIZE, TrainedGPT

MAX_SHOWN = 20  # pairs


@lightning_errors()
def validate(args: Sequence[str]) -> None:
    """Print the metrics and the pairs that are not exact; write these pairs to ``--output``.

    Args:
        args: The arguments after ``validate``.
    """
    settings = Settings("validate", args)
    objects, module = open_trained(settings)
    try:
        taught = objects.data.taught
    except ValueError as error:
        raise UsageError(str(error)) from None
    check_texts(map(taught.text, taught.pairs), module.tokenizer.encode, objects.data.path, objects.data.file.lines)
    results = PairResults()
    (metrics,) = evaluation_trainer(settings, objects, results).validate(module, objects.data, verbose=False) or [{}]
    wrong = [taught.pairs[row] for row, is_exact in sorted(results.exact.items()) if not is_exact]
    with rows_file(objects.output) as write:
        for name, value in metrics.items():
            print(f"{name:22} {value:.6g}")
        if left_out := len(taught.pairs) - len(results.exact):
            print(f"\nnot measured: {left_out} of {len(taught.pairs)}")
        if wrong:
            print(f"\nnot exact yet: {len(wrong)} of {len(results.exact)}")
        for number, row in enumerate(_rows(module.trained, wrong if objects.output else wrong[:MAX_SHOWN])):
            write(row)
            if number < MAX_SHOWN:
                print()
                for name, text in row.items():
                    print(f"  {name:10}" + text.replace("\n", "\n" + 12 * " "))
    if len(wrong) > MAX_SHOWN and not objects.output:
        print(f"\nand {len(wrong) - MAX_SHOWN} more; --output FILE writes all of them")


class PairResults(Callback):
    """Collects the result of a validation for each pair.

    Attributes:
        exact: Whether the model gives the pair back exactly, by its row; ``limit_val_batches`` may leave rows out.
    """

    def __init__(self) -> None:
        self.exact: dict[int, bool] = {}

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: int
    ) -> None:
        exact: Tensor = outputs
        self.exact.update(zip(batch.rows.tolist(), exact.tolist(), strict=True))


def _rows(trained: TrainedGPT, pairs: Sequence[QAPair]) -> Iterator[dict[str, str]]:
    """The expected text of each pair, and the model's greedy text."""
    for i in range(0, len(pairs), BATCH_SIZE):
        batch = pairs[i : i + BATCH_SIZE]
        prompts, expected = zip(*map(trained.taught.parts, batch), strict=True)
        texts = trained.complete_all(prompts)
        for pair, prompt, rest, text in zip(batch, prompts, expected, texts, strict=True):
            yield {"question": pair.question, "expected": rest, "says": text[len(prompt) :]}
