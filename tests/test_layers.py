"""The rooms of the package, and the rooms that each may import: imports go down only.

A room is a folder of the package, or a group of modules in its root: the values and the repository.
All imports count, also those inside functions and those for annotations only.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import casweights

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# The rooms that each room may import, from the lowest room up.
VALUES = {
    "errors",
    "ids",
    "config",
    "events",
    "results",
}  # modules of the root, one room
STORE = {"values", "system", "format", "stores", "database"}
VERBS = STORE | {"content", "operations", "repository"}
ALLOWED: dict[str, set[str]] = {
    "values": set(),
    "system": {"values"},
    "kernels": {"system"},
    "format": {"values", "system", "kernels"},
    "stores": {"values", "system"},
    "database": STORE,
    "content": STORE,
    "operations": STORE | {"content"},
    "repository": VERBS,
    "sync": VERBS | {"kernels"},
    "": VERBS | {"sync"},  # the public names
    "instrumentation": {"values"},
    "cli": VERBS | {"", "instrumentation"},
    "integrations": VERBS | {"sync"},
    "testing": {"values", "system", "format", "stores"},
}
MEMBERS = {
    "values": VALUES,
    "repository": {"repository", "opening"},
    "cli": {"cli", "__main__"},
}

# The modules that one room may import from another; all modules, if the pair is not listed.
SEEN: dict[tuple[str, str], set[str]] = {
    ("database", "stores"): {"stores.base", "stores.optional", "stores.wrapper"},
    ("content", "stores"): {"stores.base"},
    ("operations", "stores"): {"stores.base", "stores.optional"},
    ("sync", "stores"): {"stores.base"},
}
# The modules that several operations share. Operations import no others of their room.
SHARED = {
    "operations.archive_check",
    "operations.archiving",
    "operations.base_chunks",
    "operations.candidates",
    "operations.bases",
    "operations.base_search",
    "operations.bring_back",
    "operations.burdens",
    "operations.conditions",
    "operations.collections",
    "operations.cut_columns",
    "operations.diff_made",
    "operations.differences",
    "operations.donors",
    "operations.encode",
    "operations.encoded_files",
    "operations.expire",
    "operations.fold",
    "operations.forest",
    "operations.lineage",
    "operations.live_frames",
    "operations.frame_check",
    "operations.looking",
    "operations.marking",
    "operations.moving",
    "operations.origins",
    "operations.pack_copy",
    "operations.pairing",
    "operations.marks",
    "operations.merging",
    "operations.ordering",
    "operations.owners",
    "operations.prediction",
    "operations.rebuild",
    "operations.rehearsal",
    "operations.relatives",
    "operations.reliance",
    "operations.renumbered",
    "operations.replaced",
    "operations.replacements",
    "operations.room",
    "operations.replacing",
    "operations.recorded_losses",
    "operations.retention",
    "operations.rows",
    "operations.sampling",
    "operations.signing",
    "operations.rewriting",
    "operations.shortening",
    "operations.shortcuts",
    "operations.derivations",
    "operations.merges",
    "operations.slices",
    "operations.survey",
    "operations.transfer",
    "operations.tree",
    "operations.trials",
}

# Foreign modules that only some rooms or modules may import; imports for annotations are free.
FOREIGN: dict[str, set[str]] = {
    "torch": {
        "content.outlines",
        "content.plain_names",
        "content.states",
        "content.torch_types",
        "sync",
        "testing",
        "integrations",
    },
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
        annotation: Whether only the type checker runs it.
    """

    source: str
    target: str
    annotation: bool


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


@cache
def imports() -> Sequence[Import]:
    return [*_imports()]


def _imports() -> Iterator[Import]:
    for path, tree in trees().items():
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


def inner(module: str) -> str:
    """Return the name of a module within the package."""
    return module.removeprefix("casweights").removeprefix(".")


def room(module: str) -> str:
    """Return the room of a module; the package itself is the room with the empty name."""
    top = inner(module).partition(".")[0]
    return next((name for name, members in MEMBERS.items() if top in members), top)


def own_imports() -> Iterator[Import]:
    for edge in imports():
        if edge.target.partition(".")[0] == "casweights":
            yield edge


def test_rooms_import_only_lower_rooms() -> None:
    wrong = {
        f"{edge.source} imports {edge.target}"
        for edge in own_imports()
        if room(edge.source) != room(edge.target)
        and room(edge.target) not in ALLOWED[room(edge.source)]
    }
    assert not wrong


def test_rooms_import_only_the_public_modules_of_others() -> None:
    wrong = {
        f"{edge.source} imports {edge.target}"
        for edge in own_imports()
        if (doors := SEEN.get((room(edge.source), room(edge.target)))) is not None
        and inner(edge.target) not in doors
    }
    assert not wrong


def test_operations_do_not_import_each_other() -> None:
    wrong = {
        f"{edge.source} imports {edge.target}"
        for edge in own_imports()
        if room(edge.source) == room(edge.target) == "operations"
        and inner(edge.target) not in SHARED
    }
    assert not wrong


def test_imports_form_no_cycle() -> None:
    """Imports for annotations count, too."""
    targets: dict[str, set[str]] = {}
    for edge in own_imports():
        if edge.source != edge.target:
            targets.setdefault(edge.source, set()).add(edge.target)
    sorter = graphlib.TopologicalSorter(targets)
    sorter.prepare()  # raises CycleError with the circle


def test_the_table_names_rooms_that_exist() -> None:
    for name in ALLOWED.keys() - MEMBERS.keys() | set().union(*MEMBERS.values()):
        assert is_module(f"casweights.{name}".rstrip(".")), name
    for module in SHARED.union(*SEEN.values()):
        assert is_module(f"casweights.{module}"), module
    assert set().union(*ALLOWED.values()) <= ALLOWED.keys()


def test_every_module_has_a_room() -> None:
    assert {room(module_name(path)) for path in ROOT.rglob("*.py")} <= ALLOWED.keys()


def test_foreign_modules_are_imported_only_where_allowed() -> None:
    wrong = {
        f"{edge.source} imports {edge.target}"
        for edge in imports()
        if not edge.annotation
        and (top := edge.target.partition(".")[0]) in FOREIGN
        and not any(f"{inner(edge.source)}.".startswith(f"{home}.") for home in FOREIGN[top])
    }
    assert not wrong


def test_only_the_command_line_reads_the_environment() -> None:
    readers = {
        room(module_name(path))
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb")
    }
    assert readers <= {"cli"}


@pytest.mark.parametrize(
    "module",
    [
        "casweights",
        "casweights.repository",
        "casweights.operations.commit",
        "casweights.operations.checkout",
    ],
)
def test_importing_casweights_loads_no_heavy_modules(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(run.stdout.split())
    assert not loaded & {"torch", "safetensors", "huggingface_hub", "tqdm", "click", "pytest"}


def test_importing_the_package_loads_no_other_module_of_it() -> None:
    code = "import sys, casweights; print(*(m for m in sys.modules if 'casweights' in m))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert [name for name in run.stdout.split() if not name.startswith("__editable")] == [
        "casweights"
    ]
