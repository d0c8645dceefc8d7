"""The communication of trainer and replicas in the demo's third part.

Trainer and replicas exchange data only through a bucket: weights by a store in one of its folders,
rollouts as small files in another. Journals serve only to print events.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from huggingface_hub import BucketFile, HfApi
from safetensors import safe_open
from safetensors.torch import save

from casweights import SnapshotId
from tools.models import rl_task

if TYPE_CHECKING:
    from collections.abc import Mapping

BUCKET = "demo/run"
STORE = f"hf://buckets/{BUCKET}/weights"
ROLLOUTS = "rollouts"
PUBLISHED = torch.bfloat16


class Journal:
    """The events of a process, one line of JSON each. May be used from several threads at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str, **values: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")


class Delivery(NamedTuple):
    """Rollouts, and the ID of the version that generated them."""

    rollouts: rl_task.Rollouts
    snapshot: SnapshotId


class RolloutFolder:
    """The folder of the bucket in which rollouts wait for the trainer."""

    def __init__(self) -> None:
        self._api = HfApi()

    def put(self, name: str, delivery: Delivery) -> None:
        """Upload rollouts under a name that must be new."""
        rollouts = delivery.rollouts
        tensors = {"sequences": rollouts.sequences.byte(), "log_probs": rollouts.log_probs}
        data = save(tensors, {"snapshot": str(delivery.snapshot)})
        self._api.batch_bucket_files(BUCKET, add=[(data, f"{ROLLOUTS}/{name}.safetensors")])

    def take(self) -> list[Delivery]:
        """Download all rollouts, and delete them from the bucket."""
        tree = self._api.list_bucket_tree(BUCKET, ROLLOUTS, recursive=True)
        files = [item for item in tree if isinstance(item, BucketFile)]
        if not files:
            return []
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, str(n)) for n in range(len(files))]
            self._api.download_bucket_files(BUCKET, list(zip(files, paths, strict=True)))
            deliveries = [_read(path) for path in paths]
        self._api.batch_bucket_files(BUCKET, delete=[file.path for file in files])
        return deliveries


def _read(path: Path) -> Delivery:
    with safe_open(path, "pt") as file:
        sequences, log_probs = file.get_tensor("sequences"), file.get_tensor("log_probs")
        snapshot = SnapshotId.from_hex(file.metadata()["snapshot"])
    return Delivery(rl_task.Rollouts(sequences.long(), log_probs), snapshot)


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of the names of tensors and their bytes in the published dtype."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        hasher.update(name.encode())
        hasher.update(tensor.detach().to(PUBLISHED).flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()
