"""Conditions on named values, such as ``eval >= 0.7 and not draft``.

The grammar, in order of precedence::

    condition = all {"or" all}
    all       = each {"and" each}
    each      = "not" each | "(" condition ")" | value [comparison value]
    comparison = "==" | "!=" | "<" | "<=" | ">" | ">="
    value     = number | string | "true" | "false" | "null" | name

A string is in single or double quotes, without escapes. A name begins with a letter or underscore,
and may contain digits and ``.``, ``/`` and ``-``; dots also lead into nested maps. Nothing is ever
executed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from casweights.errors import ErrorCode, InvalidInputError

MAX_CONDITION = 1000  # characters
_MAX_DEPTH = 64  # levels of parentheses and of "not"
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)(?![\w.])
    |(?P<string>"[^"]*"|'[^']*')
    |(?P<name>[A-Za-z_][A-Za-z0-9_./-]*)
    |(?P<sign>==|!=|<=|>=|<|>|\(|\))
    )""",
    re.VERBOSE,
)
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WORDS = {"true": True, "false": False, "null": None}
_MISSING = object()

Values = Mapping[str, Any]
Condition = Callable[[Values], bool]
_Value = Callable[[Values], Any]


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


def parse_condition(text: str) -> Condition:
    """Return a function that says whether values meet a condition.

    A comparison with a value that is missing is false, and so is one of a number with a string.
    ``!=`` is true for values of different types. A name alone is true if its value is there, and
    neither false nor null.

    Raises:
        InvalidInputError: `text` is not a condition.
    """
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        if len(text) > MAX_CONDITION:
            raise self._error(f"it has more than {MAX_CONDITION} characters", MAX_CONDITION)
        self._tokens = list(self._split())
        self._at = 0
        self._depth = 0

    def parse(self) -> Condition:
        condition = self._any()
        if self._next.kind != "end":
            raise self._error("'and', 'or' or the end is expected", self._next.start)
        return condition

    def _split(self) -> list[_Token]:
        tokens, at, end = [], 0, len(self._text.rstrip())
        while at < end:
            match = _TOKEN.match(self._text, at)
            if match is None:
                raise self._error("this is no name, number, string or comparison", at)
            kind = str(match.lastgroup)
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        return [*tokens, _Token("end", "", end)]

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _takes(self, *texts: str) -> str | None:
        """Pass over the next token and return it, if it is one of these words or signs."""
        token = self._next
        if token.kind in ("name", "sign") and token.text in texts:
            self._at += 1
            return token.text
        return None

    def _any(self) -> Condition:
        parts = [self._all()]
        while self._takes("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else lambda values: any(p(values) for p in parts)

    def _all(self) -> Condition:
        parts = [self._each()]
        while self._takes("and"):
            parts.append(self._each())
        return parts[0] if len(parts) == 1 else lambda values: all(p(values) for p in parts)

    def _each(self) -> Condition:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"it is nested more than {_MAX_DEPTH} deep", self._next.start)
        try:
            if self._takes("not"):
                inner = self._each()
                return lambda values: not inner(values)
            if self._takes("("):
                inner = self._any()
                if not self._takes(")"):
                    raise self._error("')' is expected", self._next.start)
                return inner
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Condition:
        left = self._value()
        sign = self._takes(*_COMPARISONS)
        if sign is None:
            return lambda values: _is_set(left(values))
        right = self._value()
        return lambda values: _compare(sign, left(values), right(values))

    def _value(self) -> _Value:
        token = self._next
        if token.kind not in ("number", "string", "name") or token.text in ("and", "or", "not"):
            raise self._error("a name, a number or a string is expected", token.start)
        self._at += 1
        if token.kind == "name" and token.text not in _WORDS:
            return lambda values: _look_up(values, token.text)
        constant = _constant(token)
        return lambda _: constant

    def _error(self, why: str, at: int) -> InvalidInputError:
        where = f"at {self._text[at : at + 20]!r}" if self._text[at:].strip() else "at its end"
        return InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"{self._text[:200]!r} is not a condition: {why}, {where}. Write one such as 'eval >= "
            "0.7 and not draft'",
        )


def _constant(token: _Token) -> Any:
    if token.kind == "string":
        return token.text[1:-1]
    if token.kind == "name":
        return _WORDS[token.text]
    return float(token.text) if set(token.text) & set(".eE") else int(token.text)


def _look_up(values: Values, name: str) -> Any:
    """Return a value by its whole name, or by the parts of its name in nested maps."""
    if name in values:
        return values[name]
    found: Any = values
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return _MISSING
        found = found[part]
    return found


def _is_set(value: Any) -> bool:
    return not any(value is unset for unset in (_MISSING, None, False))


def _compare(sign: str, left: Any, right: Any) -> bool:
    if left is _MISSING or right is _MISSING:
        return False
    if _kind(left) != _kind(right):
        return sign == "!="
    if _kind(left) not in (float, str) and sign not in ("==", "!="):
        return False
    return _COMPARISONS[sign](left, right)


def _kind(value: Any) -> type:
    """Return the type of a value, the same for all numbers; truth values are no numbers."""
    return float if type(value) is int else type(value)
