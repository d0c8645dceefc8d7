"""Diff: compare two versions by tensor and by file.

Their manifests decide about nearly all tensors. Small tensors that share a chunk with others are
read where that chunk has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casweights.content.spans import StoredTensor, TensorContents, stored_tensors
from casweights.results import Change, ChangeKind, Diff

if TYPE_CHECKING:
    from casweights.database import Database
    from casweights.format.file_entry import FileEntry
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId


@dataclass(frozen=True, slots=True)
class _Item:
    """A file or tensor, as it is compared.

    Attributes:
        description: Its dtype and shape, or its size, for display.
        sizes: How many of its bytes are in each of its chunks.
        content: The tensor; or else what is equal for two files exactly if their contents are.
    """

    description: str
    sizes: dict[ChunkId, int]
    content: object


def diff(db: Database, old: Snapshot, new: Snapshot) -> Diff:
    """Return the tensors and files that were added, removed or changed from `old` to `new`.

    Raises:
        IntegrityError: A chunk that must be read to compare small tensors is damaged or missing.
        StoreError: The store could not be read.
    """
    old_items, new_items = _items(old), _items(new)
    had = {chunk for item in old_items.values() for chunk in item.sizes}
    changes, unchanged = [], 0
    rewritten = _rewritten(old, new)
    contents = TensorContents(db, old.id, new.id)
    for key in sorted(old_items.keys() | new_items.keys(), key=lambda k: (k[0], k[1] or "")):
        before, after = old_items.get(key), new_items.get(key)
        if key not in rewritten and before and after and _same(contents, before, after):
            unchanged += 1
        else:
            changes.append(_change(key, before, after, had))
    fresh: dict[ChunkId, int] = {}
    for file in new.files:
        pieces = file.pieces(new.config.chunk_size)
        fresh.update((chunk, piece.nbytes) for chunk, piece in pieces if chunk not in had)
    return Diff(
        old=old.id,
        new=new.id,
        changes=tuple(changes),
        unchanged=unchanged,
        nbytes=sum(fresh.values()),
    )


def _same(contents: TensorContents, before: _Item, after: _Item) -> bool:
    one, other = before.content, after.content
    if isinstance(one, StoredTensor) and isinstance(other, StoredTensor):
        return contents.same(one, other)
    return one == other


def _rewritten(old: Snapshot, new: Snapshot) -> set[tuple[str, str | None]]:
    """Return the safetensors files whose header bytes changed, but not their tensors' types."""
    had = {file.path: file for file in old.files if file.header is not None}
    return {
        (file.path, None)
        for file in new.files
        if file.path in had
        and file.raw_header != had[file.path].raw_header
        and _tensors(file) == _tensors(had[file.path])
    }


def _tensors(file: FileEntry) -> set[tuple[str, str, tuple[int, ...]]]:
    tensors = file.header.tensors if file.header else ()
    return {(tensor.name, tensor.dtype.code, tensor.shape) for tensor in tensors}


def _change(
    key: tuple[str, str | None], before: _Item | None, after: _Item | None, had: set[ChunkId]
) -> Change:
    kind = ChangeKind.CHANGED
    if before is None or after is None:
        kind = ChangeKind.ADDED if after else ChangeKind.REMOVED
    sizes = after.sizes if after else {}
    return Change(
        kind=kind,
        file=key[0],
        tensor=key[1],
        old=before.description if before else None,
        new=after.description if after else None,
        nbytes=sum(n for chunk, n in sizes.items() if chunk not in had),
    )


def _items(snapshot: Snapshot) -> dict[tuple[str, str | None], _Item]:
    items: dict[tuple[str, str | None], _Item] = {}
    for file in snapshot.files:
        chunk_size = snapshot.config.chunk_size
        items[file.path, None] = _file_item(file, chunk_size)
        for stored in stored_tensors(file, chunk_size):
            info = stored.info
            sizes = {span.chunk: span.nbytes for span in stored.spans()}
            description = f"{info.dtype.code} {list(info.shape)}"
            items[file.path, info.name] = _Item(description, sizes, stored)
    return items


def _file_item(file: FileEntry, chunk_size: int) -> _Item:
    """Return the item for a file itself.

    Its content is the metadata of a safetensors file, whose tensors are items of their own, or the
    bytes of any other file.
    """
    description = f"{file.size} bytes"
    if file.header is not None:
        return _Item(description, {}, file.header.metadata)
    sizes = {chunk: piece.nbytes for chunk, piece in file.pieces(chunk_size)}
    return _Item(description, sizes, (file.size, file.chunks))
