"""Manifests: the content of one version, and its identity."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import msgpack

from casweights.config import StoreConfig
from casweights.errors import ErrorCode, IntegrityError, InvalidInputError
from casweights.format.fields import expect, split_ids
from casweights.format.file_entry import (
    MAX_EXPANDED_SIZE,
    Expansion,
    FileEntry,
    FileRow,
    stored_chunks,
    structure_sizes,
)
from casweights.format.file_paths import check_paths
from casweights.format.hashing import DIGEST_SIZES, blake3_256
from casweights.format.safetensors import is_text
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.format.file_entry import ReadStructure
    from casweights.format.layout import Piece
    from casweights.ids import ChunkId

MAX_MANIFEST_SIZE = 256 << 20  # bytes: readers allocate no more for a manifest
MAX_PARENTS = 16
MAX_NESTING = 64  # levels of lists and maps in metadata
MAX_METADATA = 1 << 17  # keys and values in metadata
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_SIZE = 1 << 63  # bytes of a file: sizes are signed numbers of 64 bits


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a version: everything that its ID commits to.

    Attributes:
        number: 1 more than the number of the first parent; 1 without parents.
        parents: The versions that this one was made from. The first is the version before it on
            its branch.
        time: Time of the commit, in UTC, to the microsecond.
        author: Name of the author; free text.
        message: Description of the version; free text.
        metadata: JSON-like values that the user attached.
        config: Digest and chunk size of the store.
        files: The files, sorted by path.
    """

    number: int
    parents: tuple[SnapshotId, ...]
    time: datetime
    author: str
    message: str
    metadata: dict[str, Any]
    config: StoreConfig
    files: tuple[FileEntry, ...]

    @property
    def size(self) -> int:
        """Bytes of all files together, as checked out."""
        return sum(file.size for file in self.files)

    def chunks(self) -> dict[ChunkId, None]:
        """Return the distinct chunk IDs of the files, in order of first appearance."""
        return dict.fromkeys(chunk for file in self.files for chunk in file.chunks)

    def stored_chunks(self) -> dict[ChunkId, None]:
        """Return the distinct chunks that a reader needs: those of `structure` come first."""
        return stored_chunks(self.files, self.config)

    def structure(self) -> dict[ChunkId, int]:
        """Return the distinct structure chunks with the size of each in bytes.

        They are the pieces of headers, and the pages that list the chunks of files.
        """
        return structure_sizes([file.row(self.config) for file in self.files], self.config)

    def pieces(self) -> Iterator[tuple[ChunkId, Piece]]:
        """Yield the ID and position of every chunk, file by file."""
        for file in self.files:
            yield from file.pieces(self.config.chunk_size)


@dataclass(frozen=True, kw_only=True)
class Snapshot(Manifest):
    """One immutable version: a manifest with its ID.

    Attributes:
        id: BLAKE3 of the encoded manifest.
    """

    id: SnapshotId

    def __repr__(self) -> str:
        return f"Snapshot({self.id}, {self.message!r}, {len(self.files)} files, {self.size} bytes)"

    def __hash__(self) -> int:
        return hash(self.id)

    @classmethod
    def decode(cls, encoded: bytes, snapshot_id: SnapshotId, read: ReadStructure) -> Self:
        """Decode a manifest and check it against the ID.

        Args:
            encoded: The encoded manifest.
            snapshot_id: The ID that the manifest must have.
            read: Returns checked structure chunks when a file's header or chunks are first used.

        Raises:
            IntegrityError: `encoded` has another ID or is not a valid manifest.
        """
        if blake3_256(encoded) != snapshot_id:
            raise _corrupt(snapshot_id, "its bytes do not match its ID")
        try:
            fields = _decode_fields(encoded)
        except MALFORMED as error:
            raise _corrupt(snapshot_id, str(error)) from error
        rows, config = fields.pop("rows"), fields["config"]
        expansion = Expansion(rows, config, read, partial(_corrupt, snapshot_id))
        files = tuple(
            FileEntry.stored(row, partial(expansion.content, number))
            for number, row in enumerate(rows)
        )
        return cls(id=snapshot_id, files=files, **fields)


class EncodedSnapshot(NamedTuple):
    """A snapshot with the bytes that its ID commits to.

    Attributes:
        snapshot: The snapshot.
        manifest: The encoded manifest.
    """

    snapshot: Snapshot
    manifest: bytes

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Encode a manifest and compute its ID.

        Raises:
            InvalidInputError: The format cannot represent the manifest.
        """
        check_paths([file.path for file in manifest.files])
        encoded = encode_manifest(manifest)
        fields = {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}
        fields["metadata"] = canonical_metadata(
            manifest.metadata
        )  # a copy: callers may change theirs
        return cls(Snapshot(id=SnapshotId(blake3_256(encoded)), **fields), encoded)


def _corrupt(snapshot_id: SnapshotId, why: str) -> IntegrityError:
    return IntegrityError(
        ErrorCode.CORRUPT_OBJECT, f"the manifest of snapshot {snapshot_id} is not valid: {why}"
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest; equal manifests have equal bytes.

    Raises:
        InvalidInputError: Text or metadata cannot be stored, or the manifest is too large.
    """
    for text in (manifest.author, manifest.message):
        if not is_text(text):
            raise InvalidInputError(ErrorCode.BAD_ARGUMENT, f"{text!r} is not valid Unicode text")
    encoded: bytes = msgpack.packb(
        {
            "number": manifest.number,
            "parents": list(manifest.parents),
            "time": (manifest.time - _EPOCH) // timedelta(microseconds=1),
            "author": manifest.author,
            "message": manifest.message,
            "metadata": canonical_metadata(manifest.metadata),
            "digest": manifest.config.digest,
            "chunk_size": manifest.config.chunk_size,
            "files": [
                _encode_row(file.row(manifest.config))
                for file in sorted(manifest.files, key=lambda file: file.path)
            ],
        }
    )
    return check_size(encoded, "manifest")


