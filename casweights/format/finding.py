"""Findings: small objects that say which frame of which pack is damaged.

The name says what a writer must know, so that one listing is enough. The content is for people.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack

from casweights.format import names
from casweights.format.envelope import ObjectKind, corrupt, seal, unseal
from casweights.format.unpack import MALFORMED, Unpacker
from casweights.ids import PackId, Suspect

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FINDING = 4096  # bytes of an encoded finding
_MAX_WHY = 500  # characters
_MAX_OFFSET = 1 << 62  # bytes: no pack is as long
_TIMES = range(-(1 << 63), 1 << 63)
_NAME = re.compile(
    re.escape(names.DAMAGED) + r"(?P<pack>[0-9a-f]{64})(-(?P<offset>0|[1-9][0-9]{0,18}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What somebody found damaged.

    Attributes:
        suspect: The frame, or the pack.
        why: What is wrong with it.
        time: When it was found, in microseconds since 1970.
    """

    suspect: Suspect
    why: str
    time: int


def finding_name(suspect: Suspect) -> str:
    """Where a finding lies."""
    end = "" if suspect.offset is None else f"-{suspect.offset}"
    return f"{names.DAMAGED}{suspect.pack}{end}"


def parse_finding_name(name: str) -> Suspect:
    """What a finding is about, as its name tells.

    Raises:
        IntegrityError: No finding is called so.
    """
    match = _NAME.fullmatch(name)
    offset = None if match is None or match["offset"] is None else int(match["offset"])
    if match is None or (offset is not None and offset >= _MAX_OFFSET):
        raise corrupt(name, "no finding is called so")
    return Suspect(PackId.from_hex(match["pack"]), offset)


def encode_finding(finding: Finding) -> bytes:
    """A finding's object."""
    pack, offset = finding.suspect
    fields = {"pack": pack, "offset": offset, "why": finding.why[:_MAX_WHY], "time": finding.time}
    encoded: bytes = msgpack.packb(fields)
    return seal(ObjectKind.FINDING, encoded)


def decode_finding(data: bytes, name: str) -> Finding:
    """What a finding's object says.

    Args:
        data: The object.
        name: Its name in the store.

    Raises:
        IntegrityError: It is damaged, or is about something else than its name.
        UnsupportedError: A newer casweights wrote it.
    """
    if len(data) > MAX_FINDING:
        raise corrupt(name, f"it has more than {MAX_FINDING} bytes")
    payload = unseal(ObjectKind.FINDING, data, name)
    try:
        found = _parse(payload)
    except MALFORMED as error:
        raise corrupt(name, f"it is no finding: {error}") from error
    if found.suspect != parse_finding_name(name):
        raise corrupt(name, "it is about something else than its name")
    return found


def _parse(payload: bytes) -> Finding:
    data = Unpacker(payload)
    readers: dict[str, Callable[[], Any]] = {
        "pack": lambda: data.scalar(bytes),
        "offset": lambda: data.optional(int),
        "why": lambda: data.scalar(str),
        "time": lambda: data.scalar(int),
    }
    fields = data.fields(readers)
    data.finish()
    if len(fields["why"]) > _MAX_WHY or fields["time"] not in _TIMES:
        raise ValueError("a text or number in it is too large")
    suspect = Suspect(PackId(fields["pack"]), fields["offset"])
    return Finding(suspect=suspect, why=fields["why"], time=fields["time"])
