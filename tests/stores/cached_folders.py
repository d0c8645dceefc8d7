"""Helpers that look into the folder of a cache, and read through it."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from casweights.config import MiB

if TYPE_CHECKING:
    from pathlib import Path
    from typing import NoReturn

    from casweights.stores.cached import CachedStore


PACK = "packs/" + "0f" * 32


DATA = bytes(range(256)) * 64


def extents(folder: Path) -> dict[str, Path]:
    """Return the paths of the cached extents, by file name."""
    return {path.name: path for path in folder.rglob("*-*") if path.is_file()}


def nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def unused_since(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def fail(*_: object, **__: object) -> NoReturn:
    """Raise the error of a full disk, in place of any system call."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill(store: CachedStore, count: int, size: int) -> list[str]:
    """Read one range of each of `count` objects, the first one least recently."""
    names = [f"packs/{n:02}" for n in range(count)]
    for name in names:
        store.inner.put(name, [name.encode() * size])
    for age, name in enumerate(names):
        store.get(name, 0, size)
        (extent,) = object_extents(store, name)
        unused_since(extent, 1000 * (count - age))
    return names


def object_extents(store: CachedStore, name: str) -> list[Path]:
    folder = store._cache._object_folder(name)
    return list(folder.iterdir()) if folder.is_dir() else []


def reads_as_always(store: CachedStore) -> None:
    for _ in range(2):
        assert store.get(PACK, 5, 50) == DATA[5:55]
        assert store.get(PACK) == store.read(PACK, MiB) == DATA
    store.put("packs/new", [b"new"])
    assert store.get("packs/new") == b"new"
    store.forget("packs/new")
    store.delete("packs/new")
    store.delete("packs/never")
    assert not store.exists("packs/new")
