"""Diff: compare two versions by tensor and by file.

Their manifests decide about nearly all tensors. Small tensors that share a chunk with others are
read where that chunk has changed, and a few chunks of tensors that seem to be renamed. Tensors that
may be fused or split, or be in layers with other numbers, are read, too, up to a limit.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casweights.content.spans import StoredTensor, TensorContents, stored_tensors
from casweights.operations.diff_made import MadeTensors
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
    """The tensors and files of two versions, and which of them belong together.

    Attributes:
        old: The items of the old version.
        new: Those of the new one.
        unchanged: Those that both versions have under the same key.
        origins: The old items that new ones come from, unless it is one of the same key.
        copied: Those of them whose old item is still there, or is another one already.
    """

    def __init__(self, db: Database, old: Snapshot, new: Snapshot) -> None:
        self.old, self.new = _items(old), _items(new)
        self._contents = TensorContents(db, old.id, new.id)
        self._rewritten = _rewritten(old, new)
        self._made = MadeTensors(db, old, new)
        self._exact: set[Key] = set()
        self.unchanged = {key for key in self.new if self._is_unchanged(key)}
        gone = {key: item for key, item in self.old.items() if key not in self.new}
        fresh = {key: item for key, item in self.new.items() if key not in self.old}
        pairs = self._tensor_pairs(gone, fresh)
        pairs |= self._copies(pairs)
        self.origins = {key: (source,) for key, source in pairs.items()} | self._parts(pairs)
        files = {key: sources[0] for key, sources in self.origins.items()}
        self.origins |= {key: (source,) for key, source in _file_pairs(gone, fresh, files).items()}
        self.copied = self._find_copied()

    def _same(self, before: _Item, after: _Item) -> bool:
        """Whether two items are equal; for a safetensors file, its metadata counts alone."""
        one, other = before.content, after.content
        if isinstance(one, StoredTensor) and isinstance(other, StoredTensor):
            return self._contents.same(one, other)
        return one == other

    def has_same_bytes(self, key: Key) -> bool:
        """Whether a new tensor or file has the bytes of what it comes from, and no others."""
        sources = self.origins.get(key, ())
        if key in self._exact or len(sources) != 1:
            return key in self._exact
        before, after = self.old[sources[0]], self.new[key]
        if isinstance(before.content, StoredTensor):
            return self._same(before, after)
        return before.places == after.places

    def _is_unchanged(self, key: Key) -> bool:
        """Whether both versions have an item under this key, with the same content."""
        before, after = self.old.get(key), self.new.get(key)
        if key in self._rewritten or before is None or after is None:
            return False
        return self._same(before, after)

    def kind(self, key: Key) -> ChangeKind:
        """Return how an item of the new version differs."""
        sources = self.origins.get(key)
        if sources is None:
            return ChangeKind.CHANGED if key in self.old else ChangeKind.ADDED
        if len(sources) > 1:
            return ChangeKind.FUSED
        if self._is_part(key, sources[0]):
            return ChangeKind.SPLIT
        if key in self.copied:
            return ChangeKind.COPIED
        name, old_name = (k[1] or k[0].rpartition("/")[2] for k in (key, sources[0]))
        return ChangeKind.MOVED if name == old_name else ChangeKind.RENAMED

    def removed(self) -> set[Key]:
        """Return the old items that are no longer there, under any key."""
        used = {source for sources in self.origins.values() for source in sources}
        return {key for key in self.old if key not in used and not self._stays(key)}

    def _stays(self, key: Key) -> bool:
        """Whether an old item is still there, under its own key."""
        return key in self.new and key not in self.origins

    def _is_part(self, key: Key, source: Key) -> bool:
        after, before = self.new[key].content, self.old[source].content
        if isinstance(after, StoredTensor) and isinstance(before, StoredTensor):
            return after.info.nbytes < before.info.nbytes
        return False

    def _find_copied(self) -> set[Key]:
        taken: set[Key] = set()
        copied: set[Key] = set()
        for key in sorted(self.origins, key=_order):
            sources = self.origins[key]
            if self._stays(sources[0]) or sources[0] in taken:
                copied.add(key)
            taken.update(sources)
        return copied

    def _copies(self, pairs: Mapping[Key, Key]) -> dict[Key, Key]:
        """Return the new items that have the content of an old one that is not theirs."""
        found_at = {(item.places, item.description): key for key, item in self.old.items()}
        found = {}
        for key, item in self.new.items():
            if key not in pairs and self._is_open(key) and item.places:
                source = found_at.get((item.places, item.description))
                if source is not None:
                    found[key] = source
        return found

    def _is_open(self, key: Key) -> bool:
        """Whether names do not tell what a new item comes from."""
        if key not in self.old:
            return True
        before, after = self.old[key].content, self.new[key].content
        if isinstance(before, StoredTensor) and isinstance(after, StoredTensor):
            return key not in self.unchanged and self._made.is_uncertain(before.info, after.info)
        return False

    def _parts(self, pairs: Mapping[Key, Key]) -> dict[Key, tuple[Key, ...]]:
        """Return the tensors that come from rows or columns of old ones."""
        wanted = {key: item for key, item in self.new.items() if key not in pairs}
        wanted = {key: item for key, item in wanted.items() if self._is_open(key)}
        used = set(pairs.values())
        left = {
            key: item
            for key, item in self.old.items()
            if key not in used and (key not in self.new or key in wanted)
        }
        found: dict[Key, tuple[Key, ...]] = {}
        for key, origin in self._made.find(_stored(wanted), _stored(left), self._contents).items():
            sources: tuple[Key, ...] = tuple(origin.sources)
            if sources != (key,) or self._is_part(key, key):
                found[key] = sources
                if origin.has_same_content:
                    self._exact.add(key)
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
    changed = [_change(work, key, had) for key in work.new if key not in work.unchanged]
    removed = [_removed(key, work.old[key]) for key in work.removed()]
    fresh: dict[ChunkId, int] = {}
    for file in new.files:
        pieces = file.pieces(new.config.chunk_size)
        fresh.update((chunk, piece.nbytes) for chunk, piece in pieces if chunk not in had)
    return Diff(
        old=old.id,
        new=new.id,
        changes=tuple(sorted([*removed, *changed], key=lambda one: _order((one.file, one.tensor)))),
        unchanged=len(work.unchanged),
        nbytes=sum(fresh.values()),
    )


def _order(key: Key) -> tuple[str, str]:
    return key[0], key[1] or ""


def _removed(key: Key, item: _Item) -> Change:
    return Change(
        kind=ChangeKind.REMOVED,
        file=key[0],
        tensor=key[1],
        old=item.description,
        new=None,
        nbytes=0,
    )


def _change(work: _Comparison, key: Key, had: set[ChunkId]) -> Change:
    """Return how an item of the new version differs."""
    after, sources = work.new[key], work.origins.get(key, ())
    before = work.old.get(sources[0] if sources else key)
    is_fused = len(sources) > 1
    file, tensor = sources[0] if sources and not is_fused else (None, None)
    return Change(
        kind=work.kind(key),
        file=key[0],
        tensor=key[1],
        old=before.description if before and not is_fused else None,
        new=after.description,
        nbytes=sum(n for chunk, n in after.sizes.items() if chunk not in had),
        old_file=file,
        old_tensor=tensor,
        has_same_content=work.has_same_bytes(key),
        sources=tuple((file, tensor or "") for file, tensor in sources) if is_fused else (),
    )


def _stored(items: Mapping[Key, _Item]) -> dict[tuple[str, str], StoredTensor]:
    return {
        (file, name): item.content
        for (file, name), item in items.items()
        if name is not None and isinstance(item.content, StoredTensor)
    }


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
