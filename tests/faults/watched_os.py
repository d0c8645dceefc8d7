"""Intercepts the functions of `os` that some code calls, to act before each call."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = (
    *("open", "mkdir", "replace", "rename", "unlink", "rmdir", "stat", "lstat", "scandir"),
    *("listdir", "fsync", "truncate", "pwrite", "preadv", "pread", "link", "fstat"),
)


class Call(NamedTuple):
    """A call of a function of `os` that is about to happen."""

    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]


@contextmanager
def watched(before: Callable[[Call], None]) -> Iterator[None]:
    """Run `before` ahead of each call of `os` in the block, except for its own calls.

    `fsync` does nothing, because it would only take time.
    """
    lock = threading.RLock()
    inside = threading.local()

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if not getattr(inside, "busy", False):
                with lock:
                    inside.busy = True
                    try:
                        before(Call(name, args, options))
                    finally:
                        inside.busy = False
            return None if name == "fsync" else real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        # Callers look up the functions themselves in these sets.
        patch.setattr(os, "supports_dir_fd", {getattr(os, n) for n in NAMES})
        patch.setattr(os, "supports_fd", {getattr(os, n) for n in NAMES})
        patch.setattr(os, "supports_follow_symlinks", {os.stat})
        yield
