"""Torch tensors to bytes and back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from casweights.content.files import SourceFile
from casweights.content.outlines import Layout, Look, Outline, as_tensor, identity, is_plain
from casweights.content.trees import VALUE, Template, dump_values, is_value, join
from casweights.errors import ErrorCode, InvalidInputError, UnsupportedError
from casweights.format import safetensors
from casweights.format.dtypes import DTYPES
from casweights.format.safetensors import TREE_KEY
from casweights.system.buffers import copy, uninitialized
from casweights.system.threads import Recent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casweights.format.layout import Piece
    from casweights.system.buffers import Pool

STATE_FILE = "model.safetensors"
RECENT = 2  # tensors that are kept while their chunks are read

_CODES = {
    code: getattr(torch, name)
    for code, name in {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "U16": "uint16",
        "I16": "int16",
        "U32": "uint32",
        "I32": "int32",
        "U64": "uint64",
        "I64": "int64",
        "F16": "float16",
        "BF16": "bfloat16",
        "F32": "float32",
        "F64": "float64",
        "C64": "complex64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F4": "float4_e2m1fn_x2",
    }.items()
    if hasattr(torch, name)
}
_BY_DTYPE = {dtype: DTYPES[code] for code, dtype in _CODES.items()}
_PATTERNS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PAIRS = "F4"  # torch counts two packed elements as one, safetensors as two

Cast = Callable[[str, torch.dtype], torch.dtype]


class TensorFile(SourceFile):
    """A safetensors file that exists in memory only, as its header and tensors.

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

    @cached_property
    def _starts(self) -> dict[str, int]:
        data = len(self.raw_header)
        return {info.name: data + info.start for info in self.header.tensors}

    @abstractmethod
    def _live(self, name: str) -> memoryview | None:
        """A tensor's own memory, if that is its bytes. Others may write to it at any time."""

    @abstractmethod
    def _make(self, name: str) -> memoryview:
        """A copy of a tensor's bytes otherwise; the last few are kept."""

    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        """See `SourceFile.read`; tensors' own memory is copied, a run at a time."""
        own = [self._live_piece(piece) for piece in run]
        out = buffers.take(sum(len(live) for live in own if live is not None))
        views = []
        for piece, live in zip(run, own, strict=True):
            if live is None:
                views.append(self._cut(self._copy(str(piece.tensor)), piece))
                continue
            view, out = out[: piece.nbytes], out[piece.nbytes :]
            copy(view, live)
            views.append(view)
        return views

    def look(self, run: Sequence[Piece]) -> list[memoryview] | None:
        """See `SourceFile.look`."""
        own = [self._live_piece(piece) for piece in run]
        found = [live for live in own if live is not None]
        return found if len(found) == len(run) else None

    def _live_piece(self, piece: Piece) -> memoryview | None:
        live = self._live(str(piece.tensor))
        return None if live is None else self._cut(live, piece)

    def _cut(self, memory: memoryview, piece: Piece) -> memoryview:
        """A piece of a tensor's bytes."""
        start = piece.offset - self._starts[str(piece.tensor)]
        return memory[start : start + piece.nbytes]


