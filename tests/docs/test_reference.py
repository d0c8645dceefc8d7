"""``docs/reference.md`` is what the code says, and its examples work."""

from __future__ import annotations

import re
from dataclasses import is_dataclass
from typing import TYPE_CHECKING

import pytest
import torch

import casweights
from casweights import errors, results
from tests.docs.pages import headings, read
from tools import reference
from tools.docstrings import public_names
from tools.reference_examples import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGE = "docs/reference.md"
TOP = [name for name in casweights.__all__ if name != "__version__"]
RESULTS = public_names("casweights.results")


def test_the_page_is_what_python_m_tools_reference_writes() -> None:
    assert read(PAGE) == reference.page(), "run python -m tools.reference"


def test_every_public_name_has_a_heading() -> None:
    assert {name.lower() for name in [*TOP, *RESULTS]} <= headings(PAGE)


def test_every_public_class_has_an_example() -> None:
    assert {*TOP, *RESULTS} <= EXAMPLES.keys()


def test_every_field_of_every_result_has_a_row() -> None:
    for name in RESULTS:
        kind = getattr(results, name)
        section = read(PAGE).split(f"\n### {name}\n")[1].split("\n##")[0]
        rows = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
        if is_dataclass(kind):
            assert kind.__dataclass_fields__.keys() <= rows, name


def test_every_error_code_has_a_meaning() -> None:
    assert list(reference.CODES) == [str(code) for code in errors.ErrorCode]


@pytest.mark.parametrize("example", dict.fromkeys(EXAMPLES.values()), ids=lambda f: f.__name__)
def test_examples_run(
    example: Callable[[torch.nn.Module], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raised = set()
    init = errors.CasweightsError.__init__

    def noted(self: errors.CasweightsError, code: errors.ErrorCode, message: str) -> None:
        raised.add(type(self).__name__)
        init(self, code, message)

    monkeypatch.setattr(errors.CasweightsError, "__init__", noted)
    example(torch.nn.Linear(8, 8))
    shown = {name for name, function in EXAMPLES.items() if function is example}
    wanted = {name for name in shown if name.endswith("Error")}
    assert wanted - raised <= {"CasweightsError", "StoreError"}  # a base, and a disk that fails
