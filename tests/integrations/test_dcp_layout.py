"""Malformed and forged descriptions of sharded state dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from casweights.errors import ErrorCode, IntegrityError, UnsupportedError
from casweights.integrations.dcp import CasweightsReader, CasweightsWriter
from casweights.integrations.dcp.layout import LAYOUT_FILE
from tests.integrations.dcp_verbs import SHARDS, load, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casweights import Repository

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def forged(repo: Repository, tmp_path: Path, forge: Callable[[dict[str, Any]], object]) -> bytes:
    """Commit a saved version with a forged layout, and return that layout."""
    save({"w": torch.ones(4, 6), "n": 1}, CasweightsWriter(repo, "good"))
    repo.checkout("good", tmp_path)
    path = tmp_path / LAYOUT_FILE
    layout = msgpack.unpackb(path.read_bytes())
    forge(layout)
    path.write_bytes(msgpack.packb(layout))
    repo.commit(tmp_path, branch="forged")
    return path.read_bytes()


def row(layout: dict[str, Any]) -> list[Any]:
    found: list[Any] = layout["tensors"]["w"][2][0]
    return found


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no tensors": lambda layout: layout.pop("tensors"),
    "no format": lambda layout: layout.update(format="1"),
    "a name that is a number": lambda layout: layout["tensors"].update({"x": 1}),
    "an unknown dtype": lambda layout: layout["tensors"]["w"].__setitem__(0, "load"),
    "another dtype": lambda layout: layout["tensors"]["w"].__setitem__(0, "int32"),
    "a size that is too small": lambda layout: layout["tensors"]["w"].__setitem__(1, [4, 5]),
    "a size of another rank": lambda layout: layout["tensors"]["w"].__setitem__(1, [24]),
    "a negative offset": lambda layout: row(layout).__setitem__(0, [-1, 0]),
    "an offset that is true": lambda layout: row(layout).__setitem__(0, [False, 0]),
    "a shard beyond the end": lambda layout: row(layout).__setitem__(0, [1, 0]),
    "a shard of another shape": lambda layout: row(layout).__setitem__(1, [4, 3]),
    "a file that is not there": lambda layout: row(layout).__setitem__(2, "../w"),
    "a tensor that is not there": lambda layout: row(layout).__setitem__(3, "v"),
    "a row that is too short": lambda layout: row(layout).pop(),
    "a blob that is a tensor": lambda layout: layout["blobs"].update(n=[SHARDS, "w"]),
    "a blob and a tensor": lambda layout: layout["blobs"].update(w=[SHARDS, "n"]),
    "paths that are a list": lambda layout: layout.update(paths=[]),
    "a list without end": lambda layout: layout["paths"].update(w=["a", 1 << 40]),
    "an order without a name": lambda layout: layout["order"].pop(),
    "an order with a name twice": lambda layout: layout["order"].__setitem__(0, "n"),
    "an order with another name": lambda layout: layout["order"].__setitem__(0, "v"),
    "an order with a name too many": lambda layout: layout["order"].append("w"),
    "an order of numbers": lambda layout: layout.update(order=[1, 2]),
    "an order that is a map": lambda layout: layout.update(order={"w": 1, "n": 2}),
    "a path of floats": lambda layout: layout["paths"].update(w=[0.5]),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_layout_is_refused(repo: Repository, tmp_path: Path, forgery: str) -> None:
    forged(repo, tmp_path, FORGERIES[forgery])
    with pytest.raises(IntegrityError) as error:
        CasweightsReader(repo, "forged").read_metadata()
    assert error.value.code is ErrorCode.CORRUPT_OBJECT
    with pytest.raises(CheckpointException, match=LAYOUT_FILE):
        load({"w": torch.zeros(4, 6)}, CasweightsReader(repo, "forged"))


def test_a_layout_without_an_order_is_loaded(repo: Repository, tmp_path: Path) -> None:
    forged(repo, tmp_path, lambda layout: layout.pop("order"))
    loaded = load({"w": torch.zeros(4, 6), "n": 0}, CasweightsReader(repo, "forged"))
    assert loaded["n"] == 1


def test_a_layout_of_a_newer_format_is_refused(repo: Repository, tmp_path: Path) -> None:
    forged(repo, tmp_path, lambda layout: layout.update(format=2))
    with pytest.raises(UnsupportedError, match="newer"):
        CasweightsReader(repo, "forged").read_metadata()


def test_a_layout_that_is_cut_anywhere_is_refused(repo: Repository, tmp_path: Path) -> None:
    whole = forged(repo, tmp_path, lambda layout: layout)
    for size in range(0, len(whole), 7):
        (tmp_path / LAYOUT_FILE).write_bytes(whole[:size])
        repo.commit(tmp_path, branch="forged")
        with pytest.raises(IntegrityError):
            CasweightsReader(repo, "forged").read_metadata()
