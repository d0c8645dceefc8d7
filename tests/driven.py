"""Stores of every kind, and a time that tests let pass for them and for this process."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

from casweights.operations import collections
from casweights.stores.hub.store import HubStore
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.stores.retry import RetryStore
from casweights.testing.hub import Conditions, LocalHub
from tests.ages import age
from tests.copying_bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from pathlib import Path

    from casweights.stores.base import ObjectStore

KINDS = ("directory", "memory", "bucket", "hub")
# Bytes without a name are gone at once. The clock of the Hub is far ahead of those of tokens.
FREEING = Conditions(free_after=0.0, token_lifetime=1e9)


class Driven:
    """An empty store, and its time.

    Args:
        kind: One of `KINDS`.
        folder: Where a directory is made.

    Attributes:
        objects: The store.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self._hub = LocalHub() if kind == "hub" else None
        self._ahead = 0.0
        self.objects: ObjectStore
        if self._hub is not None:
            self._hub.create_bucket("me/weights")
            self._hub.conditions = FREEING
            # A writer of bytes that it has sent before is refused once if they were freed since.
            self.objects = RetryStore(
                HubStore("me/weights", "run", endpoint=self._hub.url, clock_skew=0.0)
            )
        elif kind == "directory":
            self.objects = LocalStore(folder / "store")
        else:
            self.objects = Bucket() if kind == "bucket" else MemoryStore()

    def wait(self, by: timedelta) -> None:
        """Let time pass."""
        self._ahead += by.total_seconds()
        if self._hub is not None:
            self._hub.clock.advance(by.total_seconds())
        else:
            age(self.objects, by)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Run the Hub, and the clocks of this process by the time that has passed."""
        monotonic, hub = time.monotonic, self._hub
        with (
            patch.object(time, "monotonic", lambda: monotonic() + self._ahead),
            patch.object(
                collections,
                "machine_time",
                time.time if hub is None else lambda: hub.clock.now() / 1e6,
            ),
        ):
            try:
                yield
            finally:
                if hub is not None:
                    hub.close()
