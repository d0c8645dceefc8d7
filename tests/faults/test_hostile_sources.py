"""Directories that cannot be committed as they are: refused by name, and nothing is committed."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import casweights
import casweights.commit  # before the process loses the right to read the package
from casweights import ErrorCode, InvalidInputError, NotFoundError, Reporter
from casweights.config import MiB
from casweights.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.events import Stage

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
def test_name_that_other_systems_cannot_hold(model: Path, name: bytes, inside: bytes) -> None:
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
def test_names_that_are_one_file_elsewhere(model: Path, pair: tuple[str, str]) -> None:
    for name in pair:
        if (model / name).exists():
            pytest.skip("they are one file here, too")
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"")
    assert_refused(model, ErrorCode.BAD_PATH, model, repr(pair[0]), repr(pair[1]))


def test_folders_nested_too_deeply(model: Path) -> None:
    deepest = model.joinpath(*["d"] * 101)
    deepest.mkdir(parents=True)
    (deepest / "file").write_bytes(b"")
    assert_refused(model, ErrorCode.SOURCE_UNREADABLE, "more than 99 folders")


def fifo(place: Path) -> None:
    os.mkfifo(place)


def unix_socket(place: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # a socket's path must be short
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
def test_unreadable_entry(model: Path, make: Callable[[Path], None]) -> None:
    place = model / "sub" / "it"
    make(place)
    assert_refused(model, ErrorCode.SOURCE_UNREADABLE, place)


@pytest.mark.parametrize("make", [link_to_its_folder, link_to_the_folder_above])
def test_links_in_a_circle_are_called_so(model: Path, make: Callable[[Path], None]) -> None:
    make(model / "sub" / "it")
    assert_refused(model, ErrorCode.SOURCE_UNREADABLE, "links lead in a circle")


@pytest.mark.parametrize("make", UNREADABLE)
def test_unreadable_root(model: Path, make: Callable[[Path], None]) -> None:
    place = model / "sub" / "it"
    make(place)
    if make in (link_to_its_folder, link_to_the_folder_above):
        place = place / "it"
    assert_refused(place, ErrorCode.SOURCE_UNREADABLE, place)


@pytest.mark.parametrize("name", ["missing", "n" * 5000, "sub/honest.bin/x", "NUL\0"])
def test_root_that_cannot_be(model: Path, name: str) -> None:
    assert_refused(model / name, ErrorCode.SOURCE_UNREADABLE, model)


@contextmanager
def without_privileges() -> Iterator[Path]:
    """A folder that everybody may enter, and the rights of somebody who owns nothing else."""
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
def test_forbidden_entry(kind: str) -> None:
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


class Meddler(Reporter):
    """Changes the source at a moment of the commit, `started` or `advanced`."""

    def __init__(self, moment: str, meddle: Callable[[], None]) -> None:
        self.moment = moment
        self.meddle = meddle

    def started(self, stage: Stage, total: int) -> None:
        if stage == "commit" and self.moment == "started":
            self.meddle()

    def advanced(self, stage: Stage, nbytes: int) -> None:
        if stage == "commit" and self.moment == "advanced":
            self.meddle()


def wait_for_the_next_tick(path: Path) -> None:
    """File systems stamp times with a clock that ticks every few milliseconds."""
    probe = path.parent.with_name("probe")
    probe.touch()
    while probe.stat().st_ctime_ns == path.stat().st_ctime_ns:
        probe.touch()


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def overwrite_and_hide_it(path: Path) -> None:
    before = path.stat()
    overwrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def overwrite_through_memory(path: Path) -> None:
    import mmap

    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[:5] = b"other"
        memory.flush()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace_by_an_equal_file(path: Path) -> None:
    path.with_name("other").write_bytes(path.read_bytes())
    path.with_name("other").replace(path)


def remove(path: Path) -> None:
    path.unlink()


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_a_link(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")
    overwrite(path)


CHANGES = [
    overwrite,
    overwrite_and_hide_it,
    overwrite_through_memory,
    grow,
    shrink,
    empty,
    replace_by_an_equal_file,
    remove,
    replace_by_a_folder,
    replace_by_a_link,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["started", "advanced"])
@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_file_that_changes_while_it_is_read(
    tmp_path: Path, change: Callable[[Path], None], moment: str, name: str
) -> None:
    """Before the first byte is read, and after the last: the file is one piece."""
    header = b'{"t":{"dtype":"U8","shape":[100000],"data_offsets":[0,100000]}}'
    path = tmp_path / "model" / name
    path.parent.mkdir()
    path.write_bytes(len(header).to_bytes(8, "little") + header + os.urandom(100_000))
    store = MemoryStore()
    with casweights.open(store, create=True) as repo:
        first = repo.commit(path.parent, message="before")
    wait_for_the_next_tick(path)
    with casweights.open(store, reporter=Meddler(moment, lambda: change(path))) as repo:
        with pytest.raises(InvalidInputError, match=re.escape(str(path))) as caught:
            repo.commit(path.parent, message="while it changes")
        assert caught.value.code in (ErrorCode.SOURCE_CHANGED, ErrorCode.SOURCE_UNREADABLE)
        assert [snapshot.id for snapshot in repo.log()] == [first.id]
        with pytest.raises(NotFoundError):
            repo.resolve("main~1")
        assert len(list(store.list("snapshots/"))) == 1
        assert repo.verify().problems == ()


def test_file_that_another_thread_writes_all_the_time(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(16 * MiB))
    writing, stop = threading.Event(), threading.Event()

    def write() -> None:
        with path.open("r+b") as file:
            while not stop.is_set():
                file.seek(0)
                file.write(os.urandom(4096))
                file.flush()
                writing.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        writing.wait()
        with casweights.open("memory://", create=True) as store:
            with pytest.raises(InvalidInputError) as caught:
                store.commit(path)
            assert caught.value.code is ErrorCode.SOURCE_CHANGED
            assert "Repeat" in str(caught.value)
            assert store.branches() == {}
    finally:
        stop.set()
        writer.join()
    with casweights.open("memory://", create=True) as store:
        assert b"".join(store.read(store.commit(path), path.name)) == path.read_bytes()
