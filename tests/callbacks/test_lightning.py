"""A canary for upgrades: every private name of Lightning's that this project uses exists, in one file only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from anyones import Anyones, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torchmetrics import MeanMetric

import tinygpt_lightning
from tinygpt_lightning.callbacks import _lightning
from tinygpt_lightning.callbacks.trainers import then

# Private names of the standard library (named tuples, argparse), which are documented or of long standing.
ALLOWED = {"_asdict", "_replace", "_fields", "_action_groups"}


class UsesEachName(Callback):
    """Calls the functions that need a trainer in a fit, in its second batch."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step != 2:
            return
        _lightning.restart_persistent_workers(_lightning.train_loaders(trainer))
        _lightning.restart_persistent_workers(_lightning.validation_loaders(trainer))
        for loader in _lightning.train_loaders(trainer):
            assert not _lightning.is_stateful(loader)
            _lightning.set_sampler_epoch(loader, 0)
        fetcher = _lightning.train_fetcher(trainer)
        assert (fetcher.done, fetcher.fetched > 0, iter(fetcher.iterator) is not None) == (False, True, True)
        assert not _lightning.is_validated_next(trainer)
        assert _lightning.is_step(trainer)
        averages, logged = _lightning.running_averages(trainer), _lightning.logged_values(trainer)
        assert "training_step.train/loss" in averages
        _lightning.restore_running_averages(trainer, pl_module, averages)
        assert _lightning.is_logged(trainer)
        _lightning.log_step(trainer)
        _lightning.update_plateau_schedulers(trainer, "step")
        _lightning.finish_epoch(trainer)
        _lightning.count_logged_steps(trainer, 0)
        _lightning.start_next_epoch(trainer)
        _lightning.count_as_started(trainer)
        assert not _lightning.is_last_batch(trainer)
        assert not _lightning.finishes_batch_or_epoch_first(trainer)
        _lightning.start_next_batch(trainer)
        _lightning.validate_again(trainer)
        _lightning.restore_logged_values(trainer, logged)
        trainer._logger_connector._first_loop_iter = False  # as before
        assert "state_dict" in _lightning.dump_checkpoint(trainer)


def test_each_private_name_exists(tmp_path: Path) -> None:
    uses, module, events = UsesEachName(), Anyones(), []
    trainer = quiet_trainer(tmp_path, uses, max_epochs=1)
    with (
        then(
            trainer, uses, trainer.strategy, "load_checkpoint", lambda checkpoint: events.append(sorted(checkpoint)[0])
        ),
        then(trainer, uses, module, "on_train_epoch_end", lambda _: events.append("module")),
        then(trainer, uses, trainer.fit_loop, "on_advance_end", lambda _: events.append("epoch")),
    ):
        trainer.fit(module)
        assert events == ["module", "epoch"]
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        trainer.fit(module, ckpt_path=tmp_path / "end.ckpt")
        assert events == ["module", "epoch", "callbacks"]
    assert "on_train_epoch_end" not in vars(module)

    states = _lightning.generator_states()
    drawn = torch.rand(2)
    _lightning.set_generator_states(states)
    assert torch.equal(torch.rand(2), drawn)

    metric, other = MeanMetric(), MeanMetric()
    metric.update(3.0)
    _lightning.restore_metric(other, _lightning.metric_state(metric))
    assert (other.compute(), other.update_count) == (3.0, 1)

    assert _lightning.averaging_start(StochasticWeightAveraging(0.1, 5)) == 5
    assert not _lightning.unscales_by_itself(torch.optim.SGD(module.parameters(), lr=0.1))


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.")
def test_a_missing_optimizer_is_recognised(tmp_path: Path) -> None:
    class Without(Anyones):
        def configure_optimizers(self) -> Any:
            return None

        def on_train_start(self) -> None:
            assert _lightning.is_missing(self.trainer.optimizers[0])
            raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        quiet_trainer(tmp_path, max_epochs=1).fit(Without())


def private_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Private names that a module uses and does not define itself, with their lines."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in ("lightning", "torchmetrics"):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names = [node.attr]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        else:
            continue
        for name in names:
            if name.startswith("_") and not name.startswith("__") and name not in ALLOWED | own:
                yield node.lineno, name


def test_no_other_file_uses_a_private_name() -> None:
    package = Path(tinygpt_lightning.__file__).parent
    used = {
        f"{file.relative_to(package)}:{line}: {name}"
        for file in package.rglob("*.py")
        if file.name != "_lightning.py"
        for line, name in private_names(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert not used
