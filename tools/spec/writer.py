"""A writer of stores in a directory, written from docs/format.md alone.

It shares no code with casweights, nor with the readers of this folder, so a store of its making
shows whether the page says all that a writer has to know. Each function names the section that it
follows. It is for one writer at a time, and keeps in memory what it has written.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import blake3
import msgpack
import xxhash

from tools.spec import encoders, record_encoder
from tools.spec.cutting import Chunk, SafetensorsFile, chunks_of, grid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

File = bytes | SafetensorsFile
Place = Literal["carried", "packs", "whole"]
NOWHERE = bytes(32)
TIME = 1_700_000_000_000_000
_PAGE = 4096


class Frame(NamedTuple):
    """An encoded chunk, with what a row of an index says of it ("Packs")."""

    chunk: bytes
    raw_size: int
    encoding: int
    base: bytes | None
    stored: bytes


class Row(NamedTuple):
    """A file: its manifest row, and the chunks that it needs in file order."""

    values: tuple[str, int, int | None, bytes, int, bytes]
    structure: tuple[Chunk, ...]
    content: tuple[Chunk, ...]


@dataclass(frozen=True)
class Version:
    """A version that was written."""

    id: bytes
    number: int
    rows: tuple[Row, ...]
    bare: bool


@dataclass
class _Ref:
    position: int = 0
    head: bytes = NOWHERE


@dataclass
class StoreWriter:
    """A new store in an empty or missing directory."""

    root: Path
    digest: Literal["blake3", "xxh3-128"] = "blake3"
    chunk_size: int = 65536
    frames_a_pack: int = 65536
    versions: dict[bytes, Version] = field(default_factory=dict)
    _packs: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    """The chunks of each pack, and of each snapshot's object."""
    _homes: dict[bytes, bytes] = field(default_factory=dict)
    """Where the frame of each chunk lies: the ID of a pack or of a snapshot."""
    _bases: dict[bytes, bytes] = field(default_factory=dict)
    _refs: dict[str, _Ref] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._put("casweights.json", store_file(self.digest, self.chunk_size))

    # Versions

    def commit(
        self,
        branch: str,
        files: Mapping[str, File],
        place: Place = "carried",
        encodings: Sequence[int] = (encoders.ZSTD,),
        metadata: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Write a version on top of a branch and move the branch to it.

        Args:
            branch: Without `refs/heads/`.
            files: By path.
            place: Whether its frames are in its own object or in packs, or object and move are
                one ("Whole moves").
            encodings: Those of its frames, in turn, where they apply and make them no larger.
            metadata: Of the manifest.
        """
        head = self._refs.setdefault(f"heads/{branch}", _Ref()).head
        parent = self.versions.get(head)
        rows = tuple(self._row(path, files[path]) for path in sorted(files))
        number = 1 + parent.number if parent else 1
        manifest = self._manifest(number, [head] if parent else [], rows, metadata or {})
        snapshot = blake3.blake3(manifest).digest()
        frames = list(self._new_frames(rows, parent, encodings))
        if place == "packs":
            for at in range(0, len(frames), self.frames_a_pack):
                self._write_pack(frames[at : at + self.frames_a_pack])
            frames = []
        self._remember(snapshot, frames)
        table = self._table(snapshot, rows, carries=bool(frames))
        content = snapshot_object(manifest, table, frames)
        self.versions[snapshot] = Version(snapshot, number, rows, bare=not frames)
        if place == "whole":
            self._move(f"heads/{branch}", snapshot, content)
        else:
            self._put(f"snapshots/{snapshot.hex()}", content)
            self._move(f"heads/{branch}", snapshot)
        return snapshot

    def tag(self, name: str, snapshot: bytes) -> None:
        """Name a version by a tag that does not exist ("Refs")."""
        self._move(f"tags/{name}", snapshot)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch by a move ("Deletions")."""
        self._move(f"heads/{branch}", NOWHERE)

    def _row(self, path: str, file: File) -> Row:
        """The manifest row of a file ("Manifests and snapshots")."""
        whole = file if isinstance(file, bytes) else file.content
        header = b"" if isinstance(file, bytes) else file.header
        content = tuple(chunks_of(file, self.chunk_size))
        ids = [self._chunk_id(chunk.raw) for chunk in content]
        header_chunks = [_plain(raw) for raw in grid(header, self.chunk_size)]
        pages = [
            _plain(b"".join(ids[at : at + _PAGE]))
            for at in range(0, len(ids) if len(ids) > 1 else 0, _PAGE)
        ]
        values = (
            path,
            len(whole),
            None if isinstance(file, bytes) else len(header),
            b"".join(self._chunk_id(chunk.raw) for chunk in header_chunks),
            len(ids),
            b"".join(self._chunk_id(page.raw) for page in pages) if pages else b"".join(ids),
        )
        return Row(values, (*header_chunks, *pages), content)

    def _manifest(
        self, number: int, parents: list[bytes], rows: Sequence[Row], metadata: Mapping[str, Any]
    ) -> bytes:
        """The manifest ("Manifests and snapshots")."""
        return _msgpack(
            {
                "number": number,
                "parents": parents,
                "time": TIME + number,
                "author": "page",
                "message": f"version {number}",
                "metadata": dict(sorted(metadata.items())),
                "digest": self.digest,
                "chunk_size": self.chunk_size,
                "files": [row.values for row in rows],
            }
        )

    def _table(self, snapshot: bytes, rows: Sequence[Row], *, carries: bool) -> bytes:
        """The pack table ("Manifests and snapshots")."""
        structure, content = self._distinct(rows)
        needed = dict.fromkeys([snapshot] if carries else [])
        needed.update(dict.fromkeys(self._homes_of(structure)))
        first = len(needed)
        needed.update(dict.fromkeys(self._homes_of(content)))
        numbers = {pack: number for number, pack in enumerate(needed)}
        carried = [n for pack, n in numbers.items() if pack in self.versions]
        table: dict[str, Any] = {
            "packs": b"".join(pack for pack in needed if pack != snapshot),
            "pack": [numbers[self._homes[chunk]] for chunk in (*structure, *content)],
            "structure": first,
        }
        return _msgpack({**table, "carried": carried} if carried else table)

    def _distinct(self, rows: Sequence[Row]) -> tuple[list[bytes], list[bytes]]:
        """The distinct IDs of structure chunks, then of others ("Manifests and snapshots")."""
        structure = dict.fromkeys(self._chunk_id(c.raw) for row in rows for c in row.structure)
        content = dict.fromkeys(self._chunk_id(c.raw) for row in rows for c in row.content)
        return list(structure), [chunk for chunk in content if chunk not in structure]

    def _homes_of(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The packs of chunks, and of all frames that they build on."""
        for chunk in chunks:
            link: bytes | None = chunk
            while link is not None:
                yield self._homes[link]
                link = self._bases.get(link)

    # Frames

    def _new_frames(
        self, rows: Sequence[Row], parent: Version | None, encodings: Sequence[int]
    ) -> Iterator[Frame]:
        """Frames of the chunks that the store lacks, each with the base at its place if it can."""
        earlier = {row.values[0]: row for row in parent.rows} if parent else {}
        made: set[bytes] = set()
        for take in ("content", "structure"):
            for row in rows:
                before = getattr(earlier.get(row.values[0]), take, ())
                chunks = getattr(row, take)
                for chunk, base in zip_longest(chunks, before[: len(chunks)]):
                    name = self._chunk_id(chunk.raw)
                    if name not in self._homes and name not in made:
                        code = encodings[len(made) % len(encodings)]
                        made.add(name)
                        yield self._frame(name, chunk, base, code)

    def _frame(self, name: bytes, chunk: Chunk, base: Chunk | None, encoding: int) -> Frame:
        """A frame, which is never larger than its chunk ("Encodings")."""
        if base is not None and len(base.raw) != len(chunk.raw):
            base = None
        for code in (encoding, encoders.ZSTD):
            stored = encode(code, chunk, base.raw if base else None)
            if stored is not None and len(stored) <= len(chunk.raw):
                on = self._chunk_id(base.raw) if base and code >= encoders.DENSE else None
                return Frame(name, len(chunk.raw), code, on, stored)
        return Frame(name, len(chunk.raw), encoders.RAW, None, chunk.raw)

    def _chunk_id(self, raw: bytes) -> bytes:
        """The digest of a chunk ("Conventions")."""
        return (
            blake3.blake3(raw).digest() if self.digest == "blake3" else xxhash.xxh3_128_digest(raw)
        )

    # Objects

    def _write_pack(self, frames: Sequence[Frame]) -> None:
        """A pack, named by its prefix and index ("Packs")."""
        prefix = _prefix("p")
        index = _msgpack({**columns(frames, self._digest_size), "generation": 0})
        pack = blake3.blake3(prefix + index).digest()
        body = prefix + b"".join(frame.stored for frame in frames)
        self._put(f"packs/{pack.hex()}", body + index + _u32(len(index)) + b"cidx")
        self._remember(pack, frames)

    def _remember(self, pack: bytes, frames: Sequence[Frame]) -> None:
        self._packs[pack] = tuple(frame.chunk for frame in frames)
        for frame in frames:
            self._homes[frame.chunk] = pack
            if frame.base is not None:
                self._bases[frame.chunk] = frame.base

    def archive(self, snapshots: Iterable[bytes], generation: int = 1) -> None:
        """Move bare snapshot objects into an archive ("Archives")."""
        names = [f"snapshots/{snapshot.hex()}" for snapshot in sorted(snapshots)]
        body, rows = _prefix("v"), b""
        for name in names:
            content = (self.root / name).read_bytes()
            rows += bytes.fromhex(name[-64:]) + _u64(len(body)) + _u32(len(content))
            body += content
        end = rows + _u32(generation)
        whole = body + end + _checksum(_prefix("v") + end) + _u32(len(names)) + b"cver"
        self._put(f"versions/{blake3.blake3(whole).hexdigest()}", whole)
        for name in names:
            (self.root / name).unlink()

    def segment(self, bits: int, generation: int = 0) -> None:
        """A segment that covers everything written so far ("Segments")."""
        packs = list(self._packs)
        rows = sorted(
            chunk[:16] + _u32(number)
            for number, pack in enumerate(packs)
            for chunk in self._packs[pack]
        )
        fanout, end = b"", 0
        for bucket in range(1 << bits):
            its = [r for r in rows if int.from_bytes(r[:2], "big") >> (16 - bits) == bucket]
            end += len(its)
            fanout += _u32(end) + _checksum(b"".join(its))[:4]
        listed = b"".join(
            pack + bytes([pack in self.versions]) + _u32(len(self._packs[pack])) for pack in packs
        )
        counts = _u32(len(rows)) + _u32(len(packs)) + _u32(bits) + _u32(generation)
        prefix, index = _prefix("i"), fanout + listed + counts
        name = blake3.blake3(prefix + index).hexdigest()
        whole = prefix + b"".join(rows) + index + _u32(len(index)) + b"cidx"
        self._put(f"segments/{name}", whole)

    def _move(self, ref: str, to: bytes, whole: bytes | None = None) -> None:
        """The next move of a branch or tag ("Refs"), which may be the version ("Whole moves")."""
        at = self._refs.setdefault(ref, _Ref())
        at.position += 1
        name = f"refs/{ref}/{at.position:012}"
        if whole is not None:
            before = f"-{at.head.hex()}" if at.position > 1 else ""
            self._put(f"{name}-{to.hex()}{before}-{secrets.token_hex(8)}.step", whole)
        else:
            payload = {"snapshot": to, "time": TIME + at.position}
            if to == NOWHERE:
                payload["before"] = at.head
            self._put(f"{name}.ref", sealed("r", _msgpack(payload)))
        at.head = to

    @property
    def _digest_size(self) -> int:
        return 32 if self.digest == "blake3" else 16

    def _put(self, name: str, content: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(content)


def store_file(digest: str, chunk_size: int) -> bytes:
    """`casweights.json` ("casweights.json")."""
    fields: dict[str, object] = {
        "format": 2,
        "store_id": secrets.token_hex(16),
        "digest": digest,
        "chunk_size": chunk_size,
    }
    text = json.dumps(fields, indent=2)
    fields["checksum"] = _checksum(text.encode()).hex()
    return json.dumps(fields, indent=2).encode()


def sealed(kind: str, payload: bytes) -> bytes:
    """A sealed object ("Sealed objects")."""
    body = _prefix(kind) + payload
    return body + _checksum(body)


def columns(frames: Sequence[Frame], digest_size: int) -> dict[str, object]:
    """What an index says of its frames ("Packs")."""
    based = sum(1 << n for n, frame in enumerate(frames) if frame.base is not None)
    return {
        "digest_size": digest_size,
        "chunk": b"".join(frame.chunk for frame in frames),
        "raw_size": b"".join(_u32(frame.raw_size) for frame in frames),
        "size": b"".join(_u32(len(frame.stored)) for frame in frames),
        "encoding": bytes(frame.encoding for frame in frames),
        "checksum": b"".join(_checksum(frame.stored) for frame in frames),
        "based": based.to_bytes((len(frames) + 7) // 8, "little"),
        "base": b"".join(frame.base for frame in frames if frame.base is not None),
    }


def snapshot_object(manifest: bytes, table: bytes, frames: Sequence[Frame]) -> bytes:
    """A snapshot object, bare if there are no frames ("Manifests and snapshots")."""
    fields: dict[str, object] = {
        "manifest": encoders.zstd(manifest),
        "manifest_size": len(manifest),
        "table": encoders.zstd(table),
        "table_size": len(table),
    }
    if frames:
        fields["frames"] = _msgpack(columns(frames, len(frames[0].chunk)))
    prefix, index = _prefix("s"), _msgpack(fields)
    body = prefix + b"".join(frame.stored for frame in frames) + index
    return body + _checksum(prefix + index) + _u32(len(index)) + b"cidx"


def encode(code: int, chunk: Chunk, base: bytes | None) -> bytes | None:
    """A chunk in an encoding; None if that encoding does not fit it ("Encodings")."""
    if code == encoders.RAW:
        return chunk.raw
    if code == encoders.ZSTD:
        return encoders.zstd(chunk.raw)
    if code == encoders.PLANES:
        fits = chunk.kind.mantissa is not None
        return encoders.planes(chunk.raw, chunk.kind.bits // 8) if fits else None
    if base is None:
        return None
    if code == encoders.PARTS:
        return _parts(chunk, base)
    if code == encoders.LOW_RANK:
        fits = 8 * len(chunk.raw) // chunk.kind.bits > 128 and chunk.kind.code in range(4, 9)
        return encoders.low_rank(chunk.raw, base, chunk.kind, 16, 3) if fits else None
    if code == encoders.RECORDS:
        return record_encoder.encode(chunk.raw, base)
    starts = sorted(set(encoders.exponents_of(base, chunk.kind)) - {0})[:7]
    if code == encoders.SPARSE:
        return encoders.sparse(chunk.raw, base, chunk.kind, starts)
    return encoders.dense(chunk.raw, base, chunk.kind, starts, _models(chunk))


def _models(chunk: Chunk) -> encoders.Models:
    """Groups in turn, and expected steps that ascend if the kind has a mantissa."""
    elements = 8 * len(chunk.raw) // chunk.kind.bits
    bits = min((chunk.kind.mantissa or 1) - 1, 8)
    growth = range(-(1 << bits) // 2, (1 << bits) // 2) if bits else ()
    return encoders.Models([n % 3 for n in range(-(-elements // 128))], growth)


_OF_PARTS = (encoders.SPARSE, encoders.DENSE, encoders.PLANES, encoders.RECORDS)


def _parts(chunk: Chunk, base: bytes) -> bytes | None:
    """A part for each tensor of a chunk, each in another encoding ("Parts")."""
    if len(chunk.spans) < 2:
        return None
    rows, at = [], 0
    for n, size in enumerate(chunk.spans):
        piece = Chunk(chunk.raw[at : at + size], chunk.kind, (size,))
        for code in (_OF_PARTS[n % len(_OF_PARTS)], encoders.RAW):
            stored = encode(code, piece, base[at : at + size])
            if stored is not None:
                rows.append((code, size, stored))
                break
        at += size
    return encoders.parts(rows)


def _plain(raw: bytes) -> Chunk:
    return Chunk(raw, encoders.KINDS[0], (len(raw),))


def _prefix(kind: str) -> bytes:
    return b"casw" + kind.encode() + b"\2\0\0"


def _checksum(content: bytes) -> bytes:
    return xxhash.xxh3_64_digest(content)


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _msgpack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed
