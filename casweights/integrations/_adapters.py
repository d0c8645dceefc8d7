"""Names in the files of PEFT adapters, for models that are wrapped or were."""

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


_START = "base_model.model."  # PEFT's own wrapper, which is in every name that it writes


def make_plain(folder: Path, model: PeftModel) -> None:
    """Drop what wrappers in a model add to the names in its adapter's file."""
    unwrap = unwrapper(model)
    _rename(folder, lambda names: {name: unwrap(name) for name in names})


def make_fit(folder: Path, model: torch.nn.Module) -> None:
    """Give the tensors of an adapter's file the names that they have in a model.

    Args:
        folder: The folder of the adapter.
        model: The base, or a `PeftModel` on it.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    unwrap = unwrapper(base)
    paths = {unwrap(path): path for path, _ in base.named_modules()}  # the innermost path is last

    def fit(names: Iterable[str]) -> dict[str, str]:
        names = list(names)
        start = _START if all(name.startswith(_START) for name in names) else ""
        plain = plain_names(name.removeprefix(start) for name in names)
        return {start + name: start + _placed(short, paths) for name, short in plain.items()}

    _rename(folder, fit)


def _placed(name: str, paths: dict[str, str]) -> str:
    """The name of a tensor, with the path of the module that it is in."""
    parts = name.split(".")
    for n in range(len(parts) - 1, -1, -1):
        path = paths.get(".".join(parts[:n]))
        if path is not None:
            return ".".join([*([path] if path else []), *parts[n:]])
    return name


def _rename(folder: Path, renamed: Callable[[Iterable[str]], dict[str, str]]) -> None:
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        return
    tensors = load(file.read_bytes())
    names = renamed(tensors)
    if any(name != new for name, new in names.items()):
        save_file({names[name]: tensor for name, tensor in tensors.items()}, file, {"format": "pt"})


def as_peft(model: object) -> PeftModel | None:
    """The `PeftModel` that this is, or wraps; None if it is neither."""
    inside = innermost(model) if isinstance(model, torch.nn.Module) else None
    return inside if isinstance(inside, PeftModel) else None
