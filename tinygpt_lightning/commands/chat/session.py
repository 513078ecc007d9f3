"""A conversation: questions and commands, a line each."""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import Any, get_args, get_type_hints

from tinygpt_lightning.commands.chat.display import Display
from tinygpt_lightning.commands.chat.reply import Reply
from tinygpt_lightning.commands.errors import say
from tinygpt_lightning.gpt.generation import GenerationConfig
from tinygpt_lightning.gpt.tokenizer import normalize
from tinygpt_lightning.trained import TrainedGPT

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
