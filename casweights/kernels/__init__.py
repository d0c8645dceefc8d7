"""The kernels of encodings and patches: compiled, or their numpy twins if no C compiler was found.

The C code is in ``c/``, as headers that ``module.c`` includes once for each element width. The
twins are in `reference` and produce the same bytes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING


def _is_compiled() -> bool:
    try:
        import_module("casweights.kernels._compiled")
    except ImportError:  # installed without a C compiler
        return False
    return True


COMPILED = _is_compiled()

if TYPE_CHECKING or COMPILED:
    from casweights.kernels._compiled import (
        cast,
        changes,
        count_values,
        dense_decode,
        dense_encode,
        expect,
        join_planes,
        number_elements,
        pack_numbers,
        put_field,
        sparse_decode,
        sparse_encode,
        split_planes,
        swap,
        take_field,
        unpack_numbers,
    )
else:
    from casweights.kernels.reference.casts import cast
    from casweights.kernels.reference.dense import dense_decode, dense_encode
    from casweights.kernels.reference.fields import (
        count_values,
        number_elements,
        pack_numbers,
        put_field,
        take_field,
        unpack_numbers,
    )
    from casweights.kernels.reference.numbers import expect
    from casweights.kernels.reference.patches import changes, swap
    from casweights.kernels.reference.planes import join_planes, split_planes
    from casweights.kernels.reference.sparse import sparse_decode, sparse_encode

__all__ = [
    "COMPILED",
    "cast",
    "changes",
    "count_values",
    "dense_decode",
    "dense_encode",
    "expect",
    "join_planes",
    "number_elements",
    "pack_numbers",
    "put_field",
    "sparse_decode",
    "sparse_encode",
    "split_planes",
    "swap",
    "take_field",
    "unpack_numbers",
]
