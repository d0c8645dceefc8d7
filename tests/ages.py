"""Stores whose objects a test makes older, so that nothing has to wait for a grace time."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore

if TYPE_CHECKING:
    from casweights.stores.base import ObjectStore

DAY = timedelta(days=1)
GRACE = 7 * DAY


def age(store: ObjectStore, by: timedelta) -> None:
    """Let time pass: make every object of a store older."""
    directory = store.ability(LocalStore)
    if directory is not None:
        for info in list(directory.list()):
            path = directory.root / info.name
            then = path.stat().st_mtime_ns - int(by.total_seconds() * 1e9)
            os.utime(path, ns=(then, then))
        return
    memory = store.ability(MemoryStore)
    assert memory is not None
    created = memory._created
    for name in created:
        created[name] -= int(by.total_seconds() * 1e6)
