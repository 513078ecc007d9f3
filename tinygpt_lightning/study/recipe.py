"""The settings of one run: those of `fit`, and the interventions that an experiment makes at a stage boundary."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tinygpt_lightning.callbacks.stages import Stage
from tinygpt_lightning.commands.errors import UsageError, shorten
from tinygpt_lightning.commands.parser import Parser
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.text import Taught
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.module import TinyGPTModule
from tinygpt_lightning.original import renumber

SETTINGS = ("model", "data", "stages", "renumber", "trainer")  # these and the seed determine a run
# The replicates are one stack of parameters: only an elementwise optimizer over it equals one for each replicate.
ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
ADAMS_STATE = ("exp_avg", "exp_avg_sq", "step")
DATA = ("question", "answer", "path", "template", "end_symbol", "batch_size")  # settings of the data module


@dataclass(frozen=True)
class StudyStage(Stage):
    """A stage of `fit`, and the interventions of an experiment at its start.

    Args:
        epochs: Length of the stage, in epochs.
        steps: Must be null, and interval, frequency and monitor the defaults: a study counts epochs.
        until: When the stage ends before its epochs, as in `fit`; such runs are trained one at a time.
        keep: Entries of Adam's state (exp_avg, exp_avg_sq, step) that are carried over (true) or reset (false).
            Entries that are not named follow reset_optimizer.
        weights: Whether the weights are carried over or redrawn.
        first_update: "own" changes nothing; "as_new" scales the stage's learning rate, for each seed, so that its
            first update is as long as that of a new optimizer.
    """

    epochs: int = 0  # needed, since the seeds of a study count epochs and not steps
    keep: dict[str, bool] | None = None
    weights: Literal["carried", "redrawn"] = "carried"
    first_update: Literal["own", "as_new"] = "own"

    def keeps(self, name: str) -> bool:
        """Whether an entry of the optimizer's state is carried over."""
        return (self.keep or {}).get(name, not self.reset_optimizer)

    @property
    def intervenes(self) -> bool:
        """Whether it does what `fit` cannot do."""
        return bool(self.keep) or self.weights != "carried" or self.first_update != "own"

    @property
    def keeps_nothing(self) -> bool:
        """Whether the whole optimizer state is reset."""
        return self.reset_optimizer and not any((self.keep or {}).values())


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of the Trainer that a run may have; other values than these defaults need one `fit` at a time.

    Args:
        precision: Precision of the training, as in `fit`.
        gradient_clip_val: Largest gradient norm; null means no clipping.
        accumulate_grad_batches: Batches of one optimizer step.
        callbacks: Callbacks by their class, such as an EarlyStopping that ends the run; each run has copies.
    """

    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"] = "32-true"
    gradient_clip_val: float | None = None
    accumulate_grad_batches: int = 1
    callbacks: list[Callback] | None = None


DEFAULTS = dataclasses.asdict(TrainerSettings())


@dataclass(frozen=True, eq=False)
class Recipe:
    """Everything that determines a run, except its seed."""

    settings: dict[str, Any]  # all of them as plain values, which the rows of results store
    config: GPTConfig
    loss_on: Literal["all", "answer"]
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None  # it steps once an epoch; None means a constant rate
    taught: Taught
    vocabulary: CharTokenizer  # the symbols of the pair, with the ids of stage 1
    stages: list[StudyStage]
    renumber: bool  # whether the vocabulary is renumbered after the first stage, as in the original project
    trainer: TrainerSettings
    alone: str | None = None  # why the stacked engine cannot train it, so that it needs one `fit`; None if it can

    @functools.cached_property
    def key(self) -> str:
        """All settings as one string, which identifies the rows of this recipe."""
        return as_key(self.settings)

    @property
    def text(self) -> str:
        """The sentence."""
        return self.taught.text(self.taught.pairs[0])

    @property
    def prompt(self) -> str:
        """The beginning of the sentence, which generation starts from."""
        return self.taught.prompts[0]

    def tokenizer(self, stage: int) -> CharTokenizer:
        """The vocabulary of ``stage``, from 0; generation after training is one stage more.

        A second renumbering changes nothing.
        """
        return renumber(self.vocabulary) if stage and self.renumber else self.vocabulary

    def beginning(self, stage: int) -> str:
        """Key of all settings of ``stage`` except its length: runs with equal keys so far share their computation."""
        settings = {name: value for name, value in self.settings["stages"][stage].items() if name != "epochs"}
        common = [self.renumber] if stage else [self.settings["model"], self.settings["data"]]
        return as_key([settings, *common])

    def build_optimizer(self, stage: int, parameters: list[torch.Tensor]) -> tuple[Optimizer, LRScheduler | None]:
        """Make the optimizer of ``stage`` and its scheduler, as `StagedTraining` does."""
        own = self.stages[stage]
        optimizer = (own.optimizer or self.optimizer)(parameters)
        lr_scheduler = own.lr_scheduler or (None if own.optimizer else self.lr_scheduler)
        return optimizer, lr_scheduler(optimizer) if lr_scheduler else None


def as_key(settings: Any) -> str:
    """Plain values as one string that does not depend on the order of names."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)


