"""Version control for model weights on dumb object storage.

Example:
    >>> import casweights
    >>> store = casweights.open("./store", create=True)
    >>> snapshot = store.commit("./my-model", message="first")
    >>> store.checkout(snapshot.id, "./copy")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casweights.config import Keep, RemoteOptions, StoreConfig
    from casweights.errors import (
        CasweightsError,
        ClosedError,
        ConflictError,
        ErrorCode,
        IntegrityError,
        InvalidInputError,
        NotFoundError,
        StaleError,
        StoreError,
        UnsupportedError,
        WrongProcessError,
    )
    from casweights.events import Reporter
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.opening import open_repository as open
    from casweights.operations.load import LazyTensor
    from casweights.repository import Repository
    from casweights.sync.publisher import Publisher
    from casweights.sync.subscriber import Subscriber
    from casweights.system.version import __version__

# The module of each public name; `__getattr__` imports it when the name is first used, so that
# importing the package stays fast.
_HOMES = {
    "CasweightsError": "errors",
    "ClosedError": "errors",
    "ConflictError": "errors",
    "ErrorCode": "errors",
    "IntegrityError": "errors",
    "InvalidInputError": "errors",
    "Keep": "config",
    "LazyTensor": "operations.load",
    "NotFoundError": "errors",
    "RemoteOptions": "config",
    "Publisher": "sync.publisher",
    "Reporter": "events",
    "Repository": "repository",
    "Snapshot": "format.manifest",
    "SnapshotId": "ids",
    "StaleError": "errors",
    "StoreConfig": "config",
    "StoreError": "errors",
    "Subscriber": "sync.subscriber",
    "UnsupportedError": "errors",
    "WrongProcessError": "errors",
    "__version__": "system.version",
    "open": "opening",
}

__all__ = [
    "CasweightsError",
    "ClosedError",
    "ConflictError",
    "ErrorCode",
    "IntegrityError",
    "InvalidInputError",
    "Keep",
    "LazyTensor",
    "NotFoundError",
    "Publisher",
    "RemoteOptions",
    "Reporter",
    "Repository",
    "Snapshot",
    "SnapshotId",
    "StaleError",
    "StoreConfig",
    "StoreError",
    "Subscriber",
    "UnsupportedError",
    "WrongProcessError",
    "__version__",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'casweights' has no attribute {name!r}")
    module = import_module(f"casweights.{_HOMES[name]}")
    value = getattr(module, "open_repository" if name == "open" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
