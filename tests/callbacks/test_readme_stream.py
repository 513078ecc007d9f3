"""The README's complete example: a stream without length, in stages of steps, killed and resumed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

import tinygpt_lightning

README = Path(tinygpt_lightning.__file__).parent / "callbacks" / "README.md"


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_the_streaming_example_is_resumed_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = (
        code for code in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL) if "steps=" in code
    )
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "example", "exec"), namespace)  # noqa: S102, the README's own code
    seed_everything(1, verbose=False)
    whole = namespace["train"](tmp_path)
    steps = [torch.load(tmp_path / f"stage-{n}.ckpt", weights_only=True)["global_step"] for n in (1, 2, 3)]
    assert steps == [20, 70, 100]
    for number in (1, 2):
        (tmp_path / "stage-3.ckpt").unlink()
        resumed = namespace["train"](tmp_path, tmp_path / f"stage-{number}.ckpt")
        assert (tmp_path / "stage-3.ckpt").exists()
        for name, weight in resumed.state_dict().items():
            assert torch.equal(weight, whole.state_dict()[name]), (number, name)
