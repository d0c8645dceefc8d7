"""The stores of the model of collections: what is known of each, and the faults that they have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights import Subscriber
from tests.operations.collecting import open_repo
from tests.operations.troubles import Crashing, Lagging, Losing, Partial

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from casweights import SnapshotId
    from casweights.stores.base import ObjectStore

FAULTS: dict[str, Callable[[ObjectStore, int], ObjectStore]] = {
    "lag": lambda objects, number: Lagging(objects, 1 + number % 12),
    "lost": lambda objects, number: Losing(objects, 1 + number % 12),
    "part": Partial,
    "killed before": lambda objects, number: Crashing(objects, number, done=False),
    "killed after": lambda objects, number: Crashing(objects, 1 + number % 20, done=True),
}


class Side:
    """One store, two handles on it, and what the model knows of it."""

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects
        self.repos = [open_repo(objects, create=True) for _ in range(2)]
        self.subscribers = [Subscriber(repo) for repo in self.repos]
        self.deleted: dict[str, SnapshotId] = {}  # branches, and what they named
        self.expired: set[SnapshotId] = set()  # those with a record
        self.branches: dict[str, SnapshotId] = {}
        self.tags: dict[str, SnapshotId] = {}
        self.seen: dict[SnapshotId, datetime] = {}  # when a version was last reachable
