"""Tests of handles that are used in a forked child, pickled, copied, or closed."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

import casweights
from casweights import Publisher, Subscriber
from casweights.config import MiB
from casweights.errors import ClosedError, WrongProcessError
from casweights.repository.whole_store import WholeStore
from casweights.stores.memory import MemoryStore
from casweights.stores.readahead import ReadaheadStore
from casweights.system.handles import Handle
from casweights.system.threads import Background, Threads, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

PATIENCE = 60  # seconds after which a hanging child is killed
HANDLES = (
    *("Repository", "LazyTensor", "Database", "Publisher", "Subscriber"),
    *("ReadaheadStore", "Workers", "Threads", "Background"),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Repository]:
    with casweights.open(tmp_path / "store", create=True, workers=2) as repository:
        repository.commit({"w": torch.ones(9)})
        yield repository


@pytest.fixture
def handles(store: Repository) -> Iterator[dict[str, Handle]]:
    """One handle of each kind, by the name of its class."""
    ahead = ReadaheadStore(MemoryStore(), MiB)
    pools = (Workers(1), Threads(1, "test"), Background(1))
    tensor = store.tensor("main", "w")
    with Publisher(store) as publisher, Subscriber(store) as subscriber:
        made = (store, tensor, store.database, publisher, subscriber, ahead, *pools)
        yield {type(handle).__name__: handle for handle in made}
        for pool in pools:
            pool.close()


def in_child(action: Callable[[], object]) -> Any:
    """Return the result of an action that runs in a forked child."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(PATIENCE)
            os.write(sender, json.dumps(action()).encode())
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as answer:
        text = answer.read()
    assert os.waitpid(child, 0)[1] == 0, "the child hangs"
    return json.loads(text)


