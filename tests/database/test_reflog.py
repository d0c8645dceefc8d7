"""Logs of refs: the names of moves, which move counts, and the calls that a move costs."""

from __future__ import annotations

from itertools import count, permutations
from typing import TYPE_CHECKING

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.database.moves import GONE, Head, Move, encode_move, latest, parse_move
from casweights.database.reflog import RECENT_MOVES, RefLog
from casweights.database.refs import Refs
from casweights.errors import ConflictError, ErrorCode, IntegrityError, StoreError
from casweights.format import names
from casweights.format.envelope import ObjectKind, seal
from casweights.ids import SnapshotId
from casweights.stores.base import Capabilities, ObjectInfo, ObjectStore
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from tests.racing import seen_now

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.system.buffers import Buffer

A, B, C, D = (SnapshotId(bytes([digit]) * 32) for digit in (0xAA, 0xBB, 0xCC, 0xDD))
EXCLUSIVE = pytest.mark.parametrize("exclusive", [True, False], ids=["exclusive", "by the clock"])


class Bucket(MemoryStore):
    """A store with a clock, and by default without exclusive create.

    Attributes:
        listed: Number of objects that listings have shown.
        hidden: Prefixes of the names of objects that listings leave out.
    """

    def __init__(self, *, exclusive: bool = False) -> None:
        super().__init__()
        self.capabilities = Capabilities(exclusive_create=exclusive, clock_skew=0.0)
        self.listed = 0
        self.hidden: set[str] = set()
        self._clock = count(1)
        self._created: dict[str, int] = {}

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        created = super().put(name, parts)
        if created:
            self._created[name] = next(self._clock)
        return created

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        infos = [
            ObjectInfo(info.name, info.size, self._created[info.name])
            for info in super().list(prefix)
            if not info.name.startswith(tuple(self.hidden))
        ]
        self.listed += len(infos)
        return iter(infos)


def put_move(
    store: ObjectStore, position: int, snapshot: SnapshotId, *, named: bool, says: SnapshotId
) -> str:
    """Put a move of ``main`` to `snapshot`, whose content names the version `says`."""
    name = names.move_name(names.HEADS, "main", position, snapshot if named else None)
    store.put(name, [seal(ObjectKind.REF, msgpack.packb({"snapshot": says, "time": 1}))])
    return name


def move(position: int, created: int = 0, snapshot: SnapshotId | None = None) -> Move:
    """Return a move of ``main`` as a listing shows it."""
    name = names.move_name(names.HEADS, "main", position, snapshot)
    return parse_move(ObjectInfo(name, 100, created), names.HEADS)


def mark(position: int, created: int = 0) -> Move:
    """Return a mark of ``main`` as a listing shows it."""
    name = names.move_name(names.HEADS, "main", position, GONE, A, suffix=names.OFF_SUFFIX)
    return parse_move(ObjectInfo(name, 100, created), names.HEADS)


PARTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,20}", fullmatch=True).filter(
    lambda part: not part.endswith((names.REF_SUFFIX, names.STEP_SUFFIX))
)


@given(
    kind=st.sampled_from([names.HEADS, names.TAGS]),
    ref=st.lists(PARTS, min_size=1, max_size=3).map("/".join),
    position=st.integers(1, 10**names.POSITION_DIGITS - 1),
    created=st.integers(0, 1 << 60),
    way=st.lists(st.binary(min_size=32, max_size=32).map(SnapshotId), max_size=2),
    writer=st.sampled_from(["", "0123456789abcdef"]),
)
def test_the_name_of_a_move_is_parsed_into_its_parts(
    kind: str, ref: str, position: int, created: int, way: list[SnapshotId], writer: str
) -> None:
    snapshot, before = [*way, None, None][:2]
    name = names.move_name(kind, ref, position, snapshot, before, writer if way else "")
    parsed = parse_move(ObjectInfo(name, 100, created), kind)
    assert parsed == Move(name, ref, position, created, snapshot, before)


