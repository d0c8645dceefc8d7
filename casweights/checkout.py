"""Checkout: put a version into a directory, writing only what is not there yet."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from casweights import staging
from casweights.buffers import Pool, scratch, uninitialized
from casweights.config import DEFAULT_EXCLUDE
from casweights.errors import ErrorCode, InvalidInputError, StoreError
from casweights.events import CheckoutStats, Stage
from casweights.files import read_exactly, storage_errors
from casweights.format.layout import Piece, runs
from casweights.format.names import CONFIG
from casweights.selection import select
from casweights.sources import DiskFile, file_runs, matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.chunks import NearbyReader
    from casweights.database import Database
    from casweights.format.manifest import FileEntry, Snapshot
    from casweights.ids import ChunkId


@dataclass(slots=True)
class _Target:
    """A file to be put in place.

    Attributes:
        file: What it shall be.
        path: Where.
        exists: Whether a regular file lies there already.
        complete: Whether that file is what it shall be.
    """

    file: FileEntry
    path: Path
    exists: bool
    complete: bool = False


class _Place(NamedTuple):
    """Where a chunk lies in a file that is there already."""

    path: Path
    offset: int


class _ExistingChunks:
    """The chunks of the files that are in the directory already."""

    def __init__(self) -> None:
        self._places: dict[ChunkId, _Place] = {}

    def __contains__(self, chunk: object) -> bool:
        return chunk in self._places

    def add(self, chunk: ChunkId, place: _Place) -> None:
        """Remember where a chunk lies, unless there is a place for it already."""
        self._places.setdefault(chunk, place)

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """See `NearbyChunks.readinto`."""
        place = self._places.get(chunk)
        if place is None:
            return False
        try:
            descriptor = os.open(place.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:  # it went meanwhile
            return False
        try:
            return read_exactly(descriptor, place.offset, out)
        except OSError:
            return False
        finally:
            os.close(descriptor)


class _Job(NamedTuple):
    draft: Path
    run: list[Piece]
    chunks: list[ChunkId]


def checkout(
    db: Database,
    snapshot: Snapshot,
    directory: Path,
    *,
    include: Sequence[str] | None,
    delete: bool,
) -> None:
    """Put a version, or a part of it, into a directory.

    Files are written beside their places and renamed when all of them are complete and checked.

    Raises:
        InvalidInputError: The directory lies in a store, or has something in the way: a file
            where a folder must be, or a symbolic link that leads elsewhere.
        IntegrityError: The store is damaged; no file was touched.
        StoreError: The directory could not be written.
    """
    if delete and include is not None:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, "a partial checkout cannot delete: leave out include or delete"
        )
    files = select(snapshot, include)
    total = sum(file.size for file in files)
    db.reporter.started(Stage.CHECKOUT, total)
    try:
        with storage_errors(f"cannot write to {directory}"):
            _check_directory(directory)
            targets = [_target(directory, file) for file in files]
            existing = _compare(db, targets)
            wanted = [target for target in targets if not target.complete]
            fetched = _write(db, directory, wanted, existing)
            deleted = _delete_others(directory, {file.path for file in files}) if delete else 0
    finally:
        db.reporter.finished(Stage.CHECKOUT)
    stats = CheckoutStats(
        snapshot=snapshot.id,
        files=len(files),
        written_files=sum(not target.complete for target in targets),
        deleted_files=deleted,
        total_bytes=total,
        fetched_bytes=fetched,
    )
    db.reporter.checked_out(stats)


def _check_directory(directory: Path) -> None:
    """Refuse a file, and a store: writing there could not be told from damage to it."""
    if directory.exists() and not directory.is_dir():
        raise _in_the_way(directory, "a folder")
    place = directory.resolve()
    for folder in (place, *place.parents):
        _refuse_store(folder)


def _refuse_store(folder: Path) -> None:
    if (folder / CONFIG).is_file():
        raise InvalidInputError(
            ErrorCode.BAD_PATH, f"{folder} is a casweights store: check out elsewhere"
        )


def _target(directory: Path, file: FileEntry) -> _Target:
    """Look at a file's place, without following links out of the directory."""
    parts = file.path.split("/")
    if any(part.casefold() == ".git" or part.startswith(staging.PREFIX) for part in parts):
        raise InvalidInputError(
            ErrorCode.BAD_PATH,
            f"the version has a file {file.path!r}, and repositories and drafts are not written "
            "to: leave it out with include",
        )
    for n in range(1, len(parts)):
        folder = directory.joinpath(*parts[:n])
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise _in_the_way(folder, "a folder")
        _refuse_store(folder)
    path = directory.joinpath(*parts)
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _Target(file, path, exists=False)
    if stat.S_ISDIR(mode):
        raise _in_the_way(path, "a file")
    return _Target(file, path, exists=stat.S_ISREG(mode))


def _in_the_way(path: Path, wanted: str) -> InvalidInputError:
    return InvalidInputError(
        ErrorCode.BAD_PATH,
        f"{path} is in the way: {wanted} must be there. Move it, or check out elsewhere",
    )


