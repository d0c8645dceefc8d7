"""Saving: each rank stores its own shards, and the first rank joins them as one version."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from casweights.config import DEFAULT_BRANCH, Compression
from casweights.content.arguments import check_compression, to_utc
from casweights.errors import (
    ConflictError,
    ErrorCode,
    InvalidInputError,
    UnsupportedError,
)
from casweights.format.names import check_ref_name
from casweights.integrations._opening import LazyRepository
from casweights.integrations.dcp.layout import LAYOUT_FILE, ShardRef, encode_layout
from casweights.integrations.dcp.shards import BytesFile, ShardFile
from casweights.operations.commit import Description, commit_encoded
from casweights.operations.encode import encode_files
from casweights.operations.encoded_files import EncodedFiles, join
from casweights.operations.reliance import standing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.database.moves import Head
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.repository import Ref, Repository


class _Stored(NamedTuple):
    """A rank's report of a stored item, which torch sends to the first rank.

    Attributes:
        shard: The tensor that holds the item.
        part: Everything that the rank stored. All items of a rank share this object, so it is
            pickled once.
    """

    shard: ShardRef
    part: EncodedFiles


class _Storage(NamedTuple):
    """The data that torch's own writers need in a plan.

    `CasweightsWriter` does not need it, but a planner may keep finished plans and pass them to
    another kind of writer.

    Attributes:
        prefix: The prefix of the names of a rank's files in torch's own writers.
    """

    prefix: str


class _Save(NamedTuple):
    """A save in progress.

    Attributes:
        head: The head of the branch at the start of the save; None if the branch did not exist.
        before: The parent of the new version; None if it has none.
        tag: The tag to create for the version; None for none.
        rank: The number of this rank.
    """

    head: Head | None = None
    before: SnapshotId | None = None
    tag: str | None = None
    rank: int = 0


class CasweightsWriter(StorageWriter):
    """Saves the shards of all ranks as one version, which becomes the head of a branch.

    Every rank encodes its own shards, as differences from the version before, and makes them
    durable. Only lists of chunk IDs are gathered. The first rank then writes the version and moves
    the branch. If a rank fails or dies before that, the branch stays where it was.

    A branch belongs to one writer. The writer continues from the head at its first save, and a move
    by another writer is an error at every save after it. A pickled copy counts as another writer.

    ``dcp.save`` returns metadata whose ``storage_meta.checkpoint_id`` is the version's ID, on all
    ranks. Use one writer for several saves if possible: it remembers what it has stored. If other
    code writes to a tensor during a save, the version mixes its old and new values.

    Args:
        store: An open store, or the path or URL of one. Every process opens its own; a pickled
            writer does so by the URL.
        branch: The branch to move; created if it does not exist.
        parent: The version at which a new branch begins; by default the new version has no parent.
        message: Why this version exists.
        author: The author of the versions.
        metadata: JSON-like values to store with the version.
        compression: How chunks without a base are stored, see `Repository.commit`.
        overwrite: Whether the branch may exist already at the first save of this writer. Existing
            versions are kept in any case. With ``False``, the first save fails if the branch
            exists, instead of continuing from versions of another writer; later saves continue
            from this writer's own versions.

    Attributes:
        snapshot: The newest version; None before the first one, and on all ranks but the first.
        message: The argument of that name; may be changed between saves.
        metadata: The argument of that name; may be changed between saves.

    Example:
        >>> writer = CasweightsWriter("hf://buckets/me/weights", "run-7", message="step 100")
        >>> saved = dcp.save({"model": model.state_dict()}, storage_writer=writer)
        >>> saved.storage_meta.checkpoint_id
    """

    def __init__(
        self,
        store: Repository | str | os.PathLike[str],
        branch: str = DEFAULT_BRANCH,
        *,
        parent: Ref | None = None,
        message: str = "",
        author: str = "",
        metadata: Mapping[str, Any] | None = None,
        compression: Compression = "auto",
        overwrite: bool = True,
    ) -> None:
        self._store = LazyRepository(store)
        self._branch = check_ref_name(branch)
        self._parent = parent
        self._author = author
        self._compression = check_compression(compression)
        self._overwrite = overwrite
        self._tag: str | None = None
        self._save = _Save()
        self._order: tuple[str, ...] = ()  # names in the order of the saved state
        self._begun = False  # whether this writer has found its place on the branch
        self._line: SnapshotId | None = None  # the head that this writer found first, or made last
        self._doubtful: Description | None = None  # of a version that may have become the head
        self.message = message
        self.metadata = dict(metadata or {})
        self.snapshot: Snapshot | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the writer's place on the branch, for pickling.

        The original may move the branch without the copy's knowledge.
        """
        return self.__dict__ | {"_begun": False, "_line": None, "_doubtful": None}

    # Torch calls, in this order: `reset` (for saves with an ID), `set_up_storage_writer`,
    # `prepare_local_plan`, `prepare_global_plan` (on the first rank), `write_data`, and `finish`
    # (on the first rank).

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a save; `checkpoint_id` is an additional tag for the version.

        Raises:
            InvalidInputError: `checkpoint_id` is not a valid name of a tag.
        """
        self._tag = None if checkpoint_id is None else check_ref_name(os.fspath(checkpoint_id))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return whether this is a valid name of a tag."""
        try:
            check_ref_name(os.fspath(checkpoint_id))
        except InvalidInputError:
            return False
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Read the head of the branch, and check that this writer may move it.

        Raises:
            NotFoundError: The store, or the version `parent` for a new branch, does not exist.
            ConflictError: A tag of the name `checkpoint_id` exists, or another writer has moved
                the branch since this writer's last save, or the branch exists and `overwrite` is
                false.
            UnsupportedError: The ranks are configured to save without coordination.
        """
        if not kwargs.get("use_collectives", True):
            raise UnsupportedError(
                ErrorCode.UNSUPPORTED,
                "use_collectives must be True, got False: every rank would save a version of its "
                "own. Leave it out",
            )
        tag, self._tag = self._tag, None  # torch calls `reset` only for saves with an ID
        repository = self._store.open()
        refs = repository.database.refs
        # The tag may be that of an earlier attempt whose result was in doubt.
        is_taken = tag is not None and is_coordinator and refs.tag(tag) is not None
        if tag is not None and is_taken and not refs.is_doubted_tag(tag):
            raise ConflictError(
                ErrorCode.ALREADY_EXISTS,
                f"tag {tag!r} already exists, and tags do not move: choose another checkpoint_id, "
                "or delete the tag first",
            )
        head = refs.head(self._branch, for_update=is_coordinator)
        before = head.snapshot if head else None
        if is_coordinator:
            self._check_line(repository.database, before)
        self._order = ()
        if head is None and self._parent is not None:
            before = repository.resolve(self._parent)
        self._save = _Save(head, before, tag, kwargs.get("rank", 0))

    def _check_line(self, db: Database, head: SnapshotId | None) -> None:
        """Check that no other writer has moved the branch since this writer's first save.

        Raises:
            ConflictError: Another writer moved the branch.
        """
        if not self._begun:
            self._check_new(head)
            self._begun, self._line = True, head
        doubtful, line = self._doubtful, self._line
        if doubtful is not None and head is not None and head != line:
            found = db.snapshots.load(head)
            if (found.parents, found.time) == (doubtful.parents, doubtful.time):
                self._line = line = head  # the save that failed has moved the branch
        if head != line:
            raise ConflictError(
                ErrorCode.REF_MOVED,
                f"branch {self._branch!r} was moved by another writer, from "
                f"{line or 'no version'} to {head or 'no version'}: use a separate branch for each "
                "run, or make another CasweightsWriter to continue from there",
            )
        self._doubtful = None

    def _check_new(self, head: SnapshotId | None) -> None:
        """Check that the branch does not exist yet, unless `overwrite` allows it.

        Raises:
            ConflictError: The branch exists.
        """
        if head is not None and not self._overwrite:
            raise ConflictError(
                ErrorCode.ALREADY_EXISTS,
                f"branch {self._branch!r} already exists, at {head}, and overwrite=False: choose "
                "another branch, or leave out overwrite to continue from there",
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan of a rank, unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Record the order of the names, rank by rank."""
        mappings = [plan.planner_data for plan in plans if isinstance(plan.planner_data, dict)]
        self._order = tuple(dict.fromkeys(chain.from_iterable(mappings)))
        return [
            replace(plan, storage_data=_Storage(f"__{rank}_")) for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Make the shards of a rank durable.

        Raises:
            UnsupportedError: One of the tensors cannot be stored.
            StoreError: The store could not be written.
        """
        results = []
        if plan.items:
            path = f"shards/rank-{self._save.rank:04}.safetensors"
            file = ShardFile(path, plan.items, planner)
            part = self._encode(file)
            results = [
                WriteResult(item.index, file.nbytes[name], _Stored(ShardRef(path, name), part))
                for name, item in file.items.items()
            ]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _encode(self, file: SourceFile) -> EncodedFiles:
        """Encode a file and make its chunks durable."""
        db, before = self._store.open().database, self._save.before
        base = None if before is None else db.snapshots.load(before, with_locations=True)
        encoded = encode_files(db, [file], parent=base, compression=self._compression)
        return encoded.durable(db)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the version and move the branch.

        Raises:
            UnsupportedError: The planner added data that cannot be stored.
            ConflictError: Another writer moved the branch during the save. The version is stored;
                its ID is the error's `snapshot`.
            StoreError: The store could not be written.
        """
        shards = {result.index: result.storage_data.shard for rank in results for result in rank}
        parts = [rank[0].storage_data.part for rank in results if rank]
        layout = encode_layout(metadata, shards, self._order)
        parts.append(self._encode(BytesFile(LAYOUT_FILE, layout)))
        head, before, tag, _ = self._save
        description = Description(
            parents=(before,) if before else (),
            time=to_utc(None),
            author=self._author,
            message=self.message,
            metadata=self.metadata,
        )
        db = self._store.open().database
        # Until the commit returns, a failure leaves it unknown whether the branch moved.
        self._doubtful = description
        self.snapshot = commit_encoded(db, join(parts), description, self._branch, head)
        self._line, self._doubtful = self.snapshot.id, None
        if tag is not None:
            db.refs.create_tag(tag, self.snapshot.id, ready=standing(db, self.snapshot.id))
        metadata.storage_data = shards
        metadata.storage_meta = StorageMeta(checkpoint_id=str(self.snapshot.id))
