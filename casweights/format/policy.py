"""Retention policies that are kept in a store.

Objects never change, so a policy that replaces another one has the next position. The policy at the
highest position counts; of several at one position, the one whose name sorts last.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgpack

from casweights.config import KEEP_COUNTS, Keep
from casweights.errors import ErrorCode, IntegrityError, InvalidInputError
from casweights.format import names
from casweights.format.envelope import ObjectKind, corrupt, seal, unseal
from casweights.format.unpack import MALFORMED, Unpacker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_POLICY = 65_536  # bytes of a policy's object
MAX_KEEPS = 64  # entries of a policy
MAX_TEXT = 1000  # characters of a pattern or a condition
_NAME = re.compile(
    f"{re.escape(names.POLICIES)}({names.POSITION})-[0-9a-f]{{{names.WRITER_DIGITS}}}"
)
_OPTIONAL = {*KEEP_COUNTS, "within", "where"}


def policy_name(position: int, writer: str) -> str:
    """Return the object name of a policy.

    Args:
        position: Its number, from 1.
        writer: `names.WRITER_DIGITS` random hexadecimal digits.
    """
    return f"{names.POLICIES}{position:0{names.POSITION_DIGITS}}-{writer}"


def parse_policy_name(name: str) -> int:
    """Return the position of a policy with this name.

    Raises:
        IntegrityError: `name` is not the name of a policy.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise corrupt(name, "its name is not that of a policy")
    return int(match[1])


def encode_policy(policy: Sequence[Keep], time: int) -> bytes:
    """Return the object that contains a policy.

    Args:
        policy: Its entries; none to keep everything.
        time: Now, in microseconds since 1970-01-01 00:00 UTC.

    Raises:
        InvalidInputError: It is larger than readers accept.
    """
    try:
        encoded = msgpack.packb({"time": time, "keep": [_fields(keep) for keep in policy]})
        data = seal(ObjectKind.POLICY, encoded)
        decode_policy(data, "the policy")
    except (*MALFORMED, IntegrityError) as error:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"a store cannot keep this policy: it may have {MAX_KEEPS} entries, and patterns and "
            f"conditions of {MAX_TEXT} characters ({error})",
        ) from error
    return data


def _fields(keep: Keep) -> dict[str, Any]:
    fields: dict[str, Any] = {"branches": keep.branches}
    for name in KEEP_COUNTS:
        fields[name] = getattr(keep, name)
    if keep.within is not None:
        fields["within"] = keep.within // timedelta(microseconds=1)
    fields["where"] = keep.where
    return {name: value for name, value in fields.items() if value is not None}


def decode_policy(data: bytes, name: str) -> tuple[Keep, ...]:
    """Parse the object of a policy.

    Args:
        data: The object.
        name: Its name in the store, for error messages.

    Raises:
        IntegrityError: The object is damaged.
        UnsupportedError: A newer casweights wrote it.
    """
    if len(data) > MAX_POLICY:
        raise corrupt(name, f"it has more than {MAX_POLICY} bytes")
    payload = unseal(ObjectKind.POLICY, data, name)
    try:
        return _parse(payload)
    except MALFORMED as error:
        raise corrupt(name, f"it is not a policy: {error}") from error


def _parse(payload: bytes) -> tuple[Keep, ...]:
    data = Unpacker(payload)
    readers: dict[str, Callable[[], Any]] = {
        "time": lambda: data.scalar(int),
        "keep": lambda: tuple(_keep(data) for _ in data.items(MAX_KEEPS)),
    }
    # A rule that this reader does not know would keep versions: passing over it loses them.
    fields = data.fields(readers, exact=True)
    data.finish()
    policy: tuple[Keep, ...] = fields["keep"]
    return policy


def _keep(data: Unpacker) -> Keep:
    readers: dict[str, Callable[[], Any]] = {
        "branches": lambda: _text(data),
        **{name: lambda: data.scalar(int) for name in KEEP_COUNTS},
        "within": lambda: timedelta(microseconds=data.scalar(int)),
        "where": lambda: _text(data),
    }
    return Keep(**data.fields(readers, optional=_OPTIONAL, exact=True))


def _text(data: Unpacker) -> str:
    text = data.scalar(str)
    if len(text) > MAX_TEXT:
        raise ValueError(f"a text of {len(text)} characters is too long")
    return text
