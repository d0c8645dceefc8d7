"""Shard indexes: JSON files that map each tensor of a model to the file that contains it."""

from __future__ import annotations

import json
import posixpath
import re
from typing import TYPE_CHECKING, Any

from casweights.errors import ErrorCode, InvalidInputError
from casweights.format.layout import runs
from casweights.system.buffers import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from casweights.content.files import SourceFile
    from casweights.format.safetensors import Header

_INDEX = re.compile(r"\.safetensors\.index(|\.[^./]+)\.json$")
_MAX_INDEX_SIZE = 32 << 20  # bytes; ten times the size of the largest models' indexes


def is_index(path: str) -> bool:
    """Whether a file has the name of a shard index."""
    return _INDEX.search(path) is not None


def is_too_large(size: int) -> bool:
    """Whether a file of this size, in bytes, is too large to be read as an index."""
    return size > _MAX_INDEX_SIZE


def single_file(index: str) -> str:
    """Return the path that a file with all tensors of an index would have."""
    return _INDEX.sub(r"\1.safetensors", index)


def parse_index(content: bytes, path: str, size: int | None = None) -> dict[str, str]:
    """Parse an index, and return the path of each tensor's shard in the version.

    Args:
        content: The bytes of the index; not used if it is too large.
        path: The path of the index in the version.
        size: The size of the index in bytes, if `content` may be incomplete.

    Raises:
        InvalidInputError: It is malformed or too large.
    """
    if is_too_large(size or len(content)):
        raise _bad_index(path, f"it is larger than {_MAX_INDEX_SIZE} bytes")
    try:
        table = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)["weight_map"]
    except (ValueError, RecursionError, TypeError, LookupError) as error:
        raise _bad_index(path, f"it is not JSON with a weight_map ({error!r:.200})") from None
    if not isinstance(table, dict) or not all(isinstance(shard, str) for shard in table.values()):
        raise _bad_index(path, "its weight_map is not a map from names to paths")
    folder = posixpath.dirname(path)
    return {name: _inside(folder, shard, path) for name, shard in table.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


def _inside(folder: str, shard: str, path: str) -> str:
    """Return the path of a shard in the version; an index must not name files elsewhere."""
    relative = posixpath.normpath(shard)
    if relative.startswith(("/", "..")) or "\\" in relative:
        raise _bad_index(path, f"it names {shard!r:.200}, which is outside its folder")
    return posixpath.join(folder, relative)


def _bad_index(path: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        ErrorCode.BAD_INDEX,
        f"{path} is not a valid shard index: {why}. Repair it, or name the files of the weights "
        "with include",
    )


def index_problem(
    path: str, table: Mapping[str, str], header_of: Callable[[str], Header | None]
) -> str | None:
    """Describe the first file or tensor that an index names and the version lacks.

    Args:
        path: The path of the index.
        table: The path of each tensor's shard, from `parse_index`.
        header_of: Returns the header of the safetensors file at a path; None if there is no such
            file.

    Returns:
        A sentence without its end, or None if the version contains everything.
    """
    found: dict[str, set[str] | None] = {}
    for name, shard in table.items():
        if shard not in found:
            header = header_of(shard)
            found[shard] = None if header is None else {info.name for info in header.tensors}
        names = found[shard]
        if names is None:
            return f"{path} names {shard!r}, which is not a safetensors file of the version"
        if name not in names:
            return f"{path} names the tensor {name!r} in {shard!r}, which does not contain it"
    return None


def bad_indexes(files: Sequence[SourceFile], chunk_size: int) -> Iterator[str]:
    """Yield a message for each shard index among these files that is malformed or does not fit."""
    headers = {file.path: file.header for file in files}
    for file in files:
        if is_index(file.path):
            content = _source_bytes(file, chunk_size)
            try:
                table = parse_index(content, file.path, file.size)
            except InvalidInputError as error:
                yield error.message
            else:
                problem = index_problem(file.path, table, headers.get)
                if problem:
                    yield f"{problem}: programs will fail to load this version"


def _source_bytes(file: SourceFile, chunk_size: int) -> bytes:
    """Read a whole file; return no bytes if it is too large for an index."""
    if is_too_large(file.size):
        return b""
    buffers = Pool(chunk_size)
    pieces = runs(file.pieces(chunk_size), chunk_size)
    return b"".join(b"".join(file.read(run, buffers)) for run in pieces)
