"""A model of a file system: records changes, and yields the states that a crash may leave.

Until a folder is synced, any combination of the changes to its names may survive a crash. Until a
file is synced, any part of its bytes may survive. POSIX promises nothing else, nor does the model
assume anything else.
"""

from __future__ import annotations

import gc
import os
import threading
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Tree = dict[str, bytes | None]  # by path; None is a folder

_ALL = 6  # pending changes up to which every combination is tried
_SAMPLES = 24  # random combinations that are tried for more pending changes


@dataclass(eq=False)
class File:
    """The bytes of a file, the first `synced` of which survive a crash."""

    data: bytearray = field(default_factory=bytearray)
    synced: int = 0


@dataclass(eq=False)
class Folder:
    """The visible names of a folder, those that survive a crash, and the pending changes."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[tuple[str, File | Folder | None]] = field(default_factory=list)

    def change(self, name: str, node: File | Folder | None) -> None:
        """Set or remove a name; the change is pending until `sync`."""
        if node is None:
            del self.names[name]
        else:
            self.names[name] = node
        self.pending.append((name, node))

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.pending.clear()


class Disk:
    """Records all changes of a folder within `recording`.

    Each method `_os_NAME` updates the model after a call of `os.NAME`, given its result and its
    arguments, and returns whether the state after a crash may have changed.

    Args:
        path: The folder, which must be empty.
        changed: Called after every change.
    """

    def __init__(self, path: Path, changed: Callable[[], object]) -> None:
        self.top = Folder()
        self._path = os.path.realpath(path)
        self._changed = changed
        self._lock = threading.RLock()
        self._open: dict[int, str] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        names = [name.removeprefix("_os_") for name in dir(self) if name.startswith("_os_")]
        calls: dict[str, Any] = {name: self._recorded(name) for name in names}
        with patch.multiple(os, **calls):
            yield

    def _recorded(self, name: str) -> Callable[..., Any]:
        original, note = getattr(os, name), getattr(self, f"_os_{name}")

        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                result = original(*args, **options)
                if note(result, *args, **options):
                    self._changed()
            return result

        return call

    def _inside(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Return a path relative to the folder; None if it is outside."""
        if isinstance(path, int):
            return self._open.get(path)
        path = os.fspath(path)
        if dir_fd is not None and not os.path.isabs(path):
            above = self._open.get(dir_fd)
            return None if above is None else os.path.normpath(os.path.join(above, path))
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        return os.path.relpath(path, self._path) if path.startswith(self._path) else None

    def _node(self, path: str) -> File | Folder:
        node: File | Folder = self.top
        for part in path.split("/") if path != "." else ():
            assert isinstance(node, Folder)
            node = node.names[part]
        return node

    def _change(self, path: str | None, node: File | Folder | None) -> bool:
        if path is None:
            return False
        above, _, name = path.rpartition("/")
        folder = self._node(above or ".")
        assert isinstance(folder, Folder)
        folder.change(name, node)
        return True

    def _os_open(
        self, made: int, path: Any, flags: int, *_: Any, dir_fd: int | None = None, **__: Any
    ) -> bool:
        place = self._inside(path, dir_fd)
        if place is None:
            return False
        self._open[made] = place
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL, "an existing file must not be overwritten"
            return self._change(place, File())
        return False

    def _os_close(self, _: None, descriptor: int) -> None:
        self._open.pop(descriptor, None)

    def _os_writev(self, written: int, descriptor: int, parts: Any) -> bool:
        place = self._open.get(descriptor)
        if place is None:
            return False
        node = self._node(place)
        assert isinstance(node, File)
        node.data += b"".join(parts)[:written]
        return False  # a write alone survives nothing: only a sync makes a new state

    def _os_fsync(self, _: None, descriptor: int) -> bool:
        place = self._open.get(descriptor)
        if place is None:
            return False
        node = self._node(place)
        if isinstance(node, Folder):
            node.sync()
        else:
            node.synced = len(node.data)
        return True

    def _os_link(
        self,
        _: None,
        old: Any,
        new: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        **__: Any,
    ) -> bool:
        place = self._inside(old, src_dir_fd)
        assert place is not None
        return self._change(self._inside(new, dst_dir_fd), self._node(place))

    def _os_mkdir(self, _: None, path: Any, *__: Any, dir_fd: int | None = None) -> bool:
        return self._change(self._inside(path, dir_fd), Folder())

    def _os_unlink(self, _: None, path: Any, *, dir_fd: int | None = None) -> bool:
        return self._change(self._inside(path, dir_fd), None)

    _os_rmdir = _os_remove = _os_unlink

    def _os_rename(self, *_: Any, **__: Any) -> bool:
        raise AssertionError("a store must not rename anything")

    _os_replace = _os_rename

    def states(self, chance: random.Random) -> Iterator[Tree]:
        """Yield the states that a crash at this moment may leave: all, or extremes and samples.

        The disk may change in between: a store that is collected deletes its drafts.
        """
        with self._lock, _no_collection():
            top = deepcopy(self.top)
        number = len(list(_pending(top)))
        for kept in _choices(number, chance):
            for torn in (False, True):
                tree: Tree = {}
                _survive(top, "", iter(kept), tree, torn=torn)
                yield tree


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep finalizers of collected objects from running in the ``with`` block."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _pending(folder: Folder) -> Iterator[tuple[str, File | Folder | None]]:
    """Yield the pending changes of a folder and of all folders that may exist below it."""
    yield from folder.pending
    for below in _folders(folder):
        yield from _pending(below)


def _folders(folder: Folder) -> list[Folder]:
    """Return the folders that may exist in a folder after a crash."""
    nodes = [*folder.durable.values(), *(node for _, node in folder.pending)]
    return [*dict.fromkeys(node for node in nodes if isinstance(node, Folder))]


def _choices(number: int, chance: random.Random) -> Iterator[tuple[bool, ...]]:
    """Yield combinations of pending changes that survive: all, or extremes and samples."""
    if number <= _ALL:
        yield from product((False, True), repeat=number)
        return
    yield (False,) * number
    yield (True,) * number
    for n in range(number):
        for value in (False, True):
            yield tuple(value if m == n else not value for m in range(number))
    for _ in range(_SAMPLES):
        yield tuple(chance.random() < 0.5 for _ in range(number))


def _survive(folder: Folder, path: str, kept: Iterator[bool], tree: Tree, *, torn: bool) -> None:
    """Add the names and bytes of a folder that survive a crash to `tree`.

    Args:
        folder: The folder.
        path: Its path, ending in a slash; empty for the top.
        kept: Whether each pending change survives, in the order of `_pending`.
        tree: The files and folders found so far.
        torn: Whether bytes that are not synced are lost.
    """
    names = dict(folder.durable)
    for name, node in folder.pending:
        if not next(kept):
            continue
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node
    places = {id(node): name for name, node in names.items()}
    for below in _folders(folder):  # lost ones, too: each consumes its share of `kept`
        inside: Tree = {}
        place = f"{path}{places.get(id(below))}"
        _survive(below, f"{place}/", kept, inside, torn=torn)
        if id(below) in places:
            tree |= {place: None, **inside}
    for name, file in names.items():
        if isinstance(file, File):
            left = file.synced + (0 if torn else len(file.data) - file.synced)
            tree[f"{path}{name}"] = bytes(file.data[:left])


def write_tree(tree: Tree, target: Path) -> None:
    """Write the files and folders of a tree below `target`, which is created."""
    target.mkdir()
    for path, content in sorted(tree.items()):
        if content is None:
            (target / path).mkdir()
        else:
            (target / path).write_bytes(content)
