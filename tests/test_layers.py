"""The rooms of the package and who may know whom: imports go down only.

An import counts wherever it stands, inside a function or for annotations alone too. A room is a
module, or a package whose modules are one family.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import casweights

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUES = {"errors", "ids", "config", "events", "buffers"}
PLUMBING = {"buffers", "files", "folders", "parallel", "process", "staging"}
OPEN_STORE = {
    "paths",
    "reflog",
    "cache",
    "chunks",
    "index",
    "findings",
    "snapshots",
    "refs",
    "database",
}
BELOW_VERBS = (
    VALUES
    | PLUMBING
    | OPEN_STORE
    | {"format", "stores.base", "sources", "selection", "reading", "weights"}
)
VERBS = {
    "commit",
    "checkout",
    "loading",
    "diff",
    "repack",
    "statistics",
    "transfer",
    "push",
    "verification",
}

ALLOWED: dict[str, set[str]] = {
    # L0: values
    "errors": {"ids"},  # an error names the snapshot it is about
    "ids": {"errors"},
    "config": {"errors"},
    "events": {"ids"},
    "version": set(),
    "_kernels": set(),
    # L1: plumbing; the format and the stores, which do not know each other
    "buffers": set(),
    "files": {"errors"},
    "parallel": {"process"},
    "process": {"errors"},
    "folders": {"errors", "files"},
    "staging": {"errors", "files", "folders"},
    "format": {"errors", "ids", "config", "buffers", "_kernels"},
    "stores.base": {"errors", "buffers"},
    "stores.wrapper": {"stores.base", "buffers"},
    "stores.memory": {"stores.base", "buffers"},
    "stores.naming": {"files", "staging"},
    "stores.root": {"errors", "files", "stores.naming"},
    "stores.local": {
        *("buffers", "errors", "stores.base", "stores.naming", "stores.root", "files", "staging")
    },
    "stores.ahead": {
        *("buffers", "config", "parallel", "process", "stores.base", "stores.wrapper")
    },
    "stores.retry": {"buffers", "errors", "stores.base", "stores.wrapper"},
    "stores.diskcache": {"stores.base", "files", "staging"},
    "stores.cached": {"stores.base", "stores.diskcache", "stores.wrapper"},
    "stores.hub": {"version", "buffers", "errors", "files", "stores.base", "stores.wrapper"},
    "stores.url": {
        *("errors", "config", "files", "stores.base", "stores.memory", "stores.local"),
        *("stores.hub", "stores.retry", "stores.cached"),
    },
    # L2: what goes in and out, and the parts of an open store; of stores only what all can do
    "sources": VALUES | PLUMBING | {"format"},
    "trees": VALUES | {"format"},
    "tensors": VALUES | PLUMBING | {"format", "sources", "trees"},
    "worktree": VALUES | PLUMBING | {"format", "sources"},
    "selection": VALUES | {"format", "sources"},
    "paths": {"ids", "format"},
    "findings": VALUES | {"format", "stores.base"},
    "index": VALUES | {"format", "stores.base", "findings", "parallel", "paths"},
    "cache": {"ids", "buffers"},
    "chunks": VALUES | {"format", "stores.base", "index", "paths"},
    "snapshots": VALUES | {"format", "stores.base", "index", "paths"},
    "reflog": VALUES | {"format", "stores.base"},
    "refs": VALUES | {"format", "parallel", "stores.base", "reflog"},
    "database": VALUES
    | OPEN_STORE
    | {"format", "stores.base", "stores.ahead", "parallel", "process"},
    "displaced": VALUES | {"database", "refs"},
    "reading": {"buffers", "database", "format"},
    "weights": VALUES | {"buffers", "database", "format", "reading", "selection", "sources"},
    "revisions": VALUES | {"database", "refs", "snapshots"},
    "packing": VALUES | {"database", "format", "parallel"},
    "chains": VALUES | {"format", "buffers", "cache", "chunks", "index", "packing", "paths"},
    "relatives": {"errors", "ids", "format", "buffers", "chains", "chunks"},
    "contents": VALUES | PLUMBING | {"format", "database", "sources", "worktree"},
    "saved": BELOW_VERBS | {"contents", "worktree"},
    # L3: one family of verbs each, which do not know each other; the repository has them all
    "advice": VALUES | {"sources", "weights"},
    "commit": BELOW_VERBS | {"advice", "packing", "chains", "relatives"},
    "checkout": BELOW_VERBS | {"contents", "saved", "worktree"},
    "loading": BELOW_VERBS | {"tensors", "trees"},
    "diff": BELOW_VERBS,
    "repack": BELOW_VERBS | {"packing", "chains", "relatives"},
    "statistics": BELOW_VERBS,
    "verification": BELOW_VERBS,
    "transfer": BELOW_VERBS | {"packing"},
    "push": BELOW_VERBS | {"transfer", "revisions"},
    "parts": BELOW_VERBS | {"commit"},
    "arguments": VALUES | {"files", "sources", "tensors", "trees"},
    "repository": {
        *BELOW_VERBS,
        *VERBS,
        *("arguments", "displaced", "revisions", "trees"),
    },
    "opening": VALUES | {"database", "parallel", "repository", "stores.base", "stores.url"},
    # L4: live tensors
    "sync": {
        *BELOW_VERBS,
        *("arguments", "chains", "commit", "opening", "repository", "tensors", "trees"),
    },
    "": VALUES | VERBS | {"version", "opening", "repository", "format", "sync"},  # the public names
    # L5: for people, hosts and tests
    "cli": VALUES | VERBS | {"", "opening", "repository", "format", "instrumentation"},
    "__main__": {"cli"},
    "instrumentation": {"events"},
    "integrations": {
        *BELOW_VERBS,
        *VERBS,
        *("arguments", "opening", "parts", "repository", "sync", "tensors"),
    },
    "testing": VALUES | {"format", "stores.base", "stores.wrapper", "stores.memory"},
}

# Modules from elsewhere that only some rooms may import, annotations aside.
FOREIGN: dict[str, set[str]] = {
    "torch": {"tensors", "sync", "testing", "integrations"},
    "huggingface_hub": {"stores.hub"},
    "hf_xet": {"stores.hub"},
    "tqdm": {"instrumentation", "cli"},
    "prometheus_client": {"instrumentation"},
    "transformers": {"integrations"},
    "peft": {"integrations"},
    "trl": {"integrations"},
    "vllm": {"integrations"},
    "click": {"cli"},
    "pytest": {"testing"},
    "hypothesis": {"testing"},
}

ROOT = Path(casweights.__file__).parent


class Import(NamedTuple):
    """An import of `target` by the module `source`.

    Attributes:
        annotation: Whether it is for the type checker alone.
    """

    source: str
    target: str
    annotation: bool


def imports() -> Iterator[Import]:
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        annotations: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                annotations.update(map(id, ast.walk(node)))
            for target in targets(node):
                yield Import(module_name(path), target, id(node) in annotations)


def module_name(path: Path) -> str:
    parts = ["casweights", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name their module in full"
        assert node.module is not None
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if is_module(name) else str(node.module) for name in names]
    return []


def is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    found = path.is_dir() or any(path.with_suffix(end).is_file() for end in (".py", ".pyi"))
    return name.startswith("casweights") and found


def room(module: str) -> str:
    """The longest key of the table that `module` lies in; the package itself is the empty one."""
    inner = module.removeprefix("casweights").removeprefix(".")
    rooms = [key for key in ALLOWED if inner == key or (key and inner.startswith(f"{key}."))]
    return max(rooms, key=len, default=inner)


def test_imports_go_down() -> None:
    wrong = {
        f"{edge.source} imports {edge.target}"
        for edge in imports()
        if edge.target.startswith("casweights")
        and room(edge.source) != room(edge.target)
        and room(edge.target) not in ALLOWED.get(room(edge.source), set())
    }
    assert not wrong


def test_the_table_names_rooms_that_exist() -> None:
    for name in ALLOWED:
        assert is_module(f"casweights.{name}".rstrip(".")), name
    assert set().union(*ALLOWED.values()) <= ALLOWED.keys()


def test_every_module_has_a_room() -> None:
    rooms = {room(module_name(path)) for path in ROOT.rglob("*.py")}
    assert rooms - {"stores"} <= ALLOWED.keys()


def test_heavy_and_human_modules_stay_in_their_rooms() -> None:
    wrong = {
        f"{edge.source} imports {edge.target}"
        for edge in imports()
        if not edge.annotation
        and (top := edge.target.partition(".")[0]) in FOREIGN
        and room(edge.source) not in FOREIGN[top]
    }
    assert not wrong


def test_only_the_command_line_reads_the_environment() -> None:
    readers = {
        room(module_name(path))
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb")
    }
    assert readers <= {"cli"}


@pytest.mark.parametrize(
    "module", ["casweights", "casweights.repository", "casweights.commit", "casweights.checkout"]
)
def test_importing_stays_light(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(run.stdout.split())
    assert not loaded & {"torch", "safetensors", "huggingface_hub", "tqdm", "click", "pytest"}


def test_the_bare_package_loads_nothing_but_itself() -> None:
    code = "import sys, casweights; print(*(m for m in sys.modules if 'casweights' in m))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert [name for name in run.stdout.split() if not name.startswith("__editable")] == [
        "casweights"
    ]
