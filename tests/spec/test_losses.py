"""The independent reader and the library read the same losses, and refuse the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import casweights
from casweights.errors import CasweightsError
from casweights.format.envelope import ObjectKind, seal
from casweights.format.lost import Loss, decode_loss, encode_loss, loss_name
from casweights.ids import ChunkId, SnapshotId
from casweights.stores.local import LocalStore
from tests.operations.damage import content, flip, make, overwrite
from tools.spec.chunks import FAILURES
from tools.spec.losses import losses, read_loss

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

ids = st.binary(min_size=32, max_size=32)
made = st.builds(
    Loss,
    snapshot=ids.map(SnapshotId),
    manifest=st.booleans(),
    chunks=st.lists(ids.map(ChunkId), min_size=1, max_size=4).map(tuple),
    time=st.integers(-(2**63), 2**63 - 1),
)


@given(made)
def test_a_loss_comes_back_as_it_was(loss: Loss) -> None:
    assert decode_loss(encode_loss(loss), loss_name(loss)) == loss


@given(made, st.integers(0), st.integers(0, 7))
def test_each_flipped_bit_is_found(loss: Loss, at: int, bit: int) -> None:
    data = bytearray(encode_loss(loss))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(CasweightsError):
        decode_loss(bytes(data), loss_name(loss))


def test_both_read_what_a_repair_records(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for name, data in content(make(3, repacked=True).store).items():
        store.put(name, [data])
    for number, info in enumerate(list(store.list("packs/"))):
        flip(store, info.name, 100 if number % 2 else -20)
    archive = next(iter(store.list("versions/")), None)
    if archive is not None:
        flip(store, archive.name, -1)
    with casweights.open(tmp_path) as repo:
        report = repo.repair(apply=True)
        assert report.lost
        expected = {
            (str(lost.snapshot), loss.manifest, tuple(loss.chunks))
            for lost in report.lost
            for loss in repo.database.losses.load(lost.snapshot)
        }
    assert {(loss.snapshot, loss.manifest, tuple(loss.chunks)) for loss in losses(tmp_path)} == (
        expected
    )
    assert any(info.name.count("/") == 2 for info in store.list("lost/")), "an object set aside"


FORGED: dict[str, dict[str, Any]] = {
    "a short snapshot": {"snapshot": bytes(31)},
    "nothing": {"chunks": b"", "manifest": False},
    "half an ID": {"chunks": bytes(48)},
    "IDs of another size": {"digest_size": 31, "chunks": bytes(31)},
    "a number for a bool": {"manifest": 1},
    "text for IDs": {"chunks": "x" * 32},
    "no time": {"time": None},
    "a late time": {"time": 2**63},
}


@pytest.mark.parametrize("change", FORGED)
def test_both_refuse_forged_losses(tmp_path: Path, change: str) -> None:
    fields = {
        "snapshot": bytes(32),
        "manifest": False,
        "digest_size": 32,
        "chunks": bytes(32),
        "time": 0,
    }
    honest = Loss(
        snapshot=SnapshotId(bytes(32)), manifest=False, chunks=(ChunkId(bytes(32)),), time=0
    )
    name, store = loss_name(honest), LocalStore(tmp_path)
    store.create()
    store.put(name, [seal(ObjectKind.LOSS, msgpack.packb(fields))])
    assert read_loss(tmp_path, name).chunks == list(honest.chunks)
    assert decode_loss(store.get(name), name) == honest
    overwrite(store, name, seal(ObjectKind.LOSS, msgpack.packb(fields | FORGED[change])))
    with pytest.raises(FAILURES):
        read_loss(tmp_path, name)
    with pytest.raises(CasweightsError):
        decode_loss(store.get(name), name)


def test_both_refuse_other_names(tmp_path: Path) -> None:
    loss = Loss(snapshot=SnapshotId(bytes(32)), manifest=True, chunks=(), time=0)
    store = LocalStore(tmp_path)
    store.create()
    for name in (f"lost/{'1' * 64}-{'0' * 16}", f"{loss_name(loss)[:-16]}{'0' * 16}", "lost/it"):
        store.put(name, [encode_loss(loss)])
        with pytest.raises(FAILURES):
            read_loss(tmp_path, name)
        with pytest.raises(CasweightsError):
            decode_loss(store.get(name), name)
