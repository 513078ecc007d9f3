"""What was typed: LightningCLI parses the settings of ``fit``, ``validate`` and ``predict``."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat, PositiveInt, register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from tinygpt_lightning.callbacks.stages import Stage, StageError
from tinygpt_lightning.commands.errors import USERS_MISTAKES, UsageError, fail
from tinygpt_lightning.commands.runs import RUNS, runs_folder
from tinygpt_lightning.commands.table import COMMANDS, PROGRAM
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.gpt.generation import GenerationConfig
from tinygpt_lightning.module import TinyGPTModule

MOST_LINES = 4
# What the parser tried and how, and not what was wrong.
PARSER_INTERNALS = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value type:|Expected a path but|Expected a NoneType"
)


@contextmanager
def trainers_mistakes() -> Iterator[None]:
    """Bring what the Trainer and the stages refuse to a `UsageError`, in the first process of several.

    Raises:
        UsageError: If they refuse something.
    """
    try:
        yield
    except (*USERS_MISTAKES, StageError, MisconfigurationException) as error:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            sys.exit(2)  # each process of a distributed fit comes to the same refusal
        raise error if isinstance(error, USERS_MISTAKES) else UsageError(str(error)) from error


class Parser(LightningArgumentParser):
    """Says in a few lines what is wrong."""

    stage: type[Stage] = Stage  # what a list of stages is made of

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason, without the usage that fills a screen."""
        unknown = re.search(r"[Oo]ption '([^']+)' is not accepted|accept option '([^']+)'", message)
        if unknown:
            message += self._suggestion(unknown[1] or unknown[2])
        fail(shorten(message), 2)

    def _suggestion(self, option: str) -> str:
        fields = [field.name for field in dataclasses.fields(self.stage)]
        close = difflib.get_close_matches(option, [*(action.dest for action in self._actions), *fields, "lr"], n=1)
        return (f": did you mean '{close[0]}'?" if close else "") + f"\nA stage takes {', '.join(fields)}."


def shorten(message: str) -> str:
    r"""Keep what a person can use of an error message of the parser: a few lines.

    >>> print(shorten("Parser key \"lr\":\n  Errors:\n    - Expected a <class 'float'>\n  Given value: abc"))
    --lr:
    Expected a float
    Given value: abc
    """
    message = re.sub(r"<class '([^']+)'>", r"\1", message)
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    return "\n".join([line for line in lines if not PARSER_INTERNALS.match(line)][:MOST_LINES])


register_type(torch.device)  # which callbacks of Lightning have as a setting, or it could not be saved

TRAINER_DEFAULTS = {
    "default_root_dir": RUNS,
    "devices": 1,  # one sentence keeps one device busy
    "max_epochs": -1,  # the stages say
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,  # a line an epoch, where one a stage is wanted
    "enable_model_summary": False,
}
GO_ON = (
    "What to go on with, instead of a new run: 'last' is the newest unfinished run of the same --config, in place; "
    "a run's folder is that run, in place; a checkpoint begins a new run with it."
)
_FROM_DATA: dict[str, Callable[[QADataModule], object]] = {
    "model.taught": lambda data: data.taught,
    "model.vocab": lambda data: data.tokenizer.vocab,
    "model.config.vocab_size": lambda data: len(data.tokenizer),
}
OUTPUTS = {
    "validate": "File for the pairs that are not learnt yet, one JSON object a line.",
    "predict": "File for the texts, one JSON object a line.",
}
READ = "Checkpoint to read, or a run's folder; null means the newest finished run of the same --config."


