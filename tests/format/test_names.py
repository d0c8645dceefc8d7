"""The names of objects and refs."""

from __future__ import annotations

import pytest

from casweights.errors import ErrorCode, IntegrityError, InvalidInputError
from casweights.format import names
from casweights.ids import CarriedPackId, PackId, SnapshotId
from casweights.stores.base import check_name

GOOD = ["main", "v1", "feature/lora-r8", "2026.08.01", "a+b=c", "_x", "x" * 200, "a/b/c/d", "ref"]
BAD = [
    "",
    "/",
    "/main",
    "main/",
    "a//b",
    ".",
    "..",
    "a/../b",
    ".hidden",
    "-option",
    "a/-b",
    "with space",
    "tab\t",
    "newline\n",
    "a~1",
    "a@b",
    "a:b",
    "a*b",
    "a\\b",
    "ümlaut",
    "main.ref",
    "main.step",
    "a.ref/b",
    "x" * 201,
]


@pytest.mark.parametrize("name", GOOD)
def test_valid_ref_names_are_accepted(name: str) -> None:
    assert names.check_ref_name(name) == name
    check_name(names.move_name(names.HEADS, name, 999_999_999_999))
    check_name(names.move_name(names.TAGS, name, 1))


@pytest.mark.parametrize("name", BAD)
def test_invalid_ref_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        names.check_ref_name(name)
    assert caught.value.code is ErrorCode.BAD_NAME


def test_objects_have_the_specified_names() -> None:
    assert names.pack_name(PackId(b"\x01" * 32)) == "packs/" + "01" * 32
    assert names.pack_name(CarriedPackId(b"\x01" * 32)) == "snapshots/" + "01" * 32
    assert names.snapshot_name(SnapshotId(b"\xfe" * 32)) == "snapshots/" + "fe" * 32
    assert names.move_name(names.HEADS, "a/b", 7) == "refs/heads/a/b/000000000007.ref"
    assert names.move_name(names.TAGS, "v1", 1) == "refs/tags/v1/000000000001.ref"
    assert names.move_name(names.HEADS, "a", 7, suffix=names.STEP_SUFFIX).endswith("7.step")


@pytest.mark.parametrize("pack", [PackId(b"\xfa" * 32), CarriedPackId(b"\xfa" * 32)])
def test_the_pack_of_an_object_follows_from_its_name(pack: PackId) -> None:
    found = names.pack_of(names.pack_name(pack))
    assert (found, type(found)) == (pack, type(pack))


@pytest.mark.parametrize("folder", [names.PACKS, names.SNAPSHOTS])
@pytest.mark.parametrize("rest", ["", "fa", "FA" * 32, "fa" * 33, f"{'fa' * 32}/a", "xx" * 32])
def test_other_names_have_no_pack(folder: str, rest: str) -> None:
    with pytest.raises(IntegrityError, match=r"its name is not a (pack|snapshot) ID"):
        names.pack_of(folder + rest)


def test_names_of_moves_sort_by_position() -> None:
    moves = [names.move_name(names.HEADS, "main", n) for n in (1, 2, 9, 10, 99, 100, 12345)]
    assert moves == sorted(moves)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Main", "main"),
        ("a/b", "A/b"),
        ("a/b", "A/c"),
        ("a/b", "A"),
        ("A", "a/b"),
        ("x/Y/z", "x/y"),
        ("x/Y", "x/y/z"),
    ],
)
def test_a_new_ref_that_differs_only_in_case_is_refused(name: str, other: str) -> None:
    for one, two in ((name, other), (other, name)):
        with pytest.raises(InvalidInputError, match="cannot tell it from") as caught:
            names.RefNames(["unlike", two]).add(one)
        assert caught.value.code is ErrorCode.BAD_NAME
        assert two in caught.value.message


def test_new_refs_that_every_disk_distinguishes_are_accepted() -> None:
    names.RefNames(["a", "a/b/c", "a/c", "b/A", "ab", "a/b"]).add("a/b")


@pytest.mark.parametrize("part", ["CON", "aux", "nul.v1", "Com1", "v1.", "main.REF"])
def test_refs_that_windows_cannot_hold_can_be_read_but_not_created(part: str) -> None:
    for name in (part, f"x/{part}", f"{part}/x"):
        names.check_ref_name(name)
        with pytest.raises(InvalidInputError, match="cannot hold it"):
            names.RefNames([]).add(name)


def test_new_refs_that_resemble_devices_are_accepted() -> None:
    for name in ("console", "com", "com10", "v1.0", "nul-1", "aux_"):
        names.RefNames([]).add(name)
