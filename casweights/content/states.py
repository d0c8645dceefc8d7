"""State dicts as safetensors files that exist only in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from casweights.content.files import SourceFile
from casweights.content.outlines import Layout, Look, Outline, as_tensor
from casweights.content.torch_types import (
    SAFETENSORS_TYPES,
    check_tensor,
    element_shape,
    identity,
    is_plain_memory,
    tensor_bytes,
)
from casweights.content.trees import VALUE, Template, dump_values, is_value, join
from casweights.errors import ErrorCode, InvalidInputError
from casweights.format import safetensors
from casweights.format.safetensors import TREE_KEY
from casweights.system.buffers import copy, uninitialized
from casweights.system.threads import Recent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casweights.format.layout import Part, Piece
    from casweights.system.buffers import Pool

STATE_FILE = "model.safetensors"
RECENT = 2  # copied tensors that stay in memory while their chunks are read


Cast = Callable[[str, torch.dtype], torch.dtype]


class TensorFile(SourceFile):
    """A safetensors file that exists only in memory, as its header and tensors.

    Args:
        raw_header: Its header, verbatim.
        header: The same, parsed.
    """

    raw_header: bytes
    header: safetensors.Header

    def __init__(self, raw_header: bytes, header: safetensors.Header) -> None:
        self.raw_header, self.header = raw_header, header
        self.size = len(raw_header) + header.data_size
        self._copy = Recent(self._make, RECENT)

    @abstractmethod
    def _live(self, name: str) -> memoryview | None:
        """Return a tensor's own memory if it holds the tensor's bytes, otherwise None.

        Other threads may write to it at any time.
        """

    @abstractmethod
    def _make(self, name: str) -> memoryview:
        """Return a copy of a tensor's bytes; called where `_live` returns None."""

    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        own = [self._live_piece(piece) for piece in run]
        out = buffers.take(
            sum(p.nbytes for p, live in zip(run, own, strict=True) if _is_copied(p, live))
        )
        views = []
        for piece, live in zip(run, own, strict=True):
            if not _is_copied(piece, live):
                memory = self._copy(str(piece.name))
                views.append(memory[piece.start : piece.start + piece.nbytes])
                continue
            view, out = out[: piece.nbytes], out[piece.nbytes :]
            if live is None:
                self._join(piece, view)
            else:
                copy(view, live)  # the caller hashes and encodes these bytes: they must not change
            views.append(view)
        return views

    def look(self, run: Sequence[Piece]) -> list[memoryview] | None:
        own = [self._live_piece(piece) for piece in run]
        for number, piece in enumerate(run):
            if own[number] is None and len(piece.tensors) > 1:
                own[number] = view = uninitialized(piece.nbytes)
                self._join(piece, view)
        found = [live for live in own if live is not None]
        return found if len(found) == len(run) else None

    def _live_piece(self, piece: Piece) -> memoryview | None:
        """Return a piece's bytes in the memory of its only tensor; None if they are not there."""
        if len(piece.tensors) > 1:
            return None
        live = self._live(str(piece.name))
        return None if live is None else live[piece.start : piece.start + piece.nbytes]

    def _join(self, piece: Piece, out: memoryview) -> None:
        """Copy the small tensors of a piece to `out`, end to end."""
        for part in piece.parts():
            copy(out[part.offset : part.offset + part.nbytes], self._part(part))

    def _part(self, part: Part) -> memoryview:
        """Return some bytes of a tensor, from its memory or from a copy."""
        live = self._live(part.tensor.name)
        memory = self._copy(part.tensor.name) if live is None else live
        return memory[part.start : part.start + part.nbytes]


def _is_copied(piece: Piece, live: memoryview | None) -> bool:
    """Whether a piece is copied: it has several tensors, or memory that others may write to."""
    return live is not None or len(piece.tensors) > 1


