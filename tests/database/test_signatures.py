"""Signatures in a store: what a search finds and costs, merges, and what damage does."""

from __future__ import annotations

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casweights.database import signatures
from casweights.database.coarse import join, rank
from casweights.database.signatures import MAX_LOOSE, SignatureStore
from casweights.errors import ErrorCode, StoreError
from casweights.format import names
from casweights.format.dtypes import DTYPES
from casweights.format.features import coarse_row
from casweights.format.hashing import checksum
from casweights.format.sampling import Grid, count
from casweights.format.signature import Signature
from casweights.format.signatures import (
    MAX_OBJECT,
    MAX_SIGNATURE,
    Entry,
    encode_many,
    encode_one,
    rows_size,
    signature_name,
)
from casweights.ids import SnapshotId
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.testing.counting import CountingStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.stores.base import ObjectInfo, ObjectStore
    from casweights.system.buffers import Buffer

GRIDS = (Grid(512, 512, DTYPES["BF16"]),) * 30


def named(number: int) -> SnapshotId:
    return SnapshotId(number.to_bytes(32))


def random_signature(seed: int, grids: tuple[Grid, ...] = GRIDS) -> Signature:
    numbers = np.random.default_rng(seed)
    weights = numbers.normal(0, 0.02, sum(map(count, grids))).astype(np.float32)
    return Signature(grids, (weights.view(np.uint32) >> 16).astype(np.uint16))


def tuned(base: Signature, share: float, seed: int) -> Signature:
    """Return the signature of a version with some elements that are one step larger."""
    steps = np.random.default_rng(seed).random(len(base.values)) < share
    return Signature(base.grids, base.values + steps.astype(np.uint16))


class Lister(CountingStore):
    """Counts listings, too."""

    lists = 0

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.lists += 1
        return super().list(prefix)


@pytest.fixture
def store() -> Lister:
    return Lister(MemoryStore())


def fill(store: SignatureStore, many: Sequence[Signature], first: int = 0) -> None:
    store.add(signature.entry(named(first + n)) for n, signature in enumerate(many))


def found(store: SignatureStore, signature: Signature, most: int = 64) -> list[int]:
    return [int.from_bytes(near.snapshot) for near in store.nearest(signature, most=most)]


def test_relatives_are_found_the_nearest_first(store: Lister) -> None:
    base = random_signature(0)
    family = [tuned(base, share, n) for n, share in enumerate((0.02, 0.3, 0.9))]
    fill(SignatureStore(store), [random_signature(n) for n in range(100, 140)])
    fill(SignatureStore(store), family, first=1000)
    assert found(SignatureStore(store), base) == [1000, 1001, 1002]
    assert found(SignatureStore(store), random_signature(999)) == []


def test_a_version_made_of_parts_of_two_finds_both_before_a_sibling_of_one(store: Lister) -> None:
    one, two = random_signature(1), random_signature(2)
    most = len(one.values) * 4 // 7
    merged = Signature(GRIDS, np.concatenate([one.values[:most], two.values[most:]]))
    fill(SignatureStore(store), [one, tuned(one, 0.02, 1), tuned(one, 0.02, 2), two])
    assert set(found(SignatureStore(store), merged, most=2)) & {0, 1, 2}
    assert 3 in found(SignatureStore(store), merged, most=2)


def test_a_search_among_a_thousand_needs_few_requests(store: Lister) -> None:
    base = random_signature(0)
    writer = SignatureStore(store)
    for start in range(0, 1000, 100):
        fill(writer, [random_signature(start + n) for n in range(1, 101)], first=start)
        writer.merge()
    fill(writer, [tuned(base, 0.1, 1)], first=5000)
    reader = SignatureStore(store)
    store.reset()
    store.lists = 0
    assert found(reader, base) == [5000]
    assert store.lists == 1
    assert len(store.reads) <= 4
    store.reset()
    assert found(reader, base) == [5000]
    assert store.reads == []  # objects never change


