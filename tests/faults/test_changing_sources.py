"""Files change, appear or disappear while a commit reads them: a version holds one state."""

from __future__ import annotations

import os
import re
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import casweights
from casweights.config import KiB, MiB, StoreConfig
from casweights.content import files
from casweights.content.files import DiskFile
from casweights.errors import ErrorCode, InvalidInputError, NotFoundError
from casweights.events import Reporter
from casweights.stores.memory import MemoryStore
from casweights.testing.trees import read_tree, write_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casweights.events import Stage


class Meddler(Reporter):
    """Changes the source at the first call of `started` or of `advanced`."""

    def __init__(self, moment: str, meddle: Callable[[], object]) -> None:
        self.moment = moment
        self.meddle = meddle

    def started(self, stage: Stage, total: int) -> None:
        if stage == "commit" and self.moment == "started":
            self.meddle()

    def advanced(self, stage: Stage, nbytes: int) -> None:
        if stage == "commit" and self.moment == "advanced":
            self.meddle()


def wait_for_the_next_tick(path: Path) -> None:
    """Wait until a change of a file gets a new time: file systems count in milliseconds."""
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
    overwrite_through_memory,
    grow,
    shrink,
    empty,
    replace_by_an_equal_file,
    remove,
    replace_by_a_folder,
    replace_by_a_link,
]


@pytest.mark.parametrize(
    ("change", "moment"),
    [
        *((change, moment) for change in CHANGES for moment in ("started", "advanced")),
        (overwrite_and_hide_it, "advanced"),
    ],
)
@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_file_that_changes_while_it_is_read_is_an_error(
    tmp_path: Path, change: Callable[[Path], None], moment: str, name: str
) -> None:
    """The change happens before the first byte is read, or after the last one."""
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


def test_file_that_another_thread_keeps_writing_is_an_error(tmp_path: Path) -> None:
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


def test_file_that_is_overwritten_unseen_before_it_is_read_is_committed_as_it_is_now(
    tmp_path: Path,
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(100_000))
    meddler = Meddler("started", lambda: overwrite_and_hide_it(path))
    with casweights.open("memory://", create=True, reporter=meddler) as repo:
        assert b"".join(repo.read(repo.commit(path), path.name)) == path.read_bytes()


def make_a_hard_link(path: Path) -> None:
    path.with_name("link").hardlink_to(path)


def make_a_passing_hard_link(path: Path) -> None:
    make_a_hard_link(path)
    path.with_name("link").unlink()


def change_permissions(path: Path) -> None:
    path.chmod(0o600)


def set_the_time_of_access(path: Path) -> None:
    os.utime(path, ns=(10**18, path.stat().st_mtime_ns))


def rename_there_and_back(path: Path) -> None:
    path.rename(path.with_name("other")).rename(path)


@pytest.mark.parametrize("moment", ["started", "advanced"])
@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
@pytest.mark.parametrize(
    "touch",
    [
        make_a_hard_link,
        make_a_passing_hard_link,
        change_permissions,
        set_the_time_of_access,
        rename_there_and_back,
    ],
)
def test_change_that_leaves_the_bytes_alone_does_not_stop_a_commit(
    tmp_path: Path, touch: Callable[[Path], None], name: str, moment: str
) -> None:
    header = b'{"t":{"dtype":"U8","shape":[100000],"data_offsets":[0,100000]}}'
    path = tmp_path / "model" / name
    path.parent.mkdir()
    path.write_bytes(len(header).to_bytes(8, "little") + header + os.urandom(100_000))
    wait_for_the_next_tick(path)
    meddler = Meddler(moment, lambda: touch(path))
    with casweights.open("memory://", create=True, reporter=meddler) as repo:
        snapshot = repo.commit(path)
        assert b"".join(repo.read(snapshot, name)) == path.read_bytes()


APPEARING: dict[str, Callable[[Path], object]] = {
    "file": lambda model: write_tree({"new": b"1"}, model),
    "file in a folder": lambda model: write_tree({"sub/new": b"1"}, model),
    "folder": lambda model: write_tree({"more/new": b"1"}, model),
    "link to a file": lambda model: (model / "new").symlink_to("config.json"),
    "link to a folder": lambda model: (model / "new").symlink_to(model / "sub"),
    "hard link": lambda model: (model / "new").hardlink_to(model / "config.json"),
}


