"""One run of a study: its settings in the words of `fit`, and what may be done to it where a stage begins."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tinygpt_lightning.callbacks.stages import Schedule, Stage, StageError
from tinygpt_lightning.commands.errors import UsageError, shorten
from tinygpt_lightning.commands.settings import Parser
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.text import Taught
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.module import TinyGPTModule
from tinygpt_lightning.original import renumber
from tinygpt_lightning.trained import without_weights

SETTINGS = ("model", "data", "stages", "renumber")  # what makes a run; with them it can be made again
# A stack of replicates is one set of parameters: only what goes number by number is one optimizer for each.
ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
ADAMS_STATE = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class StudyStage(Stage):
    """A stage of `fit`, and what an experiment may do where it begins.

    Args:
        epochs: Length of the stage, in epochs.
        reset_optimizer: Whether the stage starts with an empty optimizer; if not, the state of the one before is
            carried over.
        optimizer: Makes the stage's optimizer from the parameters; null means the model's.
        lr_scheduler: Makes the stage's learning rate scheduler from its optimizer; null means the model's, or none
            if the stage has an optimizer of its own.
        until: Null: the seeds of a study train together, so that none of them ends before the others.
        keep: What of Adam's state is carried over (true) and what starts anew (false): exp_avg, exp_avg_sq, step.
            What is not named does as reset_optimizer says.
        weights: Whether the weights are carried over or drawn anew.
        first_update: own leaves it as it is; as_new multiplies the stage's learning rate, for each seed, by what
            makes its first update as large as that of a new optimizer.
    """

    keep: dict[str, bool] | None = None
    weights: Literal["carried", "redrawn"] = "carried"
    first_update: Literal["own", "as_new"] = "own"

    def keeps(self, name: str) -> bool:
        """Whether an entry of the optimizer's state is carried over."""
        return (self.keep or {}).get(name, not self.reset_optimizer)

    @property
    def keeps_nothing(self) -> bool:
        """Whether the optimizer is altogether new."""
        return self.reset_optimizer and not any((self.keep or {}).values())


@dataclass(frozen=True, eq=False)
class Recipe:
    """All that makes a run, but for its seed.

    Args:
        settings: The same as plain values, complete: what is stored with a row.
        config: Size of the model, and its dropout.
        loss_on: Whether the loss is over all characters or over those of the answer.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the scheduler from the optimizer; null means a constant rate. It steps once an epoch.
        taught: What it learns: one pair.
        vocabulary: The symbols of that, numbered as they are made.
        stages: The stages, in order.
        renumber: Whether the vocabulary is numbered anew where a stage ends, the original's mistake.
    """

    settings: dict[str, Any]
    config: GPTConfig
    loss_on: str
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None
    taught: Taught
    vocabulary: CharTokenizer
    stages: list[StudyStage]
    renumber: bool

    @functools.cached_property
    def key(self) -> str:
        """All settings as one string: what the rows of a run are known by."""
        return as_key(self.settings)

    @property
    def text(self) -> str:
        """The sentence."""
        return self.taught.text(self.taught.pairs[0])

    @property
    def prompt(self) -> str:
        """Its beginning, which is given."""
        return self.taught.prompts[0]

    def tokenizer(self, stage: int) -> CharTokenizer:
        """The vocabulary in use at ``stage``, from 0; the reading after the last one counts as a stage too.

        Numbering it anew a second time changes nothing more.
        """
        return renumber(self.vocabulary) if stage and self.renumber else self.vocabulary

    def beginning(self, stage: int) -> str:
        """What decides how ``stage`` goes, but for its length: runs that agree in it up to here go on together."""
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
    """Plain values as one string, whatever order they came in."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)


def n_parameters(config: GPTConfig) -> int:
    """Numbers that are trained in a network; tied weights count once.

    >>> n_parameters(GPTConfig())
    7928064
    """
    return sum(p.numel() for p in without_weights(config).parameters())


class RecipeParser(Parser):
    """Reads the settings of a run."""

    stage = StudyStage

    def add_recipe_arguments(self) -> None:
        """Add what makes a run, in the words of `fit`."""
        self.add_class_arguments(TinyGPTModule, "model", instantiate=False, skip={"vocab", "taught"})
        # Settings of many pairs, or of other commands.
        others = {"path", "prompt_to", "batch_size", "questions", "prompts", "n_positions"}
        self.add_class_arguments(QADataModule, "data", instantiate=False, skip=others)
        one_stage = [Namespace(dataclasses.asdict(StudyStage(epochs=30)))]  # type: ignore[no-untyped-call]
        self.add_argument("--stages", type=list[StudyStage], default=one_stage, help="The stages, in order.")
        self.add_argument(
            "--renumber",
            type=bool,
            default=False,
            help="Whether the vocabulary is numbered anew where a stage ends, the original's mistake.",
        )

    def plain(self, settings: Any) -> dict[str, Any]:
        """What was parsed, as plain values; but not the size of the vocabulary, which the data decide."""
        everything: dict[str, Any] = yaml.safe_load(self.dump(settings, skip_none=False, skip_validation=True))
        del everything["model"]["config"]["vocab_size"]
        return everything


class _StrictParser(RecipeParser):
    """Raises instead of exiting: the caller knows which run it is about."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(shorten(message))


