"""The state of the house: files and functions stay short, and nobody reaches into another module.

That imports go down only, without circles, is held by `test_layers`.
"""

from __future__ import annotations

import pytest

from tools.house import House, survey

MAX_FILE = 450  # lines, of tests and tools too
MAX_MEDIAN = 9  # lines of a function, without its docstring
MAX_PERCENTILE = 25  # the same, of all but the longest tenth
MAX_PUBLIC = 25  # names at the top; types of results are in `casweights.results`
MAX_ROOT_FILES = 10


@pytest.fixture(scope="module")
def house() -> House:
    return survey()


def test_no_file_is_long(house: House) -> None:
    assert {path: size for path, size in house.longest_files.items() if size > MAX_FILE} == {}


def test_functions_are_short(house: House) -> None:
    assert house.median <= MAX_MEDIAN
    assert house.percentile <= MAX_PERCENTILE


def test_no_module_uses_private_names_of_another(house: House) -> None:
    assert house.reached == []


def test_few_names_are_public(house: House) -> None:
    assert house.public <= MAX_PUBLIC


def test_the_root_of_the_package_shows_its_rooms(house: House) -> None:
    assert len(house.root_files) <= MAX_ROOT_FILES
