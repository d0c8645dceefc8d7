"""Names of tensors in the files of PEFT adapters, with and without prefixes of wrappers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load, save_file

from casweights.content.plain_names import innermost, plain_names, unwrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


_START = "base_model.model."  # prefix of PEFT's own wrapper, in every name that PEFT writes


def make_plain(folder: Path, model: PeftModel) -> None:
    """Drop the prefixes of wrappers in a model from the names in its adapter's file.

    Args:
        folder: The folder of the adapter; its file is rewritten if a name changes.
        model: The model that wrote the adapter.
    """
    unwrap = unwrapper(model)
    _rename(folder, lambda names: {name: unwrap(name) for name in names})


def make_fit(folder: Path, model: torch.nn.Module) -> None:
    """Rename the tensors in an adapter's file to the names that a model has for them.

    Args:
        folder: The folder of the adapter; its file is rewritten if a name changes.
        model: The base, or a `PeftModel` on it; either may contain wrapped modules.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    unwrap = unwrapper(base)
    # A wrapper and its content have the same plain path; `named_modules` has the content last.
    paths = {unwrap(path): path for path, _ in base.named_modules()}

    def fit(names: Iterable[str]) -> dict[str, str]:
        names = list(names)
        start = _START if all(name.startswith(_START) for name in names) else ""
        plain = plain_names(name.removeprefix(start) for name in names)
        return {start + name: start + _placed(short, paths) for name, short in plain.items()}

    _rename(folder, fit)


def _placed(name: str, paths: dict[str, str]) -> str:
    """Return a tensor's name with the path of its module in the model.

    Args:
        name: The plain name.
        paths: The path in the model for each plain path of a module.
    """
    parts = name.split(".")
    for n in range(len(parts) - 1, -1, -1):
        path = paths.get(".".join(parts[:n]))
        if path is not None:
            return ".".join([*([path] if path else []), *parts[n:]])
    return name


def _rename(folder: Path, renamed: Callable[[Iterable[str]], dict[str, str]]) -> None:
    """Rewrite an adapter's file with other names, if there is such a file and any name changes."""
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        return
    tensors = load(file.read_bytes())
    names = renamed(tensors)
    if any(name != new for name, new in names.items()):
        save_file({names[name]: tensor for name, tensor in tensors.items()}, file, {"format": "pt"})


def as_peft(model: object) -> PeftModel | None:
    """Return the `PeftModel` that this object is or wraps; None if it is neither."""
    inside = innermost(model) if isinstance(model, torch.nn.Module) else None
    return inside if isinstance(inside, PeftModel) else None
