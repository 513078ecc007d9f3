"""``--auto``: the settings of ``fit`` that follow from the pairs, where nobody set them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from tinygpt_lightning.commands.errors import UsageError, say
from tinygpt_lightning.commands.settings import Settings
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.recipe import recipe_for
from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.trained import load

# Share of wrong next characters at which the learning rate begins to fall: at its height they oscillate. Many pairs
# oscillate before; so it falls too where the share no longer gets smaller by half a percent.
NEARLY, LESS = 0.02, 0.005
REPEAT = 3  # times that an epoch has a pair again that is not exact
LOW = 0.1  # of the learning rate, to which it falls


def apply_recipe(settings: Settings) -> None:
    """Put the recipe for the pairs below all that was typed or stands in a configuration, and say what it is.

    Raises:
        UsageError: If no pairs are given, or a setting of the data is wrong.
        PairsError: If the file of pairs is refused.
        OSError: If it cannot be read.
    """
    given = {name: value for name, value in settings.config.data.items() if name not in ("n_positions", "noise")}
    try:
        data = QADataModule(**given)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if data.path is None and data.pair == QAPair():
        raise UsageError("data.path: expected a file of pairs, as in --data.path pairs.jsonl, got none")
    if data.rehearse is None:
        recipe = recipe_for(data.taught.pairs)
    else:
        trained = load(data.rehearse)
        recipe = recipe_for(data.taught.pairs, trained.taught.template.pattern)
        recipe = recipe.beginning_with(trained.model.config)
    # What was memorised before needs no proof that it lasts.
    for_epochs = 3 if data.rehearse is None else 1
    wrong = {"monitor": "val/next_char_error_rate", "stopping_threshold": NEARLY}
    exact = {"monitor": "val/exact_match", "mode": "max", "stopping_threshold": 1.0, "for_epochs": for_epochs}
    falling = {"start_factor": 1.0, "end_factor": LOW, "total_iters": recipe.settle}
    stages: list[dict[str, Any]] = [
        {"epochs": recipe.epochs, "until": {**wrong, "patience": 2 * recipe.settle + 2, "min_delta": LESS}},
        {
            "epochs": recipe.settle + recipe.epochs,
            "reset_optimizer": False,
            "lr_scheduler": {"class_path": "LinearLR", "init_args": falling},
            "until": exact,
        },
    ]
    below = {
        "data": {"template": recipe.template, "batch_size": recipe.batch_size, "repeat": REPEAT},
        "stages": stages,
        "model": {
            "config": {"n_positions": recipe.n_positions, "n_embd": recipe.n_embd, "n_head": recipe.n_head},
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": recipe.lr, "betas": [0.9, 0.99], "fused": True}},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(yaml.safe_dump(below), encoding="utf-8")
        settings.parser.default_config_files = [str(file)]
        settings.parse_arguments(settings.parser, settings.args)
    config = settings.config.model.config
    say(
        f"auto: {len(data.taught.pairs)} pairs, model.config.n_positions {config.n_positions}, n_embd {config.n_embd}, "
        f"n_head {config.n_head}, data.batch_size {settings.config.data.batch_size}, at most "
        f"{sum(stage.epochs or 0 for stage in settings.config.stages)} epochs until all are exact"
    )