def test_merges_leave_few_objects_and_lose_nothing(store: Lister) -> None:
    writer, written = SignatureStore(store), 0
    for n in range(1000):
        fill(writer, [random_signature(n)], first=n)
        if n % 10 == 0:
            writer.merge()
    objects = [info.name for info in store.list(names.SIGNATURES)]
    several = [name for name in objects if len(name) > 64 + len(names.SIGNATURES)]
    assert len(objects) - len(several) <= MAX_LOOSE + 10
    assert len(several) <= 5
    assert writer.versions() == {named(n) for n in range(1000)}
    written = sum(nbytes for _, nbytes in store.writes)
    assert written <= 5 * 1000 * len(
        b"".join(encode_one(random_signature(0).entry(named(0))).parts)
    )


def test_a_merge_is_not_due_while_there_are_few(store: Lister) -> None:
    writer = SignatureStore(store)
    fill(writer, [random_signature(n) for n in range(MAX_LOOSE)])
    assert writer.merge() == 0
    fill(writer, [random_signature(MAX_LOOSE)], first=MAX_LOOSE)
    assert writer.merge() == MAX_LOOSE + 1
    assert len(list(store.list())) == 1


class Gated(WrapperStore):
    """Lets several writers list before any of them writes."""

    def __init__(self, inner: ObjectStore, gate: threading.Barrier) -> None:
        super().__init__(inner)
        self._gate = gate

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        self._gate.wait(10)
        return super().put(name, parts)


@pytest.mark.parametrize("_", range(10))
def test_two_writers_that_merge_at_once_lose_nothing(_: int) -> None:
    inner, gate = MemoryStore(), threading.Barrier(2)
    fill(SignatureStore(inner), [random_signature(n) for n in range(70)])
    with ThreadPoolExecutor(2) as pool:
        merges = [pool.submit(SignatureStore(Gated(inner, gate)).merge) for _ in range(2)]
        assert [merge.result(20) for merge in merges] == [70, 70]
    assert SignatureStore(inner).versions() == {named(n) for n in range(70)}


class AddOnly(WrapperStore):
    """A store that refuses deletions."""

    def delete_all(self, names: Sequence[str]) -> None:
        raise StoreError(ErrorCode.NO_PERMISSION, "you may only add objects")


def test_without_the_right_to_delete_signatures_are_merged_once() -> None:
    inner = MemoryStore()
    writer = SignatureStore(AddOnly(inner))
    fill(writer, [random_signature(n) for n in range(70)])
    assert writer.merge() == 70
    assert writer.merge() == 0
    assert len(list(inner.list())) == 71
    assert SignatureStore(AddOnly(inner)).merge() == 0
    assert found(SignatureStore(inner), random_signature(3)) == [3]


def test_signatures_of_versions_that_are_gone_are_dropped(store: Lister) -> None:
    writer = SignatureStore(store)
    fill(writer, [random_signature(n) for n in range(80)])
    writer.merge()
    fill(writer, [random_signature(n) for n in range(80, 90)], first=80)
    [several] = [info.name for info in store.list() if "-" in info.name]
    writer.drop({named(0), named(85)})  # too few of the 80 to write them again
    assert writer.versions() == {named(n) for n in range(90)} - {named(85)}
    assert store.exists(several)
    writer.drop({named(n) for n in range(40)})
    assert writer.versions() == {named(n) for n in range(40, 90)} - {named(85)}
    assert not store.exists(several)


def test_damaged_objects_are_passed_over_and_reported(store: Lister) -> None:
    writer, base = SignatureStore(store), random_signature(0)
    fill(writer, [tuned(base, 0.1, n) for n in range(3)])
    [rows, content] = encode_one(tuned(base, 0.1, 1).entry(named(1))).parts
    for number, parts in ((1, [rows[:-1], b"\xff", content]), (2, [rows, content[:-1] + b"\xff"])):
        store.delete(signature_name(named(number)))
        store.inner.put(signature_name(named(number)), parts)
    store.inner.put("signatures/odd", [b"?"])
    assert found(SignatureStore(store), base) == [0]
    assert len(list(writer.problems())) == 3
    fill(writer, [random_signature(n) for n in range(10, 90)], first=10)
    writer.merge()
    assert found(SignatureStore(store), base) == [0]


