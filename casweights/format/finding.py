"""Findings: small objects that report a damaged frame or pack.

The name contains everything that a writer needs, so that one listing is enough. The content is for
people.
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
_MAX_OFFSET = 1 << 62  # bytes: packs are shorter
_TIMES = range(-(1 << 63), 1 << 63)  # microseconds
_NAME = re.compile(
    re.escape(names.DAMAGED) + r"(?P<pack>[0-9a-f]{64})(-(?P<offset>0|[1-9][0-9]{0,18}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A report that a frame or pack is damaged.

    Attributes:
        suspect: The frame or the pack.
        why: Description of the damage.
        time: Time of the discovery, in microseconds since 1970-01-01 00:00 UTC.
    """

    suspect: Suspect
    why: str
    time: int


def finding_name(suspect: Suspect) -> str:
    """Return the object name of the finding about a frame or pack."""
    end = "" if suspect.offset is None else f"-{suspect.offset}"
    return f"{names.DAMAGED}{suspect.pack}{end}"


def parse_finding_name(name: str) -> Suspect:
    """Return the frame or pack that a finding with this name reports.

    Raises:
        IntegrityError: `name` is not the name of a finding.
    """
    match = _NAME.fullmatch(name)
    offset = None if match is None or match["offset"] is None else int(match["offset"])
    if match is None or (offset is not None and offset >= _MAX_OFFSET):
        raise corrupt(name, "its name is not that of a finding")
    return Suspect(PackId.from_hex(match["pack"]), offset)


def encode_finding(finding: Finding) -> bytes:
    """Return the object that contains a finding; cuts its reason to 500 characters."""
    pack, offset = finding.suspect
    fields = {"pack": pack, "offset": offset, "why": finding.why[:_MAX_WHY], "time": finding.time}
    encoded: bytes = msgpack.packb(fields)
    return seal(ObjectKind.FINDING, encoded)


def decode_finding(data: bytes, name: str) -> Finding:
    """Parse the object of a finding.

    Args:
        data: The object.
        name: Its name in the store.

    Raises:
        IntegrityError: The object is damaged, or its content and its name disagree.
        UnsupportedError: A newer casweights wrote it.
    """
    if len(data) > MAX_FINDING:
        raise corrupt(name, f"it has more than {MAX_FINDING} bytes")
    payload = unseal(ObjectKind.FINDING, data, name)
    try:
        found = _parse(payload)
    except MALFORMED as error:
        raise corrupt(name, f"it is not a finding: {error}") from error
    if found.suspect != parse_finding_name(name):
        raise corrupt(name, "its content and its name are about different frames")
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
        raise ValueError("its reason is too long or its time out of range")
    suspect = Suspect(PackId(fields["pack"]), fields["offset"])
    return Finding(suspect=suspect, why=fields["why"], time=fields["time"])
