"""The repository: every verb of the library, each a short delegation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casweights.config import (
    DEFAULT_BRANCH,
    DEFAULT_EXCLUDE,
    Compression,
    StoreConfig,
)
from casweights.content.arguments import (
    check_compression,
    to_list,
    to_sources,
    to_utc,
)
from casweights.errors import (
    ConflictError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
)
from casweights.ids import SnapshotId
from casweights.system.closing import Closing
from casweights.system.files import to_path
from casweights.system.handles import Handle

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from casweights.content.trees import ExtraState
    from casweights.database import Database
    from casweights.format.manifest import Snapshot
    from casweights.operations.load import LazyTensor
    from casweights.results import (
        Diff,
        RepackStats,
        StoreInfo,
        StoreStats,
        TransferStats,
        Verification,
    )

    Ref = str | SnapshotId | Snapshot


class Repository(Handle, Closing):
    """An open store of model versions; made by `casweights.open`.

    A *ref* names a version: a branch, a tag (``heads/x`` and ``tags/x`` where a name is both), a
    snapshot ID or a unique prefix of at least 4 digits, each optionally followed by ``~N`` for
    the Nth first parent, or a `Snapshot` itself.

    Use it as a context manager or `close` it to end its threads. Methods may be called from
    several threads; each call runs on its own. In other processes, also forked ones, open another.
    """

    usable_anywhere = frozenset({"url"})

    def __init__(self, database: Database) -> None:
        self._db = self._below = database

    def __repr__(self) -> str:
        return f"Repository({self.url!r})"

    def _how_to_reopen(self) -> str:
        return self._db._how_to_reopen()

    @property
    def database(self) -> Database:
        """The parts it is made of, for who builds on them."""
        return self._db

    @property
    def url(self) -> str:
        """How to open this store again."""
        return self._db.store.url

    @property
    def config(self) -> StoreConfig:
        """Its digest and chunk size."""
        return self._db.config

    def commit(
        self,
        source: str | os.PathLike[str] | Mapping[Any, Any],
        *,
        branch: str = DEFAULT_BRANCH,
        parent: Ref | None = None,
        message: str = "",
        author: str = "",
        metadata: Mapping[str, Any] | None = None,
        compression: Compression = "auto",
        exclude: Sequence[str] = DEFAULT_EXCLUDE,
        opaque: Sequence[str] = (),
        extra_state: ExtraState = "keep",
        time: datetime | None = None,
    ) -> Snapshot:
        """Store a version and move a branch to it.

        Only chunks that the store does not have are written. The version is visible once all of
        it is durable; a commit that fails or is killed leaves every earlier version as it was, and
        repeating it writes nothing twice.

        Args:
            source: A directory, a file, or a state dict (tensors, numpy values, numbers, strings,
                bytes and ``BytesIO`` in nested dicts, lists and tuples). Tensors that are written
                to meanwhile are stored with old and new values mixed.
            branch: The branch to move; made if there is none.
            parent: Where a new branch begins; by default it begins with this version.
            message: Why this version is.
            author: Who made it.
            metadata: JSON-like values to keep with it.
            compression: ``"fast"`` keeps the bytes as they are, ``"auto"`` encodes what gains by
                it, ``"small"`` spares no effort.
            exclude: Patterns of files and folders to leave out.
            opaque: Patterns of files to store as plain bytes, unparsed.
            extra_state: Whether what modules return from ``get_extra_state`` is stored with a
                state dict (as tensors, numpy values, bytes and ``BytesIO`` are) or left out.
            time: When the version was made, with a time zone; by default now.

        Raises:
            InvalidInputError: The source cannot be read, is malformed, or changed meanwhile.
            ConflictError: Another writer moved the branch meanwhile. The version is stored; its
                ID is the error's `snapshot`.
            StoreError: The store could not be written. Its `snapshot` is set if it is unknown
                whether the branch has moved. Repeat the call: it makes no second version.
        """
        from casweights.operations.commit import Description, commit

        check_compression(compression)
        head = self._db.refs.head(branch, for_update=True)
        if head is not None and parent is not None and not self._db.refs.is_doubted(head):
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"branch {branch!r} exists, so its head is the parent: leave out `parent`",
            )
        first = head.snapshot if head else None if parent is None else self.resolve(parent)
        before = self._db.snapshots.load(first, with_locations=True) if first else None
        description = Description(
            parents=(first,) if first else (),
            time=to_utc(time),
            author=author,
            message=message,
            metadata=dict(metadata or {}),
        )
        return commit(
            self._db,
            to_sources(source, exclude, opaque, extra_state),
            description,
            branch=branch,
            head=head,
            base=before,
            compression=compression,
        )

    def checkout(
        self,
        ref: Ref,
        directory: str | os.PathLike[str],
        *,
        include: Sequence[str] | None = None,
        delete: bool = False,
        overwrite: bool = False,
    ) -> Snapshot:
        """Put a version into a directory, bit for bit.

        Files that are there already are compared by content, and only chunks that differ are read
        from the store. No file is ever half-written under its name. A file is replaced or deleted
        only if some version of the store has its content.

        Args:
            ref: The version.
            directory: Where to; made if it is not there.
            include: Patterns: files whose path matches are taken whole, and of other safetensors
                files the tensors whose names match, as smaller files. By default everything.
            delete: Remove files that the version does not have.
            overwrite: Replace and delete files that no version has, too.

        Raises:
            NotFoundError: No such version, or nothing matches `include`.
            InvalidInputError: Something in the directory is in the way, or it lies in a store.
            ConflictError: A file that no version has would be lost; none was touched. Or one
                changed during the checkout, and was left alone.
            IntegrityError: The store is damaged; the directory is as it was.
            StoreError: The directory could not be written.
        """
        from casweights.operations.checkout import checkout

        target = to_path(directory)
        snapshot = self._db.snapshots.load(self.resolve(ref), with_locations=True)
        chosen = None if include is None else to_list(include)
        checkout(self._db, snapshot, target, include=chosen, delete=delete, overwrite=overwrite)
        return snapshot

    def load(self, ref: Ref, *, include: Sequence[str] | None = None) -> dict[str, Any]:
        """The weights of a version, in memory.

        Args:
            ref: The version.
            include: Patterns of files or tensor names, as for `checkout`. By default the files
                that programs for models load: the shards that ``model.safetensors.index.json``
                names, or else ``model.safetensors``. See ``docs/loading.md``.

        Returns:
            The state dict that was committed; of a version made from files the tensors by name.

        Raises:
            NotFoundError: No such version, or nothing matches `include`.
            InvalidInputError: It is not clear which files to load, or an index is wrong.
            UnsupportedError: Torch cannot hold one of the tensors.
            IntegrityError: The store is damaged.
        """
        from casweights.operations.load import load

        snapshot = self._db.snapshots.load(self.resolve(ref), with_locations=True)
        chosen = None if include is None else to_list(include)
        return load(self._db, snapshot, include=chosen)

    def tensor(self, ref: Ref, name: str, *, file: str | None = None) -> LazyTensor:
        """One tensor of a version, unread; indexing it reads only the chunks it needs.

        Args:
            ref: The version.
            name: The tensor's name.
            file: The path of the file it is in; by default as for `load`.

        Raises:
            NotFoundError: No such version or tensor.
        """
        from casweights.operations.load import find_tensor

        snapshot = self._db.snapshots.load(self.resolve(ref), with_locations=True)
        return find_tensor(self._db, snapshot, name, file)

    def read(self, ref: Ref, path: str) -> Iterator[memoryview]:
        """The bytes of one file of a version, in pieces.

        Raises:
            NotFoundError: No such version or file.
        """
        from casweights.database.reader import read_file

        snapshot = self._db.snapshots.load(self.resolve(ref), with_locations=True)
        for file in snapshot.files:
            if file.path == path:
                return read_file(self._db.reader, file, self._db.config.chunk_size)
        raise NotFoundError(ErrorCode.FILE_NOT_FOUND, f"the version has no file {path!r}")

    def snapshot(self, ref: Ref) -> Snapshot:
        """A version: what it holds and where it came from.

        Raises:
            NotFoundError: No such version.
        """
        return self._db.snapshots.load(self.resolve(ref))

    def log(self, ref: Ref = DEFAULT_BRANCH) -> Iterator[Snapshot]:
        """A version and its first parents, newest first."""
        return self._db.snapshots.ancestry(self.resolve(ref))

    def diff(self, old: Ref, new: Ref) -> Diff:
        """What differs between two versions, from their manifests alone."""
        from casweights.operations.diff import diff

        return diff(self.snapshot(old), self.snapshot(new))

    def resolve(self, ref: Ref) -> SnapshotId:
        """The ID of the version that a ref names.

        Raises:
            NotFoundError: There is none, or more than one.
        """
        from casweights.database.resolve import resolve

        if isinstance(ref, SnapshotId):
            return ref
        return resolve(self._db, ref) if isinstance(ref, str) else ref.id

    def branches(self) -> dict[str, SnapshotId]:
        """All branches and their heads, by name."""
        return self._db.refs.branches()

    def branch(self, name: str, at: Ref, *, force: bool = False) -> SnapshotId:
        """Make a branch, or with `force` move one.

        Raises:
            ConflictError: The branch exists, or another writer moved it meanwhile.
        """
        target = self.snapshot(at).id
        head = self._db.refs.head(name, for_update=True)
        if head is not None and head.snapshot == target and self._db.refs.is_doubted(head):
            return target  # an error came after it was made
        if head is not None and not force:
            raise ConflictError(
                ErrorCode.ALREADY_EXISTS,
                f"branch {name!r} is there already, at {head.snapshot}: move it with force, or "
                "choose another name",
            )
        self._db.refs.advance(name, head, target)
        self._db.refs.take_in(target)
        return target

    def delete_branch(self, name: str) -> None:
        """Forget a branch; its versions stay reachable by ID.

        Raises:
            NotFoundError: There is no such branch.
        """
        self._db.refs.delete_branch(name)

    def displaced(self) -> dict[str, tuple[SnapshotId, ...]]:
        """Versions by branch that another writer's move displaced; see ``docs/format.md``.

        They stay here until a branch or tag is made at them or goes through them, or until
        `drop_displaced`.
        """
        from casweights.operations.displaced import displaced

        return displaced(self._db)

    def drop_displaced(self, branch: str, at: Ref) -> None:
        """Forget that a version was displaced from a branch; it stays reachable by ID.

        Raises:
            NotFoundError: It was not, or there is no such version.
        """
        from casweights.operations.displaced import drop_displaced

        drop_displaced(self._db, branch, self.resolve(at))

    def tags(self) -> dict[str, SnapshotId]:
        """All tags and where they point, by name."""
        return self._db.refs.tags()

    def tag(self, name: str, at: Ref) -> SnapshotId:
        """Give a version a name that does not move.

        Raises:
            ConflictError: The tag exists and points elsewhere.
        """
        target = self.snapshot(at).id
        self._db.refs.create_tag(name, target)
        self._db.refs.take_in(target)
        return target

    def delete_tag(self, name: str) -> None:
        """Forget a tag; its version stays reachable by ID.

        Raises:
            NotFoundError: There is no such tag.
        """
        self._db.refs.delete_tag(name)

    def verify(self, *, quick: bool = False) -> Verification:
        """Check every object of the store; see `Verification.problems` for what is wrong.

        Args:
            quick: Check stored bytes against checksums, without decoding and hashing chunks.
        """
        from casweights.operations.verify import verify

        return verify(self._db, quick=quick)

    def stats(self) -> StoreStats:
        """Count what the store holds."""
        from casweights.operations.stats import stats

        return stats(self._db)

    def repack(self, *, compression: Compression = "auto") -> RepackStats:
        """Store all chunks anew, as the best differences there are now; no ID changes.

        Useful after an import, or when something that versions resemble came later than they.
        Other writers and readers may go on meanwhile. Open the store with a `cache_size` in which
        a version fits, and nothing is rebuilt twice.

        Args:
            compression: How chunks without a base are stored, see `commit`.

        Raises:
            IntegrityError: A version cannot be rebuilt; no pack was deleted.
            StoreError: The store could not be written.
        """
        from casweights.operations.repack import repack

        return repack(self._db, compression=check_compression(compression))

    def push(
        self,
        target: Repository,
        refs: Sequence[str] | None = None,
        *,
        history: bool = True,
        unnamed: bool = False,
        force: bool = False,
    ) -> TransferStats:
        """Bring branches and tags, and the versions that they lead to, to another store.

        Only what the target does not have is moved, and every version keeps its ID. A push that
        fails or is killed leaves the target sound, and repeating it goes on from there.

        Args:
            target: Where they go.
            refs: Branches and tags, ``heads/x`` and ``tags/x`` where a name is both. IDs and
                ``main~2`` bring a version without a name. None for all branches and tags.
            history: Whether the versions before them go, too.
            unnamed: Whether all other versions of this store go, too.
            force: Move branches even if they went another way in the target.

        Raises:
            ConflictError: A branch went another way in the target, or a tag points elsewhere.
                Everything else was moved.
            NotFoundError: There is no such branch, tag or version.
            InvalidInputError: The stores have different digests or chunk sizes.
            StoreError: The target could not be written.
        """
        from casweights.operations.push import push

        chosen = None if refs is None else to_list(refs)
        return push(
            self._db, target.database, chosen, history=history, unnamed=unnamed, force=force
        )

    def pull(
        self,
        source: Repository,
        refs: Sequence[str] | None = None,
        *,
        history: bool = True,
        unnamed: bool = False,
        force: bool = False,
    ) -> TransferStats:
        """Bring versions from another store: what its `push` to this one does."""
        return source.push(self, refs, history=history, unnamed=unnamed, force=force)

    def info(self) -> StoreInfo:
        """What the store is, and what it guarantees to several writers."""
        return self._db.info()

    def close(self) -> None:
        """End the threads; the repository cannot be used afterwards."""
        self._db.close()
