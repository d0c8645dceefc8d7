"""Find the files of a directory that no version of the store contains, before they are lost.

A file is saved if a version contains a file with the same content under any name, or a file from
which a checkout of some tensors would make it. Most directories hold a version that is closely
related to the requested one, so related versions are read first, and all others only if some files
are in none of these.
"""

from __future__ import annotations

from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from casweights.content.selection import CutChunks, part_of, whole_chunk
from casweights.content.spans import stored_tensors
from casweights.content.worktree_contents import Content, read_contents
from casweights.errors import (
    ConflictError,
    ErrorCode,
    IntegrityError,
    NotFoundError,
    UnsupportedError,
)
from casweights.format.layout import file_pieces, is_small
from casweights.ids import SnapshotId
from casweights.system.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from casweights.content.worktree import Worktree
    from casweights.database import Database
    from casweights.format.file_entry import FileEntry
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId

    Contents = dict[str, list[Content]]  # by path; a file has one for each of its layouts

_LIKELY_GENERATIONS = 8  # generations of ancestors that are read before all other versions
_LIKELY_TIPS = 16  # branches and tags whose versions are read before all others
_READERS = 8  # threads; reading snapshots is mostly waiting
_MAX_NAMED_FILES = 10  # in an error message


class _Mark(NamedTuple):
    """What a part of a file and the whole file share: a tensor's name and its first chunk."""

    name: str
    chunk: ChunkId | None


def require_saved(
    db: Database, snapshot: Snapshot, tree: Worktree, held: Mapping[str, Content | None]
) -> None:
    """Check that some version of the store contains each of these files.

    Args:
        db: The store.
        snapshot: The version that is checked out.
        tree: The directory.
        held: The content of each file that would be replaced or removed, by path; None if it could
            not be read.

    Raises:
        ConflictError: A file is in no version, or could not be read. Its `files` lists all.
    """
    lost = [path for path, content in held.items() if content is None]
    left: Contents = {path: [content] for path, content in held.items() if content is not None}
    with closing(Workers(_READERS)) as workers:
        left = _without(db, left, _likely(db, workers, snapshot))
        if left:
            left = _with_other_layouts(db, tree, left)
            possible = _without_unknown_chunks(db, left)
            lost += left.keys() - possible.keys()
            lost += _without(db, possible, _load(db, workers, db.snapshots.ids()))
    if lost:
        raise _unsaved(tree, sorted(lost))


def _without(db: Database, left: Contents, versions: Iterable[Snapshot]) -> Contents:
    """Return the files that none of these versions contains; stop early if none are left."""
    wanted = _all_of(left)
    if wanted:
        for version in versions:
            found = _found(db, version, wanted)
            if found:
                left = {path: held for path, held in left.items() if found.isdisjoint(held)}
                wanted = _all_of(left)
            if not wanted:
                break
    return left


def _all_of(left: Contents) -> set[Content]:
    return {content for contents in left.values() for content in contents}


def _found(db: Database, version: Snapshot, wanted: set[Content]) -> set[Content]:
    """Return the wanted contents that equal a file of the version or a part of one."""
    sizes = {content.size for content in wanted}
    files = (file for file in version.files if file.size in sizes)
    found = wanted.intersection(map(Content.of, files))
    # Building all parts would be slow: only files that share a tensor or a chunk are tried.
    chunk_size = version.config.chunk_size
    marks = {content: _mark(content, chunk_size) for content in wanted - found}
    wholes = _by_mark(version, {mark for mark in marks.values() if mark is not None})
    for content, mark in marks.items():
        candidates = wholes.get(mark, ()) if mark is not None else ()
        if any(_is_part(db, version, content, file) for file in candidates):
            found.add(content)
    return found


def _pieces(content: Content, chunk_size: int) -> Iterator[tuple[Piece, ChunkId]]:
    pieces = file_pieces(content.size, content.header, chunk_size)
    return zip(pieces, content.chunks, strict=True)


def _is_shared(piece: Piece, chunk_size: int) -> bool:
    """Whether a chunk has small tensors, so that a part of its file may have another one."""
    return any(is_small(tensor, chunk_size) for tensor in piece.tensors)


def _mark(content: Content, chunk_size: int) -> _Mark | None:
    """Return the name of a tensor that any whole file of this part has, and its first chunk.

    A file with small tensors alone has no chunk in common with the whole one.
    """
    tensors = content.header.tensors if content.header else ()
    for piece, chunk in _pieces(content, chunk_size) if tensors else ():
        if not _is_shared(piece, chunk_size):
            return _Mark(str(piece.name), chunk)
    return next((_Mark(info.name, None) for info in tensors if info.nbytes), None)


