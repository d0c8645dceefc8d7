"""Names of files inside a version."""

from __future__ import annotations

import unicodedata

import pytest

from casweights.errors import ErrorCode, InvalidInputError
from casweights.format.paths import check_path, check_paths


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
def test_good(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "empty part"),
        ("/etc/passwd", "not relative"),
        ("//host/share", "not relative"),
        ("C:/windows", "not relative"),
        ("c:file", "not relative"),
        ("folder/c:file", "not relative"),
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
def test_bad(path: str, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why) as caught:
        check_path(path)
    assert caught.value.code is ErrorCode.BAD_PATH
    assert caught.value.message.isprintable()


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
def test_two_names_for_one_place(paths: list[str]) -> None:
    for order in (paths, paths[::-1]):
        with pytest.raises(InvalidInputError, match="same file on some systems"):
            check_paths(order)


@pytest.mark.parametrize("paths", [["a", "a/b"], ["A", "a/b"], ["x/y", "x/y/z/w"]])
def test_a_file_that_is_a_folder_too(paths: list[str]) -> None:
    for order in (paths, paths[::-1]):
        with pytest.raises(InvalidInputError, match="which is a file"):
            check_paths(order)


def test_many_good_ones() -> None:
    check_paths([f"layer{n}/{m}.bin" for n in range(100) for m in range(10)])
    check_paths(["ab", "a/b", "a.b"])
    check_paths([])
