"""Parse JSON as the reference library of safetensors does, which uses Rust's ``serde_json``.

Python's parser accepts more (``NaN``, half a surrogate pair, infinite numbers, any depth), treats
``-0`` as an integer, and drops the earlier values of a repeated key.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

_MAX_DEPTH = 127  # levels, as the reference implementation of safetensors has it
_FREE = 1 << 10  # arrays and objects that any text may contain
_DENSITY = 12  # bytes of text for each further one: in Python each needs about 20 times that
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_LIST = rb"\[\s*+(?:[0-9]{1,20}+(?![0-9])[\s,]*+)*+\]"
_OBJECT = rb"\{(?:[\s,:]++|%b|%b)*+\}" % (_STRING, _LIST)
# An object of objects with strings and lists of sizes, as almost all headers are. Such a text needs
# none of the slower checks. All repetitions are possessive, so matching never backtracks.
_PLAIN = re.compile(rb"\s*+\{(?:[\s,:]++|%b|%b)*+\}\s*+" % (_STRING, _OBJECT), re.DOTALL)
# The next bracket outside strings; the last string may be unterminated.
_BRACKET = re.compile(rb"(?:[^][{}\"]++|%b?+)*+([][{}]|\Z)" % _STRING, re.DOTALL)
# A text whose escapes of surrogates all form pairs.
_PAIRED = re.compile(
    rb"(?:[^\\]++|\\(?:[^u]|u(?!d[89a-f])|ud[89ab]..\\u(?=d[c-f])))*+", re.DOTALL | re.IGNORECASE
)


class Repeating(dict[str, Any]):
    """A JSON object with repeated keys. As a dict it has the last value of each key.

    Attributes:
        earlier: The pairs of key and value that later ones of the same key replace.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        last = {key: n for n, (key, _) in enumerate(pairs)}
        self.earlier = [pair for n, pair in enumerate(pairs) if last[pair[0]] != n]


def parse(text: bytes) -> object:
    """Parse a JSON text; objects with repeated keys become `Repeating`.

    Raises:
        ValueError: The text is not JSON, is nested more than 127 levels deep, contains a number
            beyond the range of 64-bit floats, or has more brackets than `docs/format.md` allows.
    """
    is_plain = _PLAIN.fullmatch(text) is not None
    allowed = _FREE + len(text) // _DENSITY
    if not is_plain or text.count(b"[") + text.count(b"{") > allowed:
        _check_nesting(text, allowed)
    if rb"\u" in text and not _PAIRED.fullmatch(text):
        raise ValueError("half of a surrogate pair")
    return json.loads(
        text.decode("utf-8"),
        object_pairs_hook=_to_object,
        parse_int=None if is_plain else _to_integer,
        parse_float=_to_float,
        parse_constant=_refuse,
    )


def _check_nesting(text: bytes, allowed: int) -> None:
    """Refuse a text with more than `allowed` arrays and objects, or with too many levels."""
    depth = opened = 0
    for match in _BRACKET.finditer(text):
        if match[1] in (b"[", b"{"):
            depth += 1
            opened += 1
        else:
            depth -= 1
        if opened > allowed:
            raise ValueError("it consists of little but brackets")
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    return table if len(table) == len(pairs) else Repeating(pairs)


def _to_integer(digits: str) -> int | float:
    # As in serde_json, -0 is a float, and so is a number with more digits than 64 bits can have.
    # Parsing long integers would also need time for the square of their length.
    return _to_float(digits) if digits == "-0" or len(digits) > 20 else int(digits)


def _to_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits:.40} is out of range")
    return number


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not valid JSON")
