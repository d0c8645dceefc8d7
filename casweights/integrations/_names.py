"""Names in checkpoints that a wrapped model wrote and transformers loads."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from transformers.modeling_utils import load_state_dict
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from casweights.content.plain_names import common_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def key_mapping(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that make transformers drop a prefix of wrappers from names.

    Args:
        folder: The folder that contains the weights.
        options: The arguments of ``from_pretrained``.

    Returns:
        ``key_mapping`` if all names in the checkpoint share a prefix of wrappers; otherwise no
        arguments.
    """
    path = _checkpoint(folder, options)
    prefix = common_prefix(_names(path, options)) if path else ""
    return {"key_mapping": {f"^{re.escape(prefix)}": ""}} if prefix else {}


def _checkpoint(folder: Path, options: Mapping[str, Any]) -> Path | None:
    """Return the file that transformers would find first: weights, or the index of their shards."""
    safetensors = options.get("use_safetensors")
    found = [] if safetensors is False else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    found += [] if safetensors else [WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
    variant = options.get("variant")
    infix = f".{variant}" if variant else ""
    paths = [folder / re.sub(r"(\.[a-z]+)$", rf"{infix}\1", name) for name in found]
    return next((path for path in paths if path.is_file()), None)


def _names(path: Path, options: Mapping[str, Any]) -> Iterable[str]:
    """Return the names of the tensors, read with the functions that transformers itself uses."""
    if path.suffix == ".json":
        weight_map: dict[str, str] = json.loads(path.read_bytes())["weight_map"]
        return weight_map
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    return load_state_dict(
        path, map_location="meta", weights_only=options.get("weights_only", True)
    )
