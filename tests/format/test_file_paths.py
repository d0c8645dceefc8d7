"""Checks of the paths of files in a version."""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casweights.errors import ErrorCode, InvalidInputError
from casweights.format.file_paths import (
    _fold,
    check_new_path,
    check_path,
    check_paths,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "config.json",
        "folder/in/folder/file",
        ".hidden",
        "..almost",
        "a..b",
        "name with spaces",
        "größe/模型.bin",
        "ab:c",
        "CON",
        "-rf",
        "x" * 4096,
    ],
)
def test_safe_paths_are_accepted(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "empty part"),
        ("/etc/passwd", "not relative"),
        ("//host/share", "not relative"),
        ("C:/windows", "'C:', which is a drive"),
        ("c:file", "drive"),
        ("folder/c:file", "drive"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        (".", "'.' or '..'"),
        ("..", "'.' or '..'"),
        ("../up", "'.' or '..'"),
        ("a/../../up", "'.' or '..'"),
        ("a/./b", "'.' or '..'"),
        ("a\\b", "backslash"),
        ("..\\up", "backslash"),
        ("nul\0", "control character"),
        ("line\nbreak", "control character"),
        ("del\x7f", "control character"),
        ("lone\ud800", "undecodable"),
        ("escaped\udcff", "undecodable"),
        ("x" * 4097, "longer"),
        ("a/" * 100 + "a", "folders"),
        ("é" * 2049, "longer"),
    ],
)
def test_unsafe_paths_are_refused(path: str, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why) as caught:
        check_path(path)
    assert caught.value.code is ErrorCode.BAD_PATH
    assert caught.value.message.isprintable()


UNPORTABLE = {
    **{f"aa{mark}b": f"contains {mark!r}" for mark in '<>:"|?*'},
    **dict.fromkeys(["a.", "a ", "...", "a. .", "v1.."], "dot or space"),
    **dict.fromkeys(
        ["CON", "con", "nul.txt", "Aux.tar.gz", "PRN .x", "COM1", "lpt9.log"], "device"
    ),
    **dict.fromkeys(["com¹", "CONIN$", "conout$", "COM0"], "device"),
    **dict.fromkeys(["x" * 256, "é" * 128], "longer than 255 bytes"),
}


@pytest.mark.parametrize("folder", ["", "in/"])
@pytest.mark.parametrize(("name", "why"), UNPORTABLE.items(), ids=range(len(UNPORTABLE)))
def test_names_that_some_system_cannot_hold_can_be_read_but_not_written(
    name: str, why: str, folder: str
) -> None:
    for path in (folder + name, f"{folder}{name}/below"):
        check_path(path)
        with pytest.raises(InvalidInputError, match=why) as caught:
            check_new_path(path)
        assert caught.value.code is ErrorCode.BAD_PATH
        assert caught.value.message.count("system cannot hold it") == 1


@pytest.mark.parametrize(
    "path",
    [
        "console",
        "com",
        "com10",
        "nul-1",
        "a.b",
        ".a",
        "a b",
        " a",
        "x" * 255,
        "lpt/1",
        "a.con",
        "$",
    ],
)
def test_names_that_resemble_refused_ones_can_be_written(path: str) -> None:
    check_new_path(path)


@pytest.mark.parametrize(
    "paths",
    [
        ["a", "A"],
        ["folder/README", "folder/readme"],
        ["Folder/x", "folder/x"],
        ["straße", "STRASSE"],
        ["é", unicodedata.normalize("NFD", "é")],
        ["a", "a"],
    ],
)
def test_paths_that_some_system_equates_are_refused(paths: list[str]) -> None:
    for order in (paths, paths[::-1]):
        with pytest.raises(InvalidInputError, match="same file on some systems"):
            check_paths(order)


@pytest.mark.parametrize("paths", [["a", "a/b"], ["A", "a/b"], ["x/y", "x/y/z/w"]])
def test_a_path_inside_another_path_is_refused(paths: list[str]) -> None:
    for order in (paths, paths[::-1]):
        with pytest.raises(InvalidInputError, match="which is a file"):
            check_paths(order)


def test_many_distinct_paths_are_accepted() -> None:
    check_paths([f"layer{n}/{m}.bin" for n in range(100) for m in range(10)])
    check_paths(["ab", "a/b", "a.b"])
    check_paths([])


def calls_of(check: Callable[[], object]) -> int:
    """Return the number of function calls, including functions written in C."""
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        check()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("depth", [1, 10, 99])
def test_deep_paths_need_no_more_calls_than_flat_ones(depth: int) -> None:
    paths = [f"{n:06}" + "/a" * depth for n in range(300)]
    assert calls_of(lambda: check_paths(paths)) < 40 * len(paths)


@pytest.mark.parametrize(
    "marks",
    ["\u0301\u0323" * 1000, "\u0345" * 1000 + "\u0323" * 1000, "\u0f73" * 1300, "\u0344" * 1000],
    ids=["alternating", "in two runs", "vowels that decompose", "marks that decompose"],
)
def test_long_runs_of_marks_are_sorted_before_normalization(
    marks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def normalize(form: Literal["NFC", "NFD"], text: str) -> str:
        texts.append(text)
        return unicodedata.normalize(form, text)

    watched = SimpleNamespace(normalize=normalize, combining=unicodedata.combining)
    monkeypatch.setattr("casweights.format.file_paths.unicodedata", watched)
    check_paths(["a" + marks])
    assert sum(map(moves_of, texts)) <= 32 * len(marks)


def moves_of(text: str) -> int:
    """Return how often `normalize` swaps two marks that are out of order."""
    moves, run = 0, Counter[int]()
    for character in text:
        for mark in map(unicodedata.combining, unicodedata.normalize("NFD", character)):
            moves += sum(times for other, times in run.items() if other > mark > 0)
            run[mark] += 1
            if mark == 0:
                run.clear()
    return moves


marks_and_letters = st.text(
    st.sampled_from("ae\u00e9\uac00\u0301\u0323\u0345\u05b0\u0344\u0f73\u0f71\u1e69/A"), max_size=40
)


@given(marks_and_letters, st.integers(1, 200))
def test_paths_are_compared_after_case_folding_and_nfc(text: str, times: int) -> None:
    path = text * times
    assert _fold(path) == unicodedata.normalize("NFC", path.casefold())


@given(st.lists(st.lists(st.sampled_from(["a", "b", "a b", "a!", "A"]), min_size=1, max_size=3)))
def test_a_folder_of_another_path_is_always_refused(parts: list[list[str]]) -> None:
    paths = ["/".join(part) for part in parts]
    folded = [path.casefold() for path in paths]
    clash = len(set(folded)) < len(folded) or any(
        one.startswith(f"{other}/") for one in folded for other in folded
    )
    try:
        check_paths(paths)
    except InvalidInputError:
        assert clash
    else:
        assert not clash
