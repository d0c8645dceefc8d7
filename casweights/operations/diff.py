"""Diff: compare two versions by tensor and by file.

Their manifests decide about nearly all tensors. Small tensors that share a chunk with others are
read where that chunk has changed, and a few chunks of tensors that seem to be renamed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casweights.content.spans import StoredTensor, TensorContents, stored_tensors
from casweights.operations.pairing import Member, pair
from casweights.operations.renumbered import renumbered
from casweights.results import Change, ChangeKind, Diff

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from casweights.database import Database
    from casweights.format.file_entry import FileEntry
    from casweights.format.manifest import Snapshot
    from casweights.ids import ChunkId

_MAX_CONFIRMED = 8  # pairs of tensors that are read to see whether their contents are related

Key = tuple[str, str | None]  # a file's path, and a tensor's name or None for the file itself


@dataclass(frozen=True, slots=True)
class _Item:
    """A file or tensor, as it is compared.

    Attributes:
        description: Its dtype and shape, or its size, for display.
        sizes: How many of its bytes are in each of its chunks.
        content: The tensor; or else what is equal for two files exactly if they have not changed.
        places: What is equal for two items only if they have the same bytes; empty without any.
    """

    description: str
    sizes: dict[ChunkId, int]
    content: object
    places: tuple[Hashable, ...]


class _Comparison:
    """The tensors and files of two versions, and which of them belong together."""

    def __init__(self, db: Database, old: Snapshot, new: Snapshot) -> None:
        self.old, self.new = _items(old), _items(new)
        self._contents = TensorContents(db, old.id, new.id)
        self._rewritten = _rewritten(old, new)
        gone = {key: item for key, item in self.old.items() if key not in self.new}
        fresh = {key: item for key, item in self.new.items() if key not in self.old}
        self.sources = self._tensor_pairs(gone, fresh)  # new keys, and the old ones they come from
        self.sources |= _file_pairs(gone, fresh, self.sources)

    def same(self, before: _Item, after: _Item) -> bool:
        """Whether two items are equal; for a safetensors file, its metadata counts alone."""
        one, other = before.content, after.content
        if isinstance(one, StoredTensor) and isinstance(other, StoredTensor):
            return self._contents.same(one, other)
        return one == other

    def has_same_bytes(self, before: _Item, after: _Item) -> bool:
        """Whether two tensors or files have the same bytes."""
        if isinstance(before.content, StoredTensor):
            return self.same(before, after)
        return before.places == after.places

    def is_unchanged(self, key: Key) -> bool:
        """Whether both versions have an item under this key, with the same content."""
        before, after = self.old.get(key), self.new.get(key)
        if key in self._rewritten or before is None or after is None:
            return False
        return self.same(before, after)

    def copies(self) -> dict[Key, Key]:
        """Return the new items that have the content of an old one that is still there."""
        stays = (key for key in self.old if key in self.new)
        found_at = {(self.old[key].places, self.old[key].description): key for key in stays}
        found = {}
        for key, item in self.new.items():
            is_free = key not in self.old and key not in self.sources
            source = (
                found_at.get((item.places, item.description)) if is_free and item.places else None
            )
            if source is not None:
                found[key] = source
        return found

    def _tensor_pairs(
        self, gone: Mapping[Key, _Item], fresh: Mapping[Key, _Item]
    ) -> dict[Key, Key]:
        """Pair tensors that were moved or renamed; guesses only if their contents are related."""
        old_keys, old = _members(gone)
        new_keys, new = _members(fresh)
        found: dict[Key, Key] = {}
        guesses: dict[Key, Key] = {}
        for new_number, old_number, is_guess in pair(old, new):
            pairs = guesses if is_guess else found
            pairs[new_keys[new_number]] = old_keys[old_number]
        return found | self._confirmed(guesses)

    def _confirmed(self, guesses: Mapping[Key, Key]) -> dict[Key, Key]:
        """Return the pairs whose contents are related, judged by the largest of them.

        Pairs that are not read share the fate of most of those that are.
        """
        largest = sorted(guesses, key=lambda key: -sum(self.new[key].sizes.values()))
        read, unread = largest[:_MAX_CONFIRMED], largest[_MAX_CONFIRMED:]
        related = [key for key in read if self._are_related(self.old[guesses[key]], self.new[key])]
        if 2 * len(related) > len(read):
            related += unread
        return {key: guesses[key] for key in related}

    def _are_related(self, before: _Item, after: _Item) -> bool:
        one, other = before.content, after.content
        if isinstance(one, StoredTensor) and isinstance(other, StoredTensor):
            return self._contents.are_related(one, other)
        return False


def diff(db: Database, old: Snapshot, new: Snapshot) -> Diff:
    """Return what was added, removed, changed, moved, renamed or copied from `old` to `new`.

    Raises:
        IntegrityError: A chunk that must be read to compare tensors is damaged or missing.
        StoreError: The store could not be read.
    """
    work = _Comparison(db, old, new)
    had = {chunk for item in work.old.values() for chunk in item.sizes}
    moved, copied = work.sources, work.copies()
    left = set(moved.values())
    changes, unchanged = [], 0
    for key in sorted(work.old.keys() | work.new.keys(), key=lambda k: (k[0], k[1] or "")):
        if work.is_unchanged(key):
            unchanged += 1
        elif key not in left:
            source = moved.get(key) or copied.get(key) or key
            changes.append(_change(work, key, source, had, is_copy=key in copied))
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


def _change(
    work: _Comparison, key: Key, source: Key, had: set[ChunkId], *, is_copy: bool
) -> Change:
    """Return the change of an item whose old place is `source`."""
    before, after = work.old.get(source), work.new.get(key)
    sizes = after.sizes if after else {}
    is_elsewhere = source != key
    is_same = is_elsewhere and before and after and work.has_same_bytes(before, after)
    return Change(
        kind=ChangeKind.COPIED if is_copy else _kind(key, source, before, after),
        file=key[0],
        tensor=key[1],
        old=before.description if before else None,
        new=after.description if after else None,
        nbytes=sum(n for chunk, n in sizes.items() if chunk not in had),
        old_file=source[0] if is_elsewhere else None,
        old_tensor=source[1] if is_elsewhere else None,
        has_same_content=bool(is_same),
    )


def _kind(key: Key, source: Key, before: _Item | None, after: _Item | None) -> ChangeKind:
    if before is None or after is None:
        return ChangeKind.ADDED if after else ChangeKind.REMOVED
    if source == key:
        return ChangeKind.CHANGED
    name, old_name = (k[1] or k[0].rpartition("/")[2] for k in (key, source))
    return ChangeKind.MOVED if name == old_name else ChangeKind.RENAMED


def _members(items: Mapping[Key, _Item]) -> tuple[list[Key], list[Member]]:
    """Return the tensors among some items, for `pair`."""
    keys = [key for key in items if key[1] is not None]
    members = []
    for file, name in keys:
        item = items[file, name]
        content = (item.description, item.places) if item.places else None
        members.append(Member(file, name or "", item.description, content))
    return keys, members


def _file_pairs(
    gone: Mapping[Key, _Item], fresh: Mapping[Key, _Item], tensors: Mapping[Key, Key]
) -> dict[Key, Key]:
    """Pair new files with those that are gone.

    Files of one content belong together, and those whose paths differ in the number of a step; of
    the others, those that have most tensors in common.
    """
    old, new = ({key[0]: None for key in items if key[1] is None} for items in (gone, fresh))
    by_content = {gone[path, None].places: path for path in old if gone[path, None].places}
    shared = Counter((key[0], source[0]) for key, source in tensors.items())
    candidates = [
        *((path, by_content.get(fresh[path, None].places, "")) for path in new),
        *renumbered(new, old).items(),
        *(files for files, _ in shared.most_common()),
    ]
    pairs: dict[Key, Key] = {}
    for path, source in candidates:
        if source in old and path in new:
            del old[source], new[path]
            pairs[path, None] = source, None
    return pairs


def _rewritten(old: Snapshot, new: Snapshot) -> set[Key]:
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


def _items(snapshot: Snapshot) -> dict[Key, _Item]:
    items: dict[Key, _Item] = {}
    for file in snapshot.files:
        chunk_size = snapshot.config.chunk_size
        items[file.path, None] = _file_item(file, chunk_size)
        for stored in stored_tensors(file, chunk_size):
            info = stored.info
            sizes = {span.chunk: span.nbytes for span in stored.spans()}
            description = f"{info.dtype.code} {list(info.shape)}"
            places = tuple(stored.spans())
            items[file.path, info.name] = _Item(description, sizes, stored, places)
    return items


def _file_item(file: FileEntry, chunk_size: int) -> _Item:
    """Return the item for a file itself.

    Its content is the metadata of a safetensors file, whose tensors are items of their own, or the
    bytes of any other file.
    """
    description = f"{file.size} bytes"
    if file.header is not None:
        places = (file.raw_header, *file.chunks)
        return _Item(description, {}, file.header.metadata, places)
    sizes = {chunk: piece.nbytes for chunk, piece in file.pieces(chunk_size)}
    return _Item(description, sizes, (file.size, file.chunks), file.chunks)
