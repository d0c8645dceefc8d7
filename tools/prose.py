"""The state of the prose: phrases that read badly, long lines, missing docstrings, few comments.

Run `python -m tools.prose [PATH...]` to list what is wrong in these files and folders;
`tests/test_prose.py` holds the limits for the whole repository.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import subprocess
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
MAX_LINE = 100  # characters of a line of prose
PROSE = {".py", ".md", ".c", ".h", ".toml", ".pyi"}
EXAMPLES = {Path("tools/prose.py"), Path("tests/test_prose.py")}  # they quote the phrases

# Each is either no idiomatic English or hides its subject; the remark says what to write instead.
BANNED = {
    r"\banew\b": "again, or a verb: rewrite, re-encode",
    r"\bbesides?\b": "next to, with, in addition to, or concurrent with",
    r"\blest\b": "so that ... does not",
    r"\bshall\b": "must, will, or the present tense",
    r"\bas far as\b": "where, if, or a number",
    r"\bso many\b": "the number itself, or `this number of`",
    r"\bit takes\b": "must be ..., needs ..., accepts ...",
    r"\b(?:is|are|was|were|be) none\b": "does not exist, has no ..., no ... exists",
    r"\b[Ww]hoever\b": "name the actor",
    r"\b[Mm]eanwhile\b": "at the same time, in between, during ...",
    r"\btake note\b": "record",
    r"\b(?:is|are) to come\b": "do not exist yet",
    r"\b(?:what|whatever|which|that|as) is there\b": "what exists, the existing ...",
    r"\b[Ww]ho (?:has|can|follows|reads|writes|holds|wants|asks|goes|looks)\b": "name the actor",
    r"\btold of\b": "listed, named, given, reported",
    r"\bthe very same\b": "the same, identical",
    r"\bat hand\b": "available, in memory, local",
    r"\b(?:there|here|where)(?:by|of|upon)\b": "name the thing",
    r"\bupon\b": "on, when",
}
SEE = re.compile(r"See\b[^\n]*")


@dataclass(frozen=True)
class Fault:
    """One place that reads badly."""

    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def faults(paths: list[Path]) -> Iterator[Fault]:
    """All faults in these files, in order."""
    for path in paths:
        text = (ROOT / path).read_text()
        yield from phrases(path, text)
        if path.suffix == ".md":
            yield from long_lines(path, text)
        if path.suffix == ".py" and path.parts[0] == "casweights":
            yield from docstrings(path, text)


def tracked(under: list[str]) -> list[Path]:
    """The files of the repository with prose in them, below these paths."""
    command = ["git", "ls-files", "--", *under]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = [Path(name) for name in names.splitlines()]
    return [path for path in found if path.suffix in PROSE and path not in EXAMPLES]


def phrases(path: Path, text: str) -> Iterator[Fault]:
    """Banned phrases, also where a line break divides them."""
    for pattern, instead in BANNED.items():
        for match in re.finditer(pattern.replace(" ", r"\s+(?:#\s+)?"), text):
            found = " ".join(match[0].split())
            yield Fault(path, text.count("\n", 0, match.start()) + 1, f'"{found}": {instead}')


def long_lines(path: Path, text: str) -> Iterator[Fault]:
    """Lines of prose beyond the limit; code blocks, tables, and links may be longer."""
    code = False
    for number, line in enumerate(text.splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        free = code or line.lstrip().startswith(("|", "```")) or " " not in line.strip()
        if len(line) > MAX_LINE and not free:
            yield Fault(path, number, f"{len(line)} characters, at most {MAX_LINE}")


def docstrings(path: Path, text: str) -> Iterator[Fault]:
    """Public modules, classes and functions without a docstring, or with a mere pointer."""
    for node, name in public(ast.parse(text), path.stem):
        doc = ast.get_docstring(node)
        line = getattr(node, "lineno", 1)
        if doc is None:
            yield Fault(path, line, f"{name} has no docstring")
        elif SEE.fullmatch(doc):
            yield Fault(path, line, f"the docstring of {name} only points elsewhere")


def public(
    node: ast.Module | ast.ClassDef, name: str
) -> Iterator[tuple[ast.Module | ast.ClassDef | ast.FunctionDef, str]]:
    """A node and the public definitions in it that need a docstring of their own."""
    yield node, name
    explained = inherited(node) if isinstance(node, ast.ClassDef) else set()
    for part in node.body:
        if isinstance(part, ast.ClassDef) and not part.name.startswith("_"):
            yield from public(part, f"{name}.{part.name}")
        if isinstance(part, ast.FunctionDef) and not part.name.startswith(("_", "test_")):
            if part.name in explained and ast.get_docstring(part) is None:
                continue  # an override that does what its base says
            if not marked(part, "overload", "setter"):
                yield part, f"{name}.{part.name}"


def marked(function: ast.FunctionDef, *decorators: str) -> bool:
    """Whether a function has one of these decorators."""
    return any(ast.unparse(m).split(".")[-1] in decorators for m in function.decorator_list)


@functools.cache
def classes() -> dict[str, list[ast.ClassDef]]:
    """All classes of the package, by name."""
    found: dict[str, list[ast.ClassDef]] = {}
    for path in (ROOT / "casweights").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def inherited(node: ast.ClassDef) -> set[str]:
    """The methods that the bases of a class, explain, if the base is ours."""
    names: set[str] = set()
    for base in node.bases:
        for ours in classes().get(ast.unparse(base).split("[")[0].split(".")[-1], []):
            names |= inherited(ours) | {
                part.name
                for part in ours.body
                if isinstance(part, ast.FunctionDef) and ast.get_docstring(part)
            }
    return names


def comment_share(text: str) -> tuple[int, int]:
    """Lines with a comment, and lines of code."""
    comments, code = set(), set()
    empty = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if not token.string.startswith(("# noqa", "# type:")):
                comments.add(token.start[0])
        elif token.type not in empty | {tokenize.STRING}:
            code.add(token.start[0])
    return len(comments), len(code)


def main(under: list[str]) -> int:
    """Print the faults; return 1 if any."""
    paths = tracked(under)
    found = list(faults(paths))
    for fault in found:
        print(fault)
    package = [path for path in paths if path.suffix == ".py" and path.parts[0] == "casweights"]
    pairs = [comment_share((ROOT / path).read_text()) for path in package]
    comments, code = (sum(column) for column in zip(*pairs, strict=True)) if pairs else (0, 0)
    print(f"{len(found)} faults; {comments} comments on {code} lines of code ", end="")
    print(f"({comments / max(code, 1):.1%})")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["."]))
