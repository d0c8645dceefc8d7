"""Write `docs/reference.md` from the signatures and docstrings of the public API.

Run `python -m tools.reference` to write the page, and with `--check` to compare it. Examples are in
`tools/reference_examples.py`, where tests run them; docstrings may have further ones.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from casweights import errors
from casweights.cli._errors import status_of
from tools import docstrings
from tools.docstrings import ROOT, Doc, parse
from tools.reference_examples import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights.errors import CasweightsError, ErrorCode

PAGE = ROOT / "docs" / "reference.md"
WIDTH = 98
INTRO = """
# Reference

The public API: what `casweights`, its results and its documented submodules offer. A test compares
this page with the code; `python -m tools.reference` writes it, so change the docstrings instead.
Everything that is not on this page may change without notice. [guide.md](guide.md) shows the same
calls at work, [concepts.md](concepts.md) explains the words.
"""
FIRST = ["open", "Repository", "Snapshot", "SnapshotId", "LazyTensor", "Publisher", "Subscriber"]
MADE_BY_CALLS = {"Repository", "LazyTensor", "SnapshotId"}  # users do not construct these
BRIEF = {"StoreTests", "ObjectStore"}  # have a page of their own, and many methods

# Modules by their heading, with a sentence before their names.
MODULES = {
    "Results": (["casweights.results"], "Calls return these values, and events carry them."),
    "Further types": (
        [
            "casweights.events:Stage",
            "casweights.operations.graph:GraphVersion",
            "casweights.sync.patches:Patch",
        ],
        "Calls and events use these types, too.",
    ),
    "Instrumentation": (
        [
            "casweights.instrumentation.tee:Tee",
            "casweights.instrumentation.logs:Logs",
            "casweights.instrumentation.prometheus:Metrics",
            "casweights.instrumentation.progress:ProgressBars",
        ],
        "Listeners for events; [metrics.md](metrics.md) describes all events and metrics.",
    ),
    "Integrations": (
        [
            "casweights.integrations.dcp",
            "casweights.integrations.transformers",
            "casweights.integrations.peft",
            "casweights.integrations.trl",
            "casweights.integrations.vllm",
        ],
        (
            "Adapters for hosts. Each has a page with examples: "
            "[torch.distributed.checkpoint](integrations/dcp.md), "
            "[transformers and PEFT](integrations/transformers.md), [TRL](integrations/trl.md), "
            "[vLLM](integrations/vllm.md). Methods that only the host calls are left out."
        ),
    ),
    "Testing": (
        ["casweights.testing", "casweights.testing.hub"],
        "For tests of drivers and programs; [stores.md](stores.md) shows `StoreTests` at work.",
    ),
}
# Short names of types in signatures, by the module that defines them.
ALIASES = {
    "Ref": "casweights.repository",
    "StoreLike": "casweights.opening",
    "Compression": "casweights.config",
    "ExtraState": "casweights.content.trees",
    "Compare": "casweights.sync.publisher",
    "Policy": "casweights.sync.publisher",
    "Verify": "casweights.sync.subscriber",
    "KeyMap": "casweights.sync.target",
}
# Classes whose methods the host calls.
CALLED_BY_HOST = {
    "CasweightsReader",
    "CasweightsWriter",
    "CasweightsCallback",
    "CasweightsWeightTransfer",
    "CasweightsWeightTransferEngine",
    "CasweightsModelLoader",
    "Tee",
    "Logs",
    "Metrics",
    "ProgressBars",
}
CODES = {
    "bad-argument": "an argument has a value that is not allowed",
    "bad-name": "a branch or tag cannot have this name",
    "bad-path": "a path cannot be stored, or cannot be written to",
    "bad-safetensors": "a safetensors file is malformed",
    "bad-state": "a state dict cannot be stored",
    "source-unreadable": "a file to commit cannot be read",
    "source-changed": "a file changed while it was read",
    "store-not-found": "there is no store at this place",
    "object-not-found": "an object of the store is gone",
    "ref-not-found": "no branch or tag has this name",
    "snapshot-not-found": "no version has this ID",
    "file-not-found": "the version has no such file",
    "tensor-not-found": "the version has no such tensor",
    "ambiguous": "a name or prefix fits more than one thing",
    "already-exists": "a branch or tag exists already",
    "ref-moved": "another writer moved the branch first",
    "corrupt-object": "stored bytes are damaged",
    "missing-chunk": "bytes of a version are in no pack of the store",
    "newer-format": "a newer casweights wrote this",
    "unsupported": "valid, but not supported",
    "no-space": "the disk is full",
    "no-permission": "permission denied",
    "io-failed": "the storage failed",
    "unreachable": "the store did not answer in time",
    "target-mismatch": "a version does not fit the live tensors",
    "stale": "live tensors do not hold the expected version",
    "torn": "live tensors hold parts of two versions",
    "unsaved-files": "files that no version has would be lost",
    "bad-index": "an index of shards is wrong",
    "wrong-process": "a handle is used in another process than its own",
    "foreign-refs": "the repository for the refs belongs to another store",
    "closed": "a handle is used after it was closed",
    "lfs-pointer": "a file is a pointer of git-lfs, without the content",
    "stored-twice": "a folder of the Hub's cache would store its files twice",
    "offline": "the Hub is needed, and `HF_HUB_OFFLINE` forbids to call it",
    "expired": "a policy did not keep the version; the error names the nearest that stayed",
    "clocks-differ": "the clocks of this machine and of the store differ by more than an hour",
    "busy": "another client does the same in this store",
}


class Name(NamedTuple):
    """A public name, the module that defines it, and the name there."""

    shown: str
    module: str
    defined: str

    @property
    def label(self) -> str:
        """The name without its modules."""
        return self.shown.rpartition(".")[2]


def page() -> str:
    """The whole page."""
    top = names_of_package()
    parts = [INTRO.strip(), "## casweights", *(entry(name) for name in top)]
    for heading, (modules, intro) in MODULES.items():
        parts += [f"## {heading}", wrap(intro)]
        parts += [alias_table()] if heading == "Further types" else []
        parts += [entry(name) for module in modules for name in names_of(module)]
    parts += ["## Errors", *error_tables()]
    return "\n\n".join(part for part in parts if part) + "\n"


def names_of_package() -> list[Name]:
    """The names of `casweights`, without errors."""
    homes = re.findall(
        r'^    "(\w+)": "([\w.]+)",$', source("casweights/__init__.py"), re.MULTILINE
    )
    where = {name: f"casweights.{module}" for name, module in homes}
    kinds = {*dir(errors), "__version__"}
    listed = [name for name in docstrings.exported("casweights") or [] if name not in kinds]
    listed.sort(key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    defined = {"open": "open_repository"}
    return [Name(f"casweights.{name}", where[name], defined.get(name, name)) for name in listed]


def names_of(entry: str) -> list[Name]:
    """The public names of a module, or the one name after a colon."""
    module, _, only = entry.partition(":")
    return [
        Name(f"{module}.{name}", docstrings.home(module, name), name)
        for name in ([only] if only else docstrings.public_names(module))
    ]


def source(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def entry(name: Name) -> str:
    """The part of the page about a name."""
    node = docstrings.definition(name.module, name.defined)
    parts = [f"### {name.label}"]
    if isinstance(node, ast.FunctionDef):
        parts.append(code(docstrings.signature(name.shown, node, name.module, method=False)))
        parts += described(parse(ast.get_docstring(node)))
    else:
        parts += class_parts(name, node)
    if name.label in EXAMPLES:
        parts.append(example(name.label))
    return "\n\n".join(part for part in parts if part)


def class_parts(name: Name, node: ast.ClassDef) -> Iterator[str]:
    """Constructor, description, attributes and methods of a class."""
    doc = parse(ast.get_docstring(node))
    functions = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
    start = functions.get("__init__")
    if start is not None and name.label not in MADE_BY_CALLS:
        yield code(docstrings.signature(name.shown, start, name.module, method=True))
    else:
        yield f"`{name.shown}`"
    yield prose(doc.text)
    if start is not None and name.label not in MADE_BY_CALLS:
        yield bullets("Arguments", doc.entries.get("Args", {}))
    yield attribute_table(docstrings.attributes(name.module, node), defaults(node))
    yield members(node)
    if name.label not in CALLED_BY_HOST | BRIEF:
        for function in methods(name, node):
            if not docstrings.is_property(function) and ast.get_docstring(function):
                title = f"{name.label}.{function.name}"
                yield f"#### {title}"
                yield code(docstrings.signature(title, function, name.module, method=True))
                yield from described(parse(ast.get_docstring(function)))
    if name.label not in EXAMPLES and "Example" in doc.bodies:
        yield "Example:\n\n" + code(
            without_prompts(textwrap.dedent(doc.bodies["Example"])), "python"
        )


def methods(name: Name, node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """The public methods of a class, and those of the class that it shares its page with."""
    yield from docstrings.public_functions(node)
    for base in docstrings.bases(name.module, node):
        if base.name == "WholeStore":
            yield from docstrings.public_functions(base)


def described(doc: Doc) -> Iterator[str]:
    """The description of a function."""
    yield prose(doc.text)
    yield bullets("Arguments", doc.entries.get("Args", {}))
    for title in ("Returns", "Yields"):
        if title in doc.bodies:
            yield wrap(f"{title}: {plain(doc.bodies[title])}")
    yield bullets("Raises", doc.entries.get("Raises", {}))


def members(node: ast.ClassDef) -> str:
    """The values of an enum."""
    if not any(ast.unparse(base).endswith("Enum") for base in node.bases):
        return ""
    values = [
        f"`{ast.literal_eval(part.value)}`"
        for part in node.body
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant)
    ]
    return wrap(f"Values: {', '.join(values)}.")


def defaults(node: ast.ClassDef) -> dict[str, str]:
    """The defaults of a dataclass."""
    return {
        part.target.id: ast.unparse(part.value)
        for part in node.body
        if isinstance(part, ast.AnnAssign)
        and isinstance(part.target, ast.Name)
        and part.value is not None
        and not ast.unparse(part.value).startswith("field(")
    }


def attribute_table(rows: dict[str, tuple[str, str]], values: dict[str, str]) -> str:
    """A table of attributes, with their units and defaults."""
    if not rows:
        return ""
    lines = ["| attribute | type | unit | meaning |", "| --- | --- | --- | --- |"]
    for name, (kind, meaning) in rows.items():
        kind = f"`{kind}`".replace("|", "\\|") if kind else ""
        default = f" Default: `{values[name]}`." if name in values else ""
        text = plain(meaning).replace("|", "\\|")
        lines.append(f"| `{name}` | {kind} | {unit(name, kind, meaning)} | {text}{default} |")
    return "\n".join(lines)


def unit(name: str, kind: str, meaning: str) -> str:
    """The unit of a number."""
    number = re.search(r"\b(int|float)\b", kind)
    if "seconds" in name or (number and meaning.startswith("Seconds")):
        return "seconds"
    if number and (re.search(r"bytes|size", name) or re.match(r"Bytes\b", meaning)):
        return "bytes"
    return "number" if number else ""


def alias_table() -> str:
    """What the short names of types in signatures stand for."""
    lines = ["| in signatures | stands for |", "| --- | --- |"]
    for name, module in ALIASES.items():
        meaning = docstrings.alias(module, name).replace("|", "\\|")
        lines.append(f"| `{name}` | `{meaning}` |")
    return "\n".join(lines)


def bullets(title: str, entries: dict[str, str]) -> str:
    if not entries:
        return ""
    return f"{title}:\n\n" + "\n".join(
        textwrap.fill(
            f"* `{name}`: {plain(text)}",
            WIDTH,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, text in entries.items()
    )


def prose(text: str) -> str:
    """Paragraphs of a docstring; what is indented after a double colon is code."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith("    "):
            parts.append(code(textwrap.dedent(paragraph)))
        elif paragraph.strip() == "::":
            continue
        elif re.match(r"[*-] ", paragraph):
            parts.append(plain(paragraph, join=False))
        elif paragraph:
            parts.append(wrap(re.sub(r"::$", ":", plain(paragraph))))
    return "\n\n".join(parts)


