"""Outlines of state dicts: everything about a state dict except the bits of its tensors.

Building the header of a state dict with thousands of tensors is slow, and successive versions of a
model mostly have equal ones. A `Look` collects facts quickly; if they equal those of an earlier
`Outline`, `StateFile` uses that outline again. Otherwise it makes a new one, and refuses objects
of unknown types; here, nothing raises an error for them.
"""

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
    """A state dict without the bits of its tensors.

    Attributes:
        facts: The structure of the state dict, as `Look` collects it.
        values: The numbers, strings and other values in it as text, from `dump_values`.
        template: Its tree without these values.
        raw_header: The header of its safetensors file.
        header: The same, parsed.
        dtypes: The dtype that each tensor is written in, by name.
        cast: Names of the tensors whose own dtype differs from the one in `dtypes`.
        layout: The dtype code, shape and device of each tensor, by name.
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
        """Return the outline of a state dict with the same facts and these values."""
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
    """One pass over a state dict.

    Args:
        state: The state dict.

    Attributes:
        facts: The structure, keys, types, shapes, devices and ties in one list. If the lists of two
            state dicts are equal, the headers of their files differ in nothing but values. For
            objects of unknown types, the list contains an object that is equal to no other.
        values: The values in the tree, in order.
        tensors: The tensors in order; tied tensors occur once.
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
            self.facts.append(object())  # equal to no other fact, so no outline is used again

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        if not is_plain_tensor(tensor) or tensor.layout != torch.strided or tensor.is_nested:
            self.facts.append(object())
            return
        shape = tensor.shape
        # Facts are kept, and thousands of equal shapes as separate objects slow down Python's
        # garbage collection.
        shape = self._shapes.setdefault(shape, shape)
        self.facts += (type(tensor), tensor.dtype, shape, tensor.device, self._number(tensor))

    def _number(self, tensor: torch.Tensor) -> int:
        """Return the number of a tensor; tied tensors have the same number."""
        count, address = len(self.tensors), tensor.data_ptr()
        number = self._addresses.setdefault(address, count)
        # Equal addresses alone do not make a tie: views of one memory may differ in shape. The
        # full identity is slow to compute, so only tensors that share an address are compared.
        if number != count:
            self._seen.setdefault(identity(self.tensors[number]), number)
            number = self._seen.setdefault(identity(tensor), count)
        if number == count:
            self.tensors.append(tensor)
        return number


def as_tensor(value: object) -> tuple[str, torch.Tensor] | None:
    """Return a kind and a tensor with the content of a numpy array or scalar, bytes or a BytesIO.

    Returns:
        One of the kinds in `trees`, and the tensor, which shares the array's memory where torch
        allows it. None for other objects, and for arrays whose dtype torch lacks.
    """
    if isinstance(value, bytes | io.BytesIO):
        data = bytearray(value if isinstance(value, bytes) else value.getvalue())
        kind = BYTES if isinstance(value, bytes) else STREAM
        return kind, torch.from_numpy(np.frombuffer(data, np.uint8))
    if type(value) is not np.ndarray and not isinstance(value, np.generic):
        return None
    array = np.asarray(value)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch cannot share read-only memory, or use negative strides
    try:
        kind = SCALAR if isinstance(value, np.generic) else ARRAY
        return kind, torch.from_numpy(array)
    except TypeError:
        return None
