"""The description of a sharded state dict, stored with its shards as msgpack, never as pickle.

The file ``dcp.msgpack`` of a version is a map::

    format   1
    tensors  fqn -> [dtype, size, [[offsets, sizes, file, tensor], ...]]
    blobs    fqn -> [file, tensor]
    paths    nil, or fqn -> the keys that lead to the item in the nested state dict
    order    every fqn, in the order of the saved state dict; absent in older versions

An fqn is torch's name for an item of the state dict. The dtype is torch's name, for example
"bfloat16". File and tensor are the path of a file in the version and the name of a tensor in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from casweights.content.spans import StoredTensor, stored_tensors
from casweights.content.torch_types import allocate
from casweights.errors import (
    ErrorCode,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
)
from casweights.format.fields import expect
from casweights.format.manifest import check_size
from casweights.format.safetensors import TensorInfo
from casweights.format.unpack import MALFORMED, Unpacker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from casweights.format.manifest import Snapshot

LAYOUT_FILE = "dcp.msgpack"
_FORMAT = 1  # readers refuse a higher number
_MAX_DEPTH = 6  # nested lists and maps: the offsets of a shard are on the last level
# Values in a layout: a constant, plus a number for each tensor of the version. The limit bounds the
# memory that a hostile layout can occupy.
_MAX_VALUES, _MAX_VALUES_PER_TENSOR = 1 << 12, 1 << 8
_MAX_INDEX = 1 << 20  # in a path; torch allocates a list as long as the index


class ShardRef(NamedTuple):
    """The tensor of a version that holds a shard or another item.

    Attributes:
        file: Path of the safetensors file.
        tensor: Name of the tensor in it.
    """

    file: str
    tensor: str


def encode_layout(
    metadata: Metadata, shards: Mapping[MetadataIndex, ShardRef], order: Iterable[str] = ()
) -> bytes:
    """Encode metadata as bytes; equal layouts result in equal bytes.

    Args:
        metadata: The metadata that the planner made.
        shards: The tensor that holds each item.
        order: Names in the order of the saved state. Missing names are appended.

    Raises:
        UnsupportedError: The planner's `planner_data` is of an unknown kind.
    """
    tensors: dict[str, Any] = {}
    blobs: dict[str, Any] = {}
    for fqn, item in sorted(metadata.state_dict_metadata.items()):
        if isinstance(item, TensorStorageMetadata):
            rows = [
                [list(c.offsets), list(c.sizes), *shards[MetadataIndex(fqn, c.offsets)]]
                for c in item.chunks
            ]
            dtype = str(item.properties.dtype).removeprefix("torch.")
            tensors[fqn] = [dtype, list(item.size), rows]
        else:
            blobs[fqn] = list(shards[MetadataIndex(fqn)])
    paths = _encode_paths(metadata.planner_data)
    items = metadata.state_dict_metadata
    ordered = dict.fromkeys((*order, *(metadata.planner_data or ()), *items))
    names = [name for name in ordered if name in items]
    table = {"format": _FORMAT, "tensors": tensors, "blobs": blobs, "paths": paths, "order": names}
    encoded: bytes = msgpack.packb(table)
    return check_size(encoded, "layout")


def _encode_paths(data: Any) -> dict[str, list[str | int]] | None:
    """Return the keys that lead to each item, from the planner's data."""
    if data is None:
        return None
    if isinstance(data, dict) and all(
        type(fqn) is str and isinstance(path, tuple) and all(type(k) in (str, int) for k in path)
        for fqn, path in data.items()
    ):
        return {fqn: list(path) for fqn, path in sorted(data.items())}
    raise UnsupportedError(
        ErrorCode.UNSUPPORTED,
        "planner_data must be a dict of tuples of str and int by name, as DefaultSavePlanner makes "
        "it; other data cannot be stored: leave planner_data as it is",
    )