@pytest.mark.parametrize(
    "rest",
    [
        "000000000001.ref",  # without the name of a ref
        "main",
        "main/1.ref",
        "main/0000000000001.ref",
        "main/000000000001",
        "main/000000000001.ref.ref",
        "main/000000000001-.ref",
        f"main/000000000001-{A}",
        f"main/000000000001-{str(A)[1:]}.ref",
        f"main/000000000001-{A}0.ref",
        f"main/000000000001-{str(A).upper()}.ref",
        f"main/000000000001--{A}.ref",
        f"main/000000000001-{A}-{A}-{A}.ref",
        f"main/000000000001-{A}-0123456789abcde.ref",
        "main/000000000001-0123456789abcdef.ref",
        "main/000000000001.step",  # without a version
        f"main/000000000001-{A}.step.ref",
        f"main/000000000001-{A}.steps",
        f"main/000000000001-{GONE}.step",
        f"main/000000000001-{A}-{B}.off",
        f"main/000000000001-{GONE}.off",
        f"main/000000000001-{GONE}-{GONE}.off",
        f"main/000000000001-{GONE}-{A}-0123456789abcdef.off",
        f"a.step/000000000001-{A}.step",
        f"main/{chr(0x661) * 12}.ref",  # digits, but not ASCII ones
    ],
)
def test_names_that_no_move_can_have_are_refused(rest: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_move(ObjectInfo(names.HEADS + rest, 100), names.HEADS)
    assert caught.value.code is ErrorCode.CORRUPT_OBJECT
    assert rest in str(caught.value)


@pytest.mark.parametrize(
    "moves",
    [
        [move(12, 1, C), move(11, 9, A), move(2, 5, A)],  # the highest position wins
        [move(2, 4, C), move(2, 5, A), move(2, 6, B)],  # at one position, the earliest time wins
        [move(2, 5, A), move(2, 5, B), move(2, 5, C)],  # at one time, the first name wins
        [move(2, 0), move(2, 5, A), move(1, 0)],  # no time counts as the earliest time
        [move(2, 0, A), move(2, 0)],
        [move(1)],
        [mark(2, 9), move(2, 5), move(2, 6, B)],  # a mark wins against moves with earlier times
    ],
)
def test_the_latest_move_does_not_depend_on_the_order_of_listing(moves: list[Move]) -> None:
    for order in permutations(moves):
        assert latest(order) is moves[0]


class TestBothKindsOfNames:
    """A store that was copied to another kind of store contains names of both kinds."""

    @EXCLUSIVE
    def test_moves_of_both_kinds_count(self, exclusive: bool) -> None:
        store = Bucket(exclusive=exclusive)
        put_move(store, 1, A, named=False, says=A)
        put_move(store, 2, B, named=True, says=B)
        refs = Refs(store)
        assert refs.head("main") == Head("main", 2, B)
        third = refs.advance("main", refs.head("main"), C, ready=seen_now)
        assert Refs(store).head("main") == third == Head("main", 3, C)
        fourth = refs.advance("main", third, A, ready=seen_now)
        assert refs.branches() == {"main": A}
        assert [info.name.count("-") for info in store.list(names.HEADS)] == (
            [0, 1, 0, 0] if exclusive else [0, 1, 3, 3]
        )
        for seen in (None, Head("main", 1, A), Head("main", 2, B), third):
            with pytest.raises(ConflictError):
                refs.advance("main", seen, D, ready=seen_now)
        assert refs.head("main") == fourth
        assert len(list(store.list(names.HEADS))) == 4

    @EXCLUSIVE
    @pytest.mark.parametrize("named", [True, False])
    def test_moves_of_both_kinds_compete_for_a_position(self, exclusive: bool, named: bool) -> None:
        store = Bucket(exclusive=exclusive)
        put_move(store, 1, A, named=named, says=A)
        with pytest.raises(ConflictError):
            Refs(store).advance("main", None, B, ready=seen_now)
        assert Refs(store).branches() == {"main": A}
        assert len(list(store.list(names.HEADS))) == 1

    def test_the_expected_version_is_compared_with_the_object_of_the_move(self) -> None:
        store = Bucket()
        put_move(store, 1, A, named=False, says=A)
        with pytest.raises(ConflictError):
            Refs(store).advance("main", Head("main", 1, B), C, ready=seen_now)
        assert Refs(store).advance("main", Head("main", 1, A), C, ready=seen_now).position == 2

    @EXCLUSIVE
    def test_a_ref_below_the_name_of_another_one_is_separate(self, exclusive: bool) -> None:
        store = Bucket(exclusive=exclusive)
        refs = Refs(store)
        for ref, snapshot in (("a", A), ("a/b", B), ("a-b", C)):
            refs.advance(ref, None, snapshot, ready=seen_now)
        assert refs.branches() == {"a": A, "a/b": B, "a-b": C}
        assert [move.ref for move in RefLog(store, names.HEADS).moves("a")] == ["a"]
        refs.branch_deletions.delete("a")
        assert refs.branches() == {"a/b": B, "a-b": C}


def test_a_move_whose_object_contradicts_its_name_is_damaged() -> None:
    store = Bucket()
    name = put_move(store, 1, A, named=True, says=B)
    log = RefLog(store, names.HEADS)
    (lying,) = log.moves("main")
    with pytest.raises(IntegrityError, match=f"{name}.*leads to {B}") as caught:
        log.target(lying)
    assert caught.value.code is ErrorCode.CORRUPT_OBJECT
    (info,) = store.list(names.HEADS)
    with pytest.raises(IntegrityError, match=name):
        Refs(store).target(info)
    honest = put_move(store, 2, C, named=True, says=C)
    assert [log.target(move) for move in log.moves("main") if move.name == honest] == [C]


@EXCLUSIVE
def test_a_move_removed_after_its_listing_has_a_version_only_in_its_name(exclusive: bool) -> None:
    store = Bucket(exclusive=exclusive)
    Refs(store).advance("main", None, A, ready=seen_now)
    log = RefLog(store, names.HEADS)
    (move,) = log.moves("main")
    assert log.snapshot(move) == A
    store.delete(move.name)
    assert log.snapshot(move) == (None if exclusive else A)


@EXCLUSIVE
def test_a_branch_cannot_be_created_below_the_rest_of_an_interrupted_deletion(
    exclusive: bool,
) -> None:
    """A writer that saw no branch before it was created gets a conflict."""
    store = Bucket(exclusive=exclusive)
    refs, head = Refs(store), None
    for snapshot in (A, B, C):
        head = refs.advance("main", head, snapshot, ready=seen_now)
    for info in list(store.list(names.HEADS))[:2]:
        store.delete(info.name)
    with pytest.raises(ConflictError):
        refs.advance("main", None, D, ready=seen_now)
    assert refs.head("main") == head
    assert len(list(store.list(names.HEADS))) == 1


class TestWaiting:
    """A writer waits while a listing does not show the move that it has just put."""

    @pytest.fixture
    def slept(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        slept: list[float] = []
        # The module `time` is one for all, so this holds for `casweights.database.listing`, too.
        monkeypatch.setattr("casweights.database.reflog.time.sleep", slept.append)
        monkeypatch.setattr("casweights.database.reflog.time.monotonic", lambda: sum(slept))
        return slept

    def test_a_writer_waits_until_its_move_is_listed(self, slept: list[float]) -> None:
        class Late(Bucket):
            def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
                return super().list(prefix) if len(slept) >= 4 else iter(())

        store = Late()
        assert Refs(store).advance("main", None, A, ready=seen_now) == Head("main", 1, A)
        assert slept == [0.1, 0.2, 0.4, 0.8]

    def test_a_move_that_is_never_listed_raises_that_its_outcome_is_unknown(
        self, slept: list[float]
    ) -> None:
        """The move is not withdrawn, and counts once listings show it."""
        store = Bucket()
        name = names.move_name(names.HEADS, "main", 1, A).removesuffix(names.REF_SUFFIX)
        store.hidden.add(name)
        with pytest.raises(StoreError, match=f"{name}.*unknown") as caught:
            Refs(store).advance("main", None, A, ready=seen_now)
        assert caught.value.code is ErrorCode.UNREACHABLE
        assert 30 < sum(slept) < 33
        store.hidden.clear()
        assert Refs(store).branches() == {"main": A}

    def test_a_move_that_others_removed_is_a_conflict(self, slept: list[float]) -> None:
        """The listing shows other moves at the position, but never the writer's own."""
        store = Bucket()
        put_move(store, 1, B, named=True, says=B)
        store.hidden.add(f"{names.HEADS}main/000000000001-{A}")
        with pytest.raises(ConflictError):
            Refs(store).advance("main", None, A, ready=seen_now)
        assert 30 < sum(slept) < 33
        assert Refs(store).branches() == {"main": B}


class Calls(WrapperStore):
    """Records the methods that are called."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.calls: list[str] = []

    batch = ObjectStore.batch

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        self.calls.append("put")
        return super().put(name, parts)

    def read(self, name: str, limit: int) -> bytes:
        self.calls.append("read")
        return self.inner.read(name, limit)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.calls.append("list")
        return super().list(prefix)

    def delete_all(self, names: Sequence[str]) -> None:
        self.calls.append("delete_all")
        self.inner.delete_all(names)


@EXCLUSIVE
def test_a_move_costs_the_same_calls_for_any_length_of_the_branch(exclusive: bool) -> None:
    bucket = Bucket(exclusive=exclusive)
    store = Calls(bucket)
    refs = Refs(store)
    to_look = ["list", "read"] if exclusive else ["list"]
    pruned = 0
    for number in range(1000):
        store.calls, bucket.listed = [], 0
        head = refs.head("main")
        assert store.calls == (to_look if number else ["list"])
        refs.advance("main", head, SnapshotId(b"%032d" % number), ready=seen_now)
        calls = ["list"] + (["put", "list"] if not number else [*to_look[1:], "put", *to_look])
        if store.calls[-1] == "delete_all":
            pruned += 1
            calls.append("delete_all")
        assert store.calls == calls
        assert bucket.listed <= 2 * min(number + 1, 200)
    assert pruned == (1000 - 100) // 100


@pytest.mark.parametrize("clock_skew", [None, 0.0])
def test_times_order_moves_only_where_a_store_has_a_clock(clock_skew: float | None) -> None:
    """The files of a directory get other times when they are copied."""
    store = Bucket()
    store.capabilities = Capabilities(clock_skew=clock_skew)
    for snapshot in (B, A):  # B is put first, and A has the name that comes first
        put_move(store, 1, snapshot, named=True, says=snapshot)
    head = latest(RefLog(store, names.HEADS).moves("main"))
    assert head.snapshot == (A if clock_skew is None else B)


def test_a_long_log_costs_no_more_to_parse_than_a_short_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where each position has one move, only the moves at the end of the log are looked at."""
    parsed: list[str] = []

    def parse(info: ObjectInfo, kind: str) -> Move:
        parsed.append(info.name)
        return parse_move(info, kind)

    store = MemoryStore()
    refs = Refs(store)
    monkeypatch.setattr("casweights.database.reflog.parse_move", parse)
    costs = []
    for number in range(199):
        parsed.clear()
        head = refs.head("main", for_update=True)
        assert head == refs.head("main")
        refs.advance("main", head, SnapshotId(b"%032d" % number), ready=seen_now)
        costs.append(len(parsed))
    assert max(costs[5:99]) == max(costs[100:]) <= 8
    assert (
        RefLog(store, names.HEADS).moves("main", 190)
        == RefLog(store, names.HEADS).moves("main")[-10:]
    )


def test_the_newest_moves_are_those_at_the_two_highest_positions() -> None:
    store = Bucket()
    for position, snapshot in ((1, A), (2, B), (2, C), (4, D), (4, A)):
        put_move(store, position, snapshot, named=True, says=snapshot)
    store.put(names.move_name(names.HEADS, "main/below", 9, A), [b"of another branch"])
    found = RefLog(store, names.HEADS).newest("main")
    assert [move.position for move in found] == [2, 2, 4, 4]
    assert RefLog(store, names.HEADS).newest("other") == []


@EXCLUSIVE
def test_a_late_first_move_does_not_count_after_the_first_moves_were_removed(
    exclusive: bool,
) -> None:
    """Its writer saw no branch, and position 1 is free again, just below the other moves."""
    refs = Refs(Bucket(exclusive=exclusive))
    head = None
    for n in range(RECENT_MOVES + 1):
        head = refs.advance("main", head, (A, B)[n % 2], ready=seen_now)
    assert list(refs.trim())
    with pytest.raises(ConflictError):
        refs.advance("main", None, C, ready=seen_now)
    assert refs.head("main") == head


@EXCLUSIVE
def test_maintenance_leaves_the_last_moves_and_displaced_ones(exclusive: bool) -> None:
    store = Bucket(exclusive=exclusive)
    refs, head = Refs(store), None
    for n in range(RECENT_MOVES + 9):
        head = refs.advance("main", head, (A, B)[n % 2], ready=seen_now)
    refs.set_branch("short", C, force=False, ready=seen_now)
    if not exclusive:
        store.put(names.move_name(names.HEADS, "main", 3, D, C, "0" * 16), [encode_move(D)])
    assert list(refs.trim())
    left = len(list(store.list(f"{names.HEADS}main/")))
    assert left == RECENT_MOVES + (not exclusive)
    assert refs.head("main") == head
    assert refs.logged() == ({A, B, C} if exclusive else {A, B, C, D})
    if not exclusive:
        assert [found.snapshot for found in refs.displaced()["main"]] == [D]


def test_damaged_moves_name_no_version() -> None:
    store = Bucket(exclusive=True)
    refs = Refs(store)
    refs.advance("main", None, A, ready=seen_now)
    store.put(names.move_name(names.HEADS, "other", 1), [b"damaged"])
    assert refs.logged() == {A}
