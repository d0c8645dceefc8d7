"""Limits on the code: short files, short functions, no use of private names of other modules.

`test_layers` checks the direction of imports.
"""

from __future__ import annotations

import pytest

from tools.house import House, survey

MAX_FILE = 450  # lines, of tests and tools too
MAX_MEDIAN = 9  # lines of a function, without its docstring
MAX_PERCENTILE = 25  # lines of a function at the 90th percentile
MAX_PUBLIC = 25  # exported names; the types of results are in `casweights.results` only
MAX_ROOT_FILES = 10


@pytest.fixture(scope="module")
def house() -> House:
    return survey()


def test_no_file_is_longer_than_the_limit(house: House) -> None:
    assert {path: size for path, size in house.longest_files.items() if size > MAX_FILE} == {}


def test_functions_are_shorter_than_the_limits(house: House) -> None:
    assert house.median <= MAX_MEDIAN
    assert house.percentile <= MAX_PERCENTILE


def test_no_module_uses_private_names_of_another(house: House) -> None:
    assert house.reached == []


def test_modules_have_few_public_names(house: House) -> None:
    assert house.public <= MAX_PUBLIC


def test_the_root_of_the_package_has_few_files(house: House) -> None:
    assert len(house.root_files) <= MAX_ROOT_FILES
