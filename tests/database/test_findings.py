"""Findings: damage is recorded in the store, and the next writer stores the chunks again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import casweights
from casweights.content.states import StateFile
from casweights.errors import ErrorCode, IntegrityError, StoreError
from casweights.format import names
from casweights.format.finding import finding_name
from casweights.ids import Suspect
from casweights.operations.encode import encode_files
from casweights.stores.memory import MemoryStore
from casweights.stores.wrapper import WrapperStore
from casweights.system.buffers import uninitialized
from casweights.testing.faults import flip_bit
from casweights.testing.states import assert_same_state
from tests.findings import (
    CONFIG,
    DAMAGES,
    STATES,
    ReadOnly,
    Remote,
    assert_readable,
    commit_again,
    filled,
    listed,
    pack_of,
    replace,
    suspects,
    told,
)
from tests.histories import CHUNK, weights

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("packs_apart")


def test_reading_a_damaged_frame_records_a_finding() -> None:
    objects = MemoryStore()
    versions, packs = filled(objects)
    flip_bit(objects, packs[2], 100)
    with casweights.open(objects) as repo:
        repo.load(versions[1])
        assert suspects(objects) == []
        with pytest.raises(IntegrityError):
            repo.load(versions[2])
    assert suspects(objects) == [f"damaged/{pack_of(packs[2])}-8"]
    commit_again(objects, objects, STATES[2])
    assert_readable(objects, versions)


@pytest.mark.parametrize("code", [ErrorCode.UNREACHABLE, ErrorCode.IO_FAILED])
def test_a_failing_network_or_missing_pack_records_no_finding(code: ErrorCode) -> None:
    objects = MemoryStore()
    versions, packs = filled(objects)

    class Failing(WrapperStore):
        def readinto(self, name: str, start: int, out: memoryview) -> None:
            if name == packs[2]:
                raise StoreError(code, "the network is down")
            super().readinto(name, start, out)

    with casweights.open(Failing(objects)) as repo, pytest.raises(StoreError):
        repo.load(versions[2])
    objects.delete(packs[2])
    with casweights.open(objects) as repo, pytest.raises(IntegrityError):
        repo.load(versions[2])
    assert suspects(objects) == []


def test_the_frames_of_a_damaged_pack_are_stored_under_another_name() -> None:
    objects = MemoryStore()
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        version = repo.commit(STATES[0], compression="fast").id
    [bad] = listed(objects, names.PACKS)
    flip_bit(objects, bad, 100)
    with casweights.open(objects) as repo:
        repo.verify()
    for _ in range(2):
        with casweights.open(objects) as repo:
            repo.commit(STATES[0], branch="again", compression="fast")
        assert len(listed(objects, names.PACKS)) == 2
    assert_readable(objects, [version])


def test_an_open_store_heeds_new_findings_at_its_next_commit() -> None:
    objects = MemoryStore()
    versions, packs = filled(objects)
    with casweights.open(objects) as early:
        early.commit(STATES[0], branch="early")
        flip_bit(objects, packs[0], 100)
        with casweights.open(objects) as repo:
            repo.verify()
        early.commit(STATES[0], branch="early")
    assert_readable(objects, versions)


def test_publishing_steps_to_a_bucket_lists_findings_once() -> None:
    listings: list[str] = []

    class Listing(WrapperStore):
        def list(self, prefix: str = "") -> Any:
            listings.append(prefix)
            return super().list(prefix)

    store = Listing(Remote(MemoryStore()))
    with (
        casweights.open(store, create=True, config=CONFIG) as repo,
        casweights.Publisher(repo) as publisher,
    ):
        for state in STATES:
            publisher.publish(state)
            publisher.wait()
    assert listings.count(names.DAMAGED) == 1


def test_findings_about_a_read_only_store_are_kept_on_this_machine(tmp_path: Path) -> None:
    objects, notes = MemoryStore(), tmp_path / "cache" / "notes"
    versions, packs = filled(objects)
    flip_bit(objects, packs[0], 100)
    other = MemoryStore()
    filled(other)
    with casweights.open(ReadOnly(objects), notes=notes) as repo:
        for _ in range(2):
            found = repo.verify()
            assert (found.damaged, found.noted) == (1, str(notes))
    assert suspects(objects) == []
    with casweights.open(other, notes=notes) as repo:  # another store with the same packs
        repo.commit(STATES[0], branch="again")
        assert listed(other, names.PACKS) == listed(objects, names.PACKS)
    with casweights.open(objects, notes=notes) as repo:
        repo.commit(STATES[0], branch="again")
    assert_readable(objects, versions)
    with casweights.open(objects, notes=notes) as repo:
        assert repo.verify().noted == objects.url
        repo.repack()
        assert repo.verify().noted is None
    assert [path for path in notes.rglob("*-*") if path.is_file()] == []


def test_verify_reports_that_findings_were_not_kept_anywhere(tmp_path: Path) -> None:
    objects = MemoryStore()
    versions, packs = filled(objects)
    flip_bit(objects, packs[0], 100)
    (tmp_path / "file").touch()
    for notes in (None, tmp_path / "file"):
        with casweights.open(ReadOnly(objects), notes=notes) as repo:
            found = repo.verify()
            assert (found.damaged, found.noted) == (1, None)
            with pytest.raises(IntegrityError):
                repo.load(versions[4])
        with casweights.open(objects, notes=notes) as repo:
            repo.commit({"x": STATES[1]["w"]}, branch="other")


def test_verify_of_a_read_only_store_counts_findings_that_are_already_in_it() -> None:
    objects = MemoryStore()
    _, packs = filled(objects)
    flip_bit(objects, packs[0], 100)
    with casweights.open(objects) as repo:
        repo.verify()
    with casweights.open(ReadOnly(objects)) as repo:
        assert repo.verify().noted == objects.url


@pytest.mark.parametrize("offset", [8, None])
def test_a_forged_finding_costs_stored_bytes_and_nothing_else(offset: int | None) -> None:
    objects = MemoryStore()
    versions, packs = filled(objects)
    for pack in packs:
        told(objects, pack, offset)
    with casweights.open(objects) as repo:
        repo.commit({"x": STATES[4]["w"]}, branch="other")  # heeds them
        assert len(listed(objects, names.PACKS)) == len(packs) + 1
        for version, state in zip(versions, STATES, strict=True):
            assert_same_state(repo.load(version), state)
        repo.commit({"x": STATES[4]["w"]}, branch="other")
        assert len(listed(objects, names.PACKS)) == len(packs) + 1
        assert repo.verify().problems == ()
    assert suspects(objects) == []
    with casweights.open(objects) as repo:
        told(objects, packs[0], offset)
        repo.commit({"y": STATES[3]["w"]}, branch="other")
        repo.repack()
        assert repo.verify().problems == ()
    assert_readable(objects, versions)
    assert suspects(objects) == []


def test_repack_keeps_frames_in_doubt_that_no_version_needs() -> None:
    objects = MemoryStore()
    filled(objects)
    with casweights.open(objects) as repo:
        db = repo.database
        file = StateFile({"w": STATES[0]["w"] * 2})
        part = encode_files(db, [file], parent=None, compression="fast").durable(db)
        assert part.table is not None
        told(objects, names.pack_name(part.table.packs[0]))
        repo.commit(STATES[0], branch="other")
        repo.repack()
        out = uninitialized(CHUNK)
        for chunk in part.files[0].chunks:
            db.reader.readinto(chunk, out)


def test_verify_removes_the_finding_about_a_pack_that_was_repaired_in_place() -> None:
    objects = MemoryStore()
    _, packs = filled(objects)
    sound = objects.get(packs[0])
    for damage in ("payload", "index"):
        DAMAGES[damage](objects, packs[0])
        with casweights.open(objects) as repo:
            repo.verify(quick=True)
        assert len(suspects(objects)) == 1
        replace(objects, packs[0], sound)
        with casweights.open(objects) as repo:
            assert repo.verify(quick=True).problems == ()
            assert len(suspects(objects)) == 1  # checksums alone say too little
            assert repo.verify().problems == ()
        assert suspects(objects) == []


def test_many_findings_about_one_pack_become_one_finding() -> None:
    objects = MemoryStore()
    state = {f"t{n:03}": weights(1, seed=n) for n in range(200)}
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        version = repo.commit(state, compression="fast")
    [pack] = listed(objects, names.PACKS)
    data = objects.get(pack)
    replace(objects, pack, data[:8] + bytes(len(data) // 2 - 8) + data[len(data) // 2 :])
    with casweights.open(objects) as repo:
        assert repo.verify().damaged > 64
    assert suspects(objects) == [f"damaged/{pack_of(pack)}"]
    commit_again(objects, objects, state)
    with casweights.open(objects) as repo:
        assert_same_state(repo.load(version.id), state)


@pytest.mark.parametrize(
    "name", ["x", "x-8", f"{'0' * 64}-08", f"{'0' * 64}--8", f"{'A' * 64}", f"{'0' * 64}-{9**20}"]
)
def test_misnamed_objects_among_findings_are_ignored_and_reported_by_verify(name: str) -> None:
    objects = MemoryStore()
    versions, packs = filled(objects)
    objects.put(names.DAMAGED + name, [b"?"])
    objects.put(finding_name(Suspect(pack_of(packs[0]), 8)), [b"?"])
    commit_again(objects, objects, STATES[0])
    assert_readable(objects, versions)
    with casweights.open(objects) as repo:
        problems = repo.verify().problems
    assert any(names.DAMAGED + name in str(problem) for problem in problems)


def test_a_push_from_a_repaired_store_takes_the_sound_frames() -> None:
    objects, target = MemoryStore(), MemoryStore()
    versions, packs = filled(objects)
    flip_bit(objects, packs[2], 100)
    with casweights.open(objects) as repo:
        repo.verify()
    commit_again(objects, objects, STATES[2])
    with casweights.open(objects) as repo:
        stats = repo.push(casweights.open(target, create=True, config=CONFIG))
    assert stats.snapshots == len(versions) + 1
    assert_readable(target, versions)
    with casweights.open(target) as repo:
        assert repo.verify().problems == ()


def test_a_push_from_a_damaged_store_fails_and_leaves_the_target_sound() -> None:
    objects, target = MemoryStore(), MemoryStore()
    _, packs = filled(objects)
    flip_bit(objects, packs[2], 100)
    with casweights.open(objects) as repo:
        repo.verify()
    with casweights.open(objects) as repo, pytest.raises(IntegrityError):
        repo.push(casweights.open(target, create=True, config=CONFIG))
    with casweights.open(target) as repo:
        assert repo.verify().problems == ()


def test_a_frame_whose_bytes_do_not_match_its_chunk_is_stored_again() -> None:
    """A faulty writer hashes other bytes than it stores, so all checksums are right."""
    objects = MemoryStore()
    with casweights.open(objects, create=True, config=CONFIG) as repo:
        tensor = STATES[0]["w"].clone()
        db = repo.database
        hasher = db.hasher
        db.hasher = lambda data: hasher(bytes(data[:-1]) + bytes([data[-1] ^ 1]))
        wrong = repo.commit({"w": tensor}, branch="wrong", compression="fast")
    tensor.view(torch.uint8)[-1] ^= 1
    with casweights.open(objects) as repo:
        assert repo.verify(quick=True).problems == ()
        assert repo.verify().damaged == 1
    with casweights.open(objects) as repo:
        right = repo.commit({"w": tensor})
    with casweights.open(objects) as repo:
        assert_same_state(repo.load(right.id), {"w": tensor})
        assert_same_state(repo.load(wrong.id), {"w": tensor})