def plain(text: str, *, join: bool = True) -> str:
    """Text of a docstring as Markdown."""
    text = text.replace("``", "`").replace("docs/", "")
    return " ".join(text.split()) if join else text


def wrap(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def code(text: str, language: str = "") -> str:
    return f"```{language or 'text'}\n{text.rstrip()}\n```"


def without_prompts(text: str) -> str:
    """An example of a docstring as a program; what it prints becomes comments."""
    if ">>>" not in text:
        return text
    prompts = (">>>", "...")
    return "\n".join(
        line[4:] if line.startswith(prompts) else f"# {line}" if line else ""
        for line in text.splitlines()
    )


def example(name: str) -> str:
    """The example of a class, or a link to the class that it is shown with."""
    function = EXAMPLES[name]
    first = next(other for other, shared in EXAMPLES.items() if shared is function)
    if first != name:
        return f"Example: see [{first}](#{first.lower()})."
    return "Example:\n\n" + code(body(function), "python")


def body(function: Callable[..., None]) -> str:
    """The statements of a function, as they are written, after its decorators and signature."""
    text = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    return textwrap.dedent("\n".join(text.splitlines()[node.body[0].lineno - 1 :]))


def error_tables() -> Iterator[str]:
    """The classes of errors, and the codes with the classes and exit statuses that they have."""
    yield wrap(
        "Each error has a class, which says what a handler would do, and a `code`, which says the "
        "cause and is stable across versions. The last column is the exit status of a command that "
        "ends with the error; [scripting.md](scripting.md#exit-statuses) explains these."
    )
    raised = codes_by_class()
    lines = ["| code | meaning | class | exit status |", "| --- | --- | --- | --- |"]
    for error_code in errors.ErrorCode:
        classes = raised.get(error_code, [])
        statuses = {int(status_of(kind(error_code, ""))) for kind in classes}
        shown = ", ".join(f"[{kind.__name__}](#{kind.__name__.lower()})" for kind in classes)
        shown = shown or "a warning, see [Reporter.warned](#reporterwarned)"
        listed = ", ".join(map(str, sorted(statuses)))
        lines.append(f"| `{error_code}` | {CODES[error_code]} | {shown} | {listed} |")
    yield "\n".join(lines)
    exported = docstrings.exported("casweights") or []
    for name in sorted(
        (name for name in exported if name in dir(errors)),
        key=lambda name: (name not in ("CasweightsError", "ErrorCode"), name),
    ):
        yield entry(Name(f"casweights.{name}", "casweights.errors", name))


def codes_by_class() -> dict[ErrorCode, list[type[CasweightsError]]]:
    """The classes of errors with which each code is raised in the package."""
    found: dict[ErrorCode, set[str]] = {}
    for path in sorted((ROOT / "casweights").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
                for argument in node.args[:1]:
                    for part in ast.walk(argument):
                        if (
                            isinstance(part, ast.Attribute)
                            and ast.unparse(part.value) == "ErrorCode"
                        ):
                            code = errors.ErrorCode[part.attr]
                            found.setdefault(code, set()).add(ast.unparse(node.func))
    return {
        code: [getattr(errors, name) for name in sorted(classes - {"CasweightsError"})]
        for code, classes in found.items()
    }


def main(arguments: list[str]) -> int:
    """Write the page, or compare it; returns 1 if it is out of date."""
    text = page()
    if arguments == ["--check"]:
        if PAGE.read_text(encoding="utf-8") != text:
            print("docs/reference.md is out of date: run python -m tools.reference")
            return 1
    else:
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
