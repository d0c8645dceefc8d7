"""Indexes of shards: JSON files that say which file of a model has which tensor."""

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
_MAX_INDEX_SIZE = 32 << 20  # bytes; indexes of the largest models have a tenth of that


def is_index(path: str) -> bool:
    """Whether a file is called like an index of shards."""
    return _INDEX.search(path) is not None


def is_too_large(size: int) -> bool:
    """Whether a file of this size is not read as an index."""
    return size > _MAX_INDEX_SIZE


def single_file(index: str) -> str:
    """The path of the file that has all tensors of an index, where there is one."""
    return _INDEX.sub(r"\1.safetensors", index)


def parse_index(content: bytes, path: str, size: int | None = None) -> dict[str, str]:
    """The path of the shard of each tensor, as an index says.

    Args:
        content: The index; of one that is too large, anything.
        path: Where it lies in the version.
        size: Its size, if that is not the size of `content`.

    Raises:
        InvalidInputError: It is malformed, or too large.
    """
    if is_too_large(size or len(content)):
        raise _bad_index(path, f"it has more than {_MAX_INDEX_SIZE} bytes")
    try:
        table = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)["weight_map"]
    except (ValueError, RecursionError, TypeError, LookupError) as error:
        raise _bad_index(path, f"it has no weight_map in JSON ({error!r:.200})") from None
    if not isinstance(table, dict) or not all(isinstance(shard, str) for shard in table.values()):
        raise _bad_index(path, "its weight_map is not a map from names to paths")
    folder = posixpath.dirname(path)
    return {name: _inside(folder, shard, path) for name, shard in table.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is there twice")
    return table


def _inside(folder: str, shard: str, path: str) -> str:
    place = posixpath.normpath(shard)
    if place.startswith(("/", "..")) or "\\" in place:
        raise _bad_index(path, f"it names {shard!r:.200}, which is outside its folder")
    return posixpath.join(folder, place)


def _bad_index(path: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        ErrorCode.BAD_INDEX,
        f"{path} is not a valid index of shards: {why}. Repair it, or name the files of the "
        "weights with include",
    )


def index_problem(
    path: str, table: Mapping[str, str], header_of: Callable[[str], Header | None]
) -> str | None:
    """What an index names that is not there.

    Args:
        path: The index.
        table: What it says.
        header_of: From a path to the header of the safetensors file there; None if there is none.
    """
    there: dict[str, set[str] | None] = {}
    for name, shard in table.items():
        if shard not in there:
            header = header_of(shard)
            there[shard] = None if header is None else {info.name for info in header.tensors}
        names = there[shard]
        if names is None:
            return f"{path} names {shard!r}, which is no safetensors file of the version"
        if name not in names:
            return f"{path} says that {shard!r} has the tensor {name!r}, and it does not"
    return None


def bad_indexes(files: Sequence[SourceFile], chunk_size: int) -> Iterator[str]:
    """What is wrong with the indexes among the files of a version that is about to be made."""
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
                    yield f"{problem}: programs will not load this version"


def _source_bytes(file: SourceFile, chunk_size: int) -> bytes:
    """What a file holds; nothing if it is too large for an index."""
    if is_too_large(file.size):
        return b""
    buffers = Pool(chunk_size)
    pieces = runs(file.pieces(chunk_size), chunk_size)
    return b"".join(b"".join(file.read(run, buffers)) for run in pieces)