@functools.cache
def _parser() -> RecipeParser:
    parser = _StrictParser(prog="run")
    parser.add_recipe_arguments()
    return parser


def read_recipe(settings: Mapping[str, Any]) -> Recipe:
    """Check the settings of a run and make of them what can be trained; what they lack has its default.

    Raises:
        UsageError: If they are no settings of a run; the message names the first one that is wrong.
    """
    parser = _parser()
    parsed = parser.parse_object(json.loads(json.dumps(settings)))  # the parser changes what it is given
    try:
        made = parser.instantiate_classes(parsed)
        data = QADataModule(**made.data, n_positions=made.model.config.n_positions)
        taught, vocabulary = data.taught, data.tokenizer
        config = dataclasses.replace(made.model.config, vocab_size=len(vocabulary))
    except (ValueError, MisconfigurationException) as error:
        raise UsageError(str(error)) from None
    plain = parser.plain(parsed)
    plain["data"].update(data.pair._asdict())
    recipe = Recipe(
        plain, config, made.model.loss_on, made.model.optimizer, made.model.lr_scheduler, taught, vocabulary,
        made.stages, made.renumber,
    )  # fmt: skip
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    try:
        Schedule(recipe.stages)
    except StageError as error:
        raise UsageError(str(error)) from None
    first = recipe.stages[0]
    if first.keep or first.weights != "carried" or first.first_update != "own":
        raise UsageError("stages[0]: expected no keep, weights or first_update, since no stage is before it")
    before = None
    for number, stage in enumerate(recipe.stages):
        try:
            optimizer, lr_scheduler = recipe.build_optimizer(number, [torch.zeros(1, requires_grad=True)])
            _check_stage(stage, type(optimizer), before)
            if not isinstance(lr_scheduler, LRScheduler | None) or isinstance(lr_scheduler, ReduceLROnPlateau):
                raise ValueError(f"expected a scheduler that needs no measure, got {type(lr_scheduler).__name__}")
        except (TypeError, ValueError) as error:  # of torch's own: a learning rate below 0, say
            raise UsageError(f"stages[{number}]: {error}") from None
        before = type(optimizer)


def _check_stage(stage: StudyStage, kind: type[Optimizer], before: type[Optimizer] | None) -> None:
    if stage.until is not None:
        raise ValueError(f"until: expected null, since the seeds of a study train together, got {stage.until}")
    if kind.__name__ not in ELEMENTWISE:
        raise ValueError(
            f"expected an optimizer that goes number by number, one of {', '.join(ELEMENTWISE)}, got {kind.__name__}"
        )
    if stage.keep and (not set(stage.keep) <= set(ADAMS_STATE) or not issubclass(kind, torch.optim.Adam)):
        raise ValueError(
            f"keep: expected {', '.join(ADAMS_STATE)} of Adam or AdamW, got {', '.join(stage.keep)} of {kind.__name__}"
        )
    if before and kind != before and not stage.keeps_nothing:
        raise ValueError(
            "expected an optimizer like the one before, whose state it is to keep, "
            f"got {kind.__name__} after {before.__name__}"
        )
