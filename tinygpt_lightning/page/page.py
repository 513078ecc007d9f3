"""One HTML file with a model in it: the data, and the files that it is put together from."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from tinygpt_lightning.page.moments import NONE, Moments
from tinygpt_lightning.page.parts import parts, record, taken_out
from tinygpt_lightning.trained import TrainedGPT

LARGEST = 300_000  # parameters of a model that a browser computes while somebody waits; of a larger one it shows a pass
LONGEST = 192  # so many characters of such a pass are recorded, or fewer where they would take more than
MOST_NUMBERS = 10_000_000  # of 2 bytes each: as text they take 27 MB
MOST_PROMPTS = 200  # so many of the taught prompts can be chosen from
SCRIPTS = ("model.js", "words.js", "explain.js", "grids.js", "plane.js", "draw.js", "page.js")  # in this order, as one


def render(trained: TrainedGPT, name: str, moments: Moments = NONE) -> str:
    """The page of a model.

    Args:
        trained: The model, its vocabulary and what it was taught.
        name: Where it is from, as the page shows it.
        moments: Earlier weights of the model, where they were kept.

    Returns:
        HTML that loads nothing, and whose scripts are the only ones that its security policy lets run.
    """
    folder = files(__package__)
    style, script = folder.joinpath("style.css").read_text("utf-8"), _script()
    template = folder.joinpath("template.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # The data comes last: whatever it holds, nothing is put into it.
    for mark, text in {
        "@policy@": policy, "@style@": style, "@script@": script,
        "@data@": as_data(describe(trained, name, moments)),
    }.items():  # fmt: skip
        before, after = template.split(mark)
        template = before + text + after
    return template


def describe(trained: TrainedGPT, name: str, moments: Moments = NONE) -> dict[str, Any]:
    """What the scripts know of a model: see ``readModel`` in ``model.js``."""
    model, tokenizer, taught = trained.model, trained.tokenizer, trained.taught
    parameters = dict(model.named_parameters())
    size = sum(parameter.numel() for parameter in parameters.values())
    config = dataclasses.asdict(model.config)
    prompts = _prompts(trained)
    return {
        "name": name,
        "config": {**config, "n_inner": config["n_inner"] or 4 * config["n_embd"]},
        "symbols": sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__),
        "end": tokenizer.end,
        "length": trained.encode_prompt(prompts[0])[1].max_length or model.config.n_positions + 1,
        "prompts": prompts,
        "pairs": len(taught.pairs),
        "parameters": size,
        "parts": parts(model.config),
        "shapes": [[key, list(parameter.shape)] for key, parameter in parameters.items()],
        "weights": _packed(parameters.values()) if size <= LARGEST else None,
        "recorded": None if size <= LARGEST else _recorded(trained, prompts[0]),
        "moments": [
            {"step": moment.step, "loss": moment.loss, "weights": _packed(moment.weights[key] for key in parameters)}
            for moment in moments.moments
        ],
        "boundaries": list(moments.boundaries),
    }


def as_data(value: object) -> str:
    r"""JSON in ASCII that cannot end the block of data that it stands in.

    Raises:
        ValueError: If there is a number in it that JSON lacks, infinity or NaN.

    >>> as_data("</script>\u2028")
    '"\\u003c/script\\u003e\\u2028"'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _prompts(trained: TrainedGPT) -> list[str]:
    """The prompts of taught pairs; of a model without pairs any character, which begins a text."""
    prompts = []
    for pair in trained.taught.pairs[:MOST_PROMPTS]:
        prompt = trained.taught.prompt(pair.question)
        try:
            trained.encode_prompt(prompt)
        except ValueError:
            continue  # somebody's checkpoint may name pairs that its model cannot read
        prompts.append(prompt)
    return prompts or [next(symbol for symbol in trained.tokenizer.vocab if len(symbol) == 1)]


def _recorded(trained: TrainedGPT, prompt: str) -> dict[str, Any]:
    """The pass over the text that the model makes of ``prompt``, and the text without each of its parts."""
    text = trained.complete(prompt)
    ids = torch.tensor(trained.tokenizer.encode(text)[: trained.model.config.n_positions])
    rows = record(trained.model, ids[:LONGEST])
    fitting = MOST_NUMBERS // sum(row[0].numel() for row in rows.values())
    without = {}
    for part in parts(trained.model.config):
        with taken_out(trained.model, part):
            without[part] = trained.complete(prompt)
    return {
        "text": text,
        "without": without,
        "rows": {key: [len(row[:fitting]), _packed([row[:fitting]], torch.float16)] for key, row in rows.items()},
    }


def _packed(tensors: Iterable[Tensor], dtype: torch.dtype = torch.float32) -> str:
    """Base64 of all numbers in order, little-endian."""
    content = b"".join(tensor.detach().to(dtype).contiguous().numpy().tobytes() for tensor in tensors)
    return base64.b64encode(content).decode()


def _script() -> str:
    folder = files(__package__)
    return "\n".join(folder.joinpath(name).read_text("utf-8") for name in SCRIPTS)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
