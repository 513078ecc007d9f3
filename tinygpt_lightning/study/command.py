"""`python -m tinygpt_lightning study`: settings in, rows and report out."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from tinygpt_lightning.study.design import Cell, Study

MESSAGE_LINES = 5


class SettingsError(ValueError):
    """A setting is wrong, and the message says which."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Args:
        study: The settings.
        folder: Where the results go.
        command: What makes them again.
    """

    study: Study
    folder: Path
    command: str


def parse(argv: Sequence[str]) -> Request:
    """Read the command line and the config files it names.

    Raises:
        SettingsError: If a setting is wrong.
    """
    parser = ArgumentParser(prog="python -m tinygpt_lightning study", exit_on_error=False, description=__doc__)
    parser.add_argument("--config", action="config", help="A YAML file of these settings.")
    parser.add_class_arguments(Study, None)
    try:
        settings = parser.parse_args(list(argv))
        configs = [Path(str(path)) for path in settings.pop("config", None) or []]
        study = Study(**vars(parser.instantiate(settings)))
    except (ArgumentError, ValueError, TypeError) as error:
        raise SettingsError(_short(error)) from None
    name = configs[-1].stem if configs else "study"
    folder = Path(study.output) if study.output else Path("checkpoints") / name
    return Request(study, folder, f"python -m tinygpt_lightning study {shlex.join(argv)}")


def _short(error: Exception) -> str:
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    # Of a long message the first lines say where, the last ones what.
    if len(lines) > MESSAGE_LINES:
        lines = [*lines[:2], *lines[2 - MESSAGE_LINES :]]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; what is there already is kept.

    Args:
        argv: The command line after ``study``.

    Returns:
        0 if every run of the design has its row, 1 if a cell failed, 2 if a setting is wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    missing = [name for name in ("scipy", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: study needs {' and '.join(missing)}: pip install -e '.[study]'", file=sys.stderr)
        return 2
    # Imported late: help and wrong settings need none of it.
    from tinygpt_lightning.study import rows as store

    try:
        request = parse(argv)
        done, messages = store.load(request.folder)
        store.check_same_study(done, request.study.common, request.folder)
        request.folder.mkdir(parents=True, exist_ok=True)
    except (SettingsError, store.RowsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run(request, done, messages)


def run(request: Request, done: list[dict[str, object]], messages: list[str]) -> int:
    """Make the rows that are missing and write the report.

    Args:
        request: What is asked for.
        done: Rows that are there already.
        messages: What there is to say about them.

    Returns:
        0, or 1 if a cell failed.
    """
    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    from tinygpt_lightning.study import report
    from tinygpt_lightning.study import rows as store
    from tinygpt_lightning.study.ensemble import keep_freed_memory
    from tinygpt_lightning.study.progress import Progress
    from tinygpt_lightning.study.sharing import ChunkRunner, Outcome, epochs_needed

    study, folder = request.study, request.folder
    processes = study.fabric.devices * study.fabric.num_nodes
    fabric = Fabric(
        accelerator=study.fabric.accelerator,
        devices=study.fabric.devices,
        num_nodes=study.fabric.num_nodes,
        # One process may finish long before the last one does.
        strategy=DDPStrategy(timeout=timedelta(days=30)) if processes > 1 else "auto",
    )
    fabric.launch()
    torch.set_num_threads(study.threads)
    keep_freed_memory()
    if fabric.is_global_zero:
        for message in messages:
            print(message, file=sys.stderr)
        store.save(folder, done)
    fabric.barrier()

    finished = {store.key(row["config"]) for row in done}  # type: ignore[call-overload]
    work = []
    for seeds in study.chunks[fabric.global_rank :: fabric.world_size]:
        cells = [c for c in study.cells if any(store.key(study.config(c, seed)) not in finished for seed in seeds)]
        work.append((seeds, cells))
    progress = Progress(sum(len(seeds) * epochs_needed(cells, study.share) for seeds, cells in work), sys.stderr)
    parent = os.getppid()
    failures = 0
    engine = {"chunk": study.chunk, "threads": study.threads, "share": study.share, "device": fabric.device.type}
    versions = {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("tinygpt-lightning", "torch", "lightning")},
    }

    def tick(units: int) -> None:
        if fabric.is_global_zero:
            progress.advance(units)
        elif os.getppid() != parent:
            # Whoever started this process was killed: nobody is left to gather its rows.
            raise SystemExit(1)

    for seeds, cells in work:

        def on_finished(cell: Cell, outcomes: list[Outcome], seeds: list[int] = seeds) -> None:
            for seed, outcome in zip(seeds, outcomes, strict=True):
                config = study.config(cell, seed)
                if store.key(config) not in finished:
                    row = {"config": config, "engine": engine, "versions": versions,
                           "seconds": outcome.pop("seconds"), "outcome": outcome}  # fmt: skip
                    store.append(folder / f"rows-{fabric.global_rank}.jsonl", row)

        def on_failed(cell: Cell, error: Exception, seeds: list[int] = seeds) -> None:
            nonlocal failures
            failures += 1
            reason = (str(error).splitlines() or [""])[0]
            print(f"failed: {cell.name}, seeds {seeds}: {type(error).__name__}: {reason}", file=sys.stderr)

        if cells:
            ChunkRunner(study, fabric.device, on_finished, on_failed, tick).run(cells, seeds)

    total = int(fabric.all_reduce(torch.tensor(failures), reduce_op="sum"))  # type: ignore[arg-type]
    if not fabric.is_global_zero:
        return 0
    made, _ = store.load(folder)
    order = {
        store.key(study.config(cell, seed)): place
        for place, (cell, seed) in enumerate((cell, seed) for cell in study.cells for seed in study.seed_list)
    }
    # Rows of an earlier, larger design are kept, after those of this one.
    made.sort(key=lambda row: (order.get(store.key(row["config"]), len(order)), store.key(row["config"])))
    store.save(folder, made)
    print(report.write(study, made, folder, request.command))
    print(f"report: {folder / 'report.md'}", file=sys.stderr)
    if total:
        print(f"{total} cells of a chunk failed, and their rows are missing; run it again", file=sys.stderr)
    return 1 if total else 0


if __name__ == "__main__":
    raise SystemExit(main())
