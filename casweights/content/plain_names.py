"""Plain names of tensors: names without the parts that `torch.compile` and DDP add.

Live sync and the integrations all use this rule. If the names come from a module, the parts that
its wrappers add are dropped; wrappers are recognised by their type. Otherwise a wrapper's prefix is
dropped only if every name has it. ``commit`` and ``load`` do not rename tensors.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from casweights.errors import ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The attributes in which wrappers keep their module. State dicts show them as a part of names.
_COMPILED, _PARALLEL = "_orig_mod", "module"
_PREFIXES = (f"{_COMPILED}.", f"{_PARALLEL}.")


def common_prefix(names: Iterable[str]) -> str:
    """Return the longest prefix of wrappers that all names share, or an empty string."""
    names, prefix = list(names), ""
    while names:
        more = next((p for p in _PREFIXES if names[0].startswith(p, len(prefix))), None)
        if more is None or not all(name.startswith(prefix + more) for name in names):
            break
        prefix += more
    return prefix


def plain_names(names: Iterable[str], source: object = None) -> dict[str, str]:
    """Map each name to its plain name.

    Args:
        names: The names of all tensors of a state dict, a version or a file.
        source: The object that the names come from. If it is a module, the types of it and its
            submodules decide which parts of the names were added by wrappers.

    Raises:
        InvalidInputError: Two names have the same plain name.
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
    """Return a function that drops from a name the parts that the module's wrappers add."""
    wrappers = {path: kind for path, sub in module.named_modules() if (kind := _kind(sub))}

    def unwrap(name: str) -> str:
        parts = name.split(".")
        kept = [part for n, part in enumerate(parts) if wrappers.get(".".join(parts[:n])) != part]
        return ".".join(kept)

    return unwrap if wrappers else str


def innermost(module: torch.nn.Module) -> torch.nn.Module:
    """Return the module inside all wrappers; a module that is no wrapper is returned itself."""
    while kind := _kind(module):
        module = getattr(module, kind)
    return module


def _clash(plain: dict[str, str]) -> InvalidInputError:
    """Return the error for the first two names that have the same plain name."""
    owners: dict[str, str] = {}
    first, second = next(
        (owners[short], name)
        for name, short in plain.items()
        if owners.setdefault(short, name) != name
    )
    return InvalidInputError(
        ErrorCode.BAD_STATE,
        f"the names {first!r} and {second!r} both become {plain[first]!r} without the prefixes of "
        "wrappers: rename one of them",
    )


def _kind(module: torch.nn.Module) -> str | None:
    """Return the attribute in which a wrapper keeps its module; None for other modules."""
    if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return _PARALLEL
    # Importing the compiler is slow, and a compiled module only exists if it is imported already.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is not None and isinstance(module, compiler.OptimizedModule):
        return _COMPILED
    return None