class RecipeParser(Parser):
    """Parses the settings of a run."""

    stage = StudyStage

    def add_recipe_arguments(self) -> None:
        """Add the settings of a run, which are those of `fit`."""
        self.add_class_arguments(TinyGPTModule, "model", instantiate=False, skip={"vocab", "taught"})
        # The others are for other commands.
        others = set(inspect.signature(QADataModule).parameters) - set(DATA)
        self.add_class_arguments(QADataModule, "data", instantiate=False, skip=others)
        one_stage = [Namespace(dataclasses.asdict(StudyStage(epochs=30)))]  # type: ignore[no-untyped-call]
        self.add_argument("--stages", type=list[StudyStage], default=one_stage, help="The stages, in order.")
        self.add_class_arguments(TrainerSettings, "trainer", instantiate=True)
        about = "Whether the vocabulary is renumbered after the first stage, as in the original project."
        self.add_argument("--renumber", type=bool, default=False, help=about)

    def plain(self, settings: Any) -> dict[str, Any]:
        """Parsed settings as plain values, without steps and the vocabulary's size, which follows from the data."""
        everything: dict[str, Any] = yaml.safe_load(self.dump(settings, skip_none=False, skip_validation=True))
        del everything["model"]["config"]["vocab_size"]
        for stage in everything["stages"]:
            for name in ("steps", "interval", "frequency", "monitor"):
                del stage[name]
        # Left out where they are the defaults, so that rows of one pair keep their key.
        if everything["trainer"] == DEFAULTS:
            del everything["trainer"]
        if everything["data"]["path"] is None:
            del everything["data"]["path"], everything["data"]["batch_size"]
        return everything


class _StrictParser(RecipeParser):
    """Raises instead of exiting, so that the caller can add the name of the cell."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(shorten(message))


@functools.cache
def _parser() -> RecipeParser:
    parser = _StrictParser(prog="run")
    parser.add_recipe_arguments()
    return parser


def read_recipe(settings: Mapping[str, Any]) -> Recipe:
    """Check the settings of a run and instantiate them; settings that are not given have their defaults.

    Raises:
        UsageError: If a setting is wrong; the message names it.
    """
    return _read(as_key(settings))


@functools.cache
def _read(settings: str) -> Recipe:
    parser = _parser()
    parsed = parser.parse_object(json.loads(settings))
    try:
        run = parser.instantiate(parsed)
        data = QADataModule(**run.data, n_positions=run.model.config.n_positions)
        taught, vocabulary = data.taught, data.tokenizer
        config = dataclasses.replace(run.model.config, vocab_size=len(vocabulary))
    except (ValueError, MisconfigurationException) as error:
        raise UsageError(str(error)) from None
    plain = parser.plain(parsed)
    plain["data"].update(data.pair._asdict())
    recipe = Recipe(
        plain, config, run.model.loss_on, run.model.optimizer, run.model.lr_scheduler, taught, vocabulary,
        run.stages, run.renumber, run.trainer,
    )  # fmt: skip
    alone = _check(recipe)
    if alone and (recipe.renumber or any(stage.intervenes for stage in recipe.stages)):
        only = "renumber, keep, weights or first_update, which only the stacked engine has"
        raise UsageError(f"{alone} needs one fit at a time: expected no {only}")
    return dataclasses.replace(recipe, alone=alone)


def _check(recipe: Recipe) -> str | None:
    """Check the stages; returns the first setting that the stacked engine cannot train."""
    alone = [f"data.path ({len(recipe.taught.pairs)} pairs)"] if "path" in recipe.settings["data"] else []
    trainer = recipe.settings.get("trainer", {})
    alone += [f"trainer.{name}" for name, value in trainer.items() if value != DEFAULTS[name]]
    if not recipe.stages:
        raise UsageError("stages: expected at least one stage, got none")
    if recipe.stages[0].intervenes:
        raise UsageError("stages[0]: expected no keep, weights or first_update, since no stage precedes it")
    before = None
    for number, stage in enumerate(recipe.stages):
        try:
            optimizer, lr_scheduler = recipe.build_optimizer(number, [torch.zeros(1, requires_grad=True)])
            alone += _check_stage(stage, type(optimizer), before)
            if not isinstance(lr_scheduler, LRScheduler | None) or isinstance(lr_scheduler, ReduceLROnPlateau):
                raise ValueError(f"expected a scheduler that needs no metric, got {type(lr_scheduler).__name__}")
        except (TypeError, ValueError) as error:  # of PyTorch itself, such as a learning rate below 0
            raise UsageError(f"stages[{number}]: {error}") from None
        before = type(optimizer)
    return next(iter(alone), None)


def _check_stage(stage: StudyStage, kind: type[Optimizer], before: type[Optimizer] | None) -> list[str]:
    """Check a stage; returns what the stacked engine cannot do."""
    if (stage.interval, stage.frequency, stage.monitor) != ("epoch", 1, None):
        raise ValueError("interval, frequency, monitor: expected epoch, 1 and null, since a study's schedulers step so")
    alone = [name for name in ("until", "freeze", "restore_best", "reload_dataloaders") if getattr(stage, name)]
    alone += [f"the optimizer {kind.__name__}, which is not elementwise,"] if kind.__name__ not in ELEMENTWISE else []
    if stage.keep and (not set(stage.keep) <= set(ADAMS_STATE) or not issubclass(kind, torch.optim.Adam)):
        got = f"{', '.join(stage.keep)} of {kind.__name__}"
        raise ValueError(f"keep: expected {', '.join(ADAMS_STATE)} of Adam or AdamW, got {got}")
    if before and kind != before and not stage.keeps_nothing:
        got = f"{kind.__name__} after {before.__name__}"
        raise ValueError(f"reset_optimizer: expected true, or the optimizer class of the stage before, got {got}")
    return alone
