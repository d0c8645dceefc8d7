"""Encoding: several processes encode files, and one of them commits all as one version."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.content.states import StateFile
from casweights.errors import ConflictError, InvalidInputError
from casweights.events import Reporter
from casweights.format.names import pack_name
from casweights.operations.commit import Description, commit_encoded
from casweights.operations.encode import encode_files
from casweights.operations.encoded_files import EncodedFiles, join
from casweights.stores.base import ObjectStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.states import assert_same_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights import Repository
    from casweights.results import CommitStats
    from casweights.system.buffers import Buffer
    from casweights.testing import CountingStore

SAID = Description(
    parents=(), time=datetime(2026, 1, 1, tzinfo=UTC), author="a", message="m", metadata={"n": 1}
)


class Stats(Reporter):
    def __init__(self) -> None:
        self.seen: list[CommitStats] = []

    def committed(self, stats: CommitStats) -> None:
        self.seen.append(stats)


@pytest.fixture
def ranks(objects: CountingStore) -> Iterator[list[Repository]]:
    """The same store, opened three times."""
    config = StoreConfig(chunk_size=64 * KiB)
    ranks = [casweights.open(objects, create=True, config=config, workers=1) for _ in range(3)]
    yield ranks
    for repo in ranks:
        repo.close()


def encode(
    repo: Repository, path: str, tensor: torch.Tensor, *, base: str | None = None
) -> EncodedFiles:
    file = StateFile({f"tensor of {path}": tensor})
    file.path = path
    db = repo.database
    before = db.snapshots.load(repo.resolve(base), with_locations=True) if base else None
    part = encode_files(db, [file], parent=before, compression="auto").durable(db)
    twin = pickle.loads(pickle.dumps(part))
    assert twin == part
    assert isinstance(twin, EncodedFiles)
    return twin


def test_committing_joined_parts_reads_no_pack(
    ranks: list[Repository], objects: CountingStore
) -> None:
    tensors = [torch.randn(100, 300), torch.randn(200, 300)]
    parts = [
        encode(repo, path, tensor)
        for repo, path, tensor in zip(
            ranks[:2], ("b.safetensors", "a.safetensors"), tensors, strict=True
        )
    ]
    objects.reset()
    db = ranks[2].database
    stats = db.reporter = Stats()
    snapshot = commit_encoded(db, join(parts), SAID, "main", None)
    assert objects.read_bytes("packs/") == 0
    assert stats.seen[0].new_bytes == sum(tensor.nbytes for tensor in tensors)
    assert stats.seen[0].snapshot == snapshot.id

    with casweights.open(objects) as fresh:
        assert fresh.resolve("main") == snapshot.id
        assert (snapshot.author, snapshot.message, snapshot.metadata) == ("a", "m", {"n": 1})
        assert [file.path for file in fresh.snapshot("main").files] == [
            "a.safetensors",
            "b.safetensors",
        ]
        state = fresh.load("main")
        assert_same_tensor(state["tensor of b.safetensors"], tensors[0])
        assert_same_tensor(state["tensor of a.safetensors"], tensors[1])
        assert fresh.verify().problems == ()


class LocatingStore(WrapperStore):
    """A process's view of a store: it knows locators of objects that it wrote or learned of."""

    batch = ObjectStore.batch

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._locators: dict[str, bytes] = {}

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        self._locators[name] = name.encode()
        return super().put(name, parts)

    def locator(self, name: str) -> bytes | None:
        return self._locators.get(name)

    def use_locator(self, name: str, locator: bytes) -> None:
        self._locators[name] = locator


def test_locators_of_packs_are_kept_when_parts_are_joined(objects: CountingStore) -> None:
    stores = [LocatingStore(objects) for _ in range(3)]
    first, second, third = [casweights.open(store, create=True) for store in stores]
    with first, second, third:
        parts = [encode(first, "a", torch.randn(9)), encode(second, "b", torch.randn(9))]
        snapshot = commit_encoded(third.database, join(parts), SAID, "main", None)
        table = first.database.snapshots.load_stored(snapshot.id).table
    assert len(table.packs) == 2
    assert table.places == {pack: pack_name(pack).encode() for pack in table.packs}


def test_parts_are_stored_as_differences_from_the_base(
    ranks: list[Repository], objects: CountingStore
) -> None:
    tensor = torch.randn(500, 300)
    commit_encoded(ranks[2].database, encode(ranks[0], "a", tensor), SAID, "main", None)
    tensor.view(-1)[::100] += 1
    objects.reset()
    part = encode(ranks[1], "a", tensor, base="main")
    assert 0 < sum(nbytes for _, nbytes in objects.writes) < 0.05 * tensor.nbytes
    db = ranks[2].database
    commit_encoded(db, join([part]), SAID, "main", db.refs.head("main"))
    with casweights.open(objects) as fresh:
        assert_same_tensor(fresh.tensor("main", "tensor of a").load(), tensor)


def test_two_parts_with_the_same_path_are_refused(ranks: list[Repository]) -> None:
    parts = [encode(repo, "a", torch.randn(10)) for repo in ranks[:2]]
    with pytest.raises(InvalidInputError, match="'a'"):
        commit_encoded(ranks[2].database, join(parts), SAID, "main", None)
    assert ranks[2].branches() == {}


def test_joined_parts_raise_a_conflict_if_another_writer_was_first(ranks: list[Repository]) -> None:
    part = encode(ranks[0], "a", torch.randn(10))
    theirs = ranks[1].commit({"theirs": torch.ones(1)})
    with pytest.raises(ConflictError) as error:
        commit_encoded(ranks[2].database, join([part]), SAID, "main", None)
    assert ranks[2].resolve("main") == theirs.id
    assert error.value.snapshot is not None
    assert ranks[1].snapshot(error.value.snapshot).message == "m"
