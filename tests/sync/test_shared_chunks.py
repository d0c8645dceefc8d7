"""Live sync of small tensors that share chunks: on any target, exactly, and with few bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights import Publisher, StaleError, Subscriber
from casweights.config import StoreConfig
from casweights.content.spans import stored_tensors
from casweights.stores.memory import MemoryStore
from casweights.sync.live import LiveTensor
from casweights.testing import CountingStore
from tests.histories import CHUNK
from tests.sync.models import Recorder, bits, commit_all, flip, memory_of, places, replica
from tests.sync.test_apply import break_exchange
from tests.sync.test_patches import patch_by_hand

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casweights import Repository
    from casweights.sync.subscriber import Verify
    from tests.histories import State

CONFIG = StoreConfig(chunk_size=CHUNK)
COUNT = 40


@pytest.fixture
def objects() -> CountingStore:
    return CountingStore(MemoryStore())


@pytest.fixture
def repo(objects: CountingStore) -> Iterator[Repository]:
    with casweights.open(objects, create=True, config=CONFIG, workers=2) as repository:
        yield repository


def small(seed: int = 0) -> State:
    """Small matrices of two dtypes, an empty one, and a large one among them."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {f"n{k:03}": torch.randn(8, 6, generator=generator) for k in range(COUNT)}
    state |= {f"b{k}": torch.randn(6, generator=generator).bfloat16() for k in range(5)}
    state["n007x"] = torch.empty(0, 3)
    state["n020x"] = torch.randn(CHUNK // 3, generator=generator)
    return state


def moved(state: State, *names: str) -> State:
    """The same state, with some elements of these tensors changed."""
    new = {name: tensor.clone() for name, tensor in state.items()}
    for name in names:
        new[name].view(-1)[1:3] += 1
    return new


def history() -> list[State]:
    first = small()
    second = moved(first, "n001", "b2")
    third = moved(second, "n001", "n002", "n030", "n020x")
    return [first, second, third, small(5)]


def share(repo: Repository, *names: str) -> bool:
    """Whether tensors of the head are in one chunk."""
    (file,) = repo.snapshot("main").files
    return len({s.chunks for s in stored_tensors(file, CHUNK) if s.info.name in names}) == 1


def part(state: State) -> State:
    """A few of the tensors; none of their chunks is complete."""
    return {name: state[name] for name in ("n001", "n003", "b0", "b2", "n030", "n020x")}


@pytest.mark.parametrize("memory", [0, 1000, 1 << 20])
@pytest.mark.parametrize("verify", ["full", "patch"])
@pytest.mark.parametrize("layout", ["plain", "strided"])
def test_a_target_follows_in_place(
    repo: Repository, layout: str, verify: Verify, memory: int
) -> None:
    states = history()
    versions = commit_all(repo, states)
    assert share(repo, "n001", "n002", "n003")
    live = replica(states[0])
    if layout == "strided":
        for name in [name for name in live if name.startswith("n0") and name != "n020x"]:
            live[name] = live[name].mT.contiguous().mT
        live["n003"] = torch.zeros(8, 12)[:, ::2]
    where = places(live)
    with Subscriber(repo, verify=verify, memory=memory) as subscriber:
        for n in (0, 1, 2, 3, 1, 0, 2):
            subscriber.sync(live, to=versions[n])
            assert bits(live) == bits(states[n])
            assert places(live) == where
            subscriber.verify()
            assert subscriber.sync(to=versions[n]).fetched_bytes == 0


def test_a_step_writes_only_what_changed_and_reads_only_differences(repo: Repository) -> None:
    states = history()
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        stats = subscriber.sync(to=versions[1])
        assert stats.changed_elements == 4
        assert stats.fetched_bytes < 100
        stats = subscriber.sync(to=versions[2])
        assert stats.changed_elements == 8
        assert stats.fetched_bytes < 200


def test_a_new_subscriber_finds_the_version_that_its_target_holds(repo: Repository) -> None:
    states = history()
    versions = commit_all(repo, states)
    live = {name: tensor.clone() for name, tensor in states[0].items()}
    with Subscriber(repo) as subscriber:
        assert subscriber.sync(live, to=versions[1]).fetched_bytes < 100
        flip(live["n005"], 3)
        live["n005"].add_(0)  # torch counts it
        stats = subscriber.sync(to=versions[1])
        assert stats.changed_elements == 1
        assert bits(live) == bits(states[1])


@pytest.mark.parametrize("memory", [0, 1 << 20])
@pytest.mark.parametrize("cache", [0, 1 << 20])
def test_a_target_with_some_of_the_tensors_gets_their_bytes_alone(
    objects: CountingStore, repo: Repository, cache: int, memory: int
) -> None:
    states = history()
    versions = commit_all(repo, states)
    with casweights.open(objects, workers=2, cache_size=cache) as store:
        live = replica(part(states[0]))
        where = places(live)
        with Subscriber(store, strict=False, memory=memory) as subscriber:
            for n in (0, 1, 2, 3, 0):
                stats = subscriber.sync(live, to=versions[n])
                assert bits(live) == bits(part(states[n]))
                assert places(live) == where
                if n == 1:
                    assert (stats.fetched_bytes < 100) == (cache > 0)
                subscriber.verify()
            flip(live["n003"], 5)
            with pytest.raises(StaleError, match="n003"):
                subscriber.verify()
            subscriber.sync(to=versions[0])
            assert bits(live) == bits(part(states[0]))


def test_tensors_may_have_other_names_and_another_order(repo: Repository) -> None:
    states = history()
    versions = commit_all(repo, states)
    live = replica({f"m.{name[::-1]}": states[0][name] for name in reversed(states[0])})
    with Subscriber(repo, key_map=lambda name: name.removeprefix("m.")[::-1]) as subscriber:
        for n in (0, 1, 2, 3, 0):
            subscriber.sync(live, to=versions[n])
            assert bits(live) == {f"m.{k[::-1]}": v for k, v in bits(states[n]).items()}
            subscriber.verify()
        assert subscriber.sync(to=versions[1]).fetched_bytes < 100


def test_one_tensor_of_the_target_may_be_two_of_the_version(repo: Repository) -> None:
    states = [state | {"n002": state["n001"].clone()} for state in history()]
    versions = commit_all(repo, states)
    live = replica(states[0])
    live["n002"] = live["n001"]
    with Subscriber(repo) as subscriber:
        for n in (0, 1, 2, 3, 0):
            subscriber.sync(live, to=versions[n])
            assert bits(live) == bits(states[n])
            subscriber.verify()
        differ = states[0] | {"n002": states[0]["n002"] + 1}
        version = repo.commit(differ).id
        with pytest.raises(casweights.InvalidInputError, match="one tensor in the target"):
            subscriber.sync(to=version)


def test_two_tensors_of_the_target_may_be_one_of_the_version(repo: Repository) -> None:
    states = [state | {"n002": state["n001"]} for state in history()]
    versions = commit_all(repo, states)
    live = replica({name: tensor.clone() for name, tensor in states[0].items()})
    with Subscriber(repo) as subscriber:
        for n in (0, 1, 2, 3, 0):
            subscriber.sync(live, to=versions[n])
            assert bits(live) == bits(states[n])
            subscriber.verify()
    with Subscriber(repo) as late:
        assert late.sync(live, to=versions[1]).fetched_bytes < 100


def test_chunks_with_equal_content_are_told_apart(repo: Repository) -> None:
    zeros: State = {f"z{k:03}": torch.zeros(16) for k in range(300)}
    one = moved(zeros, "z123")
    versions = commit_all(repo, [zeros, one])
    live = replica(zeros)
    with Subscriber(repo) as subscriber:
        for n in (0, 1, 0, 1):
            subscriber.sync(live, to=versions[n])
            assert bits(live) == bits([zeros, one][n])
            subscriber.verify()
        assert subscriber.sync(to=versions[0]).changed_elements == 2


def test_a_version_with_other_neighbours_is_followed(repo: Repository) -> None:
    first = small()
    second = {k: v for k, v in moved(first, "n004").items() if k not in ("n002", "b1")}
    second["n0025"] = torch.ones(3)
    versions = commit_all(repo, [first, second])
    live = {name: tensor.clone() for name, tensor in replica(first).items()}
    with Subscriber(repo, strict=False) as subscriber:
        subscriber.sync(live, to=versions[0])
        subscriber.sync(to=versions[1])
        expected = first | {k: v for k, v in second.items() if k in first}
        assert bits(live) == bits(expected)
        subscriber.verify()
        subscriber.sync(to=versions[0])
        assert bits(live) == bits(first)


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_patches_are_those_of_the_tensors(repo: Repository, memory: int) -> None:
    states = history()
    versions = commit_all(repo, states)
    live, host = (moved(states[0]) for _ in range(2))
    with Subscriber(repo, memory=memory) as subscriber:
        for n in (0, 1, 2, 3, 1):
            found = patch_by_hand(host, subscriber.patches(live, to=versions[n]))
            assert bits(host) == bits(live) == bits(states[n])
            if n == 2 and memory:
                assert found.keys() == {"n001", "n002", "n030", "n020x"}
                assert all(len(patch.values) == 2 for patch in found.values())


def test_a_failed_write_of_a_member_is_undone(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = history()
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        subscriber.sync(live, to=versions[0])
        for k in range(1, 5):
            with monkeypatch.context() as patch:
                break_exchange(patch, {k}, RuntimeError("no"))
                with pytest.raises(RuntimeError):
                    subscriber.sync(to=versions[2])
            assert bits(live) == bits(states[0])
            assert subscriber.version == versions[0]
            subscriber.verify()
        subscriber.sync(to=versions[2], expect=versions[0])
        assert bits(live) == bits(states[2])


def test_a_torn_member_is_repaired(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    states = history()
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo, memory=0) as subscriber:
        subscriber.sync(live, to=versions[0])
        with monkeypatch.context() as patch:
            break_exchange(patch, {3}, RuntimeError("no"), after=True)
            with pytest.raises(RuntimeError):
                subscriber.sync(to=versions[2])
        assert subscriber.version is None
        for n in (2, 0):
            subscriber.sync(to=versions[n])
            assert bits(live) == bits(states[n])


def test_views_of_one_memory_are_written_in_order(repo: Repository) -> None:
    def views(tensor: torch.Tensor) -> State:
        return {"first": tensor[:40], "all": tensor.view(8, 12), "last": tensor[30:]}

    bases = [torch.randn(96), torch.randn(96)]
    states = [views(base) for base in bases]
    versions = commit_all(repo, states)
    live = views(torch.zeros(96))
    with Subscriber(repo) as subscriber:
        for n in (0, 1, 0):
            subscriber.sync(live, to=versions[n])
            assert bits(live) == bits(states[n])
            subscriber.verify()


@pytest.mark.parametrize("compare", ["host", "device", "cache"])
def test_a_published_state_shares_chunks_like_a_committed_one(
    repo: Repository, compare: str
) -> None:
    states = history()
    recorder = Recorder()
    with Publisher(repo, "run", compare=compare, reporter=recorder) as publisher:  # type: ignore[arg-type]
        for state in states:
            publisher.publish(state)
            published = publisher.wait()
            assert published is not None
            assert published.files == repo.commit(state, branch="main").files
            assert bits(repo.load("run")) == bits(state)
    assert not repo.verify().problems


def test_members_may_be_on_a_device(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    # A target on the host behaves like one on a device if its memory is not accessed directly.
    monkeypatch.setattr("casweights.sync.live.is_plain_memory", lambda _: False)
    states = history()
    versions = commit_all(repo, states)
    live = replica(states[0])
    with Subscriber(repo) as subscriber:
        for n in (0, 1, 2, 3, 0):
            subscriber.sync(live, to=versions[n])
            assert bits(live) == bits(states[n])
            subscriber.verify()
    assert LiveTensor(live["n001"], CHUNK)._memory is None
    assert len(memory_of(live["n001"])) == live["n001"].nbytes
