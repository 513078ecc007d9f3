"""The table of commands."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from tinygpt_lightning.app.commands import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_the_table_says(name: str) -> None:
    command = COMMANDS[name]
    assert callable(getattr(import_module(command.module), command.function))
    assert command.function.rstrip("_") == name


def test_the_list_of_commands_loads_none_of_them() -> None:
    program = (
        "import sys\nfrom tinygpt_lightning.cli import main\nmain(['--help'])\n"
        "assert not {'lightning', 'jsonargparse', 'rich'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
