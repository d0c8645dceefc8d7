"""Loading: each rank reads what its shards overlap with, however the version was sharded."""

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

    Every rank reads only the chunks that its shards lie in, and checks them. If `ref` is a branch,
    all ranks must find it at the same version; an ID is certain.

    Args:
        store: The store, or its path or URL; every rank opens one of its own.
        ref: The version. ``dcp.load(..., checkpoint_id=...)`` names another one.
        weights_only: Refuse objects that ``torch.load(..., weights_only=True)`` refuses, except for
            NumPy scalars and arrays and `io.BytesIO`. Torch's planner saves what is no tensor as
            pickles, and to load those means to trust who wrote them.
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

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Load this version next: a branch, tag, snapshot ID or any other ref."""
        self._layout = None
        if checkpoint_id is not None:
            self._ref = os.fspath(checkpoint_id)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it may be a ref; that it leads somewhere turns out when it is read."""
        return bool(os.fspath(checkpoint_id))

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        """What the version holds; `storage_meta.checkpoint_id` is its ID.

        Raises:
            NotFoundError: No such version.
            InvalidInputError: It was not saved by a `CasweightsWriter`.
            IntegrityError: The store is damaged, or the description of the shards malformed.
        """
        # Not called `kwargs`: torch would take it for metadata of each rank's own, and ask twice.
        repository = self._store.open()
        snapshot = repository.database.snapshots.load(
            repository.resolve(self._ref), with_locations=True
        )
        self._layout = Layout(snapshot, _read_layout(repository, snapshot))
        return self._layout.metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """See `StorageReader`."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Tell all ranks which version it is."""
        version = self._known_layout().snapshot.id
        return [replace(plan, storage_data=version) for plan in plans]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the items of a rank's plan.

        Raises:
            ConflictError: This rank found the ref at another version than the first one did.
            UnsupportedError: An object is none that torch loads without trust.
            IntegrityError: The store is damaged; what was loaded before is loaded.
        """
        layout = self._known_layout()
        if plan.storage_data != layout.snapshot.id:
            raise ConflictError(
                ErrorCode.REF_MOVED,
                f"{self._ref!r} moved while the ranks looked it up: it is {layout.snapshot.id} "
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
        if item.type == LoadItemType.BYTE_IO:
            planner.load_bytes(item, self._checked(item, bytes(tensor_bytes(part))))
            return
        target = planner.resolve_tensor(item).detach()
        if target.shape != part.shape:
            raise InvalidInputError(
                ErrorCode.TARGET_MISMATCH,
                f"{item.dest_index.fqn!r} has room for {list(target.shape)}, and "
                f"{list(part.shape)} was planned",
            )
        target.copy_(part)
        planner.commit_tensor(item, target)

    def _checked(self, item: ReadItem, blob: bytes) -> io.BytesIO:
        if self._weights_only:
            check_loaded(item.storage_index.fqn, io.BytesIO(blob))
        return io.BytesIO(blob)

    def _known_layout(self) -> Layout:
        if self._layout is None:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, "read_metadata comes first: load with dcp.load"
            )
        return self._layout


def _slices(item: ReadItem) -> tuple[slice, ...]:
    ends = zip(item.storage_offsets, item.lengths, strict=True)
    return tuple(slice(start, start + length) for start, length in ends)


def _read_layout(repository: Repository, snapshot: Snapshot) -> bytes:
    for file in snapshot.files:
        if file.path == LAYOUT_FILE:
            # It says of each tensor little more than the headers do, and chunks may be bombs.
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
