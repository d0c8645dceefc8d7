"""Random histories of tensors whose rows come and go, through everything that moves frames."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import casweights
from casweights import Keep, Subscriber
from casweights.database import reflog
from casweights.format.codecs import Encoding
from casweights.operations import maintain
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.testing.states import assert_same_state
from tests.ages import age
from tests.histories import CHUNK, step, weights
from tests.lengths import examples
from tests.operations.collecting import CONFIG, LONG, open_repo

if TYPE_CHECKING:
    from casweights import Repository, SnapshotId
    from tests.histories import State

    Versions = dict[SnapshotId, State]

ROOT = Path(__file__).parents[2]
COLUMNS = 256
ROWS = CHUNK // (2 * COLUMNS)  # of a chunk


class Change(NamedTuple):
    """What happens to the tensors from one version to the next.

    Attributes:
        rows: New numbers of rows of the tensors, as shares of a chunk.
        density: Share of the elements that move.
        seed: Which elements move, and what new rows contain: zeros if it is even.
        fork: Whether the next version follows the first again.
    """

    rows: tuple[float, float]
    density: float
    seed: int
    fork: bool


rows = st.sampled_from([0.1, 0.3, 1.0, 1.1, 2.0, 2.4])
changes = st.builds(
    Change,
    rows=st.tuples(rows, rows),
    density=st.sampled_from([0.0, 0.01, 0.3]),
    seed=st.integers(0, 9),
    fork=st.booleans(),
)


def resized(tensor: torch.Tensor, share: float, change: Change) -> torch.Tensor:
    count = int(share * ROWS)
    kept = tensor[:count]
    if change.density:
        kept = step(kept.reshape(-1), change.density, change.seed).reshape(kept.shape)
    new = weights(3, change.seed)[: (count - len(kept)) * COLUMNS].reshape(-1, COLUMNS)
    return torch.cat([kept, new * (change.seed % 2)])


def first_state() -> State:
    tensors = (weights(3, n)[: 2 * ROWS * COLUMNS].reshape(-1, COLUMNS) for n in (0, 1))
    return dict(zip(("emb", "head"), tensors, strict=True))


def next_state(state: State, change: Change) -> State:
    both = zip(state.items(), change.rows, strict=True)
    return {name: resized(tensor, share, change) for (name, tensor), share in both}


def commit_all(repo: Repository, history: list[Change]) -> Versions:
    state = first = first_state()
    versions = {repo.commit(state).id: state}
    for change in history:
        state = next_state(first if change.fork else state, change)
        versions[repo.commit(state).id] = state
    return versions


def check(store: LocalStore, versions: Versions) -> None:
    """Check a store with a new handle, and with the independent reader."""
    with casweights.open(store) as repo:
        assert repo.verify().problems == ()
        for version, state in versions.items():
            assert_same_state(repo.load(version), state)


def check_alone(store: LocalStore, version: SnapshotId, state: State, folder: Path) -> None:
    command = [sys.executable, "-sE", "-m", "tools.spec.reader", *map(str, (store.root, version))]
    subprocess.run([*command, str(folder)], check=True, cwd=ROOT)
    from safetensors.torch import load_file

    assert_same_state(load_file(folder / "model.safetensors"), state)


def follow(repo: Repository, versions: Versions) -> None:
    """Sync live tensors to each version; only those of the same shapes are the same replica."""
    live: State = {}
    with Subscriber(repo) as subscriber:
        for version, state in versions.items():
            if any(live[n].shape != tensor.shape for n, tensor in state.items() if live):
                live = {}
            live = live or {name: torch.zeros_like(tensor) for name, tensor in state.items()}
            subscriber.sync(live, to=version)
            assert_same_state(live, state)


def push(repo: Repository, target: LocalStore, versions: Versions, *, history: bool) -> None:
    casweights.open(target, create=True, config=CONFIG).close()
    with casweights.open(target) as other:
        repo.push(other, ["main"], history=history)
        other.repack()
    head = list(versions)[-1]
    check(target, versions if history else {head: versions[head]})


def expire(repo: Repository, store: LocalStore, versions: Versions) -> Versions:
    """Let every other version go, and collect and fold what that frees."""
    repo.expire([Keep(every=2), Keep(last=1)], apply=True)
    repo.maintain()
    for _ in range(3):
        age(store, LONG)
        repo.gc(apply=True)
    return {version.id: versions[version.id] for version in repo.log()}


@hypothesis.settings(max_examples=examples(3))
@hypothesis.given(history=st.lists(changes, min_size=1, max_size=6))
def test_any_history_of_other_rows_comes_back_from_everywhere(history: list[Change]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(reflog, "RECENT_MOVES", 1)
        patch.setattr(maintain, "_RECENT_PACKS", 1)
        work = Path(folder)
        store = LocalStore(work / "store")
        with open_repo(store, create=True) as repo:
            versions = commit_all(repo, history)
            check(store, versions)
            head = list(versions)[-1]
            check_alone(store, head, versions[head], work / "alone")
            repo.checkout(head, work / "out")
            repo.checkout(next(iter(versions)), work / "out", overwrite=True)
            follow(repo, versions)
            push(repo, LocalStore(work / "all"), versions, history=True)
            push(repo, LocalStore(work / "one"), versions, history=False)
            repo.maintain()
            check(store, versions)
            kept = expire(repo, store, versions)
            check(store, kept)
            repo.repack()
        check(store, kept)


def test_such_histories_have_derived_frames() -> None:
    change = Change((1.1, 0.3), 0.01, 1, fork=False)
    with open_repo(MemoryStore(), create=True) as repo:
        commit_all(repo, [change, change._replace(rows=(1.1, 0.1), fork=True)])
        assert repo.stats().encodings[Encoding.DERIVED.name.lower()] >= 2
