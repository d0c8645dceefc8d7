"""A checkout writes nothing outside of its target, whatever links and files the target contains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import ErrorCode, InvalidInputError, Reporter, StoreConfig
from casweights.config import KiB
from casweights.system.staging import PREFIX, Staging

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository
    from casweights.events import Stage

FILES = {"top.bin": b"top" * 100, "sub/inner.bin": b"inner" * 100, "sub/deep/x": b"x" * 100}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Repository]:
    for name, content in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    with casweights.open(tmp_path / "store", create=True) as repository:
        repository.commit(tmp_path / "model")
        yield repository


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder whose names, contents and times must not change."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "secret").write_bytes(b"secret")
    (folder / "same").write_bytes(FILES["top.bin"])
    before = look(folder)
    yield folder
    assert look(folder) == before


def look(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (folder, *folder.rglob("*"))
    }


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def assert_complete(target: Path) -> None:
    for name, content in FILES.items():
        assert (target / name).read_bytes() == content
        assert (target / name).resolve().is_relative_to(target.resolve())


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("link", ["sub", "sub/deep"])
@pytest.mark.parametrize("to", ["", "missing", "secret"], ids=["folder", "dangling", "file"])
def test_link_in_place_of_a_folder_is_an_error(
    store: Repository, target: Path, outside: Path, link: str, to: str, delete: bool
) -> None:
    (target / link).parent.mkdir(exist_ok=True)
    (target / link).symlink_to(outside / to)
    with pytest.raises(InvalidInputError, match="in the way") as caught:
        store.checkout("main", target, delete=delete)
    assert caught.value.code is ErrorCode.BAD_PATH
    assert str(target / link) in str(caught.value)
    assert not (target / "top.bin").exists()


def test_link_to_a_folder_inside_the_target_is_an_error(store: Repository, target: Path) -> None:
    (target / "elsewhere").mkdir()
    (target / "sub").symlink_to("elsewhere")
    with pytest.raises(InvalidInputError, match="in the way"):
        store.checkout("main", target)
    assert list((target / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("to", ["secret", "same", "missing", "deep", "self"])
def test_link_in_place_of_a_file_is_replaced(
    store: Repository, target: Path, outside: Path, to: str
) -> None:
    """The target of the link stays, even if its content is that of the version's file."""
    (target / "top.bin").symlink_to("top.bin" if to == "self" else outside / to)
    store.checkout("main", target)
    assert not (target / "top.bin").is_symlink()
    assert_complete(target)


@pytest.mark.parametrize("name", ["secret", "same"])
def test_hard_link_in_place_of_a_file_is_replaced(
    store: Repository, target: Path, outside: Path, name: str
) -> None:
    (target / "top.bin").hardlink_to(outside / name)
    store.checkout("main", target, overwrite=True)
    assert_complete(target)


def test_links_that_the_version_lacks_are_removed_and_not_followed(
    store: Repository, target: Path, outside: Path
) -> None:
    (target / "extra").symlink_to(outside)
    (target / "sub").mkdir()
    (target / "sub/extra").symlink_to(outside / "secret")
    store.checkout("main", target)
    assert (target / "extra").is_symlink()
    store.checkout("main", target, delete=True)
    assert not (target / "extra").is_symlink()
    assert not (target / "sub/extra").is_symlink()
    assert_complete(target)


def test_link_named_like_a_temporary_folder_is_not_followed(
    store: Repository, target: Path, outside: Path, tmp_path: Path
) -> None:
    """Temporary folders of killed processes are deleted; the target of a link is not."""
    (target / f"{PREFIX}0123456789abcdef").symlink_to(outside)
    (tmp_path / "store" / f"{PREFIX}0123456789abcdef").symlink_to(outside)
    store.checkout("main", target)
    store.commit(tmp_path / "model", message="again")
    assert_complete(target)


def test_target_may_be_a_link_itself(store: Repository, target: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(target)
    store.checkout("main", tmp_path / "link")
    assert_complete(target)


@pytest.mark.parametrize("name", ["sub", "sub/deep"])
def test_file_in_place_of_a_folder_is_an_error(store: Repository, target: Path, name: str) -> None:
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_bytes(b"mine")
    with pytest.raises(InvalidInputError, match="in the way"):
        store.checkout("main", target)
    assert (target / name).read_bytes() == b"mine"
    assert not (target / "top.bin").exists()


def test_folder_in_place_of_a_file_is_an_error(store: Repository, target: Path) -> None:
    (target / "top.bin").mkdir()
    (target / "top.bin" / "mine").write_bytes(b"mine")
    with pytest.raises(InvalidInputError, match="in the way"):
        store.checkout("main", target, delete=True)
    assert (target / "top.bin" / "mine").read_bytes() == b"mine"
    assert not (target / "sub").exists()


@pytest.mark.parametrize("length", [300, 5000])
def test_target_with_a_name_that_is_too_long_is_an_error(
    store: Repository, tmp_path: Path, length: int
) -> None:
    with pytest.raises(casweights.StoreError, match="too long"):
        store.checkout("main", tmp_path / ("n" * length))


def test_drafts_of_another_checkout_are_not_deleted(store: Repository, target: Path) -> None:
    """Two processes check out to one directory, and one deletes files that its version lacks."""
    with Staging(target) as other:
        draft = other.new_path()
        draft.write_bytes(b"half")
        store.checkout("main", target, delete=True)
        assert draft.read_bytes() == b"half"
    assert_complete(target)


def test_file_that_disappears_while_its_chunks_are_used_does_no_harm(
    tmp_path: Path, target: Path
) -> None:
    """Chunks that can no longer be copied from the target are read from the store."""
    content = os.urandom(100_000)
    (tmp_path / "model").mkdir()
    for name in ("a", "z"):
        (tmp_path / "model" / name).write_bytes(content)

    class Remover(Reporter):
        def advanced(self, stage: Stage, nbytes: int) -> None:
            if stage == "checkout":  # by now the file "0" was found to be complete
                (target / "z").unlink(missing_ok=True)

    (target / "a").write_bytes(b"other")
    (target / "z").write_bytes(content + b"more")
    (tmp_path / "model" / "0").write_bytes(b"done")
    (target / "0").write_bytes(b"done")
    config = StoreConfig(chunk_size=64 * KiB)
    with casweights.open("memory://", create=True, config=config, reporter=Remover()) as repo:
        repo.checkout(repo.commit(tmp_path / "model"), target, overwrite=True)
    assert (target / "a").read_bytes() == (target / "z").read_bytes() == content
