"""The command line: LightningCLI, with stages, generation, and a numbered folder for every run."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tinygpt_lightning.app.errors import Parser, fail, say
from tinygpt_lightning.app.progress import StageProgress, print_result
from tinygpt_lightning.app.run import Run, RunFiles, RunLockedError, list_runs, new_run, write_whole
from tinygpt_lightning.app.tensorboard import RunLogger, TensorBoardReport
from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.graceful_stop import StopOnSignal
from tinygpt_lightning.callbacks.safe_checkpoint_io import SafeCheckpointIO
from tinygpt_lightning.callbacks.staged_training import Stage, StagedTraining, StageError, check_stages, stage_ends
from tinygpt_lightning.data import QADataModule, QAPair
from tinygpt_lightning.gpt.checkpoint import (
    CheckpointError,
    newest_whole,
    read_checkpoint,
    remove_leftovers,
)
from tinygpt_lightning.gpt.generation import GenerationConfig, check_lengths
from tinygpt_lightning.gpt.tokenizer import CharTokenizer, UnknownCharacterError, VocabularyError
from tinygpt_lightning.module import TinyGPTModule
from tinygpt_lightning.original import RebuiltStages

PROGRAM = "python -m tinygpt_lightning"
DESCRIPTION = "A one-block GPT-2 that learns one sentence in stages. `study --help` is about the experiment."
COMMANDS = {
    "fit": "Train in stages, and show what was learnt.",
    "validate": "Measure whether a trained model knows the sentence.",
    "predict": "Continue prompts with a trained model: the texts go to stdout, and nothing else does.",
}
RUN_VARIABLE = "TINYGPT_RUN"  # tells the other processes of a distributed fit which folder the first one made
TRAINER_DEFAULTS = {
    "default_root_dir": "checkpoints",
    "devices": 1,  # one sentence keeps one device busy
    "max_epochs": -1,  # the stages say
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,  # a line an epoch, where one a stage is wanted
    "enable_model_summary": False,
    "enable_checkpointing": False,  # last.ckpt and stage-N.ckpt have callbacks of their own
}


class UsageError(ValueError):
    """Something was asked for that cannot be done."""


class TinyGPTCLI(LightningCLI):
    """Lightning's command line for this project.

    Args:
        args: What was typed after the program's name.

    Raises:
        UsageError: If something is asked for that cannot be done.
    """

    def __init__(self, args: Sequence[str]) -> None:
        with ExitStack() as self._resources:
            super().__init__(
                TinyGPTModule,
                QADataModule,
                save_config_callback=None,  # it also fires on predict; `fit` writes config.yaml
                seed_everything_default=0,
                trainer_defaults=dict(TRAINER_DEFAULTS),
                parser_class=Parser,
                parser_kwargs={
                    "prog": PROGRAM,
                    "description": DESCRIPTION,
                    **{name: {"description": text} for name, text in COMMANDS.items()},
                },
                auto_configure_optimizers=False,  # it makes one optimizer and returns that one for ever
                load_from_checkpoint_support=False,  # the module reads its checkpoints itself
                args=list(args),
            )

    def setup_parser(self, *args: Any) -> None:
        """Describe the commands in this project's words."""
        super().setup_parser(*args)
        for command in self.parser._subcommands_action._choices_actions:  # type: ignore[union-attr]
            command.help = COMMANDS[command.dest]

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's methods on offer, and those of their arguments that are not."""
        ours = {"model", "datamodule", "ckpt_path", "weights_only"}
        return {
            "fit": ours | {"train_dataloaders", "val_dataloaders"},
            "validate": ours | {"dataloaders", "verbose"},
            "predict": ours | {"dataloaders", "return_predictions"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Lightning does not know of."""
        one_stage = [Namespace(dataclasses.asdict(Stage(epochs=30)))]  # type: ignore[no-untyped-call]
        parser.add_argument("--stages", type=list[Stage], default=one_stage, help="The stages, in order.")
        parser.add_argument(
            "--rebuild",
            type=bool,
            default=False,
            help="Whether each stage makes model and tokenizer anew from the run's files, as the original does.",
        )
        parser.add_argument(
            "--save_every_n_epochs",
            type=PositiveInt,
            default=10,
            help="How often last.ckpt is written, in epochs; also at the end.",
        )
        parser.add_class_arguments(GenerationConfig, "generation", help="How predict continues a prompt.")
        pair = ("data.question", "data.answer")
        parser.link_arguments(pair, "model.vocab", compute_fn=_vocab)
        parser.link_arguments(pair, "model.config.vocab_size", compute_fn=lambda *pair: len(_vocab(*pair)))

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            text = "'last' goes on with the newest unfinished run in place; a file is gone on from in a new run."
        else:
            text = "Checkpoint to use; null means that of the newest finished run of the same --config."
        parser.add_argument("--ckpt_path", type=str | None, help=text)
        if subcommand == "predict":
            parser.add_argument("--output", type=str | None, help="File for the texts, one JSON object a line.")
        # For --help: not all options twice, and the Trainer's many ones after those of this project.
        parser.usage = f"{PROGRAM} {subcommand} [options]"
        parser._action_groups.sort(key=lambda group: "aspect of training" in str(group.title))  # type: ignore[attr-defined]
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what was typed."""
        # Lightning's own method warns of arguments that are handed over, as `main` does.
        try:
            self.config = parser.parse_args(args)
        except ValueError as error:  # from making the vocabulary, which the parser does not expect to fail
            raise UsageError(str(error)) from error

    def _parse_ckpt_path(self) -> None:
        # Lightning would read the file by rules of its own, and let its hyper-parameters beat the command line.
        pass

    @property
    def folder(self) -> Path:
        """Where the runs of this configuration lie: named after the configuration files."""
        files = [Path(str(file)).stem for file in self._setting("config") or []]
        return Path(self._setting("trainer").default_root_dir) / ("-".join(files) or "default")

    def instantiate_classes(self) -> None:
        """Take model, size and vocabulary from the checkpoint, except where they are to be trained."""
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            raise UsageError(str(error)) from error
        if self.subcommand != "fit":
            self.model = TinyGPTModule.load_from_checkpoint(self._checkpoint())
        self.model.generation = self.config_init[self.subcommand].generation

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, and for ``fit`` the run's folder."""
        if self.subcommand != "fit":
            return super().instantiate_trainer(devices=1, num_nodes=1, strategy="auto", logger=False)
        check_stages(self.config_init.fit.stages)  # what is finished is told by them
        self._open_run()
        with self._discarding_what_never_began():
            path, pair = self.run.path, self.datamodule.pair
            make = RebuiltStages if self._setting("rebuild") else StagedTraining
            staged = make(self.config_init.fit.stages, path)
            self.stop = StopOnSignal()
            self.trainer_defaults["callbacks"] = [
                self.stop,
                TensorBoardReport(pair, staged, self._hyper_parameters()),
                staged,
                RunFiles(self.run, self._settings(), self.model.tokenizer, self._setting("save_every_n_epochs")),
                StageProgress(staged),
                ExactResume(),
            ]
            logger = self.config_init.fit.trainer.logger
            if logger is None:
                name, version = path.parts[-2:]
                logger = RunLogger(path.parent.parent, name=name, version=version, default_hp_metric=False)
            plugins = self.config_init.fit.trainer.plugins or []
            plugins = [*(plugins if isinstance(plugins, list) else [plugins]), SafeCheckpointIO()]
            return super().instantiate_trainer(logger=logger, plugins=plugins)

    def fit(self, model: TinyGPTModule, datamodule: QADataModule) -> None:
        """Train, and show what was learnt."""
        with self._discarding_what_never_began():
            try:
                model.configure_optimizers()
            except ValueError as error:
                raise UsageError(f"model.optimizer: {error}") from error
            with suppress(SIGTERMException):  # Lightning's, where the signal comes before it starts to train
                self.trainer.fit(model, datamodule, ckpt_path=self.resumed_from)
        if self.stop.received:
            say(f"stopped after epoch {self.trainer.current_epoch}; go on with: {self._command} --ckpt_path last")
            sys.exit(128 + self.stop.received)
        if self.trainer.is_global_zero:
            read_back = TinyGPTModule.load_from_checkpoint(self.run.final())  # as `predict` will
            print_result(datamodule.pair, read_back.recite(datamodule.pair), self.run)

    def validate(self, model: TinyGPTModule, datamodule: QADataModule) -> None:
        """Print the metrics."""
        for name, value in self.trainer.validate(model, datamodule, verbose=False)[0].items():
            print(f"{name:22} {value:.6g}")

    def predict(self, model: TinyGPTModule, datamodule: QADataModule) -> None:
        """Print the texts, and write them to ``--output``."""
        for prompt in datamodule.prompts:
            length = len(model.tokenizer.encode(prompt))
            try:
                check_lengths(length, model.generation.max_length, model.model.config.n_positions)
            except ValueError as error:
                raise UsageError(str(error)) from None
        texts = self.trainer.predict(model, datamodule) or []
        if output := self._setting("output"):
            rows = zip(datamodule.prompts, texts, strict=True)
            lines = [json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) + "\n" for prompt, text in rows]
            write_whole(Path(output), "".join(lines).encode())
        for text in texts:
            print(text)

    def _checkpoint(self) -> str | Path:
        """The checkpoint to read for ``predict`` and ``validate``."""
        path = self._setting("ckpt_path")
        if path not in (None, "last"):
            return str(path)
        if not self._setting("config"):
            raise UsageError("expected --ckpt_path FILE, or --config FILE to look for the newest run of, got neither")
        finished = [run for run in list_runs(self.folder) if run.is_finished()]
        if not finished:
            raise UsageError(f"no finished run in {self.folder}: train one with `{self._command}`")
        return finished[-1].final()

    def _open_run(self) -> None:
        """Choose the run to go on with, or make the folder of a new one."""
        self.resumed_from, self.is_new = self._setting("ckpt_path"), False
        resuming = self.resumed_from == "last"
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            self.run = Run(Path(os.environ[RUN_VARIABLE]))
            if resuming:
                self.resumed_from, _ = newest_whole(self.run.path)
            return
        if resuming:
            self.run = self._run_to_go_on_with()
            self._resources.enter_context(self.run.locked())
            remove_leftovers(self.run.path)
            self.resumed_from = self._newest_checkpoint()
        else:
            # A file that is refused should not cost a folder.
            if self.resumed_from is not None and self._is_at_the_end(read_checkpoint(self.resumed_from)):
                raise UsageError(f"{self.resumed_from}: all stages are done; append another one to go on")
            self.run, self.is_new = new_run(self.folder), True
            self._resources.enter_context(self.run.locked())
        os.environ[RUN_VARIABLE] = str(self.run.path)

    def _run_to_go_on_with(self) -> Run:
        runs = list_runs(self.folder)
        if not runs:
            raise UsageError(f"--ckpt_path last: expected a run in {self.folder} to go on with, found none")
        unfinished = [run for run in runs if not run.is_finished(len(self._setting("stages")))]
        return (unfinished or runs)[-1]

    def _newest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint of the run to go on with; none if it was stopped before its first one."""
        newest, damaged = newest_whole(self.run.path)
        if newest is None:
            if damaged:
                raise damaged[0]
            return None
        for error in damaged:
            say(f"{error}; going on from {newest}")
        self._check_settings()
        checkpoint = read_checkpoint(newest)
        if self._is_at_the_end(checkpoint):
            # One of the two may be damaged, or older: the run was killed between them.
            for path in (self.run.final(len(self._setting("stages"))), self.run.last):
                if not _is_at_step(path, checkpoint["global_step"]):
                    write_whole(path, newest.read_bytes())
            say(f"{self.run.path} is finished: there is nothing to go on with")
            sys.exit(0)
        return newest

    def _is_at_the_end(self, checkpoint: dict[str, Any]) -> bool:
        return bool(checkpoint.get("epoch", -1) + 1 >= stage_ends(self.config_init.fit.stages)[-1])

    def _check_settings(self) -> None:
        """Refuse settings that a run cannot change on its way; the rest is for those who know the checkpoint."""
        begun = yaml.safe_load(self.run.config.read_text(encoding="utf-8"))
        now = yaml.safe_load(self._settings())
        for name in ("seed_everything", "rebuild", "model.vocab_on_reload", "data.question", "data.answer"):
            before, after = (reduce(dict.__getitem__, name.split("."), config) for config in (begun, now))
            if before != after:
                raise UsageError(f"{name}: expected {before!r}, with which {self.run.path} was begun, got {after!r}")

    def _settings(self) -> str:
        """Every setting of a fit, as YAML; but not where this process went on from."""
        config = self.config.fit.clone()
        config.ckpt_path = None
        return str(self._parser("fit").dump(config, skip_none=False))

    @property
    def _command(self) -> str:
        return " ".join([PROGRAM, "fit", *(f"--config {file}" for file in self._setting("config") or [])])

    @contextmanager
    def _discarding_what_never_began(self) -> Iterator[None]:
        """Remove the folder of a new run that ends with an error before its first step."""
        try:
            yield
        except Exception:
            if self.is_new and not (hasattr(self, "trainer") and self.trainer.global_step):
                shutil.rmtree(self.run.path, ignore_errors=True)
            raise

    def _hyper_parameters(self) -> dict[str, Any]:
        """What TensorBoard compares between runs."""
        config = self.config.fit
        return {
            "seed": config.seed_everything,
            "stages": " + ".join(str(stage.epochs) for stage in config.stages),
            "rebuild": config.rebuild,
            "optimizer": config.model.optimizer.class_path,
            "learning_rate": config.model.optimizer.init_args.get("lr"),
            **dataclasses.asdict(self.model.model.config),
        }

    def _setting(self, name: str) -> Any:
        return self.config[self.subcommand].get(name)


def _is_at_step(path: Path, global_step: int) -> bool:
    try:
        return bool(read_checkpoint(path)["global_step"] == global_step)
    except CheckpointError:
        return False


def _vocab(question: str, answer: str) -> dict[str, int]:
    return CharTokenizer.from_text(QAPair(question, answer).text).vocab


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake ends with exit code 2 and a message, another failure with 1."""
    args = sys.argv[1:] if args is None else args
    for stream in (sys.stdout, sys.stderr):
        # Vietnamese, wherever it is piped to.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's own call
    if args[:1] == ["study"]:
        # Only now: an experiment is nothing that `fit` and `predict` should load.
        from tinygpt_lightning.study.command import main as study

        sys.exit(study(args[1:]))
    try:
        TinyGPTCLI(args)
    except (
        UsageError, StageError, CheckpointError, RunLockedError, UnknownCharacterError, VocabularyError,
        MisconfigurationException,
    ) as error:  # fmt: skip
        fail(str(error), 2)
    except KeyboardInterrupt:
        fail("interrupted before training began", 130)
    except OSError as error:
        # A path that cannot be used is the user's to mend; a disk that fails or fills up is not.
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        fail(reason, 1 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) else 2)
