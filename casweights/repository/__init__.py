"""`Repository`: an open store. Each method delegates to a module of `operations`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from casweights.config import DEFAULT_BRANCH, DEFAULT_EXCLUDE, Compression
from casweights.content.arguments import check_compression, to_list, to_sources, to_utc
from casweights.errors import ErrorCode, InvalidInputError
from casweights.ids import SnapshotId
from casweights.repository.whole_store import WholeStore
from casweights.system.files import to_path

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from casweights.content.trees import ExtraState
    from casweights.format.manifest import Snapshot
    from casweights.operations.graph import GraphVersion
    from casweights.operations.load import LazyTensor
    from casweights.operations.reliance import Sighting
    from casweights.results import (
        BaseVersion,
        Diff,
        ExpiredVersion,
        TransferStats,
    )

    Ref = str | SnapshotId | Snapshot


class Repository(WholeStore):
    """An open store of model versions. Open one with `casweights.open`.

    A *ref* names a version: a branch, a tag, a snapshot ID, or a unique prefix of an ID of at least
    4 digits. ``heads/x`` and ``tags/x`` distinguish a branch and a tag of one name. ``~N`` after
    any of them means the Nth version before it, whether those between have expired or not. A
    `Snapshot` is a ref, too.

    Use a repository as a context manager, or `close` it to end its threads. Several threads may
    call its methods at once. Every process, also a forked one, needs a repository of its own.

    Example:
        >>> with casweights.open("./store", create=True) as store:
        ...     snapshot = store.commit(model.state_dict(), branch="sft", metadata={"step": 500})
        ...     store.tag("v1", snapshot)
        ...     rows = store.tensor("v1", "embed.weight")[0:128]
    """

    def commit(
        self,
        source: str | os.PathLike[str] | Mapping[Any, Any],
        *,
        branch: str = DEFAULT_BRANCH,
        parent: Ref | None = None,
        base: Ref | None = None,
        message: str = "",
        author: str = "",
        metadata: Mapping[str, Any] | None = None,
        compression: Compression = "auto",
        standalone: bool = False,
        exclude: Sequence[str] = DEFAULT_EXCLUDE,
        opaque: Sequence[str] = (),
        extra_state: ExtraState = "keep",
        time: datetime | None = None,
    ) -> Snapshot:
        """Store a version and move a branch to it.

        Only chunks that the store does not have are written. The version becomes visible when all
        of it is durable. A commit that fails or is killed changes no earlier version, and repeating
        it writes no chunk twice.

        Args:
            source: A directory, a file, or a state dict: tensors, numpy values, numbers, strings,
                bytes and ``BytesIO`` in nested dicts, lists and tuples. Do not write to the tensors
                during the call, or the version mixes old and new values.
            branch: The branch to move to the version; made if it does not exist.
            parent: The parent of the first version of a new branch; by default it has none.
            base: A version to store this one as differences from, without making it a parent. Of
                what it lacks, the parent and found relatives may be bases.
            message: The reason for the version.
            author: The author of the version.
            metadata: JSON-like values to store with the version.
            compression: ``"fast"`` stores bytes as they are, ``"auto"`` encodes where it pays,
                ``"small"`` searches longest for the smallest encoding.
            standalone: Whether to store nothing new as a function of other versions, such as an
                export as the rounding of its origin. A reader then needs at most 1.5 times the
                bytes of a whole version. `StoreConfig` has the same for all versions of a store.
            exclude: Patterns of files and folders to leave out.
            opaque: Patterns of files to store as plain bytes, without parsing them.
            extra_state: ``"keep"`` stores the values of modules' ``get_extra_state`` (tensors,
                numpy values, bytes and ``BytesIO``) with a state dict, ``"drop"`` leaves them out.
            time: Time of the version, with a time zone; by default now.

        Raises:
            InvalidInputError: The source cannot be read, is malformed, or changed during the call.
            ConflictError: Another writer moved the branch during the call. The version is stored;
                its ID is the error's `snapshot`.
            NotFoundError: `parent` or `base` does not exist.
            StoreError: The store could not be written. The error's `snapshot` is set if it is
                unknown whether the branch has moved. Repeat the call: it makes no second version.
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
        description = Description(
            parents=(first,) if first else (),
            time=to_utc(time),
            author=author,
            message=message,
            metadata=dict(metadata or {}),
        )
        near = None if base is None else self.resolve(base)
        with self._reading(near) as built_on, self._reading(first) as before:
            return commit(
                self._db,
                to_sources(source, exclude, opaque, extra_state),
                description,
                branch=branch,
                head=head,
                parent=before,
                base=built_on,
                compression=compression,
                standalone=standalone,
            )

    def _reading(self, version: SnapshotId | None) -> AbstractContextManager[Snapshot | None]:
        return nullcontext() if version is None else self._db.snapshots.reading(version)

    def checkout(
        self,
        ref: Ref,
        directory: str | os.PathLike[str],
        *,
        include: Sequence[str] | None = None,
        delete: bool = False,
        overwrite: bool = False,
    ) -> Snapshot:
        """Write the files of a version to a directory, bit for bit.

        Existing files are compared by content, and only chunks that differ are read from the store.
        No file is ever half-written under its name. An existing file is overwritten or deleted only
        if some version of the store contains its content.

        Args:
            ref: The version.
            directory: The directory to write to; made if it does not exist.
            include: Patterns. A file whose path matches is written whole; of other safetensors
                files, the tensors whose names match are written as smaller files. By default, all
                files are written.
            delete: Whether to delete files that are not part of the version.
            overwrite: Whether to overwrite and delete files even if no version contains them.

        Raises:
            NotFoundError: The version does not exist, or nothing matches `include`.
            InvalidInputError: The directory is inside a store, or something in it blocks a path,
                such as a directory with the name of a file.
            ConflictError: A file that no version contains would be lost; no file was changed. Or a
                file changed during the checkout; it was left alone.
            IntegrityError: The store is damaged; the directory is unchanged.
            StoreError: The directory could not be written.
        """
        from casweights.operations.checkout import checkout

        target = to_path(directory)
        chosen = None if include is None else to_list(include)
        with self._db.history.reading(self.resolve(ref)) as snapshot:
            checkout(self._db, snapshot, target, include=chosen, delete=delete, overwrite=overwrite)
        return snapshot

    def load(self, ref: Ref, *, include: Sequence[str] | None = None) -> dict[str, Any]:
        """Load the tensors of a version into memory.

        Args:
            ref: The version.
            include: Patterns of files or tensor names, as for `checkout`. By default, the files
                that model libraries load: the shards named in ``model.safetensors.index.json``, or
                else ``model.safetensors``. ``docs/loading.md`` has the rules.

        Returns:
            The state dict that was committed. For a version made from files, the tensors by name.

        Raises:
            NotFoundError: The version does not exist, or nothing matches `include`.
            InvalidInputError: It is ambiguous which files to load, or an index of shards is wrong.
            UnsupportedError: Torch has no type for one of the tensors.
            IntegrityError: The store is damaged.
        """
        from casweights.operations.load import load

        chosen = None if include is None else to_list(include)
        with self._db.history.reading(self.resolve(ref)) as snapshot:
            return load(self._db, snapshot, include=chosen)

    def tensor(self, ref: Ref, name: str, *, file: str | None = None) -> LazyTensor:
        """Return one tensor of a version unread; indexing it reads only the chunks it needs.

        Args:
            ref: The version.
            name: Name of the tensor.
            file: Path of the file that contains the tensor; by default one of the files that `load`
                would load.

        Raises:
            NotFoundError: The version or the tensor does not exist.
        """
        from casweights.operations.load import find_tensor

        snapshot = self._db.snapshots.load(self.resolve(ref), with_locations=True)
        return find_tensor(self._db, snapshot, name, file)

    def read(self, ref: Ref, path: str) -> Iterator[memoryview]:
        """Return the bytes of one file of a version in pieces, each verified.

        Raises:
            NotFoundError: The version or the file does not exist.
        """
        from casweights.content.selection import find_file
        from casweights.database.reader import read_file

        snapshot = self._db.snapshots.load(self.resolve(ref), with_locations=True)
        return read_file(self._db.reader, find_file(snapshot, path), self._db.config.chunk_size)

    def snapshot(self, ref: Ref) -> Snapshot:
        """Return a version: its files, parents, message and metadata.

        Raises:
            NotFoundError: The version does not exist.
        """
        return self._db.snapshots.load(self.resolve(ref))

    def log(self, ref: Ref = DEFAULT_BRANCH) -> Iterator[Snapshot]:
        """Yield a version and those before it that stayed, by first parent, newest first."""
        return (stretch.snapshot for stretch in self._db.history.walk(self.resolve(ref)))

    def history(
        self, ref: Ref = DEFAULT_BRANCH
    ) -> Iterator[tuple[Snapshot, Sequence[ExpiredVersion]]]:
        """Do the same as `log`, and yield with each version the expired ones just before it."""
        return self._db.history.walk(self.resolve(ref))

    def graph(self, refs: Sequence[str] | None = None) -> Iterator[GraphVersion]:
        """Yield versions and all before them that stayed, by all parents, newest first.

        Args:
            refs: The versions to begin with; by default those that branches and tags name.

        Raises:
            NotFoundError: A version does not exist.
        """
        from casweights.operations.graph import graph

        heads = self._db.refs.tips() if refs is None else map(self.resolve, to_list(refs))
        return graph(self._db, heads)

    def lineage(self, ref: Ref) -> tuple[BaseVersion, ...]:
        """Return the versions that a version was made from, largest share first.

        It is empty if only the first parent has served, or none. It is for people to read: not part
        of the version, and not verified.
        """
        from casweights.operations.graph import lineage

        return lineage(self._db, self.resolve(ref))

    def diff(self, old: Ref, new: Ref) -> Diff:
        """Compare versions by file and tensor; reads manifests, and 1 GiB of tensors at most."""
        from casweights.operations.diff import diff

        return diff(self._db, self.snapshot(old), self.snapshot(new))

    def resolve(self, ref: Ref) -> SnapshotId:
        """Return the ID of the version that a ref names; IDs that are no texts are not looked up.

        Raises:
            NotFoundError: No version or more than one has this name. Notes on the error (PEP 678)
                say which refs may have been meant.
        """
        from casweights.database.resolve import resolve

        if isinstance(ref, SnapshotId):
            return ref
        return resolve(self._db, ref) if isinstance(ref, str) else ref.id

    def branches(self) -> dict[str, SnapshotId]:
        """Return the heads of all branches, by name."""
        return self._db.refs.branches()

    def branch(self, name: str, at: Ref, *, force: bool = False) -> SnapshotId:
        """Make a branch at a version, or with `force` move one; return the version's ID.

        Raises:
            ConflictError: The branch exists, or another writer moved it during the call.
            NotFoundError: The version does not exist.
        """
        target, ready = self._standing(at)
        self._db.refs.set_branch(name, target, force=force, ready=ready)
        self._db.refs.take_in(target)
        return target

    def _standing(self, ref: Ref) -> tuple[SnapshotId, Sighting]:
        """Return the ID of a version that the store has in its place."""
        from casweights.operations.reliance import standing

        target = self.snapshot(ref).id
        return target, standing(self._db, target)

    def delete_branch(self, name: str) -> None:
        """Delete a branch; its versions stay in the store, and `undelete` brings it back.

        A deletion is a move, which needs only the right to add objects. If somebody commits to the
        branch at the same time, either the commit or the deletion succeeds.

        Raises:
            NotFoundError: The branch does not exist.
            ConflictError: Another writer moved the branch during the call; it was not deleted.
        """
        self._db.refs.branch_deletions.delete(name)

    def drop_displaced(self, branch: str, at: Ref) -> None:
        """Stop listing a version as displaced from a branch; it stays in the store.

        Raises:
            NotFoundError: The version does not exist, or was not displaced from this branch.
        """
        from casweights.operations.displaced import drop_displaced

        drop_displaced(self._db, branch, self.resolve(at))

    def tags(self) -> dict[str, SnapshotId]:
        """Return the versions of all tags, by name."""
        return self._db.refs.tags()

    def tag(self, name: str, at: Ref) -> SnapshotId:
        """Make a tag, a name for a version that never moves; return the version's ID.

        Raises:
            ConflictError: The tag exists already, at another version.
            NotFoundError: The version does not exist.
        """
        target, ready = self._standing(at)
        self._db.refs.create_tag(name, target, ready=ready)
        self._db.refs.take_in(target)
        return target

    def delete_tag(self, name: str) -> None:
        """Delete a tag; its version stays in the store, and `undelete` brings the tag back.

        Raises:
            NotFoundError: The tag does not exist.
            ConflictError: Another writer deleted the tag or made it again during the call.
        """
        self._db.refs.tag_deletions.delete(name)

    def undelete(self, name: Ref, as_name: str | None = None) -> SnapshotId:
        """Let a deleted branch or tag name its last version again; return the version's ID.

        A version that nothing names can be given instead, and gets a name, so that it stays. What
        `gc` has set aside comes back, with all that the version needs.

        Args:
            name: The branch or tag; ``heads/x`` or ``tags/x`` if both were deleted. Or a version,
                by its ID or a unique prefix of it.
            as_name: Another name, needed where the name is in use again, and for a version. With
                ``tags/x`` it is a tag, with ``heads/x`` a branch, and so is the name of a version.

        Raises:
            NotFoundError: No such branch or tag was deleted, or both were, or the version is gone.
            InvalidInputError: A version is given without `as_name`, or no ref can have that name.
            ConflictError: The name is in use.
            IntegrityError: Something that the version needs is gone.
            StoreError: The store could not be written. Repeat the call.
        """
        from casweights.operations.undelete import undelete

        return undelete(self._db, name if isinstance(name, str | SnapshotId) else name.id, as_name)

    def push(
        self,
        target: Repository,
        refs: Sequence[str] | None = None,
        *,
        history: bool = True,
        unnamed: bool = False,
        with_expired: bool = False,
        force: bool = False,
    ) -> TransferStats:
        """Send versions to another store, and move its branches and tags to them.

        Versions keep their IDs, and only objects that the target does not have are sent. A push
        that fails or is killed leaves the target sound; repeat it to continue.

        Args:
            target: The other store.
            refs: Branches and tags to send; ``heads/x`` and ``tags/x`` distinguish a branch and a
                tag of one name. An ID or ``main~2`` sends a version without naming it in the
                target. None for all branches and tags.
            history: Whether to send the versions before these, too.
            unnamed: Whether to send all other versions of this store, too.
            with_expired: Whether to send versions of the history that have expired in either store.
                By default, the target gets the records of those that it does not have.
            force: Whether to move branches of the target that have diverged.

        Raises:
            ConflictError: A branch of the target has diverged, or a tag of it names another
                version. Everything else was sent.
            NotFoundError: A branch, tag or version does not exist.
            InvalidInputError: The stores have different digests or chunk sizes.
            StoreError: The target could not be written.
        """
        from casweights.operations.push import push

        chosen = None if refs is None else to_list(refs)
        return push(
            self._db,
            target.database,
            chosen,
            history=history,
            unnamed=unnamed,
            with_expired=with_expired,
            force=force,
        )

    def pull(
        self,
        source: Repository,
        refs: Sequence[str] | None = None,
        *,
        history: bool = True,
        unnamed: bool = False,
        with_expired: bool = False,
        force: bool = False,
    ) -> TransferStats:
        """Fetch versions from another store, with the arguments and errors of its `push`."""
        return source.push(
            self, refs, history=history, unnamed=unnamed, with_expired=with_expired, force=force
        )
