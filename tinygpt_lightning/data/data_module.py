"""The pairs to learn, in batches, and the prompts to continue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from tinygpt_lightning.data.batches import LengthSampler
from tinygpt_lightning.data.pair_files import Mistake, PairsError, read_pairs, read_questions
from tinygpt_lightning.data.text import QAPair, Taught, Template
from tinygpt_lightning.gpt.tokenizer import CharTokenizer, normalize
from tinygpt_lightning.trained import TrainedGPT


class QADataModule(LightningDataModule):
    """Serves question-answer pairs in batches, and prompts for ``predict``.

    It serves text: the vocabulary belongs to the model, which therefore does the encoding.

    Args:
        question: The question of a single pair.
        answer: The answer to it.
        path: A file of pairs, instead of that one: .jsonl with an object a line, .csv or .tsv with a header;
            each has a ``question`` and an ``answer``. ``validate`` measures another one than that of the run, and
            ``predict`` asks its questions.
        template: The form of the texts, with {question} and {answer} where they belong; ``predict`` and
            ``validate`` take it from the checkpoint.
        end_symbol: Whether each text ends with a symbol that stops generation; null means yes, but for the
            original's own sentence, which has none.
        batch_size: Pairs, or prompts, a batch; in each process, where there are several.
        questions: Questions to ask in ``predict``, in the model's template.
        prompts: Texts to continue in ``predict``, as they are. Without prompts, questions and a file, it asks what
            the model was taught.
        n_positions: Room that the model has for a text, in characters; null means enough.

    Raises:
        ValueError: If question, answer or a list is empty, or the template lacks a part.
    """

    def __init__(
        self,
        question: str = QAPair().question,
        answer: str = QAPair().answer,
        path: str | None = None,
        template: str = Template().pattern,
        end_symbol: bool | None = None,
        batch_size: int = 64,
        questions: list[str] | None = None,
        prompts: list[str] | None = None,
        n_positions: int | None = None,
    ) -> None:
        super().__init__()
        for name, given in (("question", question), ("answer", answer), ("questions", questions), ("prompts", prompts)):
            if given is not None and not given:
                unit = "character" if isinstance(given, str) else name.removesuffix("s")
                raise ValueError(f"data.{name}: expected at least one {unit}, got none")
        if batch_size < 1:
            raise ValueError(f"data.batch_size: expected 1 or more, got {batch_size}")
        self.pair = QAPair(normalize(question), normalize(answer))
        if path is not None and self.pair != QAPair():
            raise ValueError(f"data.path: expected it alone, got data.question {question!r} beside {path}")
        self.path = path
        self.template = Template(template)
        self.end_symbol = end_symbol
        self.batch_size = batch_size
        self.questions = questions
        self.prompts = prompts
        self.n_positions = n_positions
        self.lines: list[int] = []  # where each pair begins in the file
        self.repeated: list[int] = []  # lines of the file that say again what an earlier one says

    @cached_property
    def taught(self) -> Taught:
        """What is to be learnt; a file is read when it is first asked for.

        Raises:
            PairsError: If the file is no file of pairs, or has a text that the model has no room for.
            OSError: If it cannot be read.
            ValueError: If the model has no room for the single pair.
        """
        if self.path is None:
            taught = self._taught_of([self.pair])
            for room in self._too_long(taught).values():
                raise ValueError(
                    f"model.config.n_positions: expected {room} or more, room for the sentence without its last "
                    f"character, got {self.n_positions}"
                )
            return taught
        file = read_pairs(self.path)
        mistakes = list(file.mistakes)
        if file.pairs:
            taught = self._taught_of(file.pairs)
            for i, room in self._too_long(taught).items():
                reason = f"expected a text with room in model.config.n_positions, {self.n_positions}, got one of {room}"
                mistakes.append(Mistake(file.lines[i], reason))
        if mistakes:
            raise PairsError(self.path, mistakes)
        self.lines, self.repeated = file.lines, file.repeated
        return taught

    @cached_property
    def tokenizer(self) -> CharTokenizer:
        """The vocabulary of what is to be learnt.

        Raises:
            VocabularyError: If a text is no valid Unicode.
        """
        return self.taught.tokenizer(end_symbol=self._ends(self.taught.pairs))

    @cached_property
    def asked(self) -> Asked:
        """What ``predict`` asks; a file is read when this is first asked for.

        Raises:
            PairsError: If it comes from a file, and that is no file of questions.
            OSError: If it cannot be read.
        """
        if self.prompts is not None:
            return Asked(self.prompts)
        lines = None
        if self.questions is not None:
            questions = self.questions
        elif self.path is not None:
            lines, questions = map(list, zip(*read_questions(self.path), strict=True))
        elif len(self.taught.pairs) == 1:
            return Asked(self.taught.prompts)
        else:
            questions = [pair.question for pair in self.taught.pairs]
        return Asked([self.template.prompt(question) for question in questions], questions, lines)

    def adopt(self, trained: TrainedGPT, *, pairs: bool) -> None:
        """Go by what a model is, instead of by settings: its template, its end symbol, and the room that it has.

        Args:
            trained: The model.
            pairs: Whether its pairs are taken over too, in place of those that the settings name.
        """
        self.template = trained.taught.template
        self.end_symbol = trained.tokenizer.end is not None
        self.n_positions = trained.model.config.n_positions
        if pairs:
            self.taught, self.path = trained.taught, None
        elif self.path is None and self.questions is None:
            self.questions = [self.pair.question]

    def train_dataloader(self) -> DataLoader[list[QAPair]]:
        """All pairs once an epoch, shuffled, in batches of similar lengths."""
        return self._loader(shuffle=True)

    def val_dataloader(self) -> DataLoader[list[QAPair]]:
        """The pairs themselves: what is asked for is that they are known by heart."""
        return self._loader(shuffle=False)

    def predict_dataloader(self) -> DataLoader[list[str]]:
        """The prompts in their order, a batch at a time."""
        prompts = self.asked.prompts
        batches = [prompts[i : i + self.batch_size] for i in range(0, len(prompts), self.batch_size)]
        return _as_they_are(batches)

    def _taught_of(self, pairs: Sequence[QAPair]) -> Taught:
        return Taught.of(pairs, self.template, end_symbol=self._ends(pairs))

    def _ends(self, pairs: Sequence[QAPair]) -> bool:
        """Whether each text gets an end symbol: the original's own sentence has 34 symbols, and none of them is one."""
        is_originals = (list(pairs), self.template) == ([QAPair()], Template())
        return self.end_symbol if self.end_symbol is not None else not is_originals

    def _too_long(self, taught: Taught) -> dict[int, int]:
        """Which texts the model has no room for: places among the pairs, and the room that each needs."""
        # The last symbol is written and not read, so it needs no position.
        unread = 0 if self._ends(taught.pairs) else 1
        needed = [taught.length(pair) - unread for pair in taught.pairs]
        return {i: room for i, room in enumerate(needed) if self.n_positions is not None and room > self.n_positions}

    def _loader(self, *, shuffle: bool) -> DataLoader[list[QAPair]]:
        pairs = self.taught.pairs
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = LengthSampler(
            [self.taught.length(pair) for pair in pairs], self.batch_size, shuffle, world_size, rank
        )
        return _as_they_are(_Pairs(pairs), sampler)


class Asked(NamedTuple):
    """What ``predict`` asks.

    Args:
        prompts: What the model is given.
        questions: The question in each, put there by the template; null where the prompts are raw text.
        lines: Where each question begins in its file; null where they come from none.
    """

    prompts: list[str]
    questions: list[str] | None = None
    lines: list[int] | None = None


class _Pairs(Dataset[list[QAPair]]):
    def __init__(self, pairs: Sequence[QAPair]) -> None:
        self.pairs = pairs

    def __getitem__(self, batch: list[int]) -> list[QAPair]:
        return [self.pairs[i] for i in batch]


def _as_they_are(batches: Any, sampler: Sampler[list[int]] | None = None) -> DataLoader[Any]:
    # A loader draws a seed from its generator in every epoch: with one of its own it leaves the global
    # generator, and so the dropout of a run, alone.
    return DataLoader(batches, None, sampler=sampler, generator=torch.Generator(), collate_fn=lambda batch: batch)
