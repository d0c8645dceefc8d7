"""Measures which base versions without a parent find, against trying all versions before them.

Families of a real model (fine-tunes, a merged adapter, a merge, other names, casts) and of random
ones lie in one store. Each version is sought as a commit seeks it, and its chunks are encoded as
differences from what was found, and from every earlier version of its family. Prints a table and
one line of JSON. Usage: tools/bench/run recall [--families N]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import casweights
from casweights.config import KiB, StoreConfig
from casweights.format.codecs import encode
from casweights.format.differences import encode_difference
from casweights.format.sampling import sampled_tensors
from casweights.operations.base_chunks import BaseChunks
from casweights.operations.bases import Bases
from casweights.operations.candidates import New
from casweights.operations.derivations import derive
from casweights.operations.relatives import relatives
from casweights.operations.sampling import signature_of
from casweights.stores.memory import MemoryStore
from tools.bench.families import random_family, real_family
from tools.bench.harness import Result, measured, report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casweights.database import Database
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId, SnapshotId
    from casweights.operations.derivations import Derivation
    from tools.bench.families import Family

_MAX_SHARE = 0.5  # of a whole, beyond which a version is no base, as in `relatives`
# Tensors of a small model then have chunks of their own, as those of a large one do.
CONFIG = StoreConfig(chunk_size=64 * KiB)
_AS_GOOD = 1.005  # times the bytes of the best base: a version that is found counts


class Found(NamedTuple):
    """A version, and its bytes: as found, and from the best one of all earlier versions."""

    name: str
    found: int
    best: int


class Seeker:
    """Seeks the bases of a version in a store, and encodes differences from them.

    Args:
        db: The store.
        snapshot: The version.
    """

    def __init__(self, db: Database, snapshot: SnapshotId) -> None:
        self._db = db
        self._version = db.snapshots.load(snapshot, with_locations=True)
        self._chunks: dict[tuple[str, Piece], ChunkId] = {
            (file.path, piece): chunk
            for file in self._version.files
            for chunk, piece in file.pieces(db.config.chunk_size)
        }
        self._content = {chunk: self._read(chunk, piece) for (_, piece), chunk in self._items()}
        self._wholes = {
            chunk: len(encode(self._content[chunk], piece.dtype, "auto")[1])
            for (_, piece), chunk in self._items()
        }
        self._differences: dict[tuple[ChunkId, ChunkId], int] = {}

    def _items(self) -> Sequence[tuple[tuple[str, Piece], ChunkId]]:
        return list(self._chunks.items())

    def _read(self, chunk: ChunkId, piece: Piece) -> memoryview:
        out = memoryview(bytearray(piece.nbytes))
        self._db.reader.readinto(chunk, out)
        return out

    def seek(self, within: Mapping[SnapshotId, None]) -> Bases:
        """Return what a commit of this version would find among others."""
        signature = signature_of(self._db, self._version)
        if signature is None:
            raise SystemExit("a version has no tensors")
        tensors = sampled_tensors((f.path, f.size, f.header) for f in self._version.files)
        new = New(
            self._version.files,
            tensors,
            signature,
            lambda path, piece: self._content[self._chunks[path, piece]],
        )
        return relatives(self._db, new, within=within)

    def by_names(self, snapshot: SnapshotId) -> Bases:
        """Return the chunks of a version as if it were declared as the parent."""
        version: Snapshot = self._db.snapshots.load(snapshot, with_locations=True)
        return Bases(BaseChunks(version, self._version.files))

    def cost(self, bases: Bases) -> int:
        """Return the bytes of all chunks, each as a difference where that is smaller.

        Differences that take more than half of these chunks do not count: no commit writes them.
        """
        whole = differences = rest = 0
        for (path, piece), chunk in self._items():
            base = bases.find(path, piece)
            made = bases.derivation(path, piece, base)
            if made is not None:
                whole += self._wholes[chunk]
                differences += self._derived(chunk, piece, made, bases)
            elif base is not None:
                whole += self._wholes[chunk]
                differences += self._cost(chunk, piece, base)
            else:
                rest += self._wholes[chunk]
        return rest + (differences if differences < _MAX_SHARE * whole else whole)

    def _cost(self, chunk: ChunkId, piece: Piece, base: ChunkId) -> int:
        if base == chunk:
            return 0
        if (chunk, base) not in self._differences:
            old = self._read(base, piece)
            made = encode_difference(self._content[chunk], old, piece.dtype, piece.extents)
            size = self._wholes[chunk] if made is None else len(made[1])
            self._differences[chunk, base] = min(size, self._wholes[chunk])
        return self._differences[chunk, base]

    def _derived(self, chunk: ChunkId, piece: Piece, made: Derivation, bases: Bases) -> int:
        def read(root: ChunkId, nbytes: int) -> memoryview:
            out = memoryview(bytearray(nbytes))
            self._db.reader.readinto(root, out)
            return out

        frame = derive(self._content[chunk], piece, made, bases.sizes, read)
        whole = self._wholes[chunk]
        return whole if frame is None else min(len(frame.payload), whole)


def measure(family: Family, store: casweights.Repository) -> list[Found]:
    """Commit the versions of a family, and compare what each finds with the best base."""
    db = store.database
    earlier: dict[SnapshotId, None] = {}
    others = dict.fromkeys(db.signatures.versions())
    results = []
    for name, state in family.versions():
        version = store.commit(state, branch=f"{family.name}/{name}").id
        seeker = Seeker(db, version)
        found = seeker.cost(seeker.seek(others | earlier))
        whole = seeker.cost(Bases())
        tried = [whole]
        for one in earlier:
            tried += [seeker.cost(seeker.seek({one: None})), seeker.cost(seeker.by_names(one))]
        if min(tried) < whole:
            results.append(Found(f"{family.name}/{name}", found, min(tried)))
            ratio, share = found / min(tried), min(tried) / whole
            print(f"  {name}: {ratio:.3f} of the best, which is {share:.3f}", file=sys.stderr)
        earlier[version] = None
    return results


def rows(kind: str, found: Sequence[Found]) -> list[Result]:
    """Return the rows of families of one kind."""
    hits = sum(one.found <= _AS_GOOD * one.best for one in found)
    extra = sum(one.found for one in found) / sum(one.best for one in found) - 1
    missed = [one.name for one in found if one.found > _AS_GOOD * one.best]
    note = f"{len(found)} versions that have a base; missed: {', '.join(missed) or 'none'}"
    return [
        measured(
            f"{kind}: found", hits / len(found), "of them", target=0.98, note=note, at_least=True
        ),
        measured(f"{kind}: more bytes", 100 * extra, "%", target=0.5, note=note),
    ]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tools/bench/run recall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--families", type=int, default=8, metavar="N", help="random ones")
    return made


def main() -> int:
    count = parser().parse_args().families
    found: dict[str, list[Found]] = {"real": [], "random": []}
    with (
        tempfile.TemporaryDirectory() as work,
        casweights.open(MemoryStore(), create=True, config=CONFIG) as store,
    ):
        for number in range(count):
            found["random"] += measure(random_family(number), store)
        for dtype in ("bfloat16", "float32"):
            found["real"] += measure(real_family(Path(work), dtype), store)
    results = [row for kind, ones in found.items() for row in rows(kind, ones)]
    return report("Bases that versions find", {"random families": count}, results)


if __name__ == "__main__":
    sys.exit(main())
