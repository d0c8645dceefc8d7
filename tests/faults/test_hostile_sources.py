"""Directories that cannot be committed are refused by an error that names the entry."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import casweights
import casweights.operations.commit  # before the process loses the right to read the package
from casweights import ErrorCode, InvalidInputError
from casweights.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


NOBODY = 65534


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "honest.bin").write_bytes(b"honest")
    return folder


def assert_refused(model: Path, code: ErrorCode, *mentioned: str | Path) -> None:
    objects = MemoryStore()
    with casweights.open(objects, create=True) as store:
        with pytest.raises(InvalidInputError) as caught:
            store.commit(model)
        assert caught.value.code is code
        for text in mentioned:
            assert str(text) in str(caught.value)
        assert store.branches() == {}
    assert [info.name for info in objects.list()] == ["casweights.json"]


BAD_NAMES = {
    "backslash": b"a\\b",
    "parent of another system": b"..\\a",
    "newline": b"a\nb",
    "terminal escape": b"\x1b[2J",
    "delete character": b"a\x7f",
    "drive": b"C:a",
    "not UTF-8": b"\xff\xfe",
    "surrogate in UTF-8": b"\xed\xa0\x80",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
@pytest.mark.parametrize("inside", [b"", b"/x"], ids=["file", "folder"])
def test_name_that_is_not_valid_on_other_systems_is_refused(
    model: Path, name: bytes, inside: bytes
) -> None:
    location = os.fsencode(model / "sub") + b"/" + name + inside
    try:
        os.makedirs(os.path.dirname(location), exist_ok=True)
        with open(location, "wb"):
            pass
    except OSError:
        pytest.skip("this file system cannot hold the name either")
    path = os.fsdecode(b"sub/" + name + inside)
    assert_refused(model, ErrorCode.BAD_PATH, model, repr(path), "exclude")
    with casweights.open("memory://", create=True) as store:
        snapshot = store.commit(model, exclude=[path])
        assert [file.path for file in snapshot.files] == ["sub/honest.bin"]


COLLISIONS = [
    ("a.bin", "A.bin"),
    ("stra\u00dfe", "STRASSE"),
    ("caf\u00e9", "cafe\u0301"),
    ("sub/a", "SUB/A"),
    ("sub2", "SUB2/a"),
]


@pytest.mark.parametrize("pair", COLLISIONS, ids=ascii)
def test_names_that_are_one_file_on_other_systems_are_refused(
    model: Path, pair: tuple[str, str]
) -> None:
    for name in pair:
        if (model / name).exists():
            pytest.skip("they are one file here, too")
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"")
    assert_refused(model, ErrorCode.BAD_PATH, model, repr(pair[0]), repr(pair[1]))


def test_folders_nested_too_deeply_are_refused(model: Path) -> None:
    deepest = model.joinpath(*["d"] * 101)
    deepest.mkdir(parents=True)
    (deepest / "file").write_bytes(b"")
    assert_refused(model, ErrorCode.SOURCE_UNREADABLE, "more than 99 folders")


def fifo(place: Path) -> None:
    os.mkfifo(place)


def unix_socket(place: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # the path of a socket is limited to about 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(place.name)
    finally:
        os.chdir(here)


def device(place: Path) -> None:
    place.symlink_to("/dev/zero")


def dangling_link(place: Path) -> None:
    place.symlink_to("nowhere")


def link_to_itself(place: Path) -> None:
    place.symlink_to(place.name)


def links_to_each_other(place: Path) -> None:
    place.symlink_to("zz-other")
    place.with_name("zz-other").symlink_to(place.name)


def link_to_its_folder(place: Path) -> None:
    place.symlink_to(".")


def link_to_the_folder_above(place: Path) -> None:
    place.symlink_to("..")


def link_through_a_file(place: Path) -> None:
    place.symlink_to("honest.bin/x")


UNREADABLE = [
    fifo,
    unix_socket,
    device,
    dangling_link,
    link_to_itself,
    links_to_each_other,
    link_to_its_folder,
    link_to_the_folder_above,
    link_through_a_file,
]


@pytest.mark.parametrize("make", UNREADABLE)
def test_unreadable_entry_is_refused(model: Path, make: Callable[[Path], None]) -> None:
    place = model / "sub" / "it"
    make(place)
    assert_refused(model, ErrorCode.SOURCE_UNREADABLE, place)


@pytest.mark.parametrize("make", [link_to_its_folder, link_to_the_folder_above])
def test_the_error_for_links_in_a_circle_says_so(model: Path, make: Callable[[Path], None]) -> None:
    make(model / "sub" / "it")
    assert_refused(model, ErrorCode.SOURCE_UNREADABLE, "links form a circle")


@pytest.mark.parametrize("make", UNREADABLE)
def test_unreadable_root_is_refused(model: Path, make: Callable[[Path], None]) -> None:
    place = model / "sub" / "it"
    make(place)
    if make in (link_to_its_folder, link_to_the_folder_above):
        place = place / "it"
    assert_refused(place, ErrorCode.SOURCE_UNREADABLE, place)


@pytest.mark.parametrize("name", ["missing", "n" * 5000, "sub/honest.bin/x", "NUL\0"])
def test_root_with_an_impossible_name_is_refused(model: Path, name: str) -> None:
    code = ErrorCode.BAD_PATH if "\0" in name else ErrorCode.SOURCE_UNREADABLE
    assert_refused(model / name, code, model)


@contextmanager
def without_privileges() -> Iterator[Path]:
    """Run as a user without privileges; yield a folder that this user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("kind", ["file", "folder", "folder that cannot be entered", "root"])
def test_entry_without_permission_is_refused(kind: str) -> None:
    with without_privileges() as folder:
        model = folder / "model"
        forbidden = model if kind == "root" else model / "forbidden"
        (model / "sub").mkdir(parents=True)
        (model / "sub" / "x").write_bytes(b"x")
        if kind == "file":
            forbidden.write_bytes(b"x")
        else:
            forbidden.mkdir(exist_ok=True)
            (forbidden / "x").write_bytes(b"x")
        forbidden.chmod(0o444 if kind == "folder that cannot be entered" else 0)
        try:
            assert_refused(model, ErrorCode.SOURCE_UNREADABLE, forbidden, "Permission denied")
        finally:
            forbidden.chmod(0o755)
