"""Files that are torn, flipped, foreign or hostile, and the writer that leaves none behind."""

import errno
import http.server
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins import TorchCheckpointIO

from tinygpt_lightning.callbacks.safe_checkpoint_io import SafeCheckpointIO
from tinygpt_lightning.gpt.checkpoint import (
    CheckpointError,
    newest_whole,
    read_checkpoint,
    write_checkpoint,
)
from tinygpt_lightning.gpt.files import remove_leftovers

# Lightning with torch 2.13.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
VERSION = {"pytorch-lightning_version": "2.6.6"}


def small(step=0, **entries):
    return {**VERSION, "global_step": step, "state_dict": {"weight": torch.arange(6.0)}, **entries}


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.ckpt"
    write_checkpoint(small(), path)
    return path


def refused(path):
    """The reason for which ``path`` is refused, in one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


# Whole files


def test_what_is_written_is_read_by_this_module_by_torch_and_by_zip_programs(whole):
    for checkpoint in (read_checkpoint(whole), torch.load(whole)):
        assert checkpoint.keys() == small().keys()
        assert torch.equal(checkpoint["state_dict"]["weight"], torch.arange(6.0))
    with zipfile.ZipFile(whole) as archive:
        assert archive.testzip() is None


def test_a_trainer_writes_and_resumes_with_it(tmp_path):
    def trainer(epochs):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        files = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=1, monitor="epoch", mode="max")
        return Trainer(
            max_epochs=epochs, callbacks=[files], plugins=[SafeCheckpointIO()], limit_train_batches=2,
            limit_val_batches=0, **quiet,
        )  # fmt: skip

    trainer(1).fit(BoringModel())
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0.ckpt"]
    resumed = trainer(3)
    resumed.fit(BoringModel(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.global_step == 6
    # Lightning removed epoch=1.ckpt, but never the one that it resumed from.
    assert {path.name for path in tmp_path.iterdir()} == {"epoch=0.ckpt", "epoch=2.ckpt"}
    assert read_checkpoint(tmp_path / "epoch=2.ckpt")["global_step"] == 6


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_checkpoint(small(), tmp_path / "a.ckpt")
    finally:
        os.umask(before)
    assert (tmp_path / "a.ckpt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_it_is_on_the_disk_before_it_takes_the_name_and_the_name_is_after(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(Path(f"/proc/self/fd/{fd}").readlink()), real_fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda old, new: (calls.append("replace"), real_replace(old, new))[1])
    write_checkpoint(small(), tmp_path / "a.ckpt")
    written, replaced, folder = calls
    assert written.parent == tmp_path
    assert written.name.startswith(".a.ckpt.")
    assert (replaced, folder) == ("replace", tmp_path)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_failed_write_is_an_error_and_leaves_the_earlier_file(whole, monkeypatch, where):
    before = whole.read_bytes()
    target = {"write": (torch, "save"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[where]
    monkeypatch.setattr(*target, full)
    with pytest.raises(OSError, match=r"No space left on device.*whole\.ckpt") as caught:
        write_checkpoint(small(1), whole)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert whole.read_bytes() == before
    assert list(whole.parent.iterdir()) == [whole]


@pytest.mark.parametrize("room", [100, 5_000, 50_000, 390_000])
def test_a_file_too_large_for_its_disk(whole, room):
    """A limit on file sizes fails in the middle of torch's writing, as a full disk does."""
    before = whole.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match=r"whole\.ckpt") as caught:
            write_checkpoint(small(state=[torch.rand(10_000) for _ in range(10)]), whole)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert whole.read_bytes() == before
    assert list(whole.parent.iterdir()) == [whole]


@pytest.fixture
def tiny_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True)  # noqa: S607
    if mounted.returncode:
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(["umount", folder], check=True)  # noqa: S607


def test_a_full_disk(tiny_disk):
    path = tiny_disk / "last.ckpt"
    write_checkpoint(small(), path)
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"No space left on device.*last\.ckpt"):
        write_checkpoint(small(state=torch.rand(100_000)), path)
    assert path.read_bytes() == before
    assert list(tiny_disk.iterdir()) == [path]


