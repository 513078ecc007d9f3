"""Processes that torchrun, SLURM or another launcher starts together: their ranks, and what they agree on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

RUN_VARIABLE = "TINYGPT_RUN"  # the run's folder, for the processes that Lightning starts
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # variables in which Lightning looks for a rank


def is_torchrun(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in environ


def is_slurm(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether ``srun`` started this process as one of several tasks; not in a shell within a job."""
    interactive = environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return int(environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environ and not interactive


def launched_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """The rank of this process among those that a launcher started; None if no launcher did.

    >>> launched_rank({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1"})
    1
    >>> launched_rank({"RANK": "1", "LOCAL_RANK": "1"}) is None  # left over from another program
    True
    """
    if is_torchrun(environ):
        return int(environ["RANK"])
    if is_slurm(environ):
        return int(environ["SLURM_PROCID"])
    if "MASTER_ADDR" in environ and "LOCAL_RANK" in environ and int(environ.get("WORLD_SIZE", "1")) > 1:
        return int(environ.get("RANK", environ["LOCAL_RANK"]))
    return None


def forget_foreign_ranks() -> None:
    """Remove ranks that another program left in the environment, which Lightning would believe."""
    if launched_rank() is None:
        for name in RANKS:
            if os.environ.get(name, "0") != "0":
                del os.environ[name]


def trainer_defaults() -> dict[str, Any]:
    """The Trainer's ``devices`` and ``num_nodes``: as many as torchrun started processes, else one."""
    if not is_torchrun():
        return {"devices": 1}  # one sentence keeps one device busy
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    return {"devices": devices, "num_nodes": int(os.environ["WORLD_SIZE"]) // devices}


def share_folder(path: str | None) -> tuple[str, TCPStore | None]:
    """Tell the run's folder to the other processes, or learn it from the first one.

    Args:
        path: The folder in the first process, None in the others.

    Returns:
        The folder, and a store that the first process must keep until the others have asked.
    """
    if path is not None:
        os.environ[RUN_VARIABLE] = path  # for processes that Lightning will start
    elif RUN_VARIABLE in os.environ:
        return os.environ[RUN_VARIABLE], None
    if launched_rank() is None:
        return str(path), None
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    kind = TorchElasticEnvironment if is_torchrun() else SLURMEnvironment if is_slurm() else LightningEnvironment
    environment = kind()
    # torchrun's agent keeps a store open; other launchers leave the port beside that of the later process group.
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    port = environment.main_port + (not has_store)
    is_master = path is not None and not has_store
    store = TCPStore(environment.main_address, port, is_master=is_master, wait_for_workers=False)
    key = f"{RUN_VARIABLE}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if path is not None:
        store.set(key, path)
    return store.get(key).decode(), store
