"""Collections of stores that have lost something, which `repair` has recorded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import casweights
from casweights.errors import IntegrityError
from casweights.format import names
from tests.ages import age
from tests.lengths import examples
from tests.operations.collecting import LONG
from tests.operations.damage import copy_of, readable
from tests.operations.test_repair import FORMS, Harm, chunks_in, damage, harms, made, needs


# Shrinking a failure takes minutes.
@settings(max_examples=examples(15), phases=[Phase.generate], report_multiple_bugs=False)
@given(form=st.sampled_from(list(FORMS)), harm=st.lists(harms, min_size=1, max_size=4))
def test_a_recorded_loss_stops_no_collection_and_the_rest_of_the_version_stays(
    form: str, harm: list[Harm]
) -> None:
    store, states = copy_of(made(form).store), made(form).states
    for one in harm:
        damage(store, one)
    every = frozenset().union(*needs(form).values())
    with casweights.open(store, workers=1) as repo:
        lost = repo.repair([], apply=True).lost
        gone = repo.commit({"w": torch.arange(5000.0)}, branch="try").id
        repo.delete_branch("try")
    chunks, versions = chunks_in(store, every), readable(store, states)
    for _ in range(3):
        age(store, LONG)
        with casweights.open(store, workers=1) as repo:
            repo.gc(apply=True)
        assert chunks_in(store, every) >= chunks
        assert readable(store, states) == versions
    with casweights.open(store, workers=1) as repo:
        knows_all = all(version.number is not None for version in lost)
        assert repo.database.snapshots.exists(gone) != knows_all
        repo.repair([copy_of(made(form).store)], apply=True)
    assert readable(store, states) == states.keys()


@pytest.mark.parametrize("form", FORMS)
def test_a_loss_that_is_not_recorded_stops_a_collection(form: str) -> None:
    store = copy_of(made(form).store)
    largest = max(
        store.list(names.PACKS if form != "carried" else names.SNAPSHOTS),
        key=lambda info: info.size,
    )
    store.delete(largest.name)
    age(store, LONG)
    before = {info.name for info in store.list()}
    with casweights.open(store, workers=1) as repo, pytest.raises(IntegrityError):
        repo.gc(apply=True)
    assert {info.name for info in store.list()} >= before
