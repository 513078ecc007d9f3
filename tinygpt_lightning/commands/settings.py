"""Settings of ``fit``, ``validate`` and ``predict``, parsed by LightningCLI."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat, PositiveInt, register_type, restricted_number_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from tinygpt_lightning.callbacks.stages import Stage
from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.commands.launch import trainer_defaults
from tinygpt_lightning.commands.parser import Parser, setting_up
from tinygpt_lightning.commands.runs import RUNS, runs_folder
from tinygpt_lightning.commands.table import COMMANDS, PROGRAM
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.description import n_parameters
from tinygpt_lightning.gpt.generation import GenerationConfig
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.module import TinyGPTModule

register_type(torch.device)  # a setting of some of Lightning's callbacks, which could not be saved otherwise

TRAINER_DEFAULTS = {
    "default_root_dir": RUNS,
    "max_epochs": -1,  # follows from the stages
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,  # one line an epoch; this project shows one line a stage
    "enable_model_summary": False,
}
CKPT_PATH = {
    "fit": "What to resume instead of a new run: 'last' is the newest unfinished run of the same --config, in place; "
    "a run's folder is that run, in place; from a checkpoint file a new run continues.",
    "validate": "Checkpoint to read, or a run's folder; null means the newest finished run of the same --config.",
}
OUTPUT = {
    "validate": "File for the pairs that are not exact, one JSON object a line.",
    "predict": "File for the texts, one JSON object a line.",
}
BYTES = 16  # of a parameter that is trained: its value, its gradient and AdamW's two moments
PATHS = ("trainer.default_root_dir", "data.path", "ckpt_path", "output")  # settings in which ~ is expanded
_FROM_DATA: dict[str, Callable[[QADataModule], object]] = {
    "model.taught": lambda data: data.taught,
    "model.vocab": lambda data: data.tokenizer.vocab,
    "model.config.vocab_size": lambda data: len(data.tokenizer),
}

# Settings that may differ on resume, since they change nothing that is computed: output, logging, checkpoints, and
# the end of the run. All others must stay. Instead of the path to the pairs, the pairs themselves are compared.
FREE_SETTINGS = (
    "data.path", "data.prompts", "data.questions", "generation", "save_every_n_seconds", "snapshots",
    "trainer.default_root_dir",
    "trainer.detect_anomaly", "trainer.enable_autolog_hparams", "trainer.enable_checkpointing",
    "trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.fast_dev_run",
    "trainer.limit_predict_batches", "trainer.limit_test_batches", "trainer.log_every_n_steps", "trainer.logger",
    "trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.model_registry", "trainer.profiler",
)  # fmt: skip
FREE_CALLBACKS = (
    "DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "ModelCheckpoint", "ModelSummary",
    "OnExceptionCheckpoint", "RichModelSummary", "RichProgressBar", "Snapshots", "ThroughputMonitor", "Timer",
    "TQDMProgressBar",
)  # fmt: skip


class Settings(LightningCLI):
    """Parsed settings, and the objects that they describe.

    Args:
        command: fit, validate or predict.
        args: The arguments after it.
        base: A file of settings that the arguments override.

    Raises:
        UsageError: If a setting is wrong.
    """

    def __init__(self, command: str, args: Sequence[str], base: Path | None = None) -> None:
        self.command = command
        self.args = list(args)
        super().__init__(
            TinyGPTModule,
            QADataModule,
            save_config_callback=None,  # it fails where the folder has a config.yaml; `fit` writes its own
            seed_everything_default=0,
            trainer_defaults={**TRAINER_DEFAULTS, **trainer_defaults()},
            parser_class=Parser,
            parser_kwargs={
                "prog": f"{PROGRAM} {command}",
                "description": COMMANDS[command].summary,
                "usage": f"{PROGRAM} {command} [options]",
            },
            auto_configure_optimizers=False,  # it would make one optimizer and return it for every stage
            load_from_checkpoint_support=False,  # the module reads its checkpoints itself
            args=[*(["--config", str(base)] if base else []), *args],
            run=False,
        )

    def on_top_of(self, base: Path) -> Settings:
        """The same command line, with all other settings taken from ``base``."""
        return Settings(self.command, self.args, base)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings that are not the model's, the data's or the trainer's."""
        one_stage = [Namespace(dataclasses.asdict(Stage(epochs=30)))]  # type: ignore[no-untyped-call]
        parser.add_argument("--stages", type=list[Stage], default=one_stage, help="The stages, in order.")
        parser.add_argument(
            "--auto",
            type=bool,
            default=False,
            help="Whether template, sizes, batches, learning rate and stages follow from the pairs where they are not "
            "set; fit then fails unless all pairs are exact in the end.",
        )
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
            help="Whether the vocabulary is renumbered where a stage ends, the original's mistake; with --rebuild.",
        )
        parser.add_argument(
            "--save_every_n_seconds",
            type=NonNegativeFloat,
            default=30.0,
            help="How often last.ckpt is written, in seconds; 0 means after each epoch; also at a stage's end.",
        )
        parser.add_argument(
            "--snapshots",
            type=restricted_number_type("TwoOrMore", int, (">=", 2)) | None,
            default=None,
            help="Moments of the training whose weights are kept, for `show`; null means none.",
        )
        parser.add_argument(
            "--threads",
            type=PositiveInt | None,
            default=None,
            help="CPU threads; null means one for each core, or a single one for a fit whose steps are too small to "
            "share. A result's last bits depend on it.",
        )
        parser.add_class_arguments(GenerationConfig, "generation", help="How predict continues a prompt.")
        parser.add_argument("--ckpt_path", type=str | None, help=CKPT_PATH.get(self.command, CKPT_PATH["validate"]))
        if self.command in OUTPUT:
            parser.add_argument("--output", type=str | None, help=OUTPUT[self.command])
        parser.link_arguments("model.config.n_positions", "data.n_positions")
        # `fit` takes the vocabulary from the data; the other commands read it from a checkpoint, and their data may
        # be a file of questions alone.
        for target, read in _FROM_DATA.items() if self.command == "fit" else ():
            parser.link_arguments("data", target, compute_fn=read, apply_on="instantiate")
        # For --help: the Trainer's many options after those of this project.
        parser._action_groups.sort(key=lambda group: "aspect of training" in str(group.title))  # type: ignore[attr-defined]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments."""
        # Lightning's own method warns of arguments that are passed to it, as here.
        self.config = parser.parse_args(args)
        strategy = self.config.trainer.strategy
        if "save_distributed_checkpoint" in getattr(strategy, "init_args", ()):
            # Ordinary files, which any number of processes, and all other commands, can read.
            strategy.init_args.save_distributed_checkpoint = False
        for name in PATHS:
            if isinstance(path := self.config.get(name), str):
                self.config[name] = os.path.expanduser(path)  # noqa: PTH111  # keeps "last" and "file://…" as they are

    def instantiate_classes(self) -> None:
        """Do nothing: a command calls `instantiate` when it needs the objects."""

    def instantiate(self, *, model: bool = True, pairs: Path | None = None) -> Namespace:
        """Make the objects; not the ``model`` if it will be read from a checkpoint.

        Args:
            model: Whether to make the model.
            pairs: The checkpoint to take the pairs from, instead of ``data.path``.

        Raises:
            UsageError: If a class refuses a setting, or the model cannot fit into the memory.
        """
        config = self.config.clone()
        if model:
            _check_memory(config.model.config)
        else:
            del config["model"]
        if pairs:
            config.data.path = str(pairs)
        if config.threads:
            torch.set_num_threads(config.threads)
        with setting_up():
            try:
                objects: Namespace = self.parser.instantiate(config)
            except (ValueError, MisconfigurationException) as error:
                reason = error.__cause__ or error  # the parser wraps an error of a link in its own
                raise (reason if isinstance(reason, OSError) else UsageError(str(reason))) from error
        return objects

    def locate_pairs(self, *folders: Path) -> None:
        """Look for a relative ``data.path`` that does not exist here in other folders, and beside the configurations.

        In a configuration's own folder and in the one above it, from which this project names its files.

        Raises:
            UsageError: If it is in none of them; the message names them.
        """
        path = self.config.data.path
        if path is None or Path(path).exists() or Path(path).is_absolute():
            return
        beside = [folder for file in self.config_files for folder in file.resolve().parents[:2]]
        others = {folder.resolve() for folder in (*folders, *beside)} - {Path.cwd()}
        for folder in sorted(others):
            if (folder / path).exists():
                self.config.data.path = str(folder / path)
                return
        if others:
            places = ", ".join(map(str, sorted(others)))
            raise UsageError(f"data.path: expected the file {path} here or in {places}, found none")

    def make_trainer(self, objects: Namespace, callbacks: Sequence[Callback], **changes: Any) -> Trainer:
        """Make the trainer of the settings, with more ``callbacks`` behind the user's, and with ``changes``."""
        settings = {**objects.trainer.as_dict(), "callbacks": [*as_list(objects.trainer.callbacks), *callbacks]}
        with setting_up():
            return Trainer(**{**settings, **changes})

    @cached_property
    def text(self) -> str:
        """Every setting but ``ckpt_path``, as YAML."""
        config = self.config.clone()
        config.ckpt_path = None
        plain = json.loads(self.parser.dump(config, format="json", skip_unset=False))
        return yaml.dump(plain, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=10**9)

    @cached_property
    def plain(self) -> dict[str, Any]:
        """Every setting, as plain values."""
        settings: dict[str, Any] = yaml.safe_load(self.text)
        return settings

    @property
    def config_files(self) -> list[Path]:
        """The values of ``--config``."""
        files = self.config.get("config") or []
        return [Path(str(file)) for file in files if file is not None and str(file) != "-"]  # not inline, not stdin

    @property
    def folder(self) -> Path:
        """The folder of this configuration's runs, named after the configuration files."""
        return runs_folder(self.config_files, self.config.trainer.default_root_dir)


