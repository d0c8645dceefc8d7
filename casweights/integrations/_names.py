"""Names in checkpoints that a wrapped model wrote."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from casweights.sync.wrappers import common_prefix

if TYPE_CHECKING:
    from casweights.format.manifest import Snapshot


def key_mapping(version: Snapshot, folder: str) -> dict[str, Any]:
    """The argument that has transformers drop what wrappers put in front of all names, if any."""
    start = f"{folder}/" if folder else ""
    files = (file for file in version.files if file.path.startswith(start))
    names = [info.name for file in files if file.header for info in file.header.tensors]
    prefix = common_prefix(names)
    return {"key_mapping": {f"^{re.escape(prefix)}": ""}} if prefix else {}
