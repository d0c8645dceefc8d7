"""The independent reader and the library list the same histories, and refuse the same records."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import msgpack
import pytest
import torch
from blake3 import blake3
from hypothesis import strategies as st

import casweights
from casweights import Keep
from casweights.errors import CasweightsError
from casweights.format.envelope import ObjectKind, seal
from casweights.format.expired import decode_record
from casweights.format.names import snapshot_name
from casweights.format.policy import decode_policy
from tests.format.test_expired import FIELDS as RECORD
from tests.format.test_policy import FIELDS as POLICY
from tests.format.test_policy import NAME

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def history() -> ModuleType:
    """The independent reader of histories."""
    return importlib.import_module("tools.spec.history")


@pytest.mark.usefixtures("packs_apart")
def test_both_list_the_same_history(tmp_path: Path, history: ModuleType) -> None:
    """Some versions are removed, two have names, and one is in an archive of its own."""
    store = tmp_path / "store"
    with casweights.open(store, create=True) as repo:
        ids = [repo.commit({"w": torch.full((9,), n)}).id for n in range(30)]
        repo.expire(Keep(every=4), apply=True)
        repo.tag("v1", str(ids[10]))
        repo.branch("side", str(ids[20]))
        repo.expire(Keep(every=8), apply=True)
        for n in (1, 2, 14, 25):
            repo.database.store.delete(snapshot_name(ids[n]))
        expected: list[tuple[str, int, str | None]] = []
        for version, gap in repo.history():
            expected.append((str(version.id), version.number, None))
            expected += [(str(row.id), row.number, row.policy) for row in gap]
    found = [
        (snapshot, number, row.policy if row else None)
        for snapshot, number, row in history.read_history(store, "main")
    ]
    assert found == expected
    assert [number for _, number, _ in found] == list(range(30, 0, -1))
    assert [number for _, number, row in found if row is None] == [30, 24, 21, 16, 11, 8]
    command = [sys.executable, "-sE", "-m", "tools.spec.history", str(store), "main"]
    lines = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert len(lines.splitlines()) == 31
    assert json.loads(lines.splitlines()[-1]) == {"policy": []}


def test_both_end_a_history_that_was_left_out(tmp_path: Path, history: ModuleType) -> None:
    with (
        casweights.open("memory://", create=True) as source,
        casweights.open(tmp_path / "store", create=True) as repo,
    ):
        for n in range(5):
            source.commit({"n": n})
        source.push(repo, ["main"], history=False)
        repo.commit({"n": 5})
        numbers = [version.number for version in repo.log()]
    assert [row[1] for row in history.read_history(tmp_path / "store", "main")] == numbers == [6, 5]


def accepts_record(history: ModuleType, folder: Path, fields: dict[str, Any]) -> tuple[bool, bool]:
    """Return whether the library and the independent reader accept a record."""
    data = seal(ObjectKind.EXPIRED, msgpack.packb(fields))
    name = f"expired/{blake3(data).hexdigest()}"
    (folder / "expired").mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    accepted = [False, False]
    with suppress(CasweightsError):
        rows = {str(row.id): row for row in decode_record(data, name)}
        accepted[0] = True
    with suppress(*history.FAILURES):
        found = history.parse_record(folder, name)
        accepted[1] = True
    if all(accepted):
        epoch = datetime.fromtimestamp(0, UTC)
        assert {
            snapshot: (row.number, row.parents, epoch + timedelta(microseconds=row.time))
            for snapshot, row in found.items()
        } == {
            snapshot: (row.number, list(map(str, row.parents)), row.time)
            for snapshot, row in rows.items()
        }
    return accepted[0], accepted[1]


odd = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text(max_size=3)
    | st.binary(max_size=70)
    | st.sampled_from([bytes(96), b"\0\1\2", RECORD["id"], RECORD["parents"]])
)
nested = odd | st.lists(odd | st.lists(odd, max_size=3), max_size=4)


@hypothesis.given(st.dictionaries(st.sampled_from([*RECORD, "more"]), nested, max_size=2))
def test_both_accept_and_refuse_the_same_records(
    tmp_path: Path, history: ModuleType, change: dict[str, Any]
) -> None:
    library, reader = accepts_record(history, tmp_path, RECORD | change)
    assert library == reader


def test_both_accept_an_honest_record(tmp_path: Path, history: ModuleType) -> None:
    assert accepts_record(history, tmp_path, RECORD) == (True, True)
    assert accepts_record(history, tmp_path, RECORD | {"more": 3}) == (True, True)


@hypothesis.given(
    st.dictionaries(
        st.sampled_from(["branches", "last", "yearly", "within", "where", "more"]),
        odd | st.integers(1, 100),
        max_size=3,
    )
)
def test_both_accept_and_refuse_the_same_policies(
    tmp_path: Path, history: ModuleType, change: dict[str, Any]
) -> None:
    first, second = POLICY["keep"]
    data = seal(ObjectKind.POLICY, msgpack.packb(POLICY | {"keep": [first | change, second]}))
    (tmp_path / "policies").mkdir(exist_ok=True)
    (tmp_path / NAME).write_bytes(data)
    accepted = [False, False]
    with suppress(CasweightsError):
        decode_policy(data, NAME)
        accepted[0] = True
    with suppress(*history.FAILURES):
        history.read_policy(tmp_path)
        accepted[1] = True
    assert accepted[0] == accepted[1]
