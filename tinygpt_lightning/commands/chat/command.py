"""The command ``chat``: which network, and where the lines come from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tinygpt_lightning.commands.arguments import Arguments
from tinygpt_lightning.commands.chat.display import Display, legend
from tinygpt_lightning.commands.chat.session import Session
from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.commands.run import configured_root, newest_checkpoint, newest_of_all, runs_folder
from tinygpt_lightning.trained import TrainedGPT, load


def parser() -> Arguments:
    """The options of ``chat``."""
    options = Arguments("chat")
    options.add_argument("--ckpt_path", metavar="FILE", help="Checkpoint to read, or a run's folder.")
    options.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="Take the newest finished run of this configuration. Without either, the newest of all.",
    )
    return options


def chat(args: Sequence[str]) -> None:
    """Answer questions until there are no more.

    Args:
        args: What was typed behind ``chat``.

    Raises:
        UsageError: If there is no network to talk to, or nobody to talk.
    """
    options = parser().parse_args(args)
    if sys.stdin is None:
        raise UsageError("stdin: expected questions, got a closed one")
    path = options.ckpt_path or _newest(options.config)
    network = load(path)
    if sys.stdin.isatty() and sys.stdout.isatty():
        session = Session(network, Display(is_terminal=True))
        session.display.lines(*_greeting(network, path), legend(), "")
        _converse(session)
    else:
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
        session = Session(network, Display(is_terminal=False))
        for line in sys.stdin:
            if not session.take(line):
                break


def _newest(configs: Sequence[Path]) -> Path:
    if not configs:
        return newest_of_all()
    return newest_checkpoint(configs, runs_folder(configs, configured_root(configs)))


def _greeting(network: TrainedGPT, path: str | Path) -> list[str]:
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    pairs = network.taught.pairs
    taught = f"It was taught {len(pairs):,} answers" if len(pairs) > 1 else "It was taught one answer"
    return [
        f"A network of {parameters:,} parameters, from {path}.",
        f"{taught}; ask: {pairs[0].question}" if pairs else "Nobody knows what it was taught.",
        "/help lists what else can be typed; /quit ends the chat.",
    ]


def _converse(session: Session) -> None:
    import readline  # noqa: F401  # it gives `input` a line that can be edited, and a history

    try:
        while session.take(input("> ")):
            pass
    except (EOFError, KeyboardInterrupt):
        session.display.end()