class StateFile(TensorFile):
    """A state dict as a safetensors file that exists in memory only.

    A flat dict of distinct tensors becomes the very file that ``safetensors.torch.save_file``
    writes with ``metadata={"format": "pt"}``. Nested dicts, lists, numbers, strings and tied
    tensors are described by a tree in the file's metadata.

    Args:
        state: Dicts (with str or int keys), lists and tuples of tensors, numpy arrays and scalars,
            None, bool, int, float, str, bytes and BytesIO, nested in any way.
        cast: The dtype to write a tensor in, from its name and its own dtype; by default its own.
        outline: That of another state dict with the same `cast`, which saves making it again if
            this one's is equal.

    Attributes:
        tensors: The tensors by name, each once.
        outline: All but their bits.

    Raises:
        InvalidInputError: It holds something else.
        UnsupportedError: It holds a tensor that safetensors cannot express.
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
            (name, _BY_DTYPE[dtypes[name]], element_shape(tensor))
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
        """Of each tensor the dtype's code, the shape and the device."""
        return self.outline.layout

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in the dtype that it is written in; a copy only if that is not its own."""
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
        """A node of the tree, without values; tensors are taken note of on the way."""
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
            f"the state dict holds a {type(node).__name__} at {path or 'its top'!r}: it takes "
            "tensors, numpy arrays and scalars of their dtypes, None, bool, int, float, str, bytes "
            "and BytesIO in dicts (with str or int keys), lists and tuples",
        )

    def _name(self, tensor: torch.Tensor, path: str, ties: dict[tuple[Any, ...], str]) -> str:
        check_tensor(tensor, path)
        same = identity(tensor)
        if same in ties:
            return ties[same]
        name = path or "tensor"
        while name in self.tensors or name == "__metadata__":
            name += "'"  # two paths, as in {"a.b": ..., "a": {"b": ...}}, and one name
        ties[same] = name
        self.tensors[name] = tensor
        return name


def _check_text(keys: Iterable[object]) -> None:
    for key in keys:
        if isinstance(key, str) and not safetensors.is_text(key):
            raise InvalidInputError(ErrorCode.BAD_STATE, f"the key {key!r} is not valid Unicode")


def is_plain_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is its bytes in C order, and on the CPU: nothing to copy."""
    return tensor.device.type == "cpu" and is_dense(tensor)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is its bytes in C order, on whichever device."""
    return tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())


def check_tensor(tensor: torch.Tensor, path: str) -> None:
    """Refuse what has no bytes of its own, or none that safetensors can express.

    Raises:
        UnsupportedError: It names the tensor by its path.
    """
    odd = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested
    if odd or tensor.is_meta:
        kinds = {"meta": tensor.is_meta, "quantized": tensor.is_quantized}
        kinds |= {"nested": tensor.is_nested, "sparse": True}
        kind = next(kind for kind, holds in kinds.items() if holds)
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED, f"the tensor {path!r} is {kind}: commit a dense tensor instead"
        )
    if not is_plain(tensor):
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"the tensor {path!r} is a {type(tensor).__name__}: commit its plain tensor instead",
        )
    if tensor.dtype not in _BY_DTYPE:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"the tensor {path!r} has dtype {tensor.dtype}, which safetensors cannot express",
        )
    if _BY_DTYPE[tensor.dtype].code == _PAIRS and tensor.dim() == 0:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"the tensor {path!r} is a pair of packed elements without a dimension, which "
            "safetensors cannot express: reshape it",
        )


def code_of(tensor: torch.Tensor) -> str:
    """The safetensors code of a tensor's dtype."""
    return _BY_DTYPE[tensor.dtype].code


def element_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape as safetensors counts it."""
    shape = tuple(tensor.shape)
    if _BY_DTYPE[tensor.dtype].code == _PAIRS:
        return (*shape[:-1], 2 * shape[-1])
    return shape


def patterns(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's elements as integers with the same bits, which torch can copy and compare all."""
    plain = tensor.resolve_conj().resolve_neg()
    return plain.view(_PATTERNS[plain.dtype.itemsize])


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in C order; of its own memory where that is possible."""
    dense = patterns(tensor.detach()).cpu().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # reshape keeps the stride of a lone element
    return flat.view(torch.uint8).numpy().data


def allocate(info: safetensors.TensorInfo) -> tuple[torch.Tensor, memoryview]:
    """A tensor with undefined content, and its bytes.

    Raises:
        UnsupportedError: Torch has no such dtype or shape, or there is not enough memory.
    """
    dtype, shape = _CODES.get(info.dtype.code), info.shape
    is_odd = info.dtype.code == _PAIRS and shape[-1] % 2 != 0
    if dtype is None or is_odd:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"torch cannot hold the tensor {info.name!r}, {info.dtype.code} {list(shape)}: check "
            "the file out instead, or leave the tensor out",
        )
    if info.dtype.code == _PAIRS:
        shape = (*shape[:-1], shape[-1] // 2)
    try:
        memory = uninitialized(info.nbytes)
        if not memory:
            return torch.empty(shape, dtype=dtype), memory
        return torch.frombuffer(memory, dtype=dtype).reshape(shape), memory
    except (MemoryError, RuntimeError) as error:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED, f"torch cannot make the tensor {info.name!r}: {error}"
        ) from error
