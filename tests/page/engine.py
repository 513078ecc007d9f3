"""The page's scripts in a JavaScript engine, without a browser."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from py_mini_racer import MiniRacer

from tinygpt_lightning.page.page import as_data, describe
from tinygpt_lightning.trained import TrainedGPT


class Scripts:
    """The scripts that compute, with the model of a page."""

    def __init__(self, trained: TrainedGPT) -> None:
        self.engine = MiniRacer()
        for name in ("model.js", "words.js", "explain.js"):
            self.engine.eval(files("tinygpt_lightning.page").joinpath(name).read_text("utf-8"))
        self.engine.eval(f"const data = {as_data(describe(trained, 'test'))}; const model = readModel(data);")

    def __call__(self, expression: str) -> Any:
        """The value of an expression; typed arrays come as lists."""
        arrays = "(_, value) => ArrayBuffer.isView(value) ? [...value] : value"
        return json.loads(str(self.engine.eval(f"JSON.stringify({expression}, {arrays})")))
