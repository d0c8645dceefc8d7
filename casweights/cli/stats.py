"""``casweights stats``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from casweights.cli._errors import Exit
from casweights.cli._output import Column, fields, table_lines
from casweights.cli._text import count, micros, moment, short, size
from casweights.cli._verb import verb
from casweights.config import DEFAULT_GRACE, REPLACED_GRACE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from casweights.cli._output import Line, Row
    from casweights.cli._session import Session
    from casweights.results import PendingCollection, SpaceUse, StoreStats

_COLUMNS = (
    Column("id", short, "VERSION", color="yellow"),
    Column("size", size, "SIZE", right=True),
    Column("new_bytes", size, "NEW", right=True),
    Column("stored_bytes", size, "STORED", right=True),
    Column("read_bytes", size, "READ", right=True),
    Column("longest_chain", str, "CHAIN", right=True),
)


@verb("stats", Exit.NO_STORE, Exit.INTEGRITY)
@click.option("--versions", is_flag=True, help="Also list what each version added, oldest first.")
@click.option("--reclaimable", is_flag=True, help="Show instead what holds the bytes of the store.")
def command(session: Session, versions: bool, reclaimable: bool) -> None:
    """Show the size of the store and its parts.

    The size is compared with plain copies of all versions. With --versions, the columns are the
    size of a version, its bytes that no older version has, the same as stored, the bytes that a
    checkout reads, and the longest chain of frames that a chunk is rebuilt from.

    With --reclaimable, the bytes are told apart by what keeps them, and by when `casweights gc`
    frees them.
    """
    if reclaimable and versions:
        raise click.UsageError("--versions and --reclaimable exclude each other: give one of them")
    if reclaimable:
        _show_space(session)
        return
    with session.open() as repository:
        stats = repository.stats()
    data = _data(stats)
    if versions:
        data["by_version"] = [
            {
                "id": version.id,
                "size": version.nbytes,
                "new_bytes": version.new_bytes,
                "stored_bytes": version.stored_bytes,
                "read_bytes": version.read_bytes,
                "longest_chain": version.longest_chain,
            }
            for version in stats.versions
        ]
    session.out.record(data, _lines(data), essential="stored_bytes")


def _show_space(session: Session) -> None:
    with session.open() as repository:
        use = repository.space()
    data = {
        "total": use.total,
        "branches": use.branches,
        "tags": use.tags,
        "bases": use.bases,
        "moves": use.moves,
        "young": use.young,
        "unused": use.unused,
        "free": use.free,
        "aside": [
            {"collection": one.id, "bytes": one.nbytes, "until": _until(one)} for one in use.aside
        ],
    }
    session.out.record(data, _space_lines(use), essential="free")


def _until(pending: PendingCollection) -> datetime | None:
    """Return when a collection can be deleted; None if its run has not ended."""
    grace = REPLACED_GRACE if pending.is_replaced else DEFAULT_GRACE
    return micros(pending.since) + grace if pending.since > 0 else None


def _space_lines(use: SpaceUse) -> Iterator[Line]:
    yield from fields(
        [
            ("total", size(use.total)),
            ("branches", f"{size(use.branches)} that they need, with all versions before them"),
            ("tags", f"{size(use.tags)} that only they need"),
            ("bases", f"{size(use.bases)} from which these are differences"),
            (
                "moves",
                f"{size(use.moves)} that only logs of branches need: maintain cuts them",
            ),
            ("young", f"{size(use.young)} that may belong to a commit at work"),
            ("unused", f"{size(use.unused)} among what is needed, or named until lately"),
            ("free", f"{size(use.free)} that `casweights gc --apply` sets aside"),
        ]
    )
    replaced = [one for one in use.aside if one.is_replaced]
    if replaced:
        nbytes = size(sum(one.nbytes for one in replaced))
        yield f"aside: {nbytes} that others replace, until a day later (see maintain)"
    for one in (one for one in use.aside if not one.is_replaced):
        until = _until(one)
        when = f"until {moment(until)}" if until else "by a run that has not ended"
        yield f"aside: {size(one.nbytes)} {when}, as collection {one.id}"


def _data(stats: StoreStats) -> dict[str, Any]:
    return {
        "versions": len(stats.versions),
        "version_bytes": stats.version_bytes,
        "stored_bytes": stats.pack_bytes + stats.snapshot_bytes + stats.segment_bytes,
        "packs": stats.packs,
        "pack_bytes": stats.pack_bytes,
        "snapshot_bytes": stats.snapshot_bytes,
        "archives": stats.archives,
        "segments": stats.segments,
        "segment_bytes": stats.segment_bytes,
        "segment_rewrites": stats.segment_rewrites,
        "pack_rewrites": stats.pack_rewrites,
        "chunks": stats.chunks,
        "chunk_bytes": stats.chunk_bytes,
        "encodings": stats.encodings,
        "longest_chain": max((version.longest_chain for version in stats.versions), default=0),
    }


def _lines(data: Row) -> Iterator[Line]:
    if "by_version" in data:
        yield from table_lines(data["by_version"], _COLUMNS)
        yield ""
    stored, plain = data["stored_bytes"], data["version_bytes"]
    longest = data["longest_chain"]
    encodings = (f"{name} {frames:,}" for name, frames in sorted(data["encodings"].items()))
    yield from fields(
        [
            ("versions", f"{data['versions']:,}, {size(plain)} as plain copies"),
            ("stored", f"{size(stored)} in {count(data['packs'], 'pack')}{_share(stored, plain)}"),
            ("chunks", f"{data['chunks']:,}, {size(data['chunk_bytes'])} before encoding"),
            ("encodings", ", ".join(encodings)),
            ("segments", _segments(data)),
            ("rewrites", f"{data['pack_rewrites']} of packs" if data["pack_rewrites"] else ""),
            ("chains", f"up to {count(longest, 'frame')}" if longest else ""),
        ]
    )


def _segments(data: Row) -> str:
    if not data["segments"]:
        return ""
    rewrites = count(data["segment_rewrites"], "rewrite")
    return f"{data['segments']:,}, {size(data['segment_bytes'])}, up to {rewrites}"


def _share(stored: int, plain: int) -> str:
    """Compare a store with plain copies: a share if it is smaller, else a factor."""
    if not plain:
        return ""
    # In tiny stores, the fixed parts of packs and snapshots outweigh the content.
    if stored <= plain:
        return f", {100 * stored / plain:.1f} % of plain copies"
    return f", {stored / plain:,.1f} times the size of plain copies"
