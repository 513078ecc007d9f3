"""Lightning's FSDP2 with the order of resuming that other strategies have, and with whole and harmless checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from typing_extensions import override

from tinygpt_lightning.callbacks.safe_checkpoint_io import SafeCheckpointIO, plain
from tinygpt_lightning.callbacks.sharded_folder import DIGESTS, META, digests, read_meta, read_optimizer, read_tensors
from tinygpt_lightning.gpt.checkpoint import local_path, write_checkpoint
from tinygpt_lightning.gpt.files import remove_leftovers, remove_whole, whole_folder


class SafeModelParallelStrategy(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` for training in stages, exact resume, and whole and harmless checkpoints.

    `StagedTraining` and `ExactResume` put it in the place of Lightning's own, so ``strategy=ModelParallelStrategy(…)``
    is enough; name this one for its checkpoints alone. It takes the same arguments, and writes and reads the same
    checkpoints: a folder, or with ``save_distributed_checkpoint=False`` one file, through `SafeCheckpointIO` unless
    another plugin is given. What differs:

    - Weights and optimizers are loaded when callbacks know their stage, as in other strategies; Lightning's own loads
      them before.
    - A new optimizer is saved as it is; PyTorch's function first takes a step with gradients of 0, which Adam counts.
    - A folder appears whole or not at all: a save that is killed leaves the former one. It carries digests, so what is
      damaged is refused by name (a folder that Lightning's own strategy wrote has none).
    - Nothing in a folder is ever executed; Lightning and PyTorch unpickle three parts of it.

    **Refused**: a parameter that is trained and not sharded, whose gradients the processes would not share.

    Raises:
        CheckpointError: If a checkpoint is damaged, or holds more than tensors and plain values.
        MisconfigurationException: If a parameter that is trained is not sharded.
    """

    _late: tuple[Mapping[str, Any], bool] | None = None  # weights for a model that has no memory yet
    _folder: Path  # of the checkpoint that was read, for what is not in it: weights and optimizers

    @override
    def setup_environment(self) -> None:
        super().setup_environment()
        self.write_safely()

    @property
    @override
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        late, self._late = self._late, None
        if late:
            self.load_model_state_dict(*late)

    @override
    def setup_optimizers(self, trainer: Trainer) -> None:
        module = trainer.lightning_module
        reshard(module)
        if self.device_mesh["data_parallel"].size() > 1:
            for name, parameter in module.named_parameters():
                if parameter.requires_grad and not isinstance(parameter, DTensor):
                    raise MisconfigurationException(
                        f"{name}: expected a sharded parameter, since the processes would train it each by itself, got "
                        "one that is not; call fully_shard for its module in configure_model, or in on_stage_start if "
                        "a stage adds it"
                    )
        super().setup_optimizers(trainer)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        if not self._save_distributed_checkpoint:
            return apply_to_collection(state, Tensor, whole)  # type: ignore[no-any-return]
        return _renamed(state, dict(enumerate(self._names(optimizer))))

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        if not self._save_distributed_checkpoint or storage_options is not None:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = local_path(self.broadcast(filepath))
        states = {"state_dict": checkpoint.pop("state_dict")}
        states |= {f"optimizer_{i}": state for i, state in enumerate(checkpoint.pop("optimizer_states", []))}
        if self.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent, path.name)
        with whole_folder(path) if self.is_global_zero else nullcontext(path) as folder:
            folder = self.broadcast(folder)
            save(states, checkpoint_id=folder)
            if self.is_global_zero:
                write_checkpoint(plain({**checkpoint, DIGESTS: digests(folder)}), folder / META)

    @override
    def remove_checkpoint(self, filepath: str | os.PathLike[str]) -> None:
        if self.is_global_zero:
            remove_whole(local_path(filepath))

    @override
    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = local_path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return self.checkpoint_io.load_checkpoint(path, map_location="cpu", weights_only=weights_only)
        self._folder = path
        return read_meta(path)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.model is not None  # noqa: S101
        reshard(self.model)
        if any(parameter.is_meta for parameter in self.model.parameters()):
            self._late = checkpoint, strict
        elif "state_dict" in checkpoint:
            options = StateDictOptions(full_state_dict=True, strict=strict)
            set_model_state_dict(self.model, dict(checkpoint["state_dict"]), options=options)
        else:
            weights = get_model_state_dict(self.model)
            read_tensors(self._folder, {f"state_dict.{name}": weight for name, weight in weights.items()})
            self.model.load_state_dict(weights, strict=strict)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        assert self.model is not None  # noqa: S101
        for i, optimizer in enumerate(self.optimizers):
            names = self._names(optimizer)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if "state_dict" in checkpoint:
                state = checkpoint["optimizer_states"][i]
                values = {
                    number: {option: _sharded_like(parameters[number], value) for option, value in options.items()}
                    for number, options in state["state"].items()
                }
                state = {**state, "state": values}
            else:
                state = read_optimizer(self._folder, f"optimizer_{i}", dict(zip(names, parameters, strict=True)))
                state = _renamed(state, {name: number for number, name in enumerate(names)})
            optimizer.load_state_dict(state)

    def write_safely(self) -> None:
        """Take `SafeCheckpointIO` for checkpoints that are files, unless another plugin was given."""
        if type(self.checkpoint_io) is TorchCheckpointIO:
            self.checkpoint_io = SafeCheckpointIO()

    def _names(self, optimizer: Optimizer) -> list[str]:
        assert self.model is not None  # noqa: S101
        reshard(self.model)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def adopt(trainer: Trainer) -> None:
    """Put `SafeModelParallelStrategy` in the place of Lightning's ``ModelParallelStrategy``, while a fit is set up.

    Raises:
        MisconfigurationException: With tensor parallelism, whose processes must draw the same random numbers.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return
    if (size := strategy.device_mesh["tensor_parallel"].size()) > 1:
        raise MisconfigurationException(
            f"ModelParallelStrategy: expected tensor_parallel_size 1, beside which each process has random numbers of "
            f"its own, got {size}; set data_parallel_size to the number of processes"
        )
    if type(strategy) is ModelParallelStrategy:
        strategy.__class__ = SafeModelParallelStrategy
        cast(SafeModelParallelStrategy, strategy).write_safely()


def reshard(module: nn.Module) -> None:
    """Give a sharded module its shards as parameters; after a forward pass without a backward pass, they are whole."""
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    for submodule in module.modules():
        if isinstance(submodule, FSDPModule):
            submodule.reshard()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(trained[name])  # who froze it meanwhile froze the whole one


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Give each process the whole parameters, to use the module by itself; all processes enter and leave."""
    for submodule in module.modules():
        if isinstance(submodule, FSDPModule):
            submodule.unshard()
    yield
    reshard(module)


def whole(tensor: Tensor) -> Tensor:
    """Return the tensor that all processes hold shards of, on the CPU; all of them must ask for it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def shard_of(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, on the CPU."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def from_shard(shard: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor that is sharded like ``parameter``, from the :func:`shard_of` it in each process."""
    if not isinstance(parameter, DTensor):
        return shard
    like = parameter.device_mesh, parameter.placements
    return DTensor.from_local(shard, *like, shape=parameter.shape, stride=parameter.stride())


def _sharded_like(parameter: Tensor, tensor: Any) -> Any:
    """Return a whole tensor, which each process has, sharded like the parameter that it belongs to."""
    if isinstance(parameter, DTensor) and isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
        # No process sends its part to another.
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return tensor


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """Return an optimizer's state with other names (or numbers) of its parameters."""
    groups = [{**group, "params": [names[old] for old in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[old]: values for old, values in state["state"].items()}, "param_groups": groups}
