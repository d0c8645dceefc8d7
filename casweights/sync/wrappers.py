"""Names of tensors without what `torch.compile` and data parallelism put in front of them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from casweights.errors import ErrorCode, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

# What modules that wrap another one call it: these name it in state dicts, others do not.
_COMPILED, _PARALLEL = "_orig_mod", "module"
_PREFIXES = (f"{_COMPILED}.", f"{_PARALLEL}.")


def common_prefix(names: Iterable[str]) -> str:
    """What wrappers put in front of all names; empty if one of the names lacks it."""
    names, prefix = list(names), ""
    while names:
        more = next((p for p in _PREFIXES if names[0].startswith(p, len(prefix))), None)
        if more is None or not all(name.startswith(prefix + more) for name in names):
            break
        prefix += more
    return prefix


def plain_names(source: object, names: Iterable[str]) -> dict[str, str]:
    """The plain name for each name in a module's state dict, or in a state dict.

    What wrappers add is dropped where a module is such a wrapper, or where all names have it.

    Raises:
        InvalidInputError: Two names become one.
    """
    plain = {name: name for name in names}
    if isinstance(source, torch.nn.Module):
        wrappers = {path: kind for path, sub in source.named_modules() if (kind := _kind(sub))}
        if wrappers:
            plain = {name: _unwrapped(name, wrappers) for name in plain}
    prefix = common_prefix(plain.values())
    plain = {name: short.removeprefix(prefix) for name, short in plain.items()}
    owners: dict[str, str] = {}
    for name, short in plain.items():
        if short in owners:
            raise InvalidInputError(
                ErrorCode.BAD_STATE,
                f"the names {owners[short]!r} and {name!r} are one without the prefixes of "
                f"wrappers, {short!r}: rename one of them",
            )
        owners[short] = name
    return plain


def _kind(module: torch.nn.Module) -> str | None:
    """What a wrapper calls the module in it; None for other modules."""
    if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        return _PARALLEL
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # slow to import for nothing
    if compiler is not None and isinstance(module, compiler.OptimizedModule):
        return _COMPILED
    return None


def _unwrapped(name: str, wrappers: dict[str, str]) -> str:
    """A name without those of its parts that a wrapper adds."""
    parts, kept = name.split("."), []
    for n, part in enumerate(parts):
        if wrappers.get(".".join(parts[:n])) != part:
            kept.append(part)
    return ".".join(kept)
