"""Plans of collections: what was written is read, and anything else is damage."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from casweights.errors import IntegrityError
from casweights.format.collection import (
    Plan,
    PlannedObject,
    aside_name,
    decode_plan,
    encode_plan,
    parse_aside_name,
)
from casweights.format.envelope import ObjectKind, seal

PACK, OTHER = f"packs/{'1' * 64}", f"versions/{'2' * 64}"
FIELDS: dict[str, Any] = {"now": 5, "grace": 6, "objects": [[PACK, 7, 8]], "by": [OTHER]}


def sealed(fields: Any) -> bytes:
    return seal(ObjectKind.COLLECTION, msgpack.packb(fields))


@pytest.mark.parametrize("by", [[], [OTHER]])
def test_a_plan_that_was_written_is_read(by: list[str]) -> None:
    plan = Plan(now=5, grace=6, objects=[PlannedObject(PACK, 7, 8)], by=by)
    read = decode_plan(encode_plan(plan), "plan")
    assert (read.now, read.grace, list(read.objects), list(read.by)) == (5, 6, plan.objects, by)


@pytest.mark.parametrize(
    "change",
    [
        {"by": ["casweights.json"]},
        {"by": ["packs/../casweights.json"]},
        {"by": PACK},
        {"objects": [[PACK, 7]]},
        {"objects": [["refs/heads/main/1.ref", 7, 8]]},
        {"now": "5"},
    ],
)
def test_anything_else_is_damage(change: dict[str, Any]) -> None:
    assert decode_plan(sealed(FIELDS), "plan").by == [OTHER]
    with pytest.raises(IntegrityError, match="plan"):
        decode_plan(sealed(FIELDS | change), "plan")


def test_the_names_below_aside_say_which_objects_others_replace() -> None:
    digits = "0123456789abcdef"
    assert not parse_aside_name(aside_name(digits, PACK)).is_of_replaced
    assert parse_aside_name(aside_name(f"replaced-{digits}", PACK)).is_of_replaced
    with pytest.raises(IntegrityError):
        parse_aside_name(aside_name(f"other-{digits}", PACK))
