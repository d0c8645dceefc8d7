"""Plain names of tensors: without what `torch.compile` and data parallelism add to them.

This is the one rule for everything that brings weights from one program to another. A part of a
name that a wrapper adds is dropped where a module is such a wrapper, by its type. The prefix of
wrappers is dropped where every name has it. ``commit`` and ``load`` rename nothing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from casweights.errors import ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The attribute in which a wrapper keeps its module, which becomes a part of names in state dicts.
_COMPILED, _PARALLEL = "_orig_mod", "module"
_PREFIXES = (f"{_COMPILED}.", f"{_PARALLEL}.")


def common_prefix(names: Iterable[str]) -> str:
    """The prefix of wrappers that every name has; empty if there is none."""
    names, prefix = list(names), ""
    while names:
        more = next((p for p in _PREFIXES if names[0].startswith(p, len(prefix))), None)
        if more is None or not all(name.startswith(prefix + more) for name in names):
            break
        prefix += more
    return prefix


def plain_names(names: Iterable[str], source: object = None) -> dict[str, str]:
    """The plain name for each name.

    Args:
        names: The names of all tensors of a state dict, a version or a file.
        source: The object whose names these are. If it is a module, its type and those of its
            submodules say which parts of the names are a wrapper's.

    Raises:
        InvalidInputError: Two names become one.
    """
    plain = {name: name for name in names}
    if isinstance(source, torch.nn.Module):
        unwrap = unwrapper(source)
        plain = {name: unwrap(name) for name in plain}
    prefix = common_prefix(plain.values())
    if prefix:
        plain = {name: short.removeprefix(prefix) for name, short in plain.items()}
    if len(set(plain.values())) < len(plain):
        raise _clash(plain)
    return plain


def unwrapper(module: torch.nn.Module) -> Callable[[str], str]:
    """A function that drops the parts that wrappers in a module add to a name or path in it."""
    wrappers = {path: kind for path, sub in module.named_modules() if (kind := _kind(sub))}

    def unwrap(name: str) -> str:
        parts = name.split(".")
        kept = [part for n, part in enumerate(parts) if wrappers.get(".".join(parts[:n])) != part]
        return ".".join(kept)

    return unwrap if wrappers else str


def innermost(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside all wrappers, or the module itself."""
    while kind := _kind(module):
        module = getattr(module, kind)
    return module


def _clash(plain: dict[str, str]) -> InvalidInputError:
    """The error for the first two names that have one plain name."""
    owners: dict[str, str] = {}
    first, second = next(
        (owners[short], name)
        for name, short in plain.items()
        if owners.setdefault(short, name) != name
    )
    return InvalidInputError(
        ErrorCode.BAD_STATE,
        f"the names {first!r} and {second!r} are one without the prefixes of wrappers, "
        f"{plain[first]!r}: rename one of them",
    )


def _kind(module: torch.nn.Module) -> str | None:
    """The attribute in which a wrapper keeps its module; None for other modules."""
    if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return _PARALLEL
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # slow to import for nothing
    if compiler is not None and isinstance(module, compiler.OptimizedModule):
        return _COMPILED
    return None