def _encode_row(row: FileRow) -> list[Any]:
    header, ids = b"".join(row.header), b"".join(row.ids)
    return [row.path, row.size, row.header_size, header, row.count, ids]


def check_size(encoded: bytes, what: str) -> bytes:
    """Return `encoded` if it is small enough for readers.

    Args:
        encoded: An encoded manifest or pack table.
        what: Its description, for the error message.

    Raises:
        InvalidInputError: It is larger than `MAX_MANIFEST_SIZE`.
    """
    if len(encoded) > MAX_MANIFEST_SIZE:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"the version's {what} would take {len(encoded)} bytes, above the limit of "
            f"{MAX_MANIFEST_SIZE}: split the version, or use a store with larger chunks",
        )
    return encoded


def canonical_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a version's metadata with sorted keys.

    Raises:
        InvalidInputError: The metadata is not JSON-like, is nested too deeply or has too many
            values.
    """
    copy: dict[str, Any] = _canonical(metadata, ("metadata",))
    count = _count(copy) - 1
    if count > MAX_METADATA:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"metadata has {count} keys and values, above the limit of {MAX_METADATA}: commit "
            "them as a file",
        )
    return copy


def _count(value: Any) -> int:
    """Return the number of keys and values in a value, itself included."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


def _canonical(value: Any, where: tuple[Any, ...]) -> Any:
    """Check that a metadata value is JSON-like, and return a copy with sorted keys.

    Args:
        value: The value.
        where: The keys and indexes that lead to the value, for an error message.
    """
    # Only an error joins `where` to a text: doing so for each value would take the square of the
    # size of forged metadata, which can have long keys with many values below them.
    if len(where) > MAX_NESTING + 1:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"metadata is nested more than {MAX_NESTING} levels deep"
        )
    if value is None or isinstance(value, bool | float) or (is_text(value)):
        return value
    if isinstance(value, int) and -_MAX_SIZE <= value < 2 * _MAX_SIZE:
        return value
    if isinstance(value, list | tuple):
        return [_canonical(v, (*where, n)) for n, v in enumerate(value)]
    if isinstance(value, dict) and all(map(is_text, value)):
        return {k: _canonical(value[k], (*where, k)) for k in sorted(value)}
    place = "".join(f"[{key}]" if type(key) is int else f".{key:.60}" for key in where)[1:]
    raise InvalidInputError(
        ErrorCode.BAD_ARGUMENT,
        f"{place} is {type(value).__name__} {value!r:.60}: metadata accepts None, bool, int of 64 "
        "bits, float, str, list and dict with str keys",
    )


def _decode_fields(encoded: bytes) -> dict[str, Any]:
    """Decode a manifest, check all rules of the format, and return the fields of `Manifest`."""
    table = _unpack_fields(encoded)
    config = StoreConfig(digest=table["digest"], chunk_size=table["chunk_size"])
    rows = tuple(_decode_row(row, config) for row in table["files"])
    check_paths([row.path for row in rows])
    if any(above.path > below.path for above, below in pairwise(rows)):
        raise ValueError("its files are not ordered by path")
    expanded = sum(row.check(config) for row in rows)
    if expanded > MAX_EXPANDED_SIZE:
        raise ValueError(f"its headers and lists of chunks claim {expanded} bytes")
    structure_sizes(rows, config)
    if not 1 <= table["number"] < _MAX_SIZE:
        raise ValueError(f"its number is {table['number']}")
    return {
        "number": table["number"],
        "parents": tuple(map(SnapshotId, table["parents"])),
        "time": _EPOCH + timedelta(microseconds=table["time"]),
        "author": table["author"],
        "message": table["message"],
        "metadata": canonical_metadata(expect(table["metadata"], dict)),
        "config": config,
        "rows": rows,
    }


def _unpack_fields(encoded: bytes) -> dict[str, Any]:
    """Decode the values of a manifest, and check the type of each."""
    data = Unpacker(encoded)
    readers: dict[str, Callable[[], Any]] = {
        "number": lambda: data.scalar(int),
        "parents": lambda: [data.scalar(bytes) for _ in data.items(MAX_PARENTS)],
        "time": lambda: data.scalar(int),
        "author": lambda: data.scalar(str),
        "message": lambda: data.scalar(str),
        "metadata": lambda: data.tree(MAX_METADATA, MAX_NESTING),
        "digest": lambda: data.scalar(str),
        "chunk_size": lambda: data.scalar(int),
        "files": lambda: [_unpack_row(data) for _ in data.items(len(encoded))],
    }
    table = data.fields(readers, exact=True)
    data.finish()
    return table


_Row = tuple[str, int, "int | None", bytes, int, bytes]


def _unpack_row(data: Unpacker) -> _Row:
    data.row(6)
    return (
        data.scalar(str),
        data.scalar(int),
        data.optional(int),
        data.scalar(bytes),
        data.scalar(int),
        data.scalar(bytes),
    )


def _decode_row(row: _Row, config: StoreConfig) -> FileRow:
    path, size, header_size, header, count, ids = row
    split = partial(split_ids, digest_size=DIGEST_SIZES[config.digest])
    return FileRow(path, size, header_size, split(header), count, split(ids))
