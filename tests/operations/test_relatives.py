"""Relatives: a version without a parent is stored as differences from whatever it resembles."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

import casweights
from casweights.config import KiB, StoreConfig
from casweights.format import names
from casweights.format.differences import encode_difference
from casweights.operations import candidates
from casweights.operations.sampling import signature_of
from casweights.stores.memory import MemoryStore
from casweights.testing import CountingStore
from casweights.testing.states import assert_same_state
from tests.operations.damage import copy_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from casweights import Repository, SnapshotId

State = dict[str, torch.Tensor]
LAYERS = {"attn.q": (256, 256), "attn.k": (256, 256), "mlp.up": (384, 256)}
FAMILIES = 20


def base(family: int, layers: int = 4) -> State:
    """Return the weights of an unrelated model."""
    generator = torch.Generator().manual_seed(family)
    return {
        f"layers.{n}.{name}.weight": torch.randn(shape, generator=generator).bfloat16()
        for n in range(layers)
        for name, shape in LAYERS.items()
    }


def tuned(state: State, seed: int, share: float = 0.05) -> State:
    """Return the state with a share of the elements moved by one step."""
    generator = torch.Generator().manual_seed(1000 + seed)
    changed = {}
    for name, tensor in state.items():
        changed[name] = tensor.clone()
        moved = torch.rand(tensor.shape, generator=generator) < share
        changed[name].view(torch.int16)[moved] += 1
    return changed


@cache
def filled() -> MemoryStore:
    """Return a store with unrelated models, and three variants of some on their own branches."""
    store, config = MemoryStore(), StoreConfig(chunk_size=64 * KiB)
    with casweights.open(store, create=True, config=config) as repo:
        for n in range(FAMILIES):
            repo.commit(base(n), branch=f"base-{n}")
        for n in range(0, FAMILIES, 7):
            for k in range(3):
                repo.commit(tuned(base(n), 10 * n + k, 0.3), branch=f"variant-{n}-{k}")
    return store


@pytest.fixture
def family() -> Iterator[Repository]:
    """A copy of that store."""
    with casweights.open(copy_of(filled())) as repo:
        yield repo


def cost(repo: Repository, state: State, parent: str | None = None) -> int:
    """Return the bytes of packs that a version on a new branch adds."""
    before = repo.stats().pack_bytes
    version = repo.commit(state, branch="new", parent=parent)
    assert_same_state(repo.load(version.id), state)
    return repo.stats().pack_bytes - before


def forge(repo: Repository, version: SnapshotId, state: State) -> None:
    """Give a version the signature of another state."""
    config = StoreConfig(chunk_size=64 * KiB)
    with casweights.open(MemoryStore(), create=True, config=config) as other:
        other_version = other.commit(state).id
        loaded = other.database.snapshots.load(other_version, with_locations=True)
        signature = signature_of(other.database, loaded)
    assert signature is not None
    store = repo.database.store
    listed = [info.name for info in store.list(names.SIGNATURES)]
    store.delete_all([name for name in listed if str(version) in name])
    repo.database.signatures.add([signature.entry(version)])


def from_parent(state: State, new: State) -> int:
    """Return the bytes that a version adds to a store with its parent alone."""
    config = StoreConfig(chunk_size=64 * KiB)
    with casweights.open(MemoryStore(), create=True, config=config) as repo:
        repo.commit(state)
        return cost(repo, new, parent="main")


@pytest.mark.parametrize("number", [0, FAMILIES - 1])
def test_a_variant_costs_as_much_as_with_its_parent(family: Repository, number: int) -> None:
    new = tuned(base(number), 500)
    assert cost(family, new) <= 1.02 * from_parent(base(number), new)


def test_a_commit_that_finds_its_base_reads_few_others(family: Repository) -> None:
    store, old = CountingStore(family.database.store), family.resolve("base-4")
    with casweights.open(store) as fresh:
        store.reset()
        fresh.commit(tuned(base(4), 507), branch="new")
    read = {name for name, _ in store.reads if not name.startswith((names.SIGNATURES, "refs/"))}
    assert names.snapshot_name(old) in read
    assert len(read) <= 4  # of 29 versions


def test_other_names_in_another_order_do_not_matter(family: Repository) -> None:
    old = base(7)
    new = {f"block{n}/{n % 3}": tensor for n, tensor in enumerate(tuned(old, 501).values())}
    items = list(new.items())
    random.Random(0).shuffle(items)
    renamed = dict(zip((name for name, _ in items), (tensor for _, tensor in items), strict=True))
    assert cost(family, renamed) <= 1.05 * from_parent(old, tuned(old, 501))


def test_each_tensor_comes_from_where_it_is_nearest(family: Repository) -> None:
    """As in a model stitched of layers of several others."""
    sources = [base(3), tuned(base(7), 71, 0.3), tuned(base(14), 142, 0.3)]
    stitched = {name: sources[n % 3][name] for n, name in enumerate(sources[0])}
    new = tuned(stitched, 502)
    assert cost(family, new) <= 1.05 * from_parent(stitched, new)


def test_tensors_that_the_parent_lacks_find_their_own(family: Repository) -> None:
    old, other = base(1), {f"draft.{name}": tensor for name, tensor in base(2).items()}
    new = old | tuned(other, 503)
    assert cost(family, new, parent="base-1") <= 1.1 * from_parent(other, tuned(other, 503))


def test_an_unrelated_model_is_stored_whole(family: Repository) -> None:
    new = base(99)
    cost(family, new)
    frames = family.stats().encodings
    whole = sum(-(-tensor.nbytes // (64 * KiB)) for tensor in new.values())
    assert frames["planes"] >= whole * (FAMILIES + 1)


def test_a_false_signature_costs_no_more_than_a_few_trials(family: Repository) -> None:
    """It claims that an unrelated version is what is about to be committed."""
    new = tuned(base(5), 504)
    forge(family, family.resolve("base-6"), new)
    with casweights.open(family.database.store) as fresh:
        assert cost(fresh, new) <= 1.02 * from_parent(base(5), new)


def test_many_false_signatures_hide_the_true_base_for_a_few_commits(
    family: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten unrelated versions claim to be the base, each a little differently."""
    for n in range(10):
        claimed = {name: tensor.clone() for name, tensor in base(18).items()}
        claimed["layers.0.attn.q.weight"][:, n] += 1
        forge(family, family.resolve(f"base-{n}"), claimed)
    tried: list[int] = []

    def counted(*args: Any) -> Any:
        tried.append(1)
        return encode_difference(*args)

    monkeypatch.setattr(candidates, "encode_difference", counted)
    store, costs = CountingStore(family.database.store), []
    with casweights.open(store) as fresh:
        for n in range(4):
            tried.clear()
            store.reset()
            costs.append(cost(fresh, tuned(base(18), 520 + n)))
            assert len(tried) <= 4 * 4 + 2 * 4
            assert store.read_bytes(names.SIGNATURES) <= 1 << 20
            fresh.delete_branch("new")
    assert costs[-1] <= 1.02 * from_parent(base(18), tuned(base(18), 523))


def test_a_lost_signature_costs_bytes_and_nothing_else(family: Repository) -> None:
    store = family.database.store
    store.delete_all([info.name for info in store.list(names.SIGNATURES)])
    with casweights.open(store) as fresh:
        new = tuned(base(4), 505)
        assert cost(fresh, new) > sum(tensor.nbytes for tensor in new.values()) / 2
        fresh.tag("kept", "base-4")
        fresh.maintain()  # makes those of first versions again, a few at a time
    with casweights.open(store) as fresh:
        assert fresh.database.signatures.versions()


def test_similar_names_the_nearest_versions_first(family: Repository, tmp_path: Path) -> None:
    new = {f"model.{name}": tensor for name, tensor in tuned(base(7), 506).items()}
    found = family.similar(new, limit=3)
    assert found[0].snapshot == family.resolve("base-7")
    assert len(found) == 3
    assert [one.nbytes for one in found] == sorted(one.nbytes for one in found)
    assert found[0].nbytes < found[0].whole_bytes / 4
    assert {(like.tensor, like.other_tensor) for like in found[0].tensors} == {
        (f"model.{name}", name) for name in base(7)
    }
    save_file(new, tmp_path / "model.safetensors")
    assert [one.snapshot for one in family.similar(tmp_path)][:3] == [one.snapshot for one in found]


def test_similar_leaves_out_the_version_itself(family: Repository) -> None:
    found = family.similar("variant-7-1")
    assert found[0].snapshot == family.resolve("base-7")
    assert family.resolve("variant-7-1") not in [one.snapshot for one in found]
    assert family.similar(base(99)) == []
    assert family.similar({"note": "no tensors"}) == []


def test_similar_does_not_rely_on_a_signature_of_other_tensors(family: Repository) -> None:
    version = family.resolve("variant-7-1")
    forge(family, version, base(7) | {f"more.{name}": tensor for name, tensor in base(7).items()})
    with casweights.open(family.database.store) as fresh:
        assert fresh.similar(version)[0].snapshot == family.resolve("base-7")