@pytest.mark.parametrize("moment", ["started", "advanced"])
@pytest.mark.parametrize("appear", APPEARING.values(), ids=APPEARING)
def test_file_that_appears_during_a_commit_is_an_error(
    tmp_path: Path, appear: Callable[[Path], object], moment: str
) -> None:
    model = tmp_path / "model"
    write_tree({"config.json": b"{}", "sub/a": b"1"}, model)
    store = MemoryStore()
    todo = [appear]

    def meddle() -> None:
        if todo:
            todo.pop()(model)

    with casweights.open(store, create=True, reporter=Meddler(moment, meddle)) as repo:
        with pytest.raises(InvalidInputError, match=r"new(/a)? appeared") as caught:
            repo.commit(model)
        assert caught.value.code is ErrorCode.SOURCE_CHANGED
        assert repo.branches() == {}
        assert list(store.list("snapshots/")) == []
        again = repo.commit(model)  # now nothing changes the files
        repo.checkout(again, tmp_path / "out")
        assert read_tree(tmp_path / "out").keys() == {file.path for file in again.files}
        assert any("new" in file.path for file in again.files)


def test_files_that_a_commit_leaves_out_may_appear_during_it(tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_tree({"a": b"1"}, model)

    def meddle() -> None:
        write_tree({"x.log": b"1", ".git/config": b"1", "logs/x": b"1"}, model)
        (model / "empty").mkdir(exist_ok=True)
        casweights.open(model / "store", create=True).close()

    with casweights.open(
        "memory://", create=True, reporter=Meddler("advanced", meddle)
    ) as repository:
        exclude = (*casweights.config.DEFAULT_EXCLUDE, "*.log", "logs")
        snapshot = repository.commit(model, exclude=exclude)
    assert [file.path for file in snapshot.files] == ["a"]


def test_commit_of_one_file_ignores_new_files_next_to_it(
    tmp_path: Path,
) -> None:
    write_tree({"a": b"1"}, tmp_path)
    meddler = Meddler("advanced", lambda: (tmp_path / "b").touch())
    with casweights.open("memory://", create=True, reporter=meddler) as repo:
        assert len(repo.commit(tmp_path / "a").files) == 1


@pytest.fixture(params=[2 * 10**9, 10**9, 10**8, 10**7], ids="granule of {} ns".format)
def coarse(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make file times multiples of this number of nanoseconds, as on a coarse file system."""
    tick: int = request.param

    def status(file: Path | int) -> Any:
        real = os.stat(file)
        names = ("st_mode", "st_ino", "st_dev", "st_size", "st_mtime_ns", "st_ctime_ns")
        values = {name: getattr(real, name) for name in names}
        for name in ("st_mtime_ns", "st_ctime_ns"):
            values[name] -= values[name] % tick
        return SimpleNamespace(**values)

    monkeypatch.setattr(files, "_status", status)
    return tick


@pytest.mark.usefixtures("coarse")
def test_rewrite_within_one_tick_of_the_file_system_is_noticed(tmp_path: Path) -> None:
    """The size and the time of the file do not change."""
    path = tmp_path / "weights.bin"
    config = StoreConfig(chunk_size=64 * KiB)
    meddler = Meddler("advanced", lambda: path.write_bytes(os.urandom(256 * KiB)))
    with casweights.open("memory://", create=True, config=config, reporter=meddler) as repo:
        for _ in range(3):
            path.write_bytes(os.urandom(256 * KiB))
            with pytest.raises(InvalidInputError) as caught:
                repo.commit(path)
            assert caught.value.code is ErrorCode.SOURCE_CHANGED
        assert repo.branches() == {}


@pytest.mark.usefixtures("coarse")
def test_file_written_just_before_a_commit_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(256 * KiB))
    with casweights.open("memory://", create=True) as repo:
        assert b"".join(repo.read(repo.commit(path), path.name)) == path.read_bytes()


def test_file_that_has_not_changed_lately_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(256 * KiB))
    os.utime(path, (10**9, 10**9))
    reads = []
    read = DiskFile.read

    def count(self: DiskFile, *args: Any) -> Any:
        reads.append(self.path)
        return read(self, *args)

    monkeypatch.setattr(DiskFile, "read", count)
    with casweights.open("memory://", create=True) as repo:
        repo.commit(path)
    assert reads == ["weights.bin"]


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (1_700_000_000_000_000_000, 2 * 10**9),
        (1_700_000_001_000_000_000, 10**9),
        (1_700_000_001_500_000_000, 10**8),
        (1_700_000_001_230_000_000, 10**7),
        (1_700_000_001_234_567_800, 100),
        (1_700_000_001_234_567_891, 1),
    ],
)
def test_granule_is_read_from_the_time_itself(moment: int, expected: int) -> None:
    ticks = files.granule(moment) - expected
    assert 0 < ticks <= 10**7  # nanoseconds of a tick of the kernel's clock
