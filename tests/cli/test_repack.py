"""The verb ``repack``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.cli.test_verify import damage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Json, Run

pytestmark = pytest.mark.usefixtures("packs_apart")


def pack_bytes(store: Path) -> int:
    return sum(path.stat().st_size for path in (store / "packs").iterdir())


def test_repack_reports_packs_before_and_after(run: Run, run_json: Json, store: Path) -> None:
    ids = run("log", "-q").stdout
    before, now = pack_bytes(store), datetime.now(UTC)
    (summary,) = run_json("repack", "--compression", "small")
    assert (
        timedelta(hours=23)
        < datetime.fromisoformat(summary.pop("free_from")) - now
        < timedelta(hours=25)
    )
    assert summary == {
        "message_type": "summary",
        "packs": 1,
        "old_packs": 2,
        "pack_bytes": pack_bytes(store),
        "old_pack_bytes": before,
        "aside_bytes": before,
        "freed_bytes": 0,
        "compared": 0,
        "tree_bytes": 0,
        "least_bytes": 0,
        "unreadable": [],
    }
    assert run("repack", "-q").stdout == ""
    lines = run("repack", "--memory", "0").stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("1 pack of ")
    assert run("log", "-q").stdout == ids
    run("verify")


def test_a_repack_without_a_grace_time_frees_the_space_at_once(
    run: Run, run_json: Json, store: Path
) -> None:
    before = pack_bytes(store)
    (summary,) = run_json("repack", "--compression", "small", "--grace", "0")
    assert summary["freed_bytes"] == summary["aside_bytes"] == before
    assert summary["free_from"] is None
    assert not list(store.glob("aside/*/packs/*"))
    assert "-1" in run("repack", "--grace", "-1", status=2).stderr


def test_repack_of_a_damaged_store_deletes_nothing(run: Run, store: Path) -> None:
    packs = sorted((store / "packs").iterdir())
    for pack in packs:
        damage(pack, 100)
    assert "packs/" in run("repack", status=13).stderr
    assert set((store / "packs").iterdir()) >= set(packs)


def test_repack_names_unreadable_packs_and_keeps_them(run: Run, store: Path) -> None:
    name = "0" * 64
    (store / "packs" / name).write_bytes(b"no pack")
    _, free, line = run("repack").stdout.splitlines()
    assert "until a repack, maintain or gc deletes it, from 20" in free
    assert line.startswith(f"packs/{name} cannot be read and stays. `casweights verify` says")
    assert (store / "packs" / name).exists()


def test_maintain_reports_packs_before_and_after(run: Run, store: Path) -> None:
    count = len(list((store / "packs").iterdir()))
    line = run("maintain").stdout.strip()
    [segment] = (store / "segments").iterdir()
    assert line == (
        f"{count} packs, previously {count} packs; 0 B copied; 0 versions moved into 0 archives. "
        f"1 segment; {segment.stat().st_size} B written"
    )


def test_repack_refuses_invalid_options(run: Run, store: Path) -> None:
    assert "--compression" in run("repack", "--compression", "tiny", status=2).stderr
    assert "--memory" in run("repack", "--memory", "-1", status=2).stderr
