"""Loading: each rank reads the parts that its shards need, from a version with any sharding."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.planner import LoadItemType
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from casweights.config import DEFAULT_BRANCH
from casweights.content.torch_types import tensor_bytes
from casweights.errors import (
    ConflictError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
)
from casweights.format.zstd import most_content
from casweights.integrations._opening import LazyRepository
from casweights.integrations.dcp.boxes import Box, read_boxes
from casweights.integrations.dcp.layout import LAYOUT_FILE, Layout
from casweights.integrations.dcp.objects import check_loaded

if TYPE_CHECKING:
    import torch
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

    from casweights.format.manifest import Snapshot
    from casweights.repository import Ref, Repository


class CasweightsReader(StorageReader):
    """Loads a version that a `CasweightsWriter` saved, on any number of ranks.

    Every rank reads and verifies only the chunks that contain parts of its shards. If `ref` is a
    branch, all ranks must find it at the same version; use an ID to be certain.

    Example:
        >>> state = {"model": model.state_dict()}
        >>> dcp.load(state, storage_reader=CasweightsReader("hf://buckets/me/weights", "run-7"))

    Args:
        store: An open store, or the path or URL of one. Every other rank opens it by its URL.
        ref: The version. ``dcp.load(..., checkpoint_id=...)`` overrides it.
        weights_only: Whether to refuse objects that ``torch.load(..., weights_only=True)`` refuses,
            except for NumPy scalars and arrays and `io.BytesIO`. Torch's planner saves objects that
            are no tensors as pickles: load others only if you trust their writer.
    """

    def __init__(
        self,
        store: Repository | str | os.PathLike[str],
        ref: Ref = DEFAULT_BRANCH,
        *,
        weights_only: bool = True,
    ) -> None:
        self._store = LazyRepository(store)
        self._ref = ref
        self._weights_only = weights_only
        self._layout: Layout | None = None

    # Torch calls, in this order: `reset`, `read_metadata`, `set_up_storage_reader`,
    # `prepare_local_plan`, `prepare_global_plan` (on the first rank), and `read_data`.

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a load; `checkpoint_id` is the version, as any ref; None for the present one."""
        self._layout = None
        if checkpoint_id is not None:
            self._ref = os.fspath(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return whether this may be a ref. Reading shows whether its version exists."""
        return bool(os.fspath(checkpoint_id))

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        """Return torch's description of the version; `storage_meta.checkpoint_id` is its ID.

        Raises:
            NotFoundError: The version does not exist.
            InvalidInputError: The version was not saved by a `CasweightsWriter`.
            IntegrityError: The store is damaged, or the description of the shards is malformed.
        """
        # A parameter called `kwargs` would make torch call this once more on each rank, for
        # metadata of that rank alone.
        repository = self._store.open()
        snapshot = repository.database.snapshots.load(
            repository.resolve(self._ref), with_locations=True
        )
        self._layout = Layout(snapshot, _read_layout(repository, snapshot))
        return self._layout.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: `read_metadata` has opened the version."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan of a rank, unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Add the version's ID to each plan; `read_data` compares it with that of its own rank."""
        version = self._known_layout().snapshot.id
        return [replace(plan, storage_data=version) for plan in plans]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the items of a rank's plan.

        Raises:
            ConflictError: This rank found the ref at another version than the first one did.
            UnsupportedError: Torch loads one of the objects only if its writer is trusted.
            IntegrityError: The store is damaged. Items that were read before are loaded.
        """
        layout = self._known_layout()
        if plan.storage_data != layout.snapshot.id:
            raise ConflictError(
                ErrorCode.REF_MOVED,
                f"{self._ref!r} moved while the ranks resolved it: it is {layout.snapshot.id} "
                f"here, and {plan.storage_data} on the first rank. Load again, or name the "
                "version by its ID",
            )
        boxes = [
            Box(
                layout.find(item.storage_index),
                _slices(item) if item.type == LoadItemType.TENSOR else (),
                partial(self._deliver, planner, item),
            )
            for item in plan.items
        ]
        read_boxes(self._store.open().database, boxes)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _deliver(self, planner: LoadPlanner, item: ReadItem, part: torch.Tensor) -> None:
        """Pass an item that was read to the planner."""
        if item.type == LoadItemType.BYTE_IO:
            planner.load_bytes(item, self._checked(item, bytes(tensor_bytes(part))))
            return
        target = planner.resolve_tensor(item).detach()
        if target.shape != part.shape:
            raise InvalidInputError(
                ErrorCode.TARGET_MISMATCH,
                f"{item.dest_index.fqn!r} has the shape {list(target.shape)}, but the plan reads "
                f"{list(part.shape)}",
            )
        target.copy_(part)
        planner.commit_tensor(item, target)

    def _checked(self, item: ReadItem, blob: bytes) -> io.BytesIO:
        """Return a pickle as a file, after checking that it is safe unless trust was declared."""
        if self._weights_only:
            check_loaded(item.storage_index.fqn, io.BytesIO(blob))
        return io.BytesIO(blob)

    def _known_layout(self) -> Layout:
        """Return the layout that `read_metadata` has read."""
        if self._layout is None:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, "read_metadata must be called first: load with dcp.load"
            )
        return self._layout


def _slices(item: ReadItem) -> tuple[slice, ...]:
    """Return the part of the stored tensor that an item reads."""
    ends = zip(item.storage_offsets, item.lengths, strict=True)
    return tuple(slice(start, start + length) for start, length in ends)


def _read_layout(repository: Repository, snapshot: Snapshot) -> bytes:
    """Read the layout file of a version."""
    for file in snapshot.files:
        if file.path == LAYOUT_FILE:
            # A layout contains little more for each tensor than the headers. The limit protects
            # against chunks that decompress to a huge size.
            headers = sum(len(other.raw_header or b"") for other in snapshot.files)
            if file.size > most_content(headers):
                raise IntegrityError(
                    ErrorCode.CORRUPT_OBJECT,
                    f"{LAYOUT_FILE} of snapshot {snapshot.id} claims {file.size} bytes",
                )
            return b"".join(repository.read(snapshot, LAYOUT_FILE))
    raise InvalidInputError(
        ErrorCode.BAD_ARGUMENT,
        f"version {snapshot.id} was not saved by torch.distributed.checkpoint: it has no "
        f"{LAYOUT_FILE}. Load it with Repository.load instead",
    )
