"""Files and definitions that CONTRIBUTING.md and pages name exist."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import ROOT, prose, read
from tests.test_layers import ALLOWED

if TYPE_CHECKING:
    from pathlib import Path

# Folders that paths of a page may start at.
BASES = {
    "CONTRIBUTING.md": (ROOT,),
    "docs/architecture.md": (ROOT / "casweights", ROOT),
    "docs/promises.md": (ROOT, ROOT / "casweights"),
}
NAMED = re.compile(r"`([\w./]+/[\w.]*|\w+\.py)(?:::?([\w.]+))?`")


def found(page: str, path: str) -> Path | None:
    return next((base / path for base in BASES[page] if (base / path).exists()), None)


def defines(path: Path, name: str) -> bool:
    """Whether a module defines a name: a class, a function, a method or a constant."""
    scope: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    for part in name.split("."):
        inner = next((node for node in ast.iter_child_nodes(scope) if part in names(node)), None)
        if inner is None:
            return False
        scope = inner
    return True


def names(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    return {ast.unparse(target) for target in targets}


@pytest.mark.parametrize("page", BASES)
def test_paths_and_names_in_code_spans_exist(page: str) -> None:
    spans = NAMED.findall(prose(page))
    assert spans
    missing = []
    for path, name in spans:
        place = found(page, path)
        if place is None or (name and not defines(place, name)):
            missing.append(f"{path}:{name}")
    assert missing == []


def test_commands_of_contributing_exist() -> None:
    named = set(re.findall(r"\b(?:tools|tests)/[\w/.]+", read("CONTRIBUTING.md")))
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_the_rooms_of_the_architecture_page_are_those_of_the_layers_in_order() -> None:
    table = read("docs/architecture.md").split("\n## Rooms\n")[1].split("\n## ")[0]
    rooms = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert rooms == [room for room in ALLOWED if room]


def test_the_drawing_has_arrows_only_where_imports_may_go() -> None:
    drawing = read("docs/architecture.md").split("```mermaid\n")[1].split("```")[0]
    arrows = re.findall(r"^ *(\w+)(?:\[[^]]*\])? --> (\w+)", drawing, re.MULTILINE)
    assert arrows
    assert {(upper, lower) for upper, lower in arrows if lower not in ALLOWED[upper]} == set()


def test_the_drawing_of_a_store_is_on_the_page_of_concepts() -> None:
    assert "```mermaid\nflowchart" in read("docs/concepts.md")
