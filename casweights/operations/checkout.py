"""Checkout: write a version's files to a directory, except those that are already there."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.content.selection import select
from casweights.content.unsaved import require_saved
from casweights.content.worktree import Worktree
from casweights.content.worktree_contents import Content, read_contents
from casweights.errors import ErrorCode, InvalidInputError, StoreError
from casweights.events import Stage
from casweights.format.layout import Piece, runs
from casweights.results import CheckoutStats
from casweights.system import staging
from casweights.system.buffers import scratch
from casweights.system.files import storage_errors, write_at
from casweights.system.staging import Staging
from casweights.system.threads import Background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from casweights.content.selection import CutChunks
    from casweights.content.worktree_contents import WorktreeChunks
    from casweights.database import Database
    from casweights.database.reader import LocalFirstReader
    from casweights.format.file_entry import FileEntry
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId

_SYNCS = 4  # drafts that are synced to the disk at the same time


@dataclass(slots=True)
class _Target:
    """A file of the version, and what the directory has at its path.

    Attributes:
        file: The version's file.
        seen: Status of what exists at the path; None for nothing.
        complete: Whether that already is the version's file.
    """

    file: FileEntry
    seen: os.stat_result | None
    complete: bool = False


class _Job(NamedTuple):
    """A run of neighbouring chunks to write to a draft."""

    draft: str
    run: list[Piece]
    chunks: list[ChunkId]

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.run)


def checkout(
    db: Database,
    snapshot: Snapshot,
    directory: Path,
    *,
    include: Sequence[str] | None,
    delete: bool,
    overwrite: bool,
) -> None:
    """Write a version, or a part of it, to a directory.

    Files are written as drafts to a hidden folder of the directory. They are renamed to their
    places when all of them are complete, verified and synced to the disk.

    Args:
        db: The store.
        snapshot: The version.
        directory: The directory, which may not exist yet.
        include: Patterns of file paths and tensor names to write; None for everything.
        delete: Remove the files that the version does not contain.
        overwrite: Replace and remove files even if no version of the store contains them.

    Raises:
        InvalidInputError: The directory is inside a store; or a file is where a folder must be, a
            folder is where a file must be, or a folder of the path is a symbolic link.
        ConflictError: Files that no version of the store contains would be lost; nothing was
            changed. Or a file changed during the checkout, and was left alone.
        IntegrityError: The store is damaged; no file was changed.
        StoreError: The directory could not be written.
    """
    if delete and include is not None:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, "a partial checkout cannot delete: leave out include or delete"
        )
    files, cut = select(db, snapshot, include)
    total = sum(file.size for file in files)
    db.reporter.started(Stage.CHECKOUT, total)
    try:
        with (
            storage_errors(f"cannot write to {directory}"),
            Worktree(directory, overwrite=overwrite) as tree,
        ):
            _refuse_repositories(files)
            targets = [_Target(file, tree.look(file.path)) for file in files]
            others = tree.others({file.path for file in files}) if delete else {}
            local, held = _compare(db, tree, targets, {} if overwrite else others)
            wanted = [target for target in targets if not target.complete]
            check = partial(_check_unchanged, db, tree, wanted, others, held)
            # Nothing in the directory has been changed so far, and every refusal must come before
            # the first change: unsaved files here, files that changed since in `check`.
            if not overwrite:
                require_saved(db, snapshot, tree, held)
            fetched = _write(db, tree, wanted, (local, cut), check)
            deleted = sum(tree.remove(path, seen) for path, seen in others.items())
            tree.sync(db.workers)
    finally:
        db.reporter.finished(Stage.CHECKOUT)
    stats = CheckoutStats(
        snapshot=snapshot.id,
        files=len(files),
        written_files=len(wanted),
        deleted_files=deleted,
        total_bytes=total,
        fetched_bytes=fetched,
    )
    db.reporter.checked_out(stats)


def _refuse_repositories(files: Sequence[FileEntry]) -> None:
    for file in files:
        parts = file.path.split("/")
        if any(part.casefold() == ".git" or part.startswith(staging.PREFIX) for part in parts):
            raise InvalidInputError(
                ErrorCode.BAD_PATH,
                f"the version contains {file.path!r}, and a checkout does not write into git "
                "repositories or folders of drafts: leave the file out with include",
            )


def _compare(
    db: Database,
    tree: Worktree,
    targets: Sequence[_Target],
    others: dict[str, os.stat_result],
) -> tuple[WorktreeChunks, dict[str, Content | None]]:
    """Hash the existing files, and mark the targets that are complete.

    Args:
        db: The store.
        tree: The directory.
        targets: The files to write.
        others: The files to remove.

    Returns:
        The chunks of the existing files; and the contents of the files that would be replaced or
        removed, by path, None for those that cannot be read. Links are left out, because the files
        that they point to stay.
    """
    existing = {target.file.path: target.seen for target in targets if target.seen} | others
    # A file that the version stores as plain bytes is cut as plain bytes: chunk IDs are only equal
    # if the layouts are. All others are cut by tensors, if they have any.
    opaque = dict.fromkeys(others, False)
    opaque |= {target.file.path: target.file.raw_header is None for target in targets}
    regular = [path for path, seen in existing.items() if stat.S_ISREG(seen.st_mode)]
    contents, chunks = read_contents(db, tree, {path: opaque[path] for path in regular})
    for target in targets:
        if contents.get(target.file.path) == Content.of(target.file):
            target.complete = True
            db.reporter.advanced(Stage.CHECKOUT, target.file.size)
    complete = {target.file.path for target in targets if target.complete}
    held = {
        path: contents.get(path)
        for path, seen in existing.items()
        if path not in complete and not stat.S_ISLNK(seen.st_mode)
    }
    return chunks, held


def _check_unchanged(
    db: Database,
    tree: Worktree,
    targets: Sequence[_Target],
    others: dict[str, os.stat_result],
    held: dict[str, Content | None],
) -> None:
    """Check that no file that will be replaced or removed has changed since it was read.

    A file that had just been written when it was read may have changed without a new modification
    time, because clocks of file systems are coarse: it is read again.

    Raises:
        ConflictError: A file has changed.
    """
    statuses = {target.file.path: target.seen for target in targets} | others
    again = {
        path: content.raw_header is None
        for path, content in held.items()
        if content is not None and tree.was_new(statuses[path])
    }
    contents, _ = read_contents(db, tree, again)
    for path, seen in statuses.items():
        tree.check(path, seen)
        if path in again and contents.get(path) != held[path]:
            raise tree.changed(path)


def _write(
    db: Database,
    tree: Worktree,
    targets: Sequence[_Target],
    local: tuple[WorktreeChunks, CutChunks],
    check: Callable[[], None],
) -> int:
    """Write files; return the number of bytes that were read from the store.

    Args:
        db: The store.
        tree: The directory to write to.
        targets: The files.
        local: Chunks that need not be read from the store, or are not there.
        check: Called when all drafts are complete, before the first file is replaced; it raises
            to stop the checkout.
    """
    if not targets:
        if tree.exists:
            staging.sweep(tree.root)  # a killed checkout may have left drafts
        check()
        return 0
    tree.create()
    _check_space(tree, sum(target.file.size for target in targets))
    with Staging(tree.root) as drafts:
        placed = {drafts.new_name(): target for target in targets}
        fetched = _write_drafts(db, drafts, placed, local)
        check()
        for draft, target in placed.items():
            tree.put(drafts, draft, target.file.path, target.seen)
    # Before others are removed: a crash must not leave the directory without old and new files.
    tree.sync(db.workers)
    return fetched


def _check_space(tree: Worktree, needed: int) -> None:
    free = shutil.disk_usage(tree.root.descriptor).free
    if needed > free:
        raise StoreError(
            ErrorCode.NO_SPACE,
            f"the files need {needed} bytes, and {tree.path} has {free} bytes left: nothing was "
            "written. Free some space, or check out elsewhere",
        )


def _write_drafts(
    db: Database,
    drafts: Staging,
    placed: dict[str, _Target],
    local: tuple[WorktreeChunks, CutChunks],
) -> int:
    """Write all drafts, and wait until they are synced to the disk.

    Returns:
        The number of bytes that were read from the store.
    """
    fetched = 0
    reader = db.reader.with_local(*local, db.cache)
    with reader.ahead() as announce, closing(Background(_SYNCS)) as syncing:
        missing = {draft: _start_draft(drafts, draft, t.file) for draft, t in placed.items()}

        def sync_if_complete(draft: str) -> None:
            if not missing[draft]:
                syncing.submit(partial(_sync_draft, drafts, draft))

        for draft in placed:  # those without chunks, which no job completes
            sync_if_complete(draft)
        wanted = [chunk for target in placed.values() for chunk in target.file.chunks]
        announce(local[1].sources(wanted))
        jobs = (job for draft, target in placed.items() for job in _jobs(db, target.file, draft))
        for job, nbytes in db.workers.map(partial(_write_run, reader, drafts), jobs):
            fetched += nbytes
            missing[job.draft] -= job.nbytes
            sync_if_complete(job.draft)
            db.reporter.advanced(Stage.CHECKOUT, job.nbytes)
        syncing.finish()
    return fetched


def _jobs(db: Database, file: FileEntry, draft: str) -> Iterator[_Job]:
    chunk_size = db.config.chunk_size
    chunks = iter(file.chunks)
    for run in runs((piece for _, piece in file.pieces(chunk_size)), chunk_size):
        yield _Job(draft, run, [next(chunks) for _ in run])


def _open_draft(drafts: Staging, draft: str, flags: int = 0) -> int:
    flags |= os.O_WRONLY | os.O_NOFOLLOW
    return os.open(draft, flags, 0o666, dir_fd=drafts.descriptor)


def _start_draft(drafts: Staging, draft: str, file: FileEntry) -> int:
    """Create a draft of the right size with its header; return how many bytes are missing."""
    header = file.raw_header or b""
    descriptor = _open_draft(drafts, draft, os.O_CREAT | os.O_EXCL)
    try:
        write_at(descriptor, 0, memoryview(header))
        os.truncate(descriptor, file.size)
    finally:
        os.close(descriptor)
    return file.size - len(header)


def _write_run(reader: LocalFirstReader, drafts: Staging, job: _Job) -> tuple[_Job, int]:
    fetched = 0
    buffer = scratch(job.nbytes)
    start = job.run[0].offset
    for piece, chunk in zip(job.run, job.chunks, strict=True):
        view = buffer[piece.offset - start : piece.offset - start + piece.nbytes]
        fetched += reader.readinto(chunk, view)
    descriptor = _open_draft(drafts, job.draft)
    try:
        write_at(descriptor, start, buffer)
    finally:
        os.close(descriptor)
    return job, fetched


def _sync_draft(drafts: Staging, draft: str) -> None:
    descriptor = _open_draft(drafts, draft)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
