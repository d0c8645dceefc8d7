"""Checks whether pickles of objects that are no tensors are safe to load.

Torch's own check (``weights_only=True``) accepts neither NumPy nor `io.BytesIO`, which training
states often contain. NumPy trusts the types and shapes in a pickle, so the check does not run
NumPy's own code: stand-ins replace its types, and accept only what NumPy writes for plain values.
"""

from __future__ import annotations

import io
import logging
import math
import re
import threading
from typing import Any

import numpy as np
import torch
from torch.serialization import (
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
    safe_globals,
)

from casweights.errors import ErrorCode, UnsupportedError

_log = logging.getLogger(__name__)
_TYPES = re.compile(r"b1|[iu][1248]|f2|f4|f8|f16|c8|c16|c32|[SU][0-9]{1,9}|O8")
_OBJECTS = "O8"
_MAX_LISTED = 5  # names in an error message; more would hide the advice

# Torch has one set of safe names for the whole process. While a check has added stand-ins to it, no
# other check may read it.
_lock = threading.RLock()


class _Type:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: Any, align: bool = False, copy: bool = True) -> None:
        if not (isinstance(code, str) and _TYPES.fullmatch(code)):
            raise ValueError(f"the NumPy type {code!r} is not a type of plain values")
        self.code = code
        self.size = np.dtype(code).itemsize

    def __setstate__(self, state: Any) -> None:
        kind = np.dtype(self.code)
        orders = (kind.newbyteorder("<"), kind.newbyteorder(">"))
        if state not in [ordered.__reduce__()[2] for ordered in orders]:
            raise ValueError(f"NumPy does not describe its type {self.code!r} like this")


class _Array:
    """Stands in for `numpy.ndarray`."""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, _, content = state
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"no array has the shape {shape}")
        _check_content(kind, math.prod(shape), content)


def _empty(kind: Any, shape: Any, code: Any) -> _Array:
    """Stands in for the function that makes an empty array, to be filled later."""
    if kind not in (_Array, np.ndarray) or shape != (0,) or code != b"b":
        raise ValueError("NumPy does not begin an array like this")
    return _Array()


def _scalar(kind: Any, content: Any) -> None:
    """Stands in for the function that makes a scalar."""
    _check_content(kind, 1, content)


def _check_content(kind: Any, count: int, content: Any) -> None:
    """Check that content has the size of this number of elements of a type."""
    if not isinstance(kind, _Type):
        raise TypeError(f"{kind!r} is no NumPy type")
    if kind.code == _OBJECTS:
        fits = type(content) is list and len(content) == count
    else:
        fits = type(content) is bytes and len(content) == count * kind.size
    if not fits:
        raise ValueError(f"{count} elements of {kind.code} have other content")


def _no_bytes() -> bytes:
    """Stands in for `bytes`, which pickles call only to make empty bytes."""
    return b""


_SAFE: dict[str, Any] = {
    "_io.BytesIO": io.BytesIO,
    "builtins.bytes": _no_bytes,
    "numpy.dtype": _Type,
    "numpy.ndarray": _Array,
    f"{__name__}._Array": _Array,  # also made if the program allows the real types
    f"{__name__}._Type": _Type,
    **{f"numpy.{core}.multiarray._reconstruct": _empty for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}


def check_loaded(name: str, blob: io.BytesIO) -> None:
    """Check that loading a pickle can do no more than make plain values.

    Args:
        name: The item's name, for the message.
        blob: The pickle.

    Raises:
        UnsupportedError: Loading the pickle is safe only if its writer is trusted.
    """
    if (error := _refusal(blob)) is not None:
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"{name!r} is not an object that torch loads with weights_only{_needs(blob)}. If you "
            "trust the writer of this version, pass weights_only=False to the reader, or allow "
            "these types with torch.serialization.add_safe_globals",
        ) from error


def check_saved(name: str, blob: io.BytesIO) -> None:
    """Report while saving what a reader would refuse to load.

    An object of the program's own types is logged as a warning, because a reader can allow it.

    Args:
        name: The item's name, for the message.
        blob: The pickle.

    Raises:
        UnsupportedError: The pickle contains an object of NumPy that is no plain array or scalar.
    """
    # Most pickles contain no unsafe names, which is found without loading them.
    if not _unsafe(blob) or (error := _refusal(blob)) is None:
        return
    names = _foreign(blob)
    if not names or any(other.startswith("numpy.") for other in names):
        raise UnsupportedError(
            ErrorCode.UNSUPPORTED,
            f"{name!r} contains an object of NumPy that is not a plain array or scalar"
            f"{_needs(blob)}, which only readers that trust this writer could load: save a tensor, "
            "a plain array or numbers instead",
        ) from error
    _log.warning(
        "%r is not an object that torch loads with weights_only%s: to load it, pass "
        "weights_only=False to the reader",
        name,
        _needs(blob),
    )


def _refusal(blob: io.BytesIO) -> Exception | None:
    """Return why a pickle is not safe to load; None if it is safe."""
    with _lock:
        error = _try(blob)
        if error is None or _SAFE.keys().isdisjoint(_unsafe(blob)):
            return error
        known = {_name(entry) for entry in get_safe_globals()}
        ours: list[Any] = [(value, name) for name, value in _SAFE.items() if name not in known]
        with safe_globals(ours):
            return _try(blob)


def _try(blob: io.BytesIO) -> Exception | None:
    """Load a pickle with torch's check; return the error, or None."""
    blob.seek(0)
    try:
        torch.load(blob, weights_only=True, map_location="cpu")
    except Exception as error:
        return error
    finally:
        blob.seek(0)
    return None


def _unsafe(blob: io.BytesIO) -> list[str]:
    """Return the names in a pickle that torch does not regard as safe.

    Empty if the bytes are no pickle of torch's.
    """
    blob.seek(0)
    try:
        with _lock:
            return sorted(get_unsafe_globals_in_checkpoint(blob))
    except Exception:
        return []
    finally:
        blob.seek(0)


def _name(entry: Any) -> str:
    """Return the name of an entry of torch's safe globals."""
    return entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__name__}"


def _foreign(blob: io.BytesIO) -> list[str]:
    """Return the unsafe names in a pickle without a stand-in: only the program can allow them."""
    return [name for name in _unsafe(blob) if name not in _SAFE]


def _needs(blob: io.BytesIO) -> str:
    """Return a remark for an error that lists the names in a pickle that are not allowed."""
    names = _foreign(blob)
    return f" (it needs {', '.join(names[:_MAX_LISTED])})" if names else ""
