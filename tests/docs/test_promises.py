"""Each promise of the README is on ``docs/promises.md``, with tests that exist."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import headings, read

README = read("README.md").split("\n## Promises")[1].split("\n## ")[0]
PAGE = read("docs/promises.md")
SECTIONS = dict(part.split("\n", 1) for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:])


def test_every_promise_of_the_readme_has_a_section() -> None:
    promised = re.findall(r"^\* \[([^]]+)\]\(docs/promises\.md#([\w-]+)\)", README, re.MULTILINE)
    assert [title for title, _ in promised] == list(SECTIONS)
    assert {anchor for _, anchor in promised} <= headings("docs/promises.md")


@pytest.mark.parametrize("promise", SECTIONS)
def test_a_promise_names_three_to_eight_tests_and_a_change_that_breaks_it(promise: str) -> None:
    tests = re.findall(r"^\| `tests/[\w/]+\.py", SECTIONS[promise], re.MULTILINE)
    assert 3 <= len(tests) <= 8
    assert "\nBreak it: " in SECTIONS[promise]
