"""Commits that write packs although their versions are small."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from casweights.database.writer import PackWriter

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def packs_apart() -> Iterator[None]:
    """Let commits write packs and bare snapshots, as for versions that one pack cannot hold."""
    with mock.patch.object(PackWriter, "last", PackWriter.finish):
        yield
