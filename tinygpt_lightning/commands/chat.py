"""``chat``: a trained network, asked in a terminal or through a pipe."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from tinygpt_lightning.commands.errors import UsageError, say
from tinygpt_lightning.commands.runs import configured_root, newest_checkpoint, newest_of_all, runs_folder
from tinygpt_lightning.commands.table import Arguments
from tinygpt_lightning.commands.terminal import Display, legend
from tinygpt_lightning.gpt.generation import GenerationConfig, stream
from tinygpt_lightning.gpt.tokenizer import EOS, normalize
from tinygpt_lightning.trained import TrainedGPT, load

RUNNERS_UP = 3


class Symbol(NamedTuple):
    """A symbol that a network wrote.

    Args:
        text: The character, or the name of a special symbol.
        probability: What the network gave it, before temperature, top-k and top-p.
        runners_up: The likeliest others and their probabilities, best first.
    """

    text: str
    probability: float
    runners_up: tuple[tuple[str, float], ...]


class Reply:
    """What a network says to a question.

    Args:
        network: The network.
        question: The question; the template is put around it.
        generation: How to speak.

    Attributes:
        written: Everything written so far; also what the template puts behind an answer, and the end symbol.

    Raises:
        UnknownCharacterError: If the vocabulary lacks a character of the question.
        ValueError: If the question is too long.
    """

    def __init__(self, network: TrainedGPT, question: str, generation: GenerationConfig) -> None:
        self.network = network
        self.written: list[Symbol] = []
        network.tokenizer.encode(question)  # by itself, so that a complaint counts from its beginning
        prompt = network.taught.template.prompt(question)
        self._ids, self._generation = network.encode_prompt(prompt, generation)
        self._prompt_length = len(self._ids)

    def shown(self) -> Iterator[Symbol]:
        """Write the answer, as `TrainedGPT.answer` gives it: without what the template puts behind it."""
        closing = self.network.taught.template.closing
        held: list[Symbol] = []  # what may turn out to be that
        for symbol in self._write():
            held.append(symbol)
            if len(held) > len(closing):
                yield held.pop(0)
        if "".join(symbol.text for symbol in held) != closing:
            yield from held

    def context(self, number: int) -> list[str]:
        """The symbols that were there when the one with that number, from 1, was written."""
        return [self._name(i) for i in self._ids[: self._prompt_length + number - 1]]

    def attention(self, number: int) -> Tensor:
        """Where each head looked then: one weight for each symbol of the `context`, ``(H, T)``."""
        ids = torch.tensor([self._ids[: self._prompt_length + number - 1]])
        return self.network.model.attention_weights(ids)[0, :, -1]

    def _write(self) -> Iterator[Symbol]:
        """Every symbol of the answer; the end symbol is written, and not said."""
        end = self.network.tokenizer.end
        for step in stream(self.network.model, torch.tensor([self._ids]), self._generation, end=end):
            symbol = self._symbol(int(step.ids[0]), step.logits[0])
            self._ids.append(int(step.ids[0]))
            self.written.append(symbol)
            if self._ids[-1] != end:
                yield symbol

    def _symbol(self, i: int, logits: Tensor) -> Symbol:
        probabilities = logits.double().softmax(dim=-1)
        best = probabilities.topk(min(RUNNERS_UP + 1, len(probabilities))).indices.tolist()
        others = [other for other in best if other != i][:RUNNERS_UP]
        return Symbol(
            self._name(i),
            probabilities[i].item(),
            tuple((self._name(other), probabilities[other].item()) for other in others),
        )

    def _name(self, i: int) -> str:
        return EOS if i == self.network.tokenizer.end else self.network.tokenizer.decode([i])


SETTINGS = get_type_hints(GenerationConfig)
HELP = {
    "/top": "what else each character might have been",
    "/look N": "where each head looked when character N was written",
    "/help": "this list",
    "/quit": "the end; so are Ctrl-D and Ctrl-C",
}


class Session:
    """Takes lines until one of them ends it.

    Args:
        network: Who answers.
        display: Where the answers appear.
    """

    def __init__(self, network: TrainedGPT, display: Display) -> None:
        self.network = network
        self.display = display
        self.generation = GenerationConfig()
        self.reply: Reply | None = None
        self._taught = {pair.question for pair in network.taught.pairs}

    def take(self, line: str) -> bool:
        """Answer a question or obey a command; what cannot be done is said, and nothing is lost.

        Returns:
            Whether the conversation goes on.
        """
        line = line.rstrip("\r\n")
        try:
            if line.startswith("/") and normalize(line) not in self._taught:
                return self._obey(*line.split())
            if line.strip():
                self._answer(line)
        except ValueError as error:
            say(str(error))
        return True

    def _answer(self, question: str) -> None:
        self.reply = None
        self.reply = Reply(self.network, question, self.generation)
        for symbol in self.reply.shown():
            self.display.write(symbol)
        self.display.end()

    def _obey(self, command: str, *words: str) -> bool:
        name = command.removeprefix("/")
        if name == "quit":
            return False
        if name == "help":
            self._help()
        elif name == "top":
            self.display.runners_up(self._last())
        elif name == "look":
            self._look(self._last(), *words[:1])
        elif name in SETTINGS:
            self._set(name, *words[:1])
        else:
            raise ValueError(f"{command}: expected one of the commands that /help lists")
        return True

    def _last(self) -> Reply:
        if self.reply is None:
            raise ValueError("expected an answer to look at, and there is none yet: ask something first")
        return self.reply

    def _look(self, reply: Reply, word: str = "") -> None:
        count = len(reply.written)
        if word and not (word.isdecimal() and 1 <= int(word) <= count):
            raise ValueError(f"/look: expected a number from 1 to {count}, as /top counts, got {word!r}")
        self.display.looks(reply, int(word or count))

    def _set(self, name: str, word: str = "") -> None:
        if word:
            changes: dict[str, Any] = {name: _number(name, word)}
            self.generation = dataclasses.replace(self.generation, **changes)
        say(f"{name} is {_shown(getattr(self.generation, name))}")

    def _help(self) -> None:
        now = {f"/{name} N": f"how it speaks; now {_shown(value)}" for name, value in vars(self.generation).items()}
        rows = {**HELP, **now}
        width = max(map(len, rows))
        self.display.lines(*(f"{command:{width}}  {text}" for command, text in rows.items()))


def _number(name: str, word: str) -> float | None:
    kinds = get_args(SETTINGS[name]) or (SETTINGS[name],)
    if word == "null" and NoneType in kinds:
        return None
    kind, expected = (float, "a number") if float in kinds else (int, "a whole number")
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f"{name}: expected {expected}{', or null' * (NoneType in kinds)}, got {word!r}") from None


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


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