def test_an_interrupt_while_writing_leaves_nothing(whole, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(small(1), whole)
    assert read_checkpoint(whole)["global_step"] == 0
    assert list(whole.parent.iterdir()) == [whole]


def test_a_writer_killed_in_the_middle_leaves_the_earlier_file_and_a_leftover(whole):
    code = """
import sys, time, torch
from tinygpt_lightning.gpt.checkpoint import write_checkpoint
def slow(value, file):
    file.write(bytes(500_000))
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
torch.save = slow
write_checkpoint({}, sys.argv[1])
"""
    before = whole.read_bytes()
    with subprocess.Popen([sys.executable, "-c", code, whole], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert whole.read_bytes() == before
    (leftover,) = set(whole.parent.iterdir()) - {whole}
    assert leftover.stat().st_size > 400_000
    others = [whole.parent / name for name in (".hidden", "notes.tmp", ".other.tmp", "stage-1.ckpt")]
    for other in others:
        other.touch()
    remove_leftovers(whole.parent)
    assert set(whole.parent.iterdir()) == {whole, *others}


def test_what_could_not_be_read_again_is_not_written(whole):
    with pytest.raises(CheckpointError, match=r"whole\.ckpt: not written, since pathlib\.[\w.]+ in it"):
        write_checkpoint(small(hyper_parameters={"folder": Path("here")}), whole)
    assert list(whole.parent.iterdir()) == [whole]
    read_checkpoint(whole)


# Damage


@pytest.mark.parametrize("seed", range(4))
def test_a_truncated_file_is_refused(whole, seed):
    data, rng = whole.read_bytes(), random.Random(seed)
    ends = {0, 1, 4, len(data) - 1, len(data) - 2, *(len(data) - rng.randrange(1, 200) for _ in range(20))}
    for end in [*ends, *(rng.randrange(len(data)) for _ in range(50))]:
        whole.write_bytes(data[:end])
        assert refused(whole).startswith(("is empty", "is damaged", "expected a file of torch.save")), end


@pytest.mark.parametrize("seed", range(4))
def test_one_flipped_bit_is_refused_or_is_no_part_of_the_content(whole, seed):
    data, rng = whole.read_bytes(), random.Random(seed)
    tail = range(len(data) - 150, len(data))  # the end of the archive
    refusals = 0
    for at in [*rng.sample(tail, 40), *(rng.randrange(len(data)) for _ in range(200))]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        whole.write_bytes(flipped)
        refusals += not holds_the_same(whole)
    assert refusals > 100, "a plain torch.load lets nearly all of them through"


def holds_the_same(path):
    """Whether the file is read as it was written; anything else but a refusal is an error."""
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError:
        return False
    assert checkpoint["global_step"] == 0
    assert torch.equal(checkpoint["state_dict"]["weight"], torch.arange(6.0))
    assert checkpoint.keys() == small().keys()
    return True


def test_every_flipped_bit_of_the_weights_is_refused(whole):
    data = whole.read_bytes()
    start = data.index(torch.arange(6.0).numpy().tobytes())
    for bit in range(6 * 4 * 8):
        flipped = bytearray(data)
        flipped[start + bit // 8] ^= 1 << bit % 8
        whole.write_bytes(flipped)
        assert refused(whole) == "is damaged: its content does not match its checksums"


def test_bytes_before_or_after_are_refused_or_make_no_difference(whole):
    data = whole.read_bytes()
    for changed in (data + b"\0", b"\0" + data, data + data):
        whole.write_bytes(changed)
        holds_the_same(whole)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(whole):
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    assert refused(whole).startswith("is damaged")


def test_checkpoints_of_other_programs_and_of_earlier_versions_are_read(whole):
    TorchCheckpointIO().save_checkpoint(small(7), whole)
    assert read_checkpoint(whole)["global_step"] == 7
    with zipfile.ZipFile(whole, "a") as archive:
        archive.comment = b"tinygpt-checkpoint 1 sha256:" + b"0" * 64  # how damage was told before
    assert read_checkpoint(whole)["global_step"] == 7


def test_an_error_travels_to_another_process():
    error = pickle.loads(pickle.dumps(CheckpointError(Path("a"), "is b")))  # noqa: S301
    assert (type(error), str(error)) == (CheckpointError, "a: is b")


def test_reasons(tmp_path, whole):
    path = tmp_path / "x.ckpt"
    assert refused(path) == "cannot be read: No such file or directory"
    assert refused(tmp_path) == "cannot be read: Is a directory"
    path.write_text("a letter to you")
    assert refused(path) == "expected a file of torch.save, got something else"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a letter to you")
    assert refused(path).startswith("cannot be read as tensors and plain values")
    for content, reason in {
        "a list": ([1], "expected a Lightning checkpoint, got one without pytorch-lightning_version"),
        "weights": (
            {"weight": torch.ones(1)},
            "expected a Lightning checkpoint, got one without pytorch-lightning_version",
        ),
        "old": ({"pytorch-lightning_version": "1.9.5"}, "expected a checkpoint of Lightning 2.x, got one of 1.9.5"),
        "new": ({"pytorch-lightning_version": "3.0.0"}, "expected a checkpoint of Lightning 2.x, got one of 3.0.0"),
    }.values():
        write_checkpoint(content, path)
        assert refused(path).startswith(reason)


def test_the_newest_whole_one_is_the_one_that_has_come_furthest(tmp_path):
    assert newest_whole(tmp_path) == (None, [])
    for name, step in {"stage-1": 30, "stage-2": 60, "last": 60, "broken": 90}.items():
        write_checkpoint(small(step), tmp_path / f"{name}.ckpt")
    for age, name in enumerate(["stage-1", "last", "stage-2"]):  # copied: the oldest state has the latest time
        os.utime(tmp_path / f"{name}.ckpt", (1000 - age, 1000 - age))
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(broken.read_bytes()[:-5])
    (tmp_path / ".last.ckpt.0a1b2c3d.tmp").write_bytes(b"")
    newest, invalid = newest_whole(tmp_path)
    assert newest == tmp_path / "last.ckpt"
    assert [str(error) for error in invalid] == [f"{broken}: is damaged or truncated"]


# Hostile files


class Hostile:
    """Runs ``function(*arguments)`` in the process that unpickles it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ATTACKS = {
    "os.system": lambda canary: Hostile(os.system, f"touch {canary}"),
    "eval": lambda canary: Hostile(eval, f"open({str(canary)!r}, 'w')"),
    "exec": lambda canary: Hostile(exec, f"open({str(canary)!r}, 'w')"),
    "open": lambda canary: Hostile(open, str(canary), "w"),
    "subprocess": lambda canary: Hostile(subprocess.check_call, ["touch", str(canary)]),
}
PLACES = {
    "the whole file": lambda trap: trap,
    "hyper-parameters": lambda trap: small(hyper_parameters={"model": {"size": [1, trap]}}),
    "callback state": lambda trap: small(callbacks={"ModelCheckpoint": {"best": trap}}),
    "an optimizer entry": lambda trap: small(optimizer_states=[{"state": {0: {"step": trap}}, "param_groups": []}]),
    "the weights": lambda trap: small(state_dict={"weight": trap}),
    "a key": lambda trap: small(**{"loops": {(trap,): 1}}),
}


@pytest.fixture
def hostile(tmp_path, request):
    attack, place = request.param
    path, canary = tmp_path / "hostile.ckpt", tmp_path / "canary"
    torch.save(PLACES[place](ATTACKS[attack](canary)), path)  # past the writer's own refusal
    return path, canary


everything = pytest.mark.parametrize(
    "hostile", [(attack, place) for attack in ATTACKS for place in PLACES], indirect=True
)
one = pytest.mark.parametrize("hostile", [("os.system", "hyper-parameters")], indirect=True)


@everything
@pytest.mark.parametrize("environment", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_no_code_in_a_file_runs(hostile, monkeypatch, environment):
    path, canary = hostile
    if environment:
        monkeypatch.setenv(environment, "1")
    assert "refused, since it holds " in refused(path)
    for weights_only in (None, True, False):
        with pytest.raises(CheckpointError, match="which may run code"):
            SafeCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert not canary.exists()


@one
def test_the_attack_works_on_a_reader_without_defence(hostile):
    path, canary = hostile
    torch.load(path, weights_only=False)
    assert canary.exists()


@one
def test_no_code_runs_in_a_trainer_that_allows_it(hostile):
    path, canary = hostile
    trainer = Trainer(plugins=[SafeCheckpointIO()], accelerator="cpu", logger=False, max_epochs=1)
    with pytest.raises(CheckpointError, match="which may run code"):
        trainer.fit(BoringModel(), ckpt_path=path, weights_only=False)
    assert not canary.exists()


@one
def test_nothing_is_fetched(hostile):
    path, canary = hostile
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):  # the name that http.server calls
            asked.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        for remote in (url, f"simplecache::{url}", "https://example.org/a.ckpt", "s3://b/a.ckpt", "memory://a.ckpt"):
            for refuse in (read_checkpoint, SafeCheckpointIO().load_checkpoint, newest_whole):
                with pytest.raises(CheckpointError, match="is not a local file; fetch it yourself"):
                    refuse(remote)
            with pytest.raises(CheckpointError, match="is not a local file"):
                write_checkpoint(small(), remote)
        server.shutdown()
    assert not asked
    assert not canary.exists()


def test_a_local_url_is_a_local_file(whole):
    assert read_checkpoint(f"file://{whole}")["global_step"] == 0
