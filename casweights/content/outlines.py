"""What a state dict is apart from the bits of its tensors, found in one look."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from casweights.content.torch_types import identity, is_plain_tensor
from casweights.content.trees import ARRAY, BYTES, SCALAR, STREAM, is_value
from casweights.format import safetensors
from casweights.format.safetensors import TREE_KEY

if TYPE_CHECKING:
    from casweights.content.trees import Template

Layout = dict[str, tuple[str, tuple[int, ...], str]]


@dataclass(frozen=True, slots=True)
class Outline:
    """A state dict without the bits of its tensors; equal ones share all that follows from it.

    Attributes:
        facts: All that is known about the state dict, except its values.
        values: Its values, see `dump_values`.
        template: Its tree without the values.
        raw_header: The header of its file.
        header: The same, parsed.
        dtypes: The dtype that each tensor is written in.
        cast: The names of the tensors that are written in another dtype than their own.
        layout: Of each tensor the dtype's code, the shape and the device.
    """

    facts: list[object]
    values: str
    template: Template
    raw_header: bytes
    header: safetensors.Header
    dtypes: dict[str, torch.dtype]
    cast: frozenset[str]
    layout: Layout

    def with_values(self, values: str) -> Outline:
        """That of a state dict with the same facts and other values."""
        if values == self.values:
            return self
        old = self.header.metadata
        new = old | {TREE_KEY: self.template.fill(values)}
        return replace(
            self,
            values=values,
            raw_header=safetensors.replace_metadata(self.raw_header, old, new),
            header=replace(self.header, metadata=new),
        )


class Look:
    """One look at a state dict.

    Attributes:
        facts: Equal for two state dicts only if their files have the same header, once their values
            are equal, too.
        values: The values in its tree, in order.
        tensors: Its tensors, each once.
    """

    def __init__(self, state: object) -> None:
        self.facts: list[object] = []
        self.values: list[object] = []
        self.tensors: list[torch.Tensor] = []
        self._shapes: dict[torch.Size, torch.Size] = {}
        self._addresses: dict[int, int] = {}
        self._seen: dict[tuple[Any, ...], int] = {}
        self._add(state)

    def _add(self, node: object) -> None:
        kind = type(node)
        if isinstance(node, torch.Tensor):
            self._add_tensor(node)
        elif isinstance(node, dict) and {str, int}.issuperset(map(type, node)):
            self.facts += (dict, len(node))
            self.facts += node
            for value in node.values():
                self._add(value)
        elif kind in (list, tuple):
            self.facts += (kind, len(node))  # type: ignore[arg-type]
            for value in node:  # type: ignore[attr-defined]
                self._add(value)
        elif is_value(node):
            self.facts.append("value")
            self.values.append(node)
        elif (carried := as_tensor(node)) is not None:
            self.facts.append(carried[0])
            self._add_tensor(carried[1])
        else:
            self.facts.append(object())  # equal to nothing: what this is has to be looked at again

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        if not is_plain_tensor(tensor) or tensor.layout != torch.strided or tensor.is_nested:
            self.facts.append(object())
            return
        shape = tensor.shape
        shape = self._shapes.setdefault(shape, shape)  # thousands of objects slow down Python
        self.facts += (type(tensor), tensor.dtype, shape, tensor.device, self._number(tensor))

    def _number(self, tensor: torch.Tensor) -> int:
        """The number of a tensor, which tied ones share."""
        count, address = len(self.tensors), tensor.data_ptr()
        number = self._addresses.setdefault(address, count)
        if number != count:  # perhaps another view of the same memory
            self._seen.setdefault(identity(self.tensors[number]), number)
            number = self._seen.setdefault(identity(tensor), count)
        if number == count:
            self.tensors.append(tensor)
        return number


def as_tensor(value: object) -> tuple[str, torch.Tensor] | None:
    """A tensor with the content of a numpy array or scalar, of bytes or a BytesIO; and its kind.

    Returns:
        None for anything else, and for arrays of dtypes that torch does not have.
    """
    if isinstance(value, bytes | io.BytesIO):
        data = bytearray(value if isinstance(value, bytes) else value.getvalue())
        kind = BYTES if isinstance(value, bytes) else STREAM
        return kind, torch.from_numpy(np.frombuffer(data, np.uint8))
    if type(value) is not np.ndarray and not isinstance(value, np.generic):
        return None
    array = np.asarray(value)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # which torch cannot share
    try:
        kind = SCALAR if isinstance(value, np.generic) else ARRAY
        return kind, torch.from_numpy(array)
    except TypeError:
        return None
