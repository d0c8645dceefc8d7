"""Saving: each rank stores its own shards, the first one makes them one version."""

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
from casweights.operations.encode import EncodedFiles, encode_files, join

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner

    from casweights.content.files import SourceFile
    from casweights.database import Database
    from casweights.database.refs import Head
    from casweights.format.manifest import Snapshot
    from casweights.ids import SnapshotId
    from casweights.repository import Ref, Repository


class _Stored(NamedTuple):
    """What a rank tells the first one of an item.

    Attributes:
        shard: Where it is stored.
        part: All that the rank stored; the same object for all of its items, so pickled once.
    """

    shard: ShardRef
    part: EncodedFiles


class _Storage(NamedTuple):
    """What this writer adds to a plan, though it needs nothing there.

    A planner may keep finished plans, and give them to another kind of writer.

    Attributes:
        prefix: What torch's own writers begin the names of a rank's files with.
    """

    prefix: str


class _Save(NamedTuple):
    """A save that has begun.

    Attributes:
        head: Where the branch was; None if there was none.
        before: The version before this one.
        tag: The version's tag, if it shall have one.
        rank: The number of this rank.
    """

    head: Head | None = None
    before: SnapshotId | None = None
    tag: str | None = None
    rank: int = 0


class CasweightsWriter(StorageWriter):
    """Saves the shards of all ranks as one version, which becomes the head of a branch.

    Every rank encodes its own shards, as differences from the version before, and makes them
    durable; nothing is gathered but lists of chunk IDs. The first rank then writes the version
    and moves the branch. A rank that fails or dies before leaves the branch as it was.

    A writer has the branch for itself: it goes on from where the branch is at its first save, and
    another writer's move is an error at every save from then on. A writer that was pickled is
    another one.

    ``dcp.save`` returns metadata whose ``storage_meta.checkpoint_id`` is the version's ID, on all
    ranks. A writer may be used for several saves, and does best if it is: it knows then what it
    stored. Tensors that are written to during a save are stored with old and new values mixed.

    Args:
        store: The store, or its path or URL. Every process opens one of its own, by its URL if
            the writer was pickled.
        branch: The branch to move; made if there is none.
        parent: Where a new branch begins; by default it begins with this version.
        message: Why this version is.
        author: Who made it.
        metadata: JSON-like values to keep with it.
        compression: See `Repository.commit`.
        overwrite: Whether the branch may be there already when this writer first saves. Versions
            before are kept either way; without it, the first save fails instead of following
            what somebody else saved, and later saves of this writer go on from its own.

    Attributes:
        snapshot: The newest version; None before the first, and on all ranks but the first.
        message: As above; may be changed while no save is under way.
        metadata: As above; may be changed while no save is under way.

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
        self._order: tuple[str, ...] = ()  # of names in the state that is saved
        self._begun = False
        self._line: SnapshotId | None = None  # the head that this writer found first, or made last
        self._doubtful: Description | None = None  # of a version that may have become the head
        self.message = message
        self.metadata = dict(metadata or {})
        self.snapshot: Snapshot | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but its place on the branch: what the original does next is not known here."""
        return self.__dict__ | {"_begun": False, "_line": None, "_doubtful": None}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin a save; `checkpoint_id` is a tag for the version, beside its place on the branch.

        Raises:
            InvalidInputError: No tag can be called so.
        """
        self._tag = None if checkpoint_id is None else check_ref_name(os.fspath(checkpoint_id))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether a tag can be called so."""
        try:
            check_ref_name(os.fspath(checkpoint_id))
        except InvalidInputError:
            return False
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Look where the branch is.

        Raises:
            NotFoundError: There is no store, or no version `parent` for a new branch.
            ConflictError: There is a tag already that is called like the `checkpoint_id`, or
                another writer has moved the branch since this one's last save, or it is there
                already and `overwrite` is false.
            UnsupportedError: The ranks are to save without coordination.
        """
        if not kwargs.get("use_collectives", True):
            raise UnsupportedError(
                ErrorCode.UNSUPPORTED,
                "with use_collectives=False every rank would save a version of its own: leave it "
                "out",
            )
        tag, self._tag = self._tag, None  # torch resets only for those saves that have an ID
        repository = self._store.open()
        refs = repository.database.refs
        is_taken = tag is not None and is_coordinator and refs.tag(tag) is not None
        if tag is not None and is_taken and not refs.is_doubted_tag(tag):
            raise ConflictError(
                ErrorCode.ALREADY_EXISTS,
                f"tag {tag!r} is there already, and tags do not move: choose another "
                "checkpoint_id, or delete the tag first",
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
        """Refuse a head that another writer made since this one's first save."""
        if not self._begun:
            self._check_new(head)
            self._begun, self._line = True, head
        doubtful, line = self._doubtful, self._line
        if doubtful is not None and head is not None and head != line:
            there = db.snapshots.load(head)
            if (there.parents, there.time) == (doubtful.parents, doubtful.time):
                self._line = line = head  # the save that failed has moved the branch
        if head != line:
            raise ConflictError(
                ErrorCode.REF_MOVED,
                f"branch {self._branch!r} was moved by another writer, from {line or 'nowhere'} to "
                f"{head or 'nowhere'}: give every run a branch of its own, or make another "
                "CasweightsWriter to go on from there",
            )
        self._doubtful = None

    def _check_new(self, head: SnapshotId | None) -> None:
        if head is not None and not self._overwrite:
            raise ConflictError(
                ErrorCode.ALREADY_EXISTS,
                f"branch {self._branch!r} is there already, at {head}, and overwrite=False: choose "
                "another branch, or leave out overwrite to go on from there",
            )

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Note the order of the names, rank by rank."""
        mappings = [plan.planner_data for plan in plans if isinstance(plan.planner_data, dict)]
        self._order = tuple(dict.fromkeys(chain.from_iterable(mappings)))
        return [
            replace(plan, storage_data=_Storage(f"__{rank}_")) for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Make the shards of a rank durable.

        Raises:
            UnsupportedError: There is a tensor that cannot be stored.
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
        db, before = self._store.open().database, self._save.before
        base = None if before is None else db.snapshots.load(before, with_locations=True)
        encoded = encode_files(db, [file], base=base, compression=self._compression)
        return encoded.durable(db)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the version and move the branch.

        Raises:
            UnsupportedError: The planner added data that cannot be stored.
            ConflictError: Another writer moved the branch meanwhile. The version is stored; its
                ID is the error's `snapshot`.
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
        self._doubtful = description
        self.snapshot = commit_encoded(db, join(parts), description, self._branch, head)
        self._line, self._doubtful = self.snapshot.id, None
        if tag is not None:
            db.refs.create_tag(tag, self.snapshot.id)
        metadata.storage_data = shards
        metadata.storage_meta = StorageMeta(checkpoint_id=str(self.snapshot.id))