def test_signatures_with_features_of_others_are_left_out_for_good(store: Lister) -> None:
    """The rows claim all of the features of the version that is sought; the samples do not."""
    base = random_signature(0)
    reader = SignatureStore(store)
    fill(reader, [tuned(base, 0.3, 1)], first=1)
    for n in range(100, 300):
        forged = random_signature(n).entry(named(n))
        store.put(*encode_one(forged._replace(coarse=coarse_row(base.features))))
    store.reset()
    seen = [found(reader, base) for _ in range(10)]
    assert seen[-1] == [1]
    assert all(row in ([], [1]) for row in seen)


def test_objects_that_claim_more_than_they_have_cost_nothing(store: Lister) -> None:
    """Names claim 16,384 versions, a row a signature of 4 MiB, and an object a newer format."""
    base = random_signature(0)
    writer = SignatureStore(store)
    fill(writer, [tuned(base, 0.1, 1)], first=1)
    for n in range(50):
        store.put(f"signatures/16384-{n:064x}", [b"casw" + bytes(5000)])
    entry = base.entry(named(7))
    for forged in (entry._replace(content=bytes(MAX_SIGNATURE)), entry._replace(content=b"\x80")):
        store.put(*encode_one(forged))
        store.reset()
        reader = SignatureStore(store)
        assert found(reader, base) == [1]
        assert sum(nbytes for _, nbytes in store.reads) < 5000
        store.delete(signature_name(named(7)))
    [rows, content] = encode_one(entry).parts
    newer = rows[:5] + b"\3" + rows[6:-8]
    store.put(signature_name(named(7)), [newer, checksum(newer), content])
    fill(writer, [random_signature(n) for n in range(100, 170)], first=100)
    assert writer.merge() == 71
    assert found(SignatureStore(store), base) == [1]
    assert store.exists(signature_name(named(7)))
    writer.drop({named(1)})
    assert len(list(writer.problems())) == 51


def test_an_object_that_is_too_large_is_left_alone(store: Lister) -> None:
    writer = SignatureStore(store)
    fill(writer, [random_signature(n) for n in range(70)])
    store.put(signature_name(named(99)), [bytes(MAX_OBJECT + 1)])
    store.reset()
    assert writer.merge() == 70
    assert sum(nbytes for _, nbytes in store.reads) < 1 << 20
    assert len(list(writer.problems())) == 1


def test_a_merge_of_few_leaves_one_object(store: Lister) -> None:
    """As `maintain` makes it: a search reads one range of one object."""
    writer = SignatureStore(store)
    for first in range(0, 60, 20):
        fill(writer, [random_signature(first + n) for n in range(20)], first=first)
        writer.merge(1, small=1 << 20)
        assert len(list(store.list())) == 1
    store.reset()
    assert found(SignatureStore(store), random_signature(3)) == [3]
    assert len(store.reads) == 2
    assert writer.merge(1, small=1 << 20) == 0


