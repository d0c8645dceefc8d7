"""Measures the code base: sizes of files and functions, and uses of other modules' private names.

Run `python -m tools.house`; `tests/test_house.py` holds the limits.
"""

from __future__ import annotations

import ast
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "casweights"
FOLDERS = ("casweights", "tests", "tools")
FOREIGN = {"_version"}  # an attribute of torch tensors, not only a name of ours
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class House:
    """The measurements.

    Attributes:
        longest_files: Number of lines of the longest Python files of the repository, by path.
        median: Median number of lines of the package's functions, without docstrings.
        percentile: The 90th percentile of the same numbers.
        reached: Places where a module uses a private name that another module defines.
        public: Number of names that the package exports, without the types of results.
        root_files: Names of the files in the root of the package.
    """

    longest_files: dict[str, int]
    median: float
    percentile: float
    reached: list[str]
    public: int
    root_files: list[str]


def survey() -> House:
    """Measure the whole repository."""
    private = private_names()
    sizes = sorted(length for path in sources("casweights") for length in function_sizes(path))
    return House(
        longest_files=dict(sorted(file_sizes(), key=lambda pair: -pair[1])[:10]),
        median=statistics.median(sizes),
        percentile=sizes[len(sizes) * 9 // 10],
        reached=[place for path in sources("casweights") for place in reached_names(path, private)],
        public=public_names(),
        root_files=sorted(path.name for path in PACKAGE.iterdir() if path.is_file()),
    )


def sources(folder: str) -> list[Path]:
    """Return the Python files below a folder of the repository."""
    return sorted((ROOT / folder).rglob("*.py"))


def file_sizes() -> Iterator[tuple[str, int]]:
    """Yield path and number of lines of every Python file."""
    for folder in FOLDERS:
        for path in sources(folder):
            yield str(path.relative_to(ROOT)), len(path.read_text().splitlines())


def function_sizes(path: Path) -> Iterator[int]:
    """Yield the number of lines of each function in a file, without docstring and blank lines."""
    text = path.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            spans = [(node.lineno, node.body[0].lineno)]
            body = node.body[ast.get_docstring(node) is not None :]
            spans += [(part.lineno, (part.end_lineno or part.lineno) + 1) for part in body]
            yield len(
                {n for begin, end in spans for n in range(begin, end) if lines[n - 1].strip()}
            )


def reached_names(path: Path, private: frozenset[str]) -> Iterator[str]:
    """Yield the places where a file uses private names of the package that it does not define."""
    tree = ast.parse(path.read_text())
    own = set(defined_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in private - own:
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner not in ("self", "cls"):  # a base class may define it for its subclasses
                yield f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom):
            for name in {alias.name for alias in node.names} & private:
                yield f"{path.relative_to(ROOT)}:{node.lineno} {name}"


def private_names() -> frozenset[str]:
    """Return all private names that modules of the package define."""
    trees = [ast.parse(path.read_text()) for path in sources("casweights")]
    return (
        frozenset(name for tree in trees for name in defined_names(tree) if is_private(name))
        - FOREIGN
    )


def is_private(name: str) -> bool:
    """Return whether a name begins with one underscore."""
    return name.startswith("_") and not name.startswith("__")


def defined_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names and attributes that a module defines or assigns."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def public_names() -> int:
    """Return the number of names that the package exports."""
    import casweights

    return len(casweights.__all__)


def main() -> None:
    """Print the measurements."""
    house = survey()
    for path, lines in house.longest_files.items():
        print(f"{lines:5} lines  {path}")
    print(f"functions: median {house.median:g} lines, 90th percentile {house.percentile:g}")
    print(f"uses of other modules' private names: {len(house.reached)}")
    for place in house.reached:
        print(f"  {place}")
    print(f"public names: {house.public}")
    print(f"files in the root of the package: {len(house.root_files)}")


if __name__ == "__main__":
    main()