def _by_mark(version: Snapshot, wanted: set[_Mark]) -> dict[_Mark, list[FileEntry]]:
    """Return the files of a version by the wanted marks that they have."""
    found: dict[_Mark, list[FileEntry]] = {}
    for file in version.files if wanted else ():
        for info, chunks, *_ in stored_tensors(file, version.config.chunk_size):
            for mark in (_Mark(info.name, None), _Mark(info.name, next(iter(chunks), None))):
                if mark in wanted and info.nbytes:
                    found.setdefault(mark, []).append(file)
    return found


def _is_part(db: Database, version: Snapshot, content: Content, file: FileEntry) -> bool:
    """Whether a checkout of the content's tensors from this file would write this content."""
    tensors = content.header.tensors if content.header else ()
    part = part_of(file, {info.name for info in tensors}, version.config.chunk_size)
    if part is None or part.raw_header != content.raw_header or part.size != content.size:
        return False
    pairs = list(zip(part.chunks, content.chunks, strict=True))
    known = [(whole_chunk(spans), chunk) for spans, chunk in pairs]
    if any(whole is not None and whole != chunk for whole, chunk in known):
        return False
    cut = CutChunks(db)
    try:  # small tensors that share chunks must be read
        if any(whole is None for whole, _ in known):
            db.snapshots.load(version.id, with_locations=True)
        return all(cut.add(spans) == chunk for spans, chunk in pairs)
    except IntegrityError:  # a damaged version does not have the content
        return False


def _likely(db: Database, workers: Workers, snapshot: Snapshot) -> Iterator[Snapshot]:
    """Yield the version and its ancestors by generation, then the tips and theirs as well."""
    versions, seen = [snapshot], set[SnapshotId]()
    for generation in range(_LIKELY_GENERATIONS):
        seen.update(version.id for version in versions)
        yield from versions
        before = [parent for version in versions for parent in version.parents]
        if generation == 1:
            before += _tips(db)
        new = [version for version in dict.fromkeys(before) if version not in seen]
        versions = list(_load(db, workers, new))


def _tips(db: Database) -> list[SnapshotId]:
    with suppress(IntegrityError):  # a damaged branch must not prevent a checkout
        return db.refs.tips()[:_LIKELY_TIPS]
    return []


def _load(db: Database, workers: Workers, versions: Iterable[SnapshotId]) -> Iterator[Snapshot]:
    """Read versions on several threads; skip those that were deleted or cannot be read."""
    for version in workers.map(partial(_try_load, db), versions):
        if version is not None:
            yield version


def _try_load(db: Database, version: SnapshotId) -> Snapshot | None:
    try:
        return db.snapshots.load(version)
    except (NotFoundError, IntegrityError, UnsupportedError):
        return None


def _with_other_layouts(db: Database, tree: Worktree, left: Contents) -> Contents:
    """Add to each file its content in the other layout.

    The same bytes may have been committed as tensors, or as plain bytes with `opaque`.
    """
    as_bytes = {path: contents[0].raw_header is not None for path, contents in left.items()}
    others, _ = read_contents(db, tree, as_bytes)
    return {
        path: [*contents, *([others[path]] if path in others else [])]
        for path, contents in left.items()
    }


def _without_unknown_chunks(db: Database, left: Contents) -> Contents:
    """Drop contents with chunks that the store lacks: no version can contain these."""
    if not db.store.capabilities.cheap_reads:  # a search costs too much
        return left
    db.index.search(
        chunk
        for contents in left.values()
        for content in contents
        for _, chunk in _pieces(content, db.config.chunk_size)
    )
    possible = {
        path: [content for content in contents if _may_be_stored(db, content)]
        for path, contents in left.items()
    }
    return {path: contents for path, contents in possible.items() if contents}


def _may_be_stored(db: Database, content: Content) -> bool:
    """Whether the store has the chunks, but for those that a checkout may have cut."""
    size = db.config.chunk_size
    pieces = _pieces(content, size)
    return all(chunk in db.index for piece, chunk in pieces if not _is_shared(piece, size))


def _unsaved(tree: Worktree, lost: list[str]) -> ConflictError:
    shown = ", ".join(map(repr, lost[:_MAX_NAMED_FILES]))
    more = f" and {len(lost) - _MAX_NAMED_FILES} more" if len(lost) > _MAX_NAMED_FILES else ""
    are = "1 file is" if len(lost) == 1 else f"{len(lost)} files are"
    error = ConflictError(
        ErrorCode.UNSAVED_FILES,
        f"{are} in no version of the store and would be lost in {tree.path}: {shown}{more}. "
        "Nothing was changed: commit or move them, or discard them with overwrite",
    )
    error.files = tuple(lost)
    return error
