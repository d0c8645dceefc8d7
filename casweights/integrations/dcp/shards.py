"""The items that a rank saves, as files to commit."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint.planner import WriteItemType

from casweights.content.files import SourceFile
from casweights.content.states import RECENT, StateFile, TensorFile
from casweights.content.torch_types import check_tensor, is_plain_memory, tensor_bytes
from casweights.errors import ErrorCode, InvalidInputError
from casweights.integrations.dcp.objects import check_saved
from casweights.system.threads import Recent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

    from casweights.format.layout import Piece
    from casweights.system.buffers import Pool

_QUANTIZED = {  # looked up by name because torch is about to remove them
    getattr(torch, name, None) for name in ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")
}


class ShardFile(TensorFile):
    """The items of one rank as a safetensors file that exists in memory only.

    A shard is a tensor whose name is that of the whole tensor with the shard's offsets, for example
    ``w[16,0]``. A shard that is the whole tensor is called ``w``, as in the file of an unsharded
    model. Items that are no tensors are stored as U8 tensors of their bytes. The file requests
    tensors from the planner only when it reads them, and keeps a few at a time.

    Args:
        path: The file's path inside the version.
        items: The items to save.
        planner: Provides the data of the items.

    Attributes:
        items: The items, by the names of their tensors.
        nbytes: Bytes of each item, by the same names.

    Raises:
        UnsupportedError: Safetensors cannot express one of the tensors.
    """

    def __init__(self, path: str, items: Sequence[WriteItem], planner: SavePlanner) -> None:
        self.path = path
        self.items = _named(items)
        self._tensor: Recent[str, torch.Tensor]
        self._tensor = Recent(lambda name: _shard(planner, self.items[name]), RECENT)
        self._blobs = {
            name: _blob(planner, item)
            for name, item in self.items.items()
            if item.type == WriteItemType.BYTE_IO
        }
        outline = StateFile({name: self._outline(name, item) for name, item in self.items.items()})
        super().__init__(outline.raw_header, outline.header)
        self.nbytes = {info.name: info.nbytes for info in self.header.tensors}

    # `TensorFile` reads through `_live`, for bytes that can be used in place, and `_make`.

    def _outline(self, name: str, item: WriteItem) -> torch.Tensor:
        """Return a tensor of the item's dtype and shape that occupies no memory."""
        if item.tensor_data is None:
            return torch.empty((), dtype=torch.uint8).expand(len(self._blobs[name]))
        data = item.tensor_data
        if data.properties.dtype in _QUANTIZED:
            self._tensor(name)  # raises the error: torch cannot make an empty quantized tensor
        return torch.empty((), dtype=data.properties.dtype).expand(data.chunk.sizes)

    def _live(self, name: str) -> memoryview | None:
        if name in self._blobs:
            return self._blobs[name]
        tensor = self._tensor(name)
        return tensor_bytes(tensor) if is_plain_memory(tensor) else None

    def _make(self, name: str) -> memoryview:
        return tensor_bytes(self._tensor(name))


def _named(items: Sequence[WriteItem]) -> dict[str, WriteItem]:
    """Return the items by unique names, which are those of their tensors in the file."""
    named: dict[str, WriteItem] = {}
    for item in items:
        name = item.index.fqn or "tensor"
        data = item.tensor_data
        if data is not None and data.chunk.sizes != data.size:
            name += f"[{','.join(map(str, data.chunk.offsets))}]"
        while name in named or name == "__metadata__":  # a state's key may look like a shard
            name += "'"
        named[name] = item
    return named


def _blob(planner: SavePlanner, item: WriteItem) -> memoryview:
    """Return the bytes of an item that is no tensor, after checking that they can be loaded."""
    data = planner.resolve_data(item)
    if not isinstance(data, io.BytesIO):
        raise _not_planned(item, f"a {type(data).__name__} instead of bytes")
    check_saved(item.index.fqn, data)
    return data.getbuffer()


def _shard(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    """Return the tensor of an item, after checking that it is as planned."""
    tensor, data = planner.resolve_data(item), item.tensor_data
    if data is None or not isinstance(tensor, torch.Tensor):
        raise _not_planned(item, f"a {type(tensor).__name__} instead of a tensor")
    if (tensor.dtype, tensor.shape) != (data.properties.dtype, data.chunk.sizes):
        raise _not_planned(item, f"{tensor.dtype} of shape {list(tensor.shape)}")
    check_tensor(tensor, item.index.fqn)
    return tensor


def _not_planned(item: WriteItem, what: str) -> InvalidInputError:
    """Return the error for data that differs from the plan."""
    return InvalidInputError(
        ErrorCode.BAD_STATE,
        f"the planner returned {what} for {item.index.fqn!r}, which differs from its plan",
    )


class BytesFile(SourceFile):
    """Opaque bytes in memory as a file.

    Args:
        path: The file's path inside the version.
        content: The file's bytes.
    """

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        self.size = len(content)
        self._content = memoryview(content)

    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        return [self._content[piece.offset : piece.offset + piece.nbytes] for piece in run]
