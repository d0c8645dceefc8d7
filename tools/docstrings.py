"""Definitions of the package and their docstrings, from its source alone: nothing is imported."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Examples?):$", re.MULTILINE)
PLUMBING = {"Handle", "Closing"}  # bases whose attributes are for subclasses
MAX_SIGNATURE = 96  # characters of a line
ENTRY = re.compile(r"^(\*{0,2}[\w.]+): ?", re.MULTILINE)


@dataclass(frozen=True)
class Doc:
    """A docstring of Google's style.

    Attributes:
        text: The paragraphs before the first section.
        entries: The entries of `Args`, `Attributes` and `Raises`, by section.
        bodies: The text of all other sections.
    """

    text: str
    entries: dict[str, dict[str, str]] = field(default_factory=dict)
    bodies: dict[str, str] = field(default_factory=dict)


def parse(docstring: str | None) -> Doc:
    """Take a docstring apart."""
    text, *rest = SECTION.split(inspect.cleandoc(docstring or ""))
    doc = Doc(text.strip())
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        body = inspect.cleandoc(body)
        if title in ("Args", "Attributes", "Raises"):
            _, *parts = ENTRY.split(body)
            doc.entries[title] = dict(
                zip(parts[::2], (" ".join(part.split()) for part in parts[1::2]), strict=True)
            )
        else:
            doc.bodies[title.rstrip("s") if title.startswith("Example") else title] = body
    return doc


@functools.cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module of the package."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    """The class or function of this name."""
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
    raise LookupError(f"{module} defines no {name}")


def public_names(module: str) -> list[str]:
    """The names in `__all__`; without it, all public classes and functions that it defines."""
    listed = exported(module)
    if listed is not None:
        return listed
    return [
        node.name
        for node in tree(module).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]


def exported(module: str) -> list[str] | None:
    """The names in `__all__`; None if the module has none."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def home(module: str, name: str) -> str:
    """The module that defines a name, which others may only import."""
    try:
        definition(module, name)
    except LookupError:
        where = imported_from(module, name)
        if where is None:
            raise
        return where
    return module


def imported_from(module: str, name: str) -> str | None:
    """The module that a name is imported from; None if it is not imported."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and any(
            name == (alias.asname or alias.name) for alias in node.names
        ):
            return node.module
    return None


def bases(module: str, node: ast.ClassDef) -> list[ast.ClassDef]:
    """The bases of a class that its own module or its imports define, without the generic ones."""
    found = []
    for base in node.bases:
        name = ast.unparse(base)
        try:
            where = home(module, name)
            ours = definition(where, name) if where.startswith("casweights") else None
            if isinstance(ours, ast.ClassDef):
                found.append(ours)
        except LookupError:
            continue
    return found


def attributes(module: str, node: ast.ClassDef) -> dict[str, tuple[str, str]]:
    """Type and meaning of each documented attribute and property, also of base classes."""
    found: dict[str, tuple[str, str]] = {}
    for base in bases(module, node):
        if base.name not in PLUMBING:
            found |= attributes(home(module, base.name), base)
    types = {
        part.target.id: ast.unparse(part.annotation)
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }
    for name, meaning in parse(ast.get_docstring(node)).entries.get("Attributes", {}).items():
        found[name] = (types.get(name, ""), meaning)
    for part in public_functions(node):
        if is_property(part):
            returns = "" if part.returns is None else ast.unparse(part.returns)
            found[part.name] = (returns, parse(ast.get_docstring(part)).text)
    return found


def public_functions(node: ast.ClassDef) -> list[ast.FunctionDef]:
    """The public methods and properties that a class defines."""
    return [
        part
        for part in node.body
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")
    ]


def is_property(function: ast.FunctionDef) -> bool:
    """Whether a method is read like an attribute."""
    names = {ast.unparse(decorator) for decorator in function.decorator_list}
    return bool(names & {"property", "cached_property", "functools.cached_property"})


def signature(name: str, function: ast.FunctionDef, module: str, *, method: bool) -> str:
    """How to call a function, in one line or one line for each argument."""
    arguments = function.args
    own = [*arguments.posonlyargs, *arguments.args]
    kinds = {ast.unparse(decorator) for decorator in function.decorator_list}
    skipped = int(method and "staticmethod" not in kinds)
    values: list[ast.expr | None] = [None] * (len(own) - len(arguments.defaults))
    values += arguments.defaults
    parts = [
        argument(each, value, module)
        for each, value in zip(own[skipped:], values[skipped:], strict=True)
    ]
    if arguments.vararg is not None:
        parts.append(f"*{argument(arguments.vararg, None, module)}")
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [
        argument(each, value, module)
        for each, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg is not None:
        parts.append(f"**{argument(arguments.kwarg, None, module)}")
    constructor = function.name == "__init__" or function.returns is None
    returns = "" if constructor else f" -> {ast.unparse(function.returns)}"  # type: ignore[arg-type]
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) <= MAX_SIGNATURE:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){returns}"])


def argument(each: ast.arg, default: ast.expr | None, module: str) -> str:
    """An argument with its annotation and default; constants are shown by their values."""
    annotation = "" if each.annotation is None else f": {ast.unparse(each.annotation)}"
    if default is None:
        return each.arg + annotation
    equals = " = " if annotation else "="
    return f"{each.arg}{annotation}{equals}{ast.unparse(constant(module, default))}"


def constant(module: str, value: ast.expr) -> ast.expr:
    """The expression that a name of a module stands for, if that is a constant of the package."""
    if not isinstance(value, ast.Name):
        return value
    for node in tree(module).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(ast.unparse(target) == value.id for target in targets):
            assert isinstance(node, ast.Assign)
            return node.value
    where = imported_from(module, value.id)
    return value if where is None else constant(where, value)


def alias(module: str, name: str) -> str:
    """The type that a short name of a module stands for."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.unparse(node.value)
    raise LookupError(f"{module} defines no {name}")