class Layout:
    """The items of a version as torch describes them, and their locations in the version.

    Attributes:
        snapshot: The version.
        metadata: The description; its `storage_data` maps each item to its `ShardRef`.
    """

    def __init__(self, snapshot: Snapshot, encoded: bytes) -> None:
        """Decode a layout that `encode_layout` encoded.

        Raises:
            IntegrityError: The layout is malformed, or does not fit the files of the version.
            UnsupportedError: A newer casweights wrote the layout.
        """
        self.snapshot = snapshot
        self._tensors = {
            ShardRef(file.path, stored.info.name): stored
            for file in snapshot.files
            for stored in stored_tensors(file, snapshot.config.chunk_size)
        }
        try:
            self.metadata = self._decode(encoded)
        except MALFORMED as error:
            raise IntegrityError(
                ErrorCode.CORRUPT_OBJECT,
                f"{LAYOUT_FILE} of snapshot {snapshot.id} is not valid: {error}",
            ) from error
        self.metadata.storage_meta = StorageMeta(checkpoint_id=str(snapshot.id))

    def find(self, index: MetadataIndex) -> StoredTensor:
        """Return the stored tensor that holds an item of `metadata`.

        Raises:
            NotFoundError: The version has no such item.
        """
        try:
            return self._tensors[self.metadata.storage_data[index]]
        except KeyError:
            raise NotFoundError(
                ErrorCode.TENSOR_NOT_FOUND,
                f"the version has no {index.fqn!r} at {index.offset}: plan the load with the "
                "metadata of this version",
            ) from None

    def _decode(self, encoded: bytes) -> Metadata:
        """Decode a layout and check it against the tensors of the version."""
        data = Unpacker(encoded)
        limit = _MAX_VALUES + _MAX_VALUES_PER_TENSOR * len(self._tensors)
        table = expect(data.tree(limit, _MAX_DEPTH), dict)
        data.finish()
        if expect(table["format"], int) > _FORMAT:
            raise UnsupportedError(
                ErrorCode.NEWER_FORMAT,
                f"{LAYOUT_FILE} has format {table['format']}: a newer casweights wrote it, "
                "upgrade to read it",
            )
        items: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        shards: dict[MetadataIndex, ShardRef] = {}
        for fqn, row in expect(table["tensors"], dict).items():
            items[expect(fqn, str)] = self._decode_tensor(fqn, row, shards)
        for fqn, row in expect(table["blobs"], dict).items():
            if expect(fqn, str) in items:
                raise ValueError(f"{fqn!r} is listed twice")
            items[fqn] = BytesStorageMetadata()
            shard = shards[MetadataIndex(fqn)] = _shard(row)
            info = self._tensors[shard].info
            if info.dtype.code != "U8" or len(info.shape) != 1:
                raise ValueError(f"{fqn!r} is stored as {info.dtype.code} {list(info.shape)}")
        order = _decode_order(table.get("order", [*items]), items)
        items = {fqn: items[fqn] for fqn in order}
        return Metadata(items, _decode_paths(table["paths"]), shards)

    def _decode_tensor(
        self, fqn: str, row: Any, shards: dict[MetadataIndex, ShardRef]
    ) -> TensorStorageMetadata:
        """Decode the row of a tensor, and add its shards to `shards`."""
        name, size, rows = expect(row, list)
        dtype = getattr(torch, expect(name, str), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"{fqn!r} has the unknown dtype {name!r}")  # noqa: TRY004  not a type
        shape = _sizes(size)
        chunks = []
        for offsets, sizes, *shard in expect(rows, list):
            chunk = ChunkStorageMetadata(_sizes(offsets), _sizes(sizes))
            ends = [o + n for o, n in zip(chunk.offsets, chunk.sizes, strict=True)]
            if any(end > n for end, n in zip(ends, shape, strict=True)):
                raise ValueError(f"a shard of {fqn!r} extends beyond the tensor")
            index = MetadataIndex(fqn, chunk.offsets)
            shards[index] = _shard(shard)
            _check_stored(fqn, self._tensors[shards[index]].info, dtype, chunk.sizes)
            chunks.append(chunk)
        return TensorStorageMetadata(TensorProperties(dtype), shape, chunks)


def _sizes(value: Any) -> torch.Size:
    """Decode sizes or offsets, which torch can only hold as 63-bit numbers."""
    for n in expect(value, list):
        if not 0 <= expect(n, int) < 1 << 63:
            raise ValueError(f"a size must be between 0 and 2**63 - 1, got {n}")
    return torch.Size(value)


def _shard(row: Any) -> ShardRef:
    file, tensor = expect(row, list)
    return ShardRef(expect(file, str), expect(tensor, str))


def _check_stored(fqn: str, info: TensorInfo, dtype: torch.dtype, sizes: torch.Size) -> None:
    """Check that a shard is stored with the dtype and shape that the layout claims."""
    like, _ = allocate(TensorInfo(info.name, info.dtype, (0,), 0, 0))
    shape = info.shape
    if info.dtype.bits < 8:  # torch counts two packed elements as one
        shape = (*shape[:-1], shape[-1] // 2)
    if like.dtype != dtype or shape != tuple(sizes):
        raise ValueError(
            f"a shard of {fqn!r}, {dtype} {list(sizes)}, is stored as {info.dtype.code} "
            f"{list(info.shape)}"
        )


def _decode_order(value: Any, items: Mapping[str, Any]) -> list[str]:
    """Decode the order of the names, which must list each item exactly once."""
    order: list[str] = expect(value, list)
    if len(order) != len(items) or {expect(fqn, str) for fqn in order} != items.keys():
        raise ValueError("the order does not list every name exactly once")
    return order


def _decode_paths(value: Any) -> dict[str, tuple[str | int, ...]] | None:
    """Decode the keys that lead to each item, as torch's planner data."""
    if value is None:
        return None
    paths = {}
    for fqn, path in expect(value, dict).items():
        for key in expect(path, list):
            if type(key) is not str and not 0 <= expect(key, int) < _MAX_INDEX:
                raise ValueError(f"the path of {expect(fqn, str)!r} has the index {key}")
        paths[fqn] = tuple(path)
    return paths
