"""The table of commands."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from tinygpt_lightning.commands.table import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_the_table_says(name: str) -> None:
    command = COMMANDS[name]
    assert callable(getattr(import_module(f"tinygpt_lightning.{command.module}"), command.function))
    assert command.function.rstrip("_") == name


def test_the_list_of_commands_loads_none_of_them() -> None:
    program = (
        "import sys\nfrom tinygpt_lightning.commands.main import main\nmain(['--help'])\n"
        "assert not {'lightning', 'jsonargparse', 'rich'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_what_a_command_loads_is_left_out_of_garbage_collection_and_nothing_else_is() -> None:
    program = (
        "import gc\nfrom tinygpt_lightning.commands.main import main\n"
        "def helped(command):\n"
        "    try:\n        main([command, '--help'])\n    except SystemExit:\n        return gc.get_freeze_count()\n"
        "loaded = helped('chat')\n"
        "assert loaded > 50_000 and gc.isenabled()\n"
        "kept = [[i] for i in range(1000)]\n"
        "assert helped('chat') <= loaded\n"
        "gc.disable()\nhelped('export')\nassert not gc.isenabled()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
