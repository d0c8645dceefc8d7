"""Stores with findings: a history of versions, and damage to their packs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import casweights
from casweights.config import StoreConfig
from casweights.errors import ErrorCode, StoreError
from casweights.format import names
from casweights.format.finding import Finding, encode_finding, finding_name
from casweights.ids import PackId, Suspect
from casweights.stores.base import Capabilities, ObjectStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.faults import flip_bit
from casweights.testing.states import assert_same_state
from tests.histories import CHUNK, State, history

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from casweights import SnapshotId
    from casweights.system.buffers import Buffer

CONFIG = StoreConfig(chunk_size=CHUNK)
STATES = list(history(5, 0.02, chunks=1))


class Remote(WrapperStore):
    """A store that reports the capabilities of a remote one."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.capabilities = Capabilities(
            exclusive_create=True, listing_lags=True, cheap_reads=False
        )


class ReadOnly(WrapperStore):
    """A store that refuses writes."""

    batch = ObjectStore.batch
    delete_all = ObjectStore.delete_all

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        raise StoreError(ErrorCode.NO_PERMISSION, f"cannot write {name}")

    def delete(self, name: str) -> None:
        raise StoreError(ErrorCode.NO_PERMISSION, f"cannot delete {name}")


def filled(objects: ObjectStore) -> tuple[list[SnapshotId], list[str]]:
    """Fill a store with a history; return its versions and the object with the frames of each."""
    versions: list[SnapshotId] = []
    packs: list[str] = []
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        for state in STATES:
            before = set(listed(objects, names.PACKS))
            versions.append(repo.commit(state, compression="fast").id)
            new = set(listed(objects, names.PACKS)) - before
            packs.append(new.pop() if new else names.snapshot_name(versions[-1]))
    return versions, packs


def listed(objects: ObjectStore, prefix: str) -> list[str]:
    return [info.name for info in objects.list(prefix)]


def replace(objects: ObjectStore, name: str, data: bytes) -> None:
    objects.delete(name)
    objects.put(name, [data])


def pack_of(name: str) -> PackId:
    return PackId.from_hex(name.removeprefix(names.PACKS))


def suspects(objects: ObjectStore) -> list[str]:
    return listed(objects, names.DAMAGED)


def told(objects: ObjectStore, pack: str, offset: int | None = 8, why: str = "") -> str:
    """Put a finding into a store, and return its name."""
    suspect = Suspect(pack_of(pack), offset)
    finding = Finding(suspect=suspect, why=why, time=0)
    objects.put(finding_name(suspect), [encode_finding(finding)])
    return finding_name(suspect)


def assert_readable(
    objects: ObjectStore, versions: Sequence[SnapshotId], but: Container[str] = ()
) -> None:
    """Assert that a fresh client reads all versions of `filled` and the head of every branch.

    Args:
        objects: The store.
        versions: The versions.
        but: Names of the snapshots that are damaged themselves.
    """
    with casweights.open(objects) as repo:
        for version, state in zip(versions, STATES, strict=False):
            if names.snapshot_name(version) not in but:
                assert_same_state(repo.load(version), state)
        for tip in repo.branches().values():
            repo.load(tip)


def broken_elsewhere(objects: ObjectStore, name: str) -> None:
    folder = name[: name.index("/") + 1]
    others = (other for other in listed(objects, folder) if other != name)
    replace(objects, name, objects.get(next(others)))


DAMAGES: dict[str, Callable[[ObjectStore, str], None]] = {
    "payload": lambda objects, name: flip_bit(objects, name, 8 + 100),
    "header": lambda objects, name: flip_bit(objects, name, 3),
    "index": lambda objects, name: flip_bit(objects, name, -40),
    "truncated": lambda objects, name: replace(objects, name, objects.get(name)[:-200]),
    "empty": lambda objects, name: replace(objects, name, b""),
    "another pack": broken_elsewhere,
}


def commit_again(objects: ObjectStore, intact: ObjectStore, state: State) -> None:
    with casweights.open(objects) as repo:
        repo.commit(state, branch="again")