def _compare(db: Database, targets: Sequence[_Target]) -> _ExistingChunks:
    """Mark the targets that are complete; returns where the existing files' chunks lie.

    Every file is cut by its own layout, so that its chunks are found wherever they move to.
    """
    there = [(target, file) for target in targets if (file := _existing_file(target)) is not None]
    files = [file for _, file in there]
    found: list[list[ChunkId]] = [[] for _ in files]
    existing = _ExistingChunks()
    chunk_size = db.config.chunk_size
    hash_run = partial(_hash_run, db, files, Pool(chunk_size))
    for (number, run), chunks in db.workers.map(hash_run, file_runs(files, chunk_size)):
        found[number] += chunks
        for piece, chunk in zip(run, chunks, strict=False):
            existing.add(chunk, _Place(files[number].location, piece.offset))
    for (target, file), chunks in zip(there, found, strict=True):
        shall = target.file
        is_now = (file.size, file.raw_header, tuple(chunks))
        target.complete = is_now == (shall.size, shall.raw_header, shall.chunks)
        if target.complete:
            db.reporter.advanced(Stage.CHECKOUT, shall.size)
    return existing


def _existing_file(target: _Target) -> DiskFile | None:
    """The file that is there, if it can be read and is of the kind that it shall be."""
    if not target.exists:
        return None
    try:
        return DiskFile(target.file.path, target.path, opaque=target.file.raw_header is None)
    except InvalidInputError:
        return None


def _hash_run(
    db: Database, files: Sequence[DiskFile], buffers: Pool, job: tuple[int, list[Piece]]
) -> tuple[tuple[int, list[Piece]], list[ChunkId]]:
    number, run = job
    try:
        return job, [db.hasher(view) for view in files[number].read(run, buffers)]
    except InvalidInputError:  # it changes or goes while we look: then nothing of it counts
        return job, []


def _write(
    db: Database,
    directory: Path,
    targets: Sequence[_Target],
    existing: _ExistingChunks,
) -> int:
    """Write files; returns the bytes that came from the store."""
    if not targets:
        staging.sweep(directory)  # a killed checkout may have been this far, too
        return 0
    directory.mkdir(parents=True, exist_ok=True)
    _check_space(directory, sum(target.file.size for target in targets))
    fetched = 0
    with staging.Staging(directory) as drafts:
        placed = [(target, drafts.new_path()) for target in targets]
        for target, draft in placed:
            _start_draft(draft, target.file)
        jobs = (job for target, draft in placed for job in _jobs(db, target.file, draft))
        reader = db.reader.near(existing, db.cache)
        with reader.ahead() as announce:
            announce([chunk for target in targets for chunk in target.file.chunks])
            for job, nbytes in db.workers.map(partial(_write_run, reader), jobs):
                fetched += nbytes
                db.reporter.advanced(Stage.CHECKOUT, sum(piece.nbytes for piece in job.run))
        for target, draft in placed:
            target.path.parent.mkdir(parents=True, exist_ok=True)
            draft.replace(target.path)
    return fetched


def _jobs(db: Database, file: FileEntry, draft: Path) -> Iterator[_Job]:
    chunk_size = db.config.chunk_size
    chunks = iter(file.chunks)
    for run in runs((piece for _, piece in file.pieces(chunk_size)), chunk_size):
        yield _Job(draft, run, [next(chunks) for _ in run])


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise StoreError(
            ErrorCode.NO_SPACE,
            f"the files take {needed} bytes and {directory} has {free} left: nothing was written",
        )


def _start_draft(draft: Path, file: FileEntry) -> None:
    with draft.open("xb") as out:
        out.write(file.raw_header or b"")
        out.truncate(file.size)


def _write_run(reader: NearbyReader, job: _Job) -> tuple[_Job, int]:
    fetched = 0
    buffer = scratch(sum(piece.nbytes for piece in job.run))
    start = job.run[0].offset
    for piece, chunk in zip(job.run, job.chunks, strict=True):
        view = buffer[piece.offset - start : piece.offset - start + piece.nbytes]
        fetched += reader.readinto(chunk, view)
    descriptor = os.open(job.draft, os.O_WRONLY)
    try:
        _write_at(descriptor, start, buffer)
    finally:
        os.close(descriptor)
    return job, fetched


def _write_at(descriptor: int, offset: int, view: memoryview) -> None:
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _delete_others(directory: Path, keep: set[str]) -> int:
    """Remove files that the version does not have, and folders that this leaves empty."""
    doomed = []
    for parent, folders, names in os.walk(directory):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for path in (Path(parent, name) for name in (*names, *links)):
            name = path.relative_to(directory).as_posix()
            if name not in keep and not _is_protected(directory, name):
                doomed.append(path)
    for path in doomed:
        path.unlink()
        folder = path.parent
        while folder != directory and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent
    return len(doomed)


def _is_protected(directory: Path, path: str) -> bool:
    """Whether a path lies in what commit leaves out, too: repositories, caches, stores, drafts."""
    parts = path.split("/")
    parents = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(part.startswith(staging.PREFIX) for part in parts) or any(
        matches(parent, DEFAULT_EXCLUDE) or (directory / parent / CONFIG).is_file()
        for parent in parents
    )


def read_file(db: Database, file: FileEntry) -> Iterator[memoryview]:
    """The bytes of one file, piece by piece."""
    if file.raw_header is not None:
        yield memoryview(file.raw_header)
    reader = db.reader.near()
    with reader.ahead() as announce:
        announce(file.chunks)
        for chunk, piece in file.pieces(db.config.chunk_size):
            view = uninitialized(piece.nbytes)  # the caller's to keep
            reader.readinto(chunk, view)
            yield view
