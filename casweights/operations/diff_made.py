"""Find what tensors consist of that no single tensor of the other version corresponds to.

Fused, split and cut tensors and those of layers that were put in or left out are found as a commit
finds them, by marks of their rows and columns.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from casweights.operations.base_chunks import BaseChunks
from casweights.operations.marks import form_of, row_count
from casweights.operations.rows import search_rows
from casweights.system.buffers import uninitialized

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    from casweights.content.spans import StoredTensor, TensorContents
    from casweights.database import Database
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.format.safetensors import TensorInfo
    from casweights.operations.bases import Rows

    Key = tuple[str, str]
    Tensors = Mapping[Key, StoredTensor]

_MOST_READ = 1 << 30  # bytes of the new version whose rows are looked for


class Origin(NamedTuple):
    """What a tensor consists of.

    Attributes:
        sources: The path and name of each tensor of the old version, in order.
        has_same_content: Whether it has the bytes of these, and no others.
    """

    sources: Sequence[Key]
    has_same_content: bool


class MadeTensors:
    """Looks for the rows and columns of tensors in the old version.

    Args:
        db: The store.
        old: The old version.
        new: The new version.
    """

    def __init__(self, db: Database, old: Snapshot, new: Snapshot) -> None:
        self._db = db
        self._old, self._new = old, new
        self._base = BaseChunks(old, new.files)

    def is_uncertain(self, before: TensorInfo, after: TensorInfo) -> bool:
        """Whether tensors of one file and name may have nothing to do with each other.

        Layers may have other numbers than before, and ranks other rows and columns.
        """
        if self._base.is_renumbered(after):
            return True
        is_sharded = len(self._files[after.name]) > 1
        return is_sharded and before.dtype == after.dtype and before.shape != after.shape

    @cached_property
    def _files(self) -> Mapping[str, set[str]]:
        """The files of both versions that have a tensor of each name."""
        found: dict[str, set[str]] = {}
        for file in (*self._old.files, *self._new.files):
            for info in file.header.tensors if file.header else ():
                found.setdefault(info.name, set()).add(file.path)
        return found

    def find(self, wanted: Tensors, left: Tensors, contents: TensorContents) -> dict[Key, Origin]:
        """Return what tensors consist of.

        Nothing is read for those that the old version has too few rows and columns for.

        Args:
            wanted: Tensors of the new version.
            left: Tensors of the old version that correspond to none of the new one.
            contents: Compares tensors.

        Raises:
            IntegrityError: A chunk that was found to be a part of a tensor is damaged.
            StoreError: The store could not be read.
        """
        likely = {key: wanted[key].info for key in self._likely(wanted, left)}
        if not likely:
            return {}
        rows = self._search(likely)
        return {
            key: Origin(
                sources, contents.consists_of(wanted[key], rows.slices[key].between, rows.sizes)
            )
            for key, sources in rows.sources.items()
            if self._is_plausible(wanted[key].info, sources)
        }

    def _is_plausible(self, tensor: TensorInfo, sources: Sequence[Key]) -> bool:
        """Whether a tensor does not seem to come from these by chance.

        Vectors such as the scales of norms have few different elements, so that short runs of them
        are in others, too.
        """
        if len(sources) == 1 or form_of(tensor).columns > 1:
            return True
        total = sum(self._base.tensors.infos[source].nbytes for source in sources)
        return total == tensor.nbytes

    def _likely(self, wanted: Tensors, left: Tensors) -> Iterator[Key]:
        """Yield tensors at least half of which may be in those that are left."""
        sizes: Counter[Hashable] = Counter()
        for stored in left.values():
            sizes.update(_sizes(stored.info))
        budget = _MOST_READ
        for key, stored in wanted.items():
            has_enough = any(2 * sizes[form] >= n for form, n in _sizes(stored.info).items())
            if stored.info.nbytes and (has_enough or self._base.is_renumbered(stored.info)):
                budget -= stored.info.nbytes
                if budget < 0:
                    return
                yield key

    def _search(self, wanted: Mapping[Key, TensorInfo]) -> Rows:
        for version in (self._old, self._new):  # a cache may have them without locations
            self._db.snapshots.load(version.id, with_locations=True)
        reader = self._db.reader.with_local(self._db.cache)
        chunk_size = self._new.config.chunk_size
        chunks = {
            (file.path, piece.offset): chunk
            for file in self._new.files
            for chunk, piece in file.pieces(chunk_size)
        }

        def read(path: str, piece: Piece) -> memoryview:
            content = uninitialized(piece.nbytes)
            reader.readinto(chunks[path, piece.offset], content)
            self._db.cache.put(chunks[path, piece.offset], content)
            return content

        return search_rows(self._db, self._new.files, read, wanted, [self._base])


def _sizes(tensor: TensorInfo) -> dict[Hashable, int]:
    """Return what tensors that are made of each other share, with rows, and with columns."""
    rows = row_count(tensor)
    sizes: dict[Hashable, int] = {("rows", form_of(tensor)): rows}
    if len(tensor.shape) > 1 and rows:
        columns = tensor.nbytes // tensor.dtype.width // tensor.shape[0]
        sizes["columns", tensor.dtype, tensor.shape[0]] = columns
    return sizes