class StateFile(TensorFile):
    """A state dict as a safetensors file that exists only in memory.

    A flat dict of distinct tensors becomes the same file that ``safetensors.torch.save_file``
    writes with ``metadata={"format": "pt"}``. Nested dicts, lists, numbers, strings and tied
    tensors are described by a tree in the file's metadata.

    Args:
        state: Dicts (with str or int keys), lists and tuples of tensors, numpy arrays and scalars,
            None, bool, int, float, str, bytes and BytesIO, nested in any way.
        cast: Returns the dtype to write a tensor in, for its name and its own dtype; by default
            its own.
        outline: The outline of an earlier state dict with the same `cast`. It is used again if
            this state dict has the same structure, which saves time.

    Attributes:
        tensors: The tensors by name; tied tensors occur once.
        outline: Everything but the tensors' bits.

    Raises:
        InvalidInputError: The state dict contains an object of another type, or itself.
        UnsupportedError: It contains a tensor that safetensors cannot express.
    """

    path = STATE_FILE

    def __init__(
        self,
        state: Mapping[Any, Any],
        cast: Cast | None = None,
        outline: Outline | None = None,
    ) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        try:
            look = Look(state)
            if outline is not None and outline.facts == look.facts:
                self.tensors = dict(zip(outline.dtypes, look.tensors, strict=True))
                self.outline = outline.with_values(dump_values(look.values))
            else:
                self.outline = self._outlined(state, cast, look)
        except RecursionError:
            raise InvalidInputError(
                ErrorCode.BAD_STATE, "the state dict is nested too deeply: does it contain itself?"
            ) from None
        super().__init__(self.outline.raw_header, self.outline.header)

    def _outlined(self, state: Mapping[Any, Any], cast: Cast | None, look: Look) -> Outline:
        ties: dict[tuple[Any, ...], str] = {}
        metadata = {"format": "pt"}
        tree = self._describe(state, "", ties)
        template, values = Template(tree), dump_values(look.values)
        if tree != ["dict", [[name, ["tensor", name]] for name in self.tensors]]:
            metadata[TREE_KEY] = template.fill(values)
        dtypes = {
            name: cast(name, tensor.dtype) if cast else tensor.dtype
            for name, tensor in self.tensors.items()
        }
        rows = [
            (name, SAFETENSORS_TYPES[dtypes[name]], element_shape(tensor))
            for name, tensor in self.tensors.items()
        ]
        raw_header = safetensors.build_header(rows, metadata)
        data_size = sum(
            tensor.numel() * dtypes[name].itemsize for name, tensor in self.tensors.items()
        )
        header = safetensors.parse_header(raw_header, data_size)
        layout = {
            info.name: (info.dtype.code, info.shape, str(self.tensors[info.name].device))
            for info in header.tensors
        }
        cast_names = frozenset(n for n, tensor in self.tensors.items() if tensor.dtype != dtypes[n])
        return Outline(look.facts, values, template, raw_header, header, dtypes, cast_names, layout)

    @property
    def layout(self) -> Layout:
        """The dtype code, shape and device of each tensor, by name."""
        return self.outline.layout

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor in the dtype that it is written in; copied only to change the dtype."""
        return self.tensors[name].detach().to(self._dtype(name))

    def _dtype(self, name: str) -> torch.dtype:
        return self.outline.dtypes[name]

    def _live(self, name: str) -> memoryview | None:
        tensor = self.tensors[name]
        plain = is_plain_memory(tensor) and self._dtype(name) == tensor.dtype
        return tensor_bytes(tensor) if plain else None

    def _make(self, name: str) -> memoryview:
        return tensor_bytes(self.tensor(name))

    def _describe(self, node: Any, path: str, ties: dict[tuple[Any, ...], str]) -> list[Any]:
        """Return a node of the tree without values, and record its tensors in `tensors`.

        Args:
            node: The part of the state dict.
            path: Its path; empty for the state dict itself.
            ties: The name of each tensor that was recorded, by its identity.
        """
        if isinstance(node, torch.Tensor):
            return ["tensor", self._name(node, path, ties)]
        if isinstance(node, dict) and all(type(key) in (str, int) for key in node):
            _check_text(node)
            items = [[k, self._describe(v, join(path, k), ties)] for k, v in node.items()]
            return ["dict", items]
        if type(node) in (list, tuple):
            items = [self._describe(v, join(path, n), ties) for n, v in enumerate(node)]
            return [type(node).__name__, items]
        if is_value(node):
            return VALUE
        if (carried := as_tensor(node)) is not None:
            return [carried[0], self._name(carried[1], path, ties)]
        raise InvalidInputError(
            ErrorCode.BAD_STATE,
            "the state dict must consist of dicts (with str or int keys), lists and tuples of "
            "tensors, numpy arrays and scalars of torch's dtypes, None, bool, int, float, str, "
            f"bytes and BytesIO, got {type(node).__name__} at {path or 'its top'!r}",
        )

    def _name(self, tensor: torch.Tensor, path: str, ties: dict[tuple[Any, ...], str]) -> str:
        check_tensor(tensor, path)
        same = identity(tensor)
        if same in ties:
            return ties[same]
        name = path or "tensor"
        while name in self.tensors or name == "__metadata__":
            name += "'"  # in {"a.b": ..., "a": {"b": ...}}, two tensors have the path a.b
        ties[same] = name
        self.tensors[name] = tensor
        return name


def _check_text(keys: Iterable[object]) -> None:
    for key in keys:
        if isinstance(key, str) and not safetensors.is_text(key):
            raise InvalidInputError(ErrorCode.BAD_STATE, f"the key {key!r} is not valid Unicode")
