"""Measure what fresh processes read and need in stores with many versions of many chunks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

import casweights
from casweights.config import MiB
from casweights.database.writer import PackWriter
from casweights.format.codecs import Encoding
from casweights.format.file_entry import FileEntry
from casweights.format.hashing import checksum
from casweights.format.pack import EncodedFrame
from casweights.format.safetensors import parse_header
from casweights.ids import ChunkId
from casweights.operations.commit import Description, EncodedVersion, write_version
from casweights.operations.encoded_files import EncodedFiles, Written
from tools.bench.harness import Result, measured, paired
from tools.bench.histories import HistoryStore
from tools.bench.hub.clients import note_progress
from tools.bench.lifecycle.chunky import ELEMENTS, Chunky

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.database import Database
    from casweights.database.refs import Head

CHUNKS = 1000
READ, MEMORY, TIME = 16, 256, 1.5  # MiB, MiB, and times that of few versions
_PAYLOAD = 24  # bytes of a difference: a step changes few elements of a chunk
_CHAIN = 16  # longest chain; those of real runs have up to 64 frames
_FRESH = "tools.bench.lifecycle.fresh"
_PROGRESS = 100  # versions


class _Spent(NamedTuple):
    """Costs of a fresh process.

    Attributes:
        seconds: Time without imports.
        memory: Peak memory in bytes, minus that of the imports.
        read: Bytes read from the store, by folder.
    """

    seconds: float
    memory: int
    read: dict[str, int]


class _Side:
    """A directory with synthetic versions, and real ones after them.

    Args:
        folder: The folder to work in; made here.
        synthetic: Number of synthetic versions.
        real: Number of real versions.
        chunks: Number of chunks of each version.
    """

    def __init__(self, folder: Path, synthetic: int, real: int, chunks: int) -> None:
        folder.mkdir()
        self._store, self._out = folder / "store", folder / "out"
        self._file = folder / "model.safetensors"
        self._model = Chunky(chunks)
        self._model.write(self._file)
        store = HistoryStore(exclusive=True)
        with casweights.open(store, create=True) as repository:
            add_synthetic(repository.database, self._file, synthetic)
            for _ in range(real):
                self._step()
                self._model.check(repository.commit(self._file))
        store.write(self._store)

    def commit(self) -> _Spent:
        """Commit the next version in a fresh process."""
        self._step()
        return self._fresh("commit", self._file)

    def checkout(self) -> _Spent:
        """Check out the newest version in a fresh process, and compare the files."""
        shutil.rmtree(self._out, ignore_errors=True)
        spent = self._fresh("checkout", self._out)
        if (self._out / self._file.name).read_bytes() != self._file.read_bytes():
            raise AssertionError("the newest version did not come back")
        return spent

    def _step(self) -> None:
        self._model.step()
        self._model.write(self._file)

    def _fresh(self, verb: str, path: Path) -> _Spent:
        command = [sys.executable, "-m", _FRESH, verb, str(self._store), str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return _Spent(**json.loads(done.stdout))


def row_indexes(
    work: Path, count: int, few: int, rounds: int, chunks: int = CHUNKS
) -> list[Result]:
    """Commit and check out with many versions and with few, in pairs."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        many = _Side(Path(folder) / "many", count - few, few, chunks)
        reference = _Side(Path(folder) / "few", 0, few, chunks)
        commits = [(many.commit(), reference.commit()) for _ in range(rounds)]
        checkouts = [(many.checkout(), reference.checkout()) for _ in range(rounds)]
    what = f"{count:,} versions of {chunks:,} chunks"
    return [
        *_rows(f"3 {what}, commit", commits, few),
        *_rows(f"3 {what}, checkout", checkouts, few),
    ]


def _rows(what: str, pairs: Sequence[tuple[_Spent, _Spent]], few: int) -> list[Result]:
    ours, reference = pairs[0]
    folders = ", ".join(f"{nbytes:,} of {name}" for name, nbytes in sorted(ours.read.items()))
    note = (
        f"a fresh process; all but {few} versions have synthetic IDs. Bytes of all objects that it "
        f"read, with frames: {folders}; with {few} versions "
        f"{sum(reference.read.values()):,} and {reference.memory / MiB:.0f} MiB"
    )
    return [
        measured(f"{what}: read", sum(ours.read.values()) / MiB, "MiB", target=READ, note=note),
        measured(f"{what}: memory", ours.memory / MiB, "MiB", target=MEMORY, note=note),
        paired(
            f"{what}: time",
            [(one.seconds, other.seconds) for one, other in pairs],
            "s",
            target=TIME,
            note=f"a fresh process, without imports; reference: {few} versions",
        ),
    ]


def add_synthetic(db: Database, file: Path, count: int) -> None:
    """Write versions of a file whose chunk IDs and frames are random bytes.

    The library writes the same objects for a run that changes every chunk at each step; only
    hashing and encoding are left out. Nothing can decode these versions. Their file has another
    name, so that real versions after them do not use its chunks as bases.
    """
    rng, head, entry = np.random.default_rng(0), None, _empty_entry(file)
    for number in range(count):
        head, entry = _add_version(db, head, entry, number, rng)
        if number % _PROGRESS == _PROGRESS - 1:
            note_progress(f"synthetic versions: {number + 1} of {count}")


def _empty_entry(file: Path) -> FileEntry:
    """Return a row with the size and the header of a file, and no chunks."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = parse_header(data[:start], len(data) - start)
    return FileEntry("synthetic.safetensors", len(data), data[:start], header, ())


def _add_version(
    db: Database, head: Head | None, before: FileEntry, number: int, rng: np.random.Generator
) -> tuple[Head, FileEntry]:
    """Write one version, and return the head of the branch and the row of the file."""
    header = before.header
    assert header
    chunks = _random_ids(rng, len(header.tensors))
    entry = FileEntry(before.path, before.size, before.raw_header, header, chunks)
    writer = PackWriter(db)
    try:
        for n, chunk in enumerate(entry.chunks):
            base = before.chunks[n] if before.chunks and (number + n) % _CHAIN else None
            writer.add(chunk, header.tensors[n].nbytes, [_random_frame(rng, base)])
        for chunk, content in entry.structure(db.config):
            raw = EncodedFrame(Encoding.RAW, content, checksum(content))
            writer.add(chunk, len(content), [raw] if chunk not in db.index else [])
        last = writer.last()
    finally:
        writer.close()
    written = Written(writer.raw_bytes, writer.stored_bytes, writer.chunks, writer.packs)
    description = Description(
        parents=(head.snapshot,) if head else (),
        time=datetime.now(UTC),
        author="",
        message="",
        metadata={"step": number},
    )
    version = EncodedVersion.of(db, EncodedFiles((entry,), last, written), description)
    moved = write_version(db, version, "main", head)
    db.snapshots.retain()
    return moved, entry


def _random_ids(rng: np.random.Generator, count: int) -> tuple[ChunkId, ...]:
    data = rng.bytes(32 * count)
    return tuple(ChunkId(data[n : n + 32]) for n in range(0, len(data), 32))


def _random_frame(rng: np.random.Generator, base: ChunkId | None) -> EncodedFrame:
    if base is None:
        payload = rng.bytes(2 * ELEMENTS)
        return EncodedFrame(Encoding.RAW, payload, checksum(payload))
    payload = rng.bytes(_PAYLOAD)
    return EncodedFrame(Encoding.SPARSE, payload, checksum(payload), base)
