"""The pairs to learn, in batches, and the prompts to continue."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from tinygpt_lightning.data.asked import Asked
from tinygpt_lightning.data.batches import Batch, Collate, NumberedPairs
from tinygpt_lightning.data.likeness import threshold
from tinygpt_lightning.data.noise import Noise, owners
from tinygpt_lightning.data.pair_files import Mistake, PairFile, PairsError, read_pairs
from tinygpt_lightning.data.recipe import recipe_for
from tinygpt_lightning.data.sampler import LengthSampler
from tinygpt_lightning.data.text import QAPair, Taught, Template
from tinygpt_lightning.description import read_description
from tinygpt_lightning.gpt.checkpoint import read_state
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import CharTokenizer, normalize
from tinygpt_lightning.growth import more_symbols
from tinygpt_lightning.trained import TrainedGPT, checkpoint_in


class QADataModule(LightningDataModule):
    """Serves question-answer pairs in batches of tensors, and prompts for ``predict``.

    Batches are tokenised with the vocabulary of the module that is trained, since it belongs to its weights.

    Args:
        question: The question of a single pair.
        answer: The answer to it.
        path: A file of pairs, instead of the single one: .jsonl with an object a line, .json with an array of
            objects, .csv or .tsv with a header; each has a ``question`` and an ``answer``. ``validate`` then judges by
            this file instead of the run's pairs, and ``predict`` asks its questions. Of a checkpoint .ckpt, the pairs
            that it was taught.
        template: The form of the texts, with {question} and {answer} where they belong; ``predict`` and
            ``validate`` take it from the checkpoint.
        end_symbol: Whether each text ends with a symbol that stops generation; None means yes with a ``path``, and
            no for a single pair, as in the original. Without it only the longest text can be exact.
        prompt_to: Where the prompt of a taught pair ends: after its ``question``, or before its ``answer``; None
            means before the answer with a ``path``, and after the question for a single pair, as in the original.
        batch_size: Pairs, or prompts, a batch; in each process, if there are several.
        questions: Questions to ask in ``predict``, in the model's template.
        prompts: Texts to continue in ``predict``, as they are. Without prompts, questions and a file, ``predict``
            asks the questions that the model was taught.
        noise: Variations of each question that join it in an epoch, on average, as people type it: in another case,
            without diacritics, with a typo, a space or a mark more or less. The answer stays; 0 means the questions
            alone. With noise the trained model also reads a question as the taught one that it is most like.
        repeat: How often an epoch of ``fit`` has a pair again that was not exact in the last validation.
        rehearse: A checkpoint, or a run's folder, to begin with: its pairs are taught again beside those of ``path``. A
            question of both gets the new answer.
        n_positions: Number of positions of the model; None means enough.

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
        prompt_to: Literal["question", "answer"] | None = None,
        batch_size: int = 64,
        questions: list[str] | None = None,
        prompts: list[str] | None = None,
        noise: float = 0.0,
        repeat: int = 0,
        rehearse: str | None = None,
        n_positions: int | None = None,
    ) -> None:
        super().__init__()
        for name, given in (("question", question), ("answer", answer), ("questions", questions), ("prompts", prompts)):
            if given is not None and not given:
                unit = "character" if isinstance(given, str) else name.removesuffix("s")
                raise ValueError(f"data.{name}: expected at least one {unit}, got none")
        if questions and not all(questions):
            raise ValueError("data.questions: expected at least one character in each, got an empty one")
        if batch_size < 1:
            raise ValueError(f"data.batch_size: expected 1 or more, got {batch_size}")
        if noise < 0:
            raise ValueError(f"data.noise: expected 0 or more, got {noise}")
        if repeat < 0:
            raise ValueError(f"data.repeat: expected 0 or more, got {repeat}")
        self.pair = QAPair(normalize(question), normalize(answer))
        if path is not None and self.pair != QAPair():
            raise ValueError(f"data.path: expected it alone, got data.question {question!r} beside {path}")
        self.path = path
        self.template = Template(template)
        self.end_symbol = path is not None if end_symbol is None else end_symbol
        self.prompt_to = prompt_to or ("question" if path is None else "answer")
        self.batch_size = batch_size
        self.questions = questions
        self.prompts = prompts
        self.noise = noise
        self.repeat = repeat
        self.rehearse = rehearse
        self.n_positions = n_positions
        self.as_taught: Callable[[str], str] = str  # how the model that is asked reads a question

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]], template: str | None = None, noise: float = 0.0) -> QADataModule:
        """Serve pairs from Python, in batches of the size that suits them.

        Args:
            pairs: Questions and their answers.
            template: The form of the texts; None means one that suits them.
            noise: Variations of each question in an epoch.

        Raises:
            ValueError: If there is no pair, one is not two texts, a text is empty, or a question has two answers.
        """
        given: list[Any] = list(pairs)
        for pair in given or [given]:
            if not isinstance(pair, (tuple, list)) or list(map(type, pair)) != [str, str] or not all(pair):
                raise ValueError(f"pairs: expected a question and its answer each, no text empty, got {pair!r:.60}")
        listed = [QAPair(*pair) for pair in dict.fromkeys(map(tuple, given))]
        if len(dict(listed)) < len(listed):
            raise ValueError("pairs: expected one answer to each question, got several to one")
        recipe = recipe_for(listed)
        data = cls(
            template=template or recipe.template,
            end_symbol=True,
            prompt_to="answer",
            batch_size=recipe.batch_size,
            noise=noise,
        )
        data.file = PairFile(Path(), listed)
        return data

    @cached_property
    def file(self) -> PairFile:
        """The pairs that the settings name, with their lines in a file; it is read when they are first asked for.

        Raises:
            PairsError: If it is no file of pairs.
            OSError: If it cannot be read.
        """
        if self.path is None:
            return PairFile(Path(), [self.pair])
        if self.path.endswith(".ckpt"):
            return PairFile(Path(self.path), list(_described(self.path)[2].pairs))
        return read_pairs(self.path)

    @cached_property
    def taught(self) -> Taught:
        """The texts to learn.

        Raises:
            PairsError: If the file is no file of pairs, or has a text with more characters than ``n_positions``.
            OSError: If the file cannot be read.
            ValueError: If a text that comes from no file has more characters than ``n_positions``.
        """
        file, mistakes = self.file, list(self.file.mistakes)
        too_long = {i: self._positions(pair) for i, pair in enumerate(file.pairs) if not self._fits(pair)}
        if too_long and not file.lines:
            needed = max(too_long.values())
            raise ValueError(
                f"model.config.n_positions: expected {needed} or more for a text of {needed + 1} symbols, "
                f"got {self.n_positions}"
            )
        for i, needed in too_long.items():
            reason = f"the text needs {needed} positions; increase model.config.n_positions, {self.n_positions}"
            mistakes.append(Mistake(file.lines[i], reason))
        if mistakes:
            raise PairsError(file.path, mistakes)
        pairs = {**self._rehearsed, **dict(file.pairs)}.items() if self.rehearse else file.pairs
        taught = Taught.of(
            [QAPair(*pair) for pair in pairs], self.template, end_symbol=self.end_symbol, prompt_to=self.prompt_to
        )
        known_from = threshold([pair.question for pair in taught.pairs]) if self.noise else None
        return dataclasses.replace(taught, known_from=known_from)

    @cached_property
    def tokenizer(self) -> CharTokenizer:
        """The vocabulary of the texts to learn.

        Raises:
            VocabularyError: If a text is no valid Unicode.
        """
        needed = self.taught.tokenizer(end_symbol=self.end_symbol)
        return needed if self.rehearse is None else more_symbols(_described(self.rehearse)[1], needed)

    @property
    def alike(self) -> list[list[int]]:
        """Lines whose questions differ in case, diacritics, punctuation or spaces alone; none without noise."""
        by_fold = owners(pair.question for pair in self.file.pairs) if self.noise and self.file.lines else {}
        return [[self.file.lines[row] for row in rows] for rows in by_fold.values() if len(rows) > 1]

    @property
    def replaced(self) -> list[int]:
        """Lines of the file with a new answer to a question that is rehearsed."""
        before = self._rehearsed
        return [line for line, (q, a) in zip(self.file.lines, self.file.pairs, strict=False) if before.get(q, a) != a]

    @cached_property
    def asked(self) -> Asked:
        """The prompts of ``predict``; a file is read when they are first asked for.

        Raises:
            PairsError: If they come from a file, and it is no file of questions.
            OSError: If the file cannot be read.
        """
        if self.prompts is not None:
            return Asked(self.prompts)
        questions = self.questions or self.path
        if questions is None and self.taught.prompt_to == "question":
            return Asked(self.taught.prompts)
        return Asked.of(
            questions or [pair.question for pair in self.taught.pairs],
            lambda question: self.template.prompt(self.as_taught(question)),
        )

    def adopt(self, trained: TrainedGPT, *, pairs: bool) -> None:
        """Take template, prompts, end symbol and number of positions from a trained model instead of the settings.

        Args:
            trained: The model.
            pairs: Whether its pairs are taken too, instead of those that the settings name.
        """
        self.template, self.prompt_to = trained.taught.template, trained.taught.prompt_to
        self.end_symbol = trained.tokenizer.end is not None
        self.n_positions = trained.model.config.n_positions
        self.as_taught = trained.as_taught
        if pairs:
            self.taught, self.path = trained.taught, None
        elif self.path is None and self.questions is None:
            self.questions = [self.pair.question]

    def setup(self, stage: str) -> None:
        """Forget the vocabulary of an earlier fit, validation or prediction."""
        self.__dict__.pop("_collate", None)

    def train_dataloader(self) -> DataLoader[Batch]:
        """All pairs once an epoch, shuffled, in batches of similar lengths."""
        return self._loader(shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The training pairs themselves: the model is to memorise them."""
        return self._loader(shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The same again."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[list[str]]:
        """The prompts in their order, a batch at a time."""
        prompts = self.asked.prompts
        batches = [prompts[i : i + self.batch_size] for i in range(0, len(prompts), self.batch_size)]
        return _loader(batches, collate_fn=_as_it_is)

    @cached_property
    def _rehearsed(self) -> dict[str, str]:
        return {} if self.rehearse is None else dict(_described(self.rehearse)[2].pairs)

    def _positions(self, pair: QAPair) -> int:
        """Positions that the text of ``pair`` needs: the last symbol is written and not read."""
        form = Taught(template=self.template, prompt_to=self.prompt_to)
        return form.length(pair) - (not self.end_symbol)

    def _fits(self, pair: QAPair) -> bool:
        return self.n_positions is None or self._positions(pair) <= self.n_positions

    def _loader(self, *, shuffle: bool) -> DataLoader[Batch]:
        pairs = self.taught.pairs
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        lengths = [self.taught.length(pair) for pair in pairs]
        overfits = bool(self.trainer and self.trainer.overfit_batches)  # type: ignore[attr-defined]
        sampler = LengthSampler(lengths, self.batch_size, shuffle and not overfits, world_size, rank)
        numbered = NumberedPairs(pairs)
        if overfits:  # Lightning replaces any sampler but a sequential one
            return _loader([numbered[rows] for rows in sampler], collate_fn=self._collate)
        if shuffle and self.noise:
            noise = Noise(pairs, self.noise, sampler.seed)
            numbered.vary = lambda row: filter(self._fits, noise(row, sampler.epoch))
        return _loader(numbered, sampler=sampler, collate_fn=self._collate)

    @cached_property
    def _collate(self) -> Collate:
        module = self.trainer.lightning_module if self.trainer else None
        # A checkpoint may number the same symbols otherwise than they are numbered here.
        return Collate(getattr(module, "tokenizer", self.tokenizer), self.taught)


def _described(path: str) -> tuple[GPTConfig, CharTokenizer, Taught]:
    file = checkpoint_in(path)
    return read_description(read_state(file), file)


def _as_it_is(batch: Any) -> Any:
    return batch


def _loader(batches: Any, **settings: Any) -> DataLoader[Any]:
    # A loader draws a seed from its generator in every epoch: a generator of its own leaves the global one, and so
    # the dropout of a run, alone.
    return DataLoader(batches, batch_size=None, generator=torch.Generator(), **settings)
