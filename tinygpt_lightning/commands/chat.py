"""``chat``: ask a trained model in a terminal or through a pipe."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor

from tinygpt_lightning.commands.errors import UsageError, fail, say
from tinygpt_lightning.commands.runs import chosen_checkpoint
from tinygpt_lightning.commands.table import Arguments
from tinygpt_lightning.commands.terminal import harmless, legend, look_rows, percent, refusal, shaded, visible
from tinygpt_lightning.data.noise import fold
from tinygpt_lightning.description import n_parameters
from tinygpt_lightning.gpt.generation import GenerationConfig, stream
from tinygpt_lightning.gpt.tokenizer import EOS, normalize
from tinygpt_lightning.trained import TrainedGPT, load

RUNNERS_UP = 3
MAX_LISTED = 40  # questions
GENERATION_TYPES = get_type_hints(GenerationConfig)
HELP = {
    "/top": "what else each character might have been",
    "/look N": "where each head looked when character N was written",
    "/questions WORDS": "the taught questions with these words, or all of them",
    "/help": "this list",
    "/quit": "the end; so are Ctrl-D and Ctrl-C",
}


def parser() -> Arguments:
    """The options of ``chat``."""
    options = Arguments("chat")
    options.add_checkpoint()
    return options


def chat(args: Sequence[str]) -> None:
    """Answer questions until there are no more.

    Args:
        args: The arguments after ``chat``.

    Raises:
        UsageError: If there is no trained model, or stdin is closed.
    """
    options = parser().parse_args(args)
    if sys.stdin is None:
        raise UsageError("stdin is closed; expected questions")
    path = chosen_checkpoint(options.ckpt_path, options.config)
    trained = load(path)
    if sys.stdin.isatty() and sys.stdout.isatty():
        session = Session(trained, is_terminal=True)
        session.print(*_greeting(trained, path), legend(), "")
        _converse(session)
    else:
        if hasattr(sys.stdin, "reconfigure"):  # with the byte order mark that Windows writes
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
        session = Session(trained, is_terminal=False)
        for line in sys.stdin:
            if not session.take(line):
                break
        if session.refused:
            sys.stdout.flush()
            fail(f"{session.refused} lines were refused; their answers are empty lines", 1)


def _greeting(trained: TrainedGPT, path: str | Path) -> list[str]:
    pairs = trained.taught.pairs
    taught = f"It was taught {len(pairs):,} answers" if len(pairs) > 1 else "It was taught one answer"
    return [
        f"A model of {n_parameters(trained.model.config):,} parameters, from {path}.",
        f"{taught}; ask: {pairs[0].question}" if pairs else "The checkpoint does not say what it was taught.",
        "/help lists the commands; /quit ends the chat.",
    ]


def _converse(session: Session) -> None:
    import readline  # noqa: F401  # gives `input` line editing and a history

    try:
        while session.take(input("> ")):
            pass
    except (EOFError, KeyboardInterrupt):
        session.end_line()


class Session:
    """Takes lines, questions and commands, until one of them ends the session.

    Args:
        trained: The model that answers.
        is_terminal: Whether answers are coloured; a pipe gets the text alone, and an empty line for a refused question.

    Attributes:
        refused: How many lines were refused.
    """

    def __init__(self, trained: TrainedGPT, *, is_terminal: bool) -> None:
        self.trained = trained
        self.is_terminal = is_terminal
        self.console = Console(force_terminal=is_terminal, highlight=False, markup=False, emoji=False)
        self.generation = GenerationConfig()
        self.reply: Reply | None = None
        self.refused = 0
        self._questions = [pair.question for pair in trained.taught.pairs]
        self._commands = {"/top": self._top, "/look": self._look, "/questions": self._list, "/help": self._help}

    def take(self, line: str) -> bool:
        """Answer a question or run a command; a mistake is reported and changes nothing.

        Returns:
            Whether the session continues.
        """
        line = line.rstrip("\r\n")
        try:
            if line.startswith("/") and normalize(line) not in self._questions:
                return self._run(*line.split(maxsplit=1))
            if line.strip():
                self._answer(line)
            elif not self.is_terminal:
                self.end_line()
        except ValueError as error:
            say(str(error))
            self.refused += 1
            if not self.is_terminal and not line.startswith("/"):
                self.end_line()  # one answer a question, so that answers and questions keep in step
        return True

    def write(self, symbol: Symbol) -> None:
        """Print one more character of an answer."""
        if self.is_terminal:
            self.console.print(shaded(harmless(symbol.text), symbol.probability), end="", soft_wrap=True)
        else:
            self.console.file.write(symbol.text)

    def end_line(self) -> None:
        """Print the line break after an answer."""
        self.console.file.write("\n")
        self.console.file.flush()

    def print(self, *lines: object) -> None:
        """Print lines."""
        for line in lines:
            self.console.print(line)

    def _answer(self, question: str) -> None:
        if self.trained.taught.known_from is not None and not self.trained.ask(question).known:
            self._refuse(question)
            return
        self.reply = None
        self.reply = Reply(self.trained, question, self.generation)
        if fold(self.reply.question) != fold(question):
            say(f"read as: {self.reply.question}")
        for symbol in self.reply.shown():
            self.write(symbol)
        self.end_line()

    def _refuse(self, question: str) -> None:
        """Say that the model was not taught this, and what it was taught instead; a pipe gets an empty line."""
        nearest = self.trained.nearest(question)
        refused = refusal("\n".join([question, *nearest]))
        if self.is_terminal:
            self.print(refused, *(Padding.indent(near, 2) for near in nearest))
        else:
            self.end_line()
            say("\n  ".join([refused, *nearest]))

    def _list(self, words: str) -> None:
        folded = {question: " ".join(map(fold, question.split())) for question in self._questions}
        questions = [question for question, text in folded.items() if all(fold(w) in text for w in words.split())]
        self.print(*questions[:MAX_LISTED])
        if (hidden := len(questions) - MAX_LISTED) > 0:
            say(f"and {hidden} more")

    def _run(self, command: str, argument: str = "") -> bool:
        if command == "/quit":
            return False
        if (name := command.removeprefix("/")) in GENERATION_TYPES:
            self._set(name, argument)
        elif command in self._commands:
            self._commands[command](argument)
        else:
            raise ValueError(f"{command}: expected one of the commands that /help lists")
        return True

    def _last_reply(self) -> Reply:
        if self.reply is None:
            raise ValueError("there is no answer yet to look at: ask something first")
        return self.reply

    def _top(self, _: str) -> None:
        table = Table("", "written", "%", "instead, %", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in (0, 2):
            table.columns[column].justify = "right"
        for number, symbol in enumerate(self._last_reply().written, 1):
            table.add_row(
                str(number),
                Text.assemble(shaded(visible(symbol.text), symbol.probability)),  # the rest of the cell is not shaded
                percent(symbol.probability),
                "  ".join(f"{visible(text)} {percent(probability):5}" for text, probability in symbol.runners_up),
            )
        self.console.print(table)

    def _look(self, argument: str) -> None:
        reply = self._last_reply()
        count = len(reply.written)
        if argument and not (argument.isdecimal() and 1 <= int(argument) <= count):
            raise ValueError(f"/look: expected a number from 1 to {count}, as /top counts, got {argument!r}")
        number = int(argument or count)
        written = visible(reply.written[number - 1].text)
        self.console.print(f"When {written} was written (number {number} of {count}):")
        for row in look_rows(reply.context(number), reply.attention(number), self.console.width):
            self.console.print(row, no_wrap=True, overflow="crop")

    def _set(self, name: str, argument: str) -> None:
        if argument:
            changes: dict[str, Any] = {name: _number(name, argument)}
            self.generation = dataclasses.replace(self.generation, **changes)
        say(f"{name} is {json.dumps(getattr(self.generation, name))}")

    def _help(self, _: str) -> None:
        settings = {
            f"/{name} N": f"generation; now {json.dumps(value)}" for name, value in vars(self.generation).items()
        }
        rows = {**HELP, **settings}
        width = max(map(len, rows))
        self.print(*(f"{command:{width}}  {text}" for command, text in rows.items()))


class Symbol(NamedTuple):
    """A symbol that a model wrote.

    Args:
        text: The character, or the name of a special symbol.
        probability: Its probability before temperature, top-k and top-p.
        runners_up: The most probable other symbols and their probabilities, best first.
    """

    text: str
    probability: float
    runners_up: tuple[tuple[str, float], ...]


class Reply:
    """A model's answer to a question, generated symbol by symbol.

    Args:
        trained: The model.
        question: The question; the template is put around it.
        generation: How to generate.

    Attributes:
        question: The taught question that it is read as, or itself.
        written: All symbols so far, including the template's text after an answer, and the end symbol.

    Raises:
        UnknownCharacterError: If the vocabulary lacks a character of the question.
        ValueError: If the question is too long.
    """

    def __init__(self, trained: TrainedGPT, question: str, generation: GenerationConfig) -> None:
        self.trained = trained
        self.written: list[Symbol] = []
        self.question = trained.as_taught(question)
        trained.tokenizer.encode(self.question)  # on its own, so that an error gives a position in the question
        prompt = trained.taught.template.prompt(self.question)
        self._ids, self._generation = trained.encode_prompt(prompt, generation)
        self._prompt_length = len(self._ids)

    def shown(self) -> Iterator[Symbol]:
        """Generate the symbols of the answer, as `TrainedGPT.answer` returns it: without the template's text."""
        closing = self.trained.taught.template.closing
        held: list[Symbol] = []  # may turn out to be the closing text
        for symbol in self._write():
            held.append(symbol)
            if len(held) > len(closing):
                yield held.pop(0)
        if "".join(symbol.text for symbol in held) != closing:
            yield from held

    def context(self, number: int) -> list[str]:
        """The symbols before symbol ``number``, counted from 1."""
        return [self._name(i) for i in self._ids[: self._prompt_length + number - 1]]

    def attention(self, number: int) -> Tensor:
        """Each head's weight for each symbol of the `context`, ``(H, T)``."""
        ids = torch.tensor([self._ids[: self._prompt_length + number - 1]])
        return self.trained.model.attention_weights(ids)[0, :, -1]

    def _write(self) -> Iterator[Symbol]:
        """Generate every symbol; the end symbol is recorded and not yielded."""
        end = self.trained.tokenizer.end
        for step in stream(self.trained.model, torch.tensor([self._ids]), self._generation, end=end):
            symbol = self._symbol(int(step.ids[0]), step.logits[0])
            self._ids.append(int(step.ids[0]))
            self.written.append(symbol)
            if self._ids[-1] != end:
                yield symbol

    def _symbol(self, i: int, logits: Tensor) -> Symbol:
        probabilities = logits.double().softmax(dim=-1)  # (V,)
        best = probabilities.topk(min(RUNNERS_UP + 1, len(probabilities))).indices.tolist()
        others = tuple((self._name(j), probabilities[j].item()) for j in best if j != i)[:RUNNERS_UP]
        return Symbol(self._name(i), probabilities[i].item(), others)

    def _name(self, i: int) -> str:
        return EOS if i == self.trained.tokenizer.end else self.trained.tokenizer.decode([i])


def _number(name: str, text: str) -> float | None:
    kinds = get_args(GENERATION_TYPES[name]) or (GENERATION_TYPES[name],)
    if text == "null" and NoneType in kinds:
        return None
    kind, expected = (float, "a number") if float in kinds else (int, "a whole number")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name}: expected {expected}{', or null' * (NoneType in kinds)}, got {text!r}") from None