def _check_memory(sizes: Namespace) -> None:
    """Refuse a model that cannot be trained here, before minutes are spent on its weights."""
    try:
        parameters = n_parameters(GPTConfig(**{**sizes.as_dict(), "vocab_size": 2}))
    except (ValueError, RuntimeError):
        return  # sizes that do not go together: the model itself says which
    needed, memory = parameters * BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise UsageError(
            f"model.config: expected a model that this machine's {memory / 1e9:,.0f} GB can train, got n_embd "
            f"{sizes.n_embd} and n_positions {sizes.n_positions}: {parameters:,} parameters, {needed / 1e9:,.0f} GB"
        )


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that a reader might take for numbers, or whose line breaks YAML would change."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # jsonargparse reads more numbers than YAML 1.1, on which PyYAML bases its own quotes: 3e8, for example.
    is_plain = text.isprintable() and not re.match(r"[-+.\d]", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_Dumper.add_representer(str, _represent_text)


def as_list(setting: Any) -> list[Any]:
    """A setting of Lightning that is None, one value or a list, as a list."""
    return setting if isinstance(setting, list) else [] if setting is None else [setting]


def decisive(settings: Mapping[str, Any], stages_begun: int) -> dict[str, Any]:
    """The settings that decide what a run computes, flat: names with dots to values.

    Args:
        settings: All settings, as plain values.
        stages_begun: How many stages the run has begun; later ones are left out.
    """
    begun = {f"stages[{i}]": stage for i, stage in enumerate(settings["stages"][:stages_begun])}
    deciding = flat({**{name: value for name, value in settings.items() if name != "stages"}, **begun})
    deciding["trainer.callbacks"] = [
        callback
        for callback in as_list(deciding.get("trainer.callbacks"))
        if callback["class_path"].rpartition(".")[2] not in FREE_CALLBACKS
    ]
    free = tuple(f"{name}." for name in FREE_SETTINGS)
    return {name: value for name, value in deciding.items() if not f"{name}.".startswith(free)}


def flat(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings within settings, each by one name.

    >>> flat({"a": {"b": 1}})
    {'a.b': 1}
    """
    flattened: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flattened |= {f"{name}.{inner}": leaf for inner, leaf in flat(value).items()}
        else:
            flattened[str(name)] = value
    return flattened
