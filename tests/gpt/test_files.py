"""Whole files and locked folders; the writer's failures are tried with checkpoints, in test_checkpoint.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinygpt_lightning.gpt import files
from tinygpt_lightning.gpt.files import (
    FolderLockedError,
    link_whole,
    locked,
    remove_leftovers,
    remove_whole,
    whole_file,
    whole_folder,
    write_whole,
)


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, b"before")
    with whole_file(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, b"before")

    def fail() -> None:
        with whole_file(path) as file:
            file.write(b"after")
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fail()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/a.txt"):
        write_whole(tmp_path / "nowhere" / "a.txt", b"")


@pytest.mark.parametrize("can_link", [True, False])
def test_a_link_is_the_file_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_link: bool) -> None:
    def refuse(*paths: Path) -> None:
        raise PermissionError("no links here")

    if not can_link:
        monkeypatch.setattr("os.link", refuse)
    source, path = tmp_path / "stage-1.ckpt", tmp_path / "last.ckpt"
    write_whole(source, b"after")
    write_whole(path, b"before")
    for _ in range(2):  # the second time there is nothing to do
        link_whole(source, path)
        assert path.read_bytes() == b"after"
        assert path.samefile(source) is can_link
        assert sorted(tmp_path.iterdir()) == [path, source]
    write_whole(path, b"new")
    assert source.read_bytes() == b"after"


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (".hidden", "notes.tmp", ".other.tmp", ".a.xyz.tmp", "a.ckpt")]
    for path in [*kept, tmp_path / ".a.ckpt.0123abcd.tmp", tmp_path / ".config.yaml.deadbeef.tmp"]:
        path.touch()
    (tmp_path / ".b.ckpt.0123abcd.tmp").mkdir()
    (tmp_path / ".b.ckpt.0123abcd.tmp/part").touch()
    remove_leftovers(tmp_path, "c.ckpt")
    assert len([*tmp_path.iterdir()]) == len(kept) + 3
    remove_leftovers(tmp_path, "a.ckpt")
    assert len([*tmp_path.iterdir()]) == len(kept) + 2
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_files_folders_links_and_what_is_not_there_are_removed(tmp_path: Path) -> None:
    file, folder, link = (tmp_path / name for name in ("file", "folder", "link"))
    file.touch()
    folder.mkdir()
    (folder / "part").touch()
    link.symlink_to(folder)
    remove_whole(link)
    assert (folder / "part").exists()
    for path in file, folder, folder:
        remove_whole(path)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_locked_once(tmp_path: Path) -> None:
    reason = f"{tmp_path}: another process is writing there"
    with locked(tmp_path), pytest.raises(FolderLockedError, match=reason), locked(tmp_path):
        pass
    with locked(tmp_path):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_appears_when_the_block_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    path = tmp_path / "a"
    for content in ("before", "after"):  # the second one takes the place of the first
        with whole_folder(path) as unfinished:
            (unfinished / content).touch()
            assert not (path / content).exists()
        assert [file.name for file in path.iterdir()] == [content]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [True, False])
def test_a_folder_that_fails_leaves_what_was_there(tmp_path: Path, before: bool) -> None:
    path = tmp_path / "a"
    if before:
        path.mkdir()
        (path / "before").touch()

    def fail() -> None:
        with whole_folder(path) as unfinished:
            (unfinished / "after").touch()
            raise OSError(28, "No space left on device", str(unfinished / "after"))

    with pytest.raises(OSError, match="No space left on device") as error:
        fail()
    assert error.value.filename == str(path)
    assert [file.name for file in tmp_path.rglob("*")] == (["a", "before"] if before else [])


def test_a_folder_that_cannot_take_its_name_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "before").touch()
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target == path and (self / "after").exists():
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output error"), whole_folder(path) as unfinished:
        (unfinished / "after").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["a", "before"]