def test_rows_of_ten_thousand_versions_are_searched_in_few_reads(store: Lister) -> None:
    base, row = random_signature(0), coarse_row(random_signature(1).features)
    others = np.random.default_rng(0).integers(0, 1 << 32, (10_000, len(row) // 4), np.uint32)
    entries = [Entry(named(n), other.tobytes(), b"\x80") for n, other in enumerate(others)]
    store.put(*encode_many(entries))
    fill(SignatureStore(store), [tuned(base, 0.1, 1)], first=20_000)
    store.reset()
    tracemalloc.start()
    assert found(SignatureStore(store), base) == [20_000]
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()
    assert len(store.reads) == 3


def forged_rows(
    base: Signature, true: Signature, versions: Sequence[SnapshotId], claims: Sequence[int]
) -> list[Entry]:
    """Return entries whose rows are those of the true relative, or claim the version sought."""
    rows = [coarse_row(true.features), coarse_row(base.features)]
    others = [random_signature(n).entry(named(1)).content for n in (77, 78)]
    content = [*others, b"\x80"]
    return [
        Entry(version, rows[claim % 2], content[claim % 3])
        for version, claim in zip(versions, cycle(claims), strict=False)
    ]


@settings(max_examples=30)
@given(
    st.sampled_from([1, 5, 70, 150]),
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_forged_rows_hide_no_relative(
    count: int, claims: list[int], is_last: bool, merged: bool
) -> None:
    """They claim to be relatives, and one the relative itself, in objects before or after its."""
    store, base = CountingStore(MemoryStore()), random_signature(0)
    true, version = tuned(base, 0.1, 1), named((1 << 256) - 1 if is_last else 0)
    writer = SignatureStore(store)
    writer.add([true.entry(version)])
    forged = forged_rows(base, true, [version, *map(named, range(100, 99 + count))], claims)
    if merged:
        store.put(*encode_many(forged))
    else:
        store.put(*encode_many(forged[:1]))
        writer.add(forged[1:])
    store.reset()
    near = SignatureStore(store).nearest(base)
    assert [one.snapshot for one in near if one.signature == true] == [version]
    assert store.read_bytes(names.SIGNATURES) <= (len(forged) + 1) * rows_size(1) + (1 << 20)


def test_copies_of_one_signature_do_not_hide_others(store: Lister) -> None:
    base = random_signature(0)
    fill(SignatureStore(store), [tuned(base, 0.05, 1)] * 50)
    fill(SignatureStore(store), [tuned(base, 0.3, 2)], first=100)
    assert sorted(found(SignatureStore(store), base)) == [0, 1, 2, 3, 100]


def test_a_distrusted_version_is_not_returned_again(store: Lister) -> None:
    reader, base = SignatureStore(store), random_signature(0)
    fill(reader, [tuned(base, share, 1) for share in (0.02, 0.3)])
    assert found(reader, base, most=1) == [0]
    reader.distrust(reader.nearest(base, most=1)[0].key)
    assert found(reader, base, most=1) == [1]


def test_a_search_reads_a_limited_number_of_bytes(
    store: Lister, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signatures, "_MAX_READ", 5000)
    base = random_signature(0)
    fill(SignatureStore(store), [tuned(base, 0.1, n) for n in range(40)])
    store.reset()
    reader = SignatureStore(store)
    assert 1 <= len(reader.nearest(base)) <= 9
    rows = sum(nbytes for _, nbytes in store.reads if nbytes == rows_size(1))
    assert sum(nbytes for _, nbytes in store.reads) - rows <= 5000


def test_a_search_reads_the_rows_of_a_limited_number_of_objects(
    store: Lister, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next searches read those of others."""
    monkeypatch.setattr(signatures, "_MAX_OBJECTS", 20)
    base = random_signature(0)
    fill(SignatureStore(store), [random_signature(n) for n in range(1, 50)])
    fill(SignatureStore(store), [tuned(base, 0.1, 0)], first=100)
    reader = SignatureStore(store)
    for expected in ([], [], [100]):
        store.reset()
        assert found(reader, base) == expected
        assert len(store.reads) <= 21


def test_a_store_may_keep_none(store: Lister) -> None:
    writer = SignatureStore(store)
    fill(writer, [random_signature(0)])
    assert writer.are_kept()
    writer.keep(wanted=False)
    assert not writer.are_kept()
    assert not SignatureStore(store).are_kept()
    assert [info.name for info in store.list()] == [names.NO_SIGNATURES]
    assert found(writer, random_signature(0)) == []
    assert list(writer.problems()) == []
    writer.keep(wanted=True)
    assert SignatureStore(store).are_kept()


def test_entries_come_from_objects_of_one_and_of_many(store: Lister) -> None:
    writer = SignatureStore(store)
    fill(writer, [random_signature(n) for n in range(70)])
    writer.merge()
    fill(writer, [random_signature(70)], first=70)
    wanted = [named(n) for n in (3, 70, 99)]
    assert writer.entries(wanted) == [random_signature(n).entry(named(n)) for n in (3, 70)]


def test_versions_without_features_are_no_relatives() -> None:
    constant = Signature(GRIDS, np.zeros(sum(map(count, GRIDS)), np.uint16))
    row = np.frombuffer(coarse_row(constant.features), "<u4")
    assert rank(constant.features, row[None], 9) == []
    assert rank(random_signature(0).features, join([]), 9) == []
