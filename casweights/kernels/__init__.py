"""The kernels of encodings and patches: compiled, or their twins in numpy where none were built.

The C code is in ``c/``, as headers that ``module.c`` includes for each element width; the twins
are in `reference`, and give the same bytes.
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
        changes,
        dense_decode,
        dense_encode,
        join_planes,
        sparse_decode,
        sparse_encode,
        split_planes,
        swap,
    )
else:
    from casweights.kernels.reference.dense import dense_decode, dense_encode
    from casweights.kernels.reference.patches import changes, swap
    from casweights.kernels.reference.planes import join_planes, split_planes
    from casweights.kernels.reference.sparse import sparse_decode, sparse_encode

__all__ = [
    "COMPILED",
    "changes",
    "dense_decode",
    "dense_encode",
    "join_planes",
    "sparse_decode",
    "sparse_encode",
    "split_planes",
    "swap",
]
