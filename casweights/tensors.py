"""Torch tensors to bytes and back; the only core module that knows torch."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from casweights.buffers import copy, uninitialized
from casweights.errors import ErrorCode, InvalidInputError, UnsupportedError
from casweights.format import safetensors
from casweights.format.dtypes import DTYPES
from casweights.format.safetensors import TREE_KEY
from casweights.parallel import Recent
from casweights.sources import SourceFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from casweights.buffers import Pool
    from casweights.format.layout import Piece

STATE_FILE = "model.safetensors"
RECENT = 2  # tensors that are kept while their chunks are read
_PATH_RATIO, _FREE_PATHS = 64, 1 << 20  # characters of paths: for each of a tree's own, and for any

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

State = dict[str, Any]
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
        self._starts = {info.name: len(raw_header) + info.start for info in header.tensors}
        self._copy = Recent(self._make, RECENT)

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
        state: Dicts (with str or int keys), lists and tuples of tensors, None, bool, int, float
            and str, nested in any way.
        cast: The dtype to write a tensor in, from its name and its own dtype; by default its own.

    Attributes:
        tensors: The tensors by name, each once.

    Raises:
        InvalidInputError: It holds something else.
        UnsupportedError: It holds a tensor that safetensors cannot express.
    """

    path = STATE_FILE

    def __init__(self, state: Mapping[Any, Any], cast: Cast | None = None) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._cast = cast or (lambda _, dtype: dtype)
        ties: dict[tuple[Any, ...], str] = {}
        metadata = {"format": "pt"}
        try:
            tree = self._describe(state, "", ties)
            if tree != ["dict", [[name, ["tensor", name]] for name in self.tensors]]:
                metadata[TREE_KEY] = _dump(tree)
        except RecursionError:
            raise InvalidInputError(
                ErrorCode.BAD_STATE, "the state dict is nested too deeply: does it contain itself?"
            ) from None
        layout = [
            (name, _BY_DTYPE[self._dtype(name)], element_shape(tensor))
            for name, tensor in self.tensors.items()
        ]
        raw_header = safetensors.build_header(layout, metadata)
        data_size = sum(
            tensor.numel() * self._dtype(name).itemsize for name, tensor in self.tensors.items()
        )
        super().__init__(raw_header, safetensors.parse_header(raw_header, data_size))

    @cached_property
    def layout(self) -> dict[str, tuple[str, tuple[int, ...], str]]:
        """Of each tensor the dtype's code, the shape and the device."""
        return {
            info.name: (info.dtype.code, info.shape, str(self.tensors[info.name].device))
            for info in self.header.tensors
        }

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in the dtype that it is written in; a copy only if that is not its own."""
        return self.tensors[name].detach().to(self._dtype(name))

    def _dtype(self, name: str) -> torch.dtype:
        return self._cast(name, self.tensors[name].dtype)

    def _live(self, name: str) -> memoryview | None:
        tensor = self.tensors[name]
        plain = is_plain_memory(tensor) and self._dtype(name) == tensor.dtype
        return tensor_bytes(tensor) if plain else None

    def _make(self, name: str) -> memoryview:
        return tensor_bytes(self.tensor(name))

    def _describe(self, node: Any, path: str, ties: dict[tuple[Any, ...], str]) -> list[Any]:
        """A node of the tree; tensors are taken note of on the way."""
        if isinstance(node, torch.Tensor):
            return ["tensor", self._name(node, path, ties)]
        if isinstance(node, dict) and all(type(key) in (str, int) for key in node):
            items = [[k, self._describe(v, _join(path, k), ties)] for k, v in node.items()]
            return ["dict", items]
        if type(node) in (list, tuple):
            items = [self._describe(v, _join(path, n), ties) for n, v in enumerate(node)]
            return [type(node).__name__, items]
        if node is None or type(node) in (bool, int, float) or safetensors.is_text(node):
            return ["value", node]
        raise InvalidInputError(
            ErrorCode.BAD_STATE,
            f"the state dict holds a {type(node).__name__} at {path or 'its top'!r}: it takes "
            "tensors, None, bool, int, float and str in dicts (with str or int keys), lists and "
            "tuples",
        )

    def _name(self, tensor: torch.Tensor, path: str, ties: dict[tuple[Any, ...], str]) -> str:
        check_tensor(tensor, path)
        same = identity(tensor)
        if same in ties:
            return ties[same]
        name = path or "tensor"
        while name in self.tensors or name == "__metadata__":
            name += "'"  # two paths, as in {"a.b": ..., "a": {"b": ...}}, and one name
        if not safetensors.is_text(name):
            raise InvalidInputError(ErrorCode.BAD_STATE, f"the key {name!r} is not valid Unicode")
        ties[same] = name
        self.tensors[name] = tensor
        return name


def _dump(tree: list[Any]) -> str:
    try:
        return json.dumps(tree, separators=(",", ":"))
    except ValueError as error:  # Python does not write integers of thousands of digits
        raise InvalidInputError(
            ErrorCode.BAD_STATE, f"the state dict holds a number that cannot be written: {error}"
        ) from error


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same view of the same memory."""
    if tensor.numel() == 0:
        return (id(tensor),)
    storage = tensor.untyped_storage()
    where = (storage.data_ptr(), tensor.storage_offset(), str(tensor.device), _is_lazy(tensor))
    return (*where, tensor.dtype, tensor.shape, tensor.stride())