def error_of(action: Callable[[], object]) -> str:
    """Return the type and message of the error that an action raises."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def members(kind: type) -> list[str]:
    """Return the names of the members that users may use, except those usable anywhere."""
    special = [name for name in ("__enter__", "__getitem__") if hasattr(kind, name)]
    public = [name for name in dir(kind) if not name.startswith("_")]
    anywhere = {"usable_anywhere", "usable_closed", "capabilities"}
    anywhere |= getattr(kind, "usable_anywhere", set())
    return [*special, *(name for name in public if name not in anywhere)]


def use(handle: Handle, name: str) -> None:
    """Read a property, or call a method without arguments, even if it requires some."""
    member = getattr(handle, name)
    if callable(member):
        member()


def own_members(handle: Handle) -> list[str]:
    """Return the members of a handle that `Handle` or a subclass of it defines."""
    defined = {
        name for kind in type(handle).__mro__ if issubclass(kind, Handle) for name in vars(kind)
    }
    return [name for name in members(type(handle)) if name in defined]


@pytest.mark.parametrize("kind", HANDLES)
def test_every_use_in_a_forked_child_raises(handles: dict[str, Handle], kind: str) -> None:
    handle = handles[kind]
    names = own_members(handle)
    assert names
    said = in_child(lambda: {name: error_of(partial(use, handle, name)) for name in names})
    for name in names:
        assert said[name].startswith(
            f"WrongProcessError: this {kind} belongs to process {os.getpid()}"
        ), f"{name}: {said[name]}"


@pytest.mark.parametrize("kind", HANDLES[:5])
def test_the_error_says_how_to_open_the_store(
    handles: dict[str, Handle], store: Repository, kind: str
) -> None:
    handle = handles[kind]
    way = f"casweights.{kind if kind in ('Publisher', 'Subscriber') else 'open'}({store.url!r}"
    assert way in in_child(lambda: error_of(lambda: use(handle, own_members(handle)[0])))
    assert way in error_of(lambda: pickle.dumps(handle))


@pytest.mark.parametrize("kind", HANDLES)
@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_handles_are_not_pickled_or_copied(
    handles: dict[str, Handle], kind: str, send: Callable[[object], object]
) -> None:
    with pytest.raises(WrongProcessError, match=f"a {kind} cannot be copied or sent") as caught:
        send(handles[kind])
    assert isinstance(caught.value, TypeError)  # like all errors of objects that cannot be pickled


@pytest.mark.parametrize("kind", ["Repository", "Publisher", "Subscriber"])
def test_an_error_on_the_way_out_of_the_parents_block_is_kept(
    handles: dict[str, Handle], kind: str
) -> None:
    def leave() -> None:
        with ExitStack() as stack:
            stack.push(cast("Any", handles[kind]))
            raise LookupError("its own")

    assert in_child(lambda: error_of(leave)) == "LookupError: its own"


def test_a_child_may_use_members_that_need_no_thread(store: Repository) -> None:
    assert in_child(lambda: [store.url, repr(store)]) == [store.url, repr(store)]


def test_a_child_opens_the_store_for_itself(store: Repository) -> None:
    def work() -> str:
        with casweights.open(store.url) as mine:
            with Publisher(mine, "live") as publisher:
                publisher.publish({"w": torch.zeros(9)})
            return str(mine.resolve("live"))

    assert in_child(work) == str(store.resolve("live"))


def test_a_child_raises_at_once_although_locks_of_its_parent_are_held(
    handles: dict[str, Handle],
) -> None:
    """The threads that hold them do not exist in the child, so it would wait for ever."""
    held, release = threading.Event(), threading.Event()
    publisher, subscriber = cast("Any", handles["Publisher"]), cast("Any", handles["Subscriber"])
    read_ahead = cast("Any", handles["ReadaheadStore"])

    def hold() -> None:
        with publisher._handoff._state, subscriber._lock, read_ahead._lock:
            held.set()
            release.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(PATIENCE)

    def work() -> list[str]:
        calls = [
            publisher.wait,
            publisher.close,
            lambda: publisher.publish({"w": torch.ones(9)}),
            subscriber.prefetch,
            subscriber.close,
            lambda: handles["ReadaheadStore"].get("packs/a", 0, 1),  # type: ignore[attr-defined]
        ]
        return [error_of(call).partition(":")[0] for call in calls]

    try:
        assert set(in_child(work)) == {"WrongProcessError"}
    finally:
        release.set()
        holder.join()


CLOSABLE = [kind for kind in HANDLES if kind not in ("LazyTensor", "ReadaheadStore")]
ON_A_STORE = ["Repository", "LazyTensor", "Publisher", "Subscriber"]


def assert_every_use_raises(handle: Handle, why: str) -> None:
    names = [name for name in own_members(handle) if name not in handle.usable_closed | {"close"}]
    assert names
    said = {name: error_of(partial(use, handle, name)) for name in names}
    for name in names:
        expected = f"ClosedError: this {type(handle).__name__} {why}: "
        assert said[name].startswith(expected), f"{name}: {said[name]}"
    for name in handle.usable_closed:
        use(handle, name)


def test_these_tests_cover_all_kinds_of_handles(handles: dict[str, Handle]) -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    def is_ours(kind: type) -> bool:
        return kind.__module__.startswith("casweights.") and kind not in (Handle, WholeStore)

    ours = filter(is_ours, below(Handle))
    assert {kind.__name__ for kind in ours} == set(HANDLES) == set(handles)
    assert {kind for kind in HANDLES if hasattr(handles[kind], "close")} == set(CLOSABLE)


@pytest.mark.parametrize("kind", CLOSABLE)
def test_every_use_after_close_raises_the_same_error(handles: dict[str, Handle], kind: str) -> None:
    handle = cast("Any", handles[kind])
    handle.close()
    handle.close()
    if hasattr(handle, "__exit__"):
        handle.__exit__(None, None, None)
    assert_every_use_raises(handle, "was closed")


@pytest.mark.parametrize("kind", ON_A_STORE)
@pytest.mark.parametrize("how", ["close", "__exit__", "the parts"])
def test_every_use_after_the_store_was_closed_raises_the_same_error(
    handles: dict[str, Handle], store: Repository, kind: str, how: str
) -> None:
    closing = {
        "close": store.close,
        "__exit__": lambda: store.__exit__(None, None, None),
        "the parts": store.database.close,
    }
    closing[how]()
    itself = kind == "Repository" and how != "the parts"
    assert_every_use_raises(
        handles[kind], "was closed" if itself else "works on a store that was closed"
    )


def test_a_store_that_is_passed_closed_is_refused(store: Repository, tmp_path: Path) -> None:
    closed = casweights.open(tmp_path / "other", create=True)
    closed.close()
    uses: list[Callable[[], object]] = [
        *(partial(Publisher, closed), partial(Subscriber, closed)),
        *(partial(verb, closed) for verb in (store.push, store.pull)),
    ]
    for use_it in uses:
        with pytest.raises(ClosedError, match="this Repository was closed"):
            use_it()


def test_closing_the_store_ends_work_in_progress_with_the_same_error(
    store: Repository,
) -> None:
    def items() -> Iterator[int]:
        yield 1
        store.close()
        yield 2

    with pytest.raises(ClosedError, match="open the store again"):
        list(store.database.workers.map(abs, items()))