class Settings(LightningCLI):
    """Parsed settings, and what Lightning makes of them when it is asked to.

    Args:
        command: fit, validate or predict.
        args: What was typed behind it.
        base: A file of settings that what was typed is put on top of.

    Raises:
        UsageError: If something is asked for that cannot be done.
    """

    def __init__(self, command: str, args: Sequence[str], base: Path | None = None) -> None:
        self.command = command
        self.args = list(args)
        super().__init__(
            TinyGPTModule,
            QADataModule,
            save_config_callback=None,  # it fails where the folder has a config.yaml; `fit` writes its own
            seed_everything_default=0,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            parser_class=Parser,
            parser_kwargs={
                "prog": f"{PROGRAM} {command}",
                "description": COMMANDS[command].summary,
                "usage": f"{PROGRAM} {command} [options]",
            },
            auto_configure_optimizers=False,  # it makes one optimizer and returns that one for ever
            load_from_checkpoint_support=False,  # the module reads its checkpoints itself
            args=[*(["--config", str(base)] if base else []), *args],
            run=False,
        )

    def on_top_of(self, base: Path) -> Settings:
        """The same command line, with everything that it does not say taken from ``base``."""
        return Settings(self.command, self.args, base)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Lightning does not know of."""
        one_stage = [Namespace(dataclasses.asdict(Stage(epochs=30)))]  # type: ignore[no-untyped-call]
        parser.add_argument("--stages", type=list[Stage], default=one_stage, help="The stages, in order.")
        parser.add_argument(
            "--rebuild",
            type=bool,
            default=False,
            help="Whether each stage takes weights and vocabulary from the run's files, as the original does.",
        )
        parser.add_argument(
            "--renumber",
            type=bool,
            default=False,
            help="Whether the vocabulary is numbered anew where a stage ends, the original's mistake; with --rebuild.",
        )
        parser.add_argument(
            "--save_every_n_seconds",
            type=NonNegativeFloat,
            default=30.0,
            help="How often last.ckpt is written, in seconds; 0 means after each epoch; also at a stage's end.",
        )
        parser.add_argument(
            "--threads",
            type=PositiveInt | None,
            default=None,
            help="CPU threads; null means one for each core. Small models gain nothing from a second one, and a "
            "result's last bits depend on it.",
        )
        parser.add_class_arguments(GenerationConfig, "generation", help="How predict continues a prompt.")
        parser.add_argument("--ckpt_path", type=str | None, help=GO_ON if self.command == "fit" else READ)
        if self.command in OUTPUTS:
            parser.add_argument("--output", type=str | None, help=OUTPUTS[self.command])
        # What is taught, and so the vocabulary, comes from the data; all other commands read it from a checkpoint,
        # and a file of questions alone teaches nothing.
        parser.link_arguments("model.config.n_positions", "data.n_positions")
        for target, read in _FROM_DATA.items() if self.command == "fit" else ():
            parser.link_arguments("data", target, compute_fn=read, apply_on="instantiate")
        # For --help: the Trainer's many options after those of this project.
        parser._action_groups.sort(key=lambda group: "aspect of training" in str(group.title))  # type: ignore[attr-defined]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what was typed."""
        # Lightning's own method warns of arguments that are handed over, as they are here.
        self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        """Nothing yet: a command asks for what it needs, when it knows where."""

    def instantiate(self, *, model: bool = True) -> Namespace:
        """Make the classes; the model only where it is to be trained, and not where it is read from a file."""
        config = self.config.clone()
        if not model:
            del config["model"]
        if config.threads:
            torch.set_num_threads(config.threads)
        try:
            made: Namespace = self.parser.instantiate_classes(config)
        except (ValueError, MisconfigurationException) as error:
            reason = error.__cause__ or error  # the parser puts words of its own around what a link raises
            raise (reason if isinstance(reason, OSError) else UsageError(str(reason))) from error
        return made

    def make_trainer(self, made: Namespace, callbacks: Sequence[Callback], **changes: Any) -> Trainer:
        """Make the trainer: what was asked for, then ``callbacks``, then what a command changes."""
        asked = made.trainer.callbacks or []
        asked = asked if isinstance(asked, list) else [asked]
        try:
            return Trainer(**{**made.trainer.as_dict(), "callbacks": [*asked, *callbacks], **changes})
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(str(error)) from error

    @cached_property
    def text(self) -> str:
        """Every setting, as YAML; but not where this process went on from."""
        config = self.config.clone()
        config.ckpt_path = None
        return str(self.parser.dump(config, skip_none=False))

    @cached_property
    def plain(self) -> dict[str, Any]:
        """Every setting, as plain values."""
        settings: dict[str, Any] = yaml.safe_load(self.text)
        return settings

    @property
    def config_files(self) -> list[Path]:
        """The files that were typed."""
        return [Path(str(file)) for file in self.config.get("config") or []]

    @property
    def folder(self) -> Path:
        """Where the runs of this configuration lie: named after the configuration files."""
        return runs_folder(self.config_files, self.config.trainer.default_root_dir)