def is_plain_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's memory is its bytes in C order, and on the CPU: nothing to copy."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not _is_lazy(tensor)


def _is_lazy(tensor: torch.Tensor) -> bool:
    return tensor.is_conj() or tensor.is_neg()


def check_tensor(tensor: torch.Tensor, path: str) -> None:
    """Refuse what has no bytes of its own, or none that safetensors can express.

    Raises:
        UnsupportedError: It names the tensor by its path.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse"
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED, f"the tensor {path!r} is {kind}: commit a dense tensor instead"
        )
    if not _is_plain(tensor):
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


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is its value (not so for DTensor and other wrappers)."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


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


def rebuild(tensors: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> State:
    """The state dict whose tensors these are.

    Args:
        tensors: All tensors of a state file.
        metadata: The file's metadata, which may hold a tree.

    Raises:
        InvalidInputError: The tree is malformed.
    """
    if TREE_KEY not in metadata:
        return tensors
    try:
        state = _restore(json.loads(metadata[TREE_KEY]), tensors)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise InvalidInputError(
            ErrorCode.BAD_STATE, f"the file's {TREE_KEY} is malformed: {error!r}"
        ) from error
    if not isinstance(state, dict):
        raise InvalidInputError(ErrorCode.BAD_STATE, f"the file's {TREE_KEY} is no dict")
    return state


def tied_names(metadata: Mapping[str, str]) -> dict[str, str]:
    """The names of tensors that a file has under another one, and that one.

    Args:
        metadata: The file's metadata, which may hold a tree.

    Raises:
        InvalidInputError: The tree is malformed.
    """
    left = _FREE_PATHS + _PATH_RATIO * len(metadata.get(TREE_KEY, ""))
    names: dict[str, str] = {}
    for path, leaf in leaves(rebuild(_Names(), metadata)):
        left -= len(path)  # of a long key with many leaves below it, each path is a long one
        if left < 0:
            raise InvalidInputError(
                ErrorCode.BAD_STATE, f"the file's {TREE_KEY} is malformed: its keys are too long"
            )
        if isinstance(leaf, _Name) and leaf != path:
            names[path] = leaf
    return names


class _Name(str):
    """The name of a tensor, where a tensor would be."""

    __slots__ = ()


class _Names(dict[str, Any]):
    """Has a name for every name."""

    def __missing__(self, name: str) -> _Name:
        return _Name(name)


def leaves(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What nested dicts, lists and tuples hold in the end, by path: the name of a tensor there."""
    if isinstance(state, Mapping):
        items: Iterable[tuple[Any, Any]] = state.items()
    elif type(state) in (list, tuple):
        items = enumerate(state)
    else:
        yield path, state
        return
    for key, value in items:
        yield from leaves(value, _join(path, key))


def _restore(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    kind, content = node
    if kind == "tensor":
        return tensors[content]
    if kind == "value":
        return content
    if kind == "dict":
        return {key: _restore(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        items: Iterator[Any] = (_restore(value, tensors) for value in content)
        return list(items) if kind == "list" else tuple(items)
    raise ValueError(f"unknown node {kind!r}")
