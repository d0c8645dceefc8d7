"""Trees of state dicts: JSON that describes how values and names of tensors are nested."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from casweights.errors import ErrorCode, InvalidInputError
from casweights.format.safetensors import TREE_KEY, is_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

# Limit of the characters of all paths in a tree: a constant, plus a multiple of the tree's own
# size. In a forged tree, all paths together could be as long as the square of its size.
_FREE_PATH_CHARACTERS, _PATH_RATIO = 1 << 20, 64

# The kinds of objects that are stored as tensors and are not tensors in the state dict.
ARRAY, SCALAR, BYTES, STREAM = CARRIED = ("array", "scalar", "bytes", "stream")

VALUE = ["value", None]  # stands for any value in a tree whose values are stored separately

_EXTRA_STATE = "_extra_state"  # the last part of a name

State = dict[str, Any]
ExtraState = Literal["keep", "drop"]


def is_value(node: object) -> bool:
    """Whether a leaf is written into the tree itself: None, a bool, a number or a string."""
    return node is None or type(node) in (bool, int, float) or is_text(node)


class Template:
    """A tree as JSON, without its values.

    Args:
        tree: The tree, in which each value is `VALUE`.
    """

    def __init__(self, tree: list[Any]) -> None:
        # No name or key reads like a value: in JSON, the quotes inside a string are escaped.
        self._parts = _json(tree).split(_json(VALUE))

    def fill(self, values: str) -> str:
        """Return the complete tree as JSON, as it is stored in a file's metadata.

        Args:
            values: The text that `dump_values` returns for the values, in the order of the tree.
        """
        rest = iter(self._parts)
        text = [next(rest)]
        for value, part in zip(values.splitlines(), rest, strict=True):
            text += ('["value",', value, "]", part)
        return "".join(text)


def dump_values(values: list[Any]) -> str:
    """Return values as JSON, one per line; the text is equal only if trees would be equal.

    Raises:
        InvalidInputError: A number cannot be written.
    """
    try:
        # Inside strings, JSON escapes line ends, so one can separate the values.
        text = json.dumps(values, separators=("\n", ":"))
    except ValueError as error:  # Python refuses to write integers of thousands of digits
        raise InvalidInputError(
            ErrorCode.BAD_STATE, f"the state dict contains a number that cannot be written: {error}"
        ) from error
    return text[1:-1]


def _json(tree: list[Any]) -> str:
    return json.dumps(tree, separators=(",", ":"))


def join(path: str, key: object) -> str:
    """Return the path of the item with this key in the object at `path`."""
    return f"{path}.{key}" if path else str(key)


def rebuild(tensors: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> State:
    """Rebuild a state dict from its file.

    Args:
        tensors: All tensors of the file, by name.
        metadata: The file's metadata. Without a tree, the state dict is `tensors` itself.

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
        raise InvalidInputError(ErrorCode.BAD_STATE, f"the file's {TREE_KEY} is not a dict")
    return state


def tied_names(metadata: Mapping[str, str]) -> dict[str, str]:
    """Map the paths of tied tensors to the names under which the file stores them.

    Paths that are stored under their own name are left out.

    Args:
        metadata: The file's metadata, which may contain a tree.

    Raises:
        InvalidInputError: The tree is malformed.
    """
    left = _FREE_PATH_CHARACTERS + _PATH_RATIO * len(metadata.get(TREE_KEY, ""))
    names: dict[str, str] = {}
    for path, leaf in leaves(rebuild(_Names(), metadata)):
        left -= len(path)  # a long key with many leaves below makes all their paths long
        if left < 0:
            raise InvalidInputError(
                ErrorCode.BAD_STATE, f"the file's {TREE_KEY} is malformed: its keys are too long"
            )
        if isinstance(leaf, _Name) and leaf != path:
            names[path] = leaf
    return names


def carried_names(metadata: Mapping[str, str]) -> set[str]:
    """Return the names of tensors that are arrays, numbers or bytes in the state dict.

    Args:
        metadata: The file's metadata, which may contain a tree.

    Raises:
        InvalidInputError: The tree is malformed.
    """
    if TREE_KEY not in metadata:
        return set()
    found = leaves(rebuild(_Names(), metadata))
    return {str(leaf) for _, leaf in found if isinstance(leaf, _Carried)}


class _Name(str):
    """The name of a tensor, in the place of the tensor."""

    __slots__ = ()


class _Carried(str):
    """The name of a tensor, in the place of the array, number or bytes that it stores."""

    __slots__ = ()


class _Names(dict[str, Any]):
    """A mapping from every name to itself, which `rebuild` accepts in place of tensors."""

    def __missing__(self, name: str) -> _Name:
        return _Name(name)


def leaves(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of every leaf of nested dicts, lists and tuples.

    The path of a tensor is also its name, unless it is tied or two paths are equal.
    """
    if isinstance(state, Mapping):
        items: Iterable[tuple[Any, Any]] = state.items()
    elif type(state) in (list, tuple):
        items = enumerate(state)
    else:
        yield path, state
        return
    for key, value in items:
        yield from leaves(value, join(path, key))


def without_extra_state(state: Any) -> Any:
    """Return a copy of a state dict without what modules return from ``get_extra_state``."""
    if isinstance(state, dict):
        return {
            key: without_extra_state(value)
            for key, value in state.items()
            if not (isinstance(key, str) and key.rpartition(".")[2] == _EXTRA_STATE)
        }
    if type(state) in (list, tuple):
        return type(state)(map(without_extra_state, state))
    return state


def _restore(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    kind, content = _checked(node, 2)
    if kind == "tensor":
        return tensors[content]
    if kind in CARRIED:
        return _made(kind, tensors[content])
    if kind == "value":
        return _plain_value(content)
    if kind == "dict":
        return _restored_dict(_checked(content), tensors)
    if kind in ("list", "tuple"):
        items: Iterator[Any] = (_restore(value, tensors) for value in _checked(content))
        return list(items) if kind == "list" else tuple(items)
    raise ValueError(f"unknown node {kind!r}")


def _restored_dict(items: list[Any], tensors: Mapping[str, torch.Tensor]) -> State:
    found: State = {}
    for key, node in (_checked(item, 2) for item in items):
        if type(key) not in (str, int) or not is_text(str(key)) or key in found:
            raise ValueError(f"the key {key!r} is not a string or an integer, or occurs twice")
        found[key] = _restore(node, tensors)
    return found


def _plain_value(content: Any) -> Any:
    """Return the content of a ``value`` node, which is JSON but not an array or an object."""
    if content is None or isinstance(content, bool | int | float) or is_text(content):
        return content
    raise ValueError(f"a value cannot be {content!r:.100}")


def _checked(node: Any, size: int | None = None) -> list[Any]:
    """Return the node if it is a JSON array, and of this size if one is given."""
    if type(node) is not list or size not in (None, len(node)):
        raise ValueError(f"{node!r:.100} is not an array" + (f" of {size}" if size else ""))
    return node


def _made(kind: str, tensor: torch.Tensor | _Name) -> Any:
    """Convert a tensor to the object that it stores; a name becomes a `_Carried` name."""
    if isinstance(tensor, str):
        return _Carried(tensor)
    array = tensor.numpy()
    if kind == ARRAY:
        return array
    if kind == SCALAR and array.ndim == 0:
        return array[()]
    if kind in (BYTES, STREAM) and array.ndim == 1 and array.dtype.name == "uint8":
        return array.tobytes() if kind == BYTES else io.BytesIO(array.tobytes())
    raise ValueError(f"a {kind} cannot be made of {array.dtype} {list(array.shape)}")
