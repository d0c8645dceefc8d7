"""Load: read the tensors of a version, or a slice of one tensor."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from casweights.content.spans import TensorContents, reads_of, stored_tensors
from casweights.content.torch_types import allocate
from casweights.content.trees import rebuild
from casweights.content.weights import Weight, Weights
from casweights.errors import ErrorCode, InvalidInputError, NotFoundError
from casweights.events import Stage
from casweights.format.safetensors import TensorInfo
from casweights.system.handles import Handle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch

    from casweights.content.spans import ChunkRead, Span, StoredTensor
    from casweights.database import Database
    from casweights.format.manifest import Snapshot

_MAX_NAMED_FILES = 5  # in an error message


def load(db: Database, snapshot: Snapshot, *, include: Sequence[str] | None) -> dict[str, Any]:
    """Return the weights of a version by name, or the state dict that was committed.

    Args:
        db: The store.
        snapshot: The version.
        include: Patterns of file paths and tensor names to load; None for all weights.

    Raises:
        NotFoundError: Nothing matches `include`.
        InvalidInputError: Several files may hold the weights, and they differ (see `Weights`).
        IntegrityError: The store is damaged.
        UnsupportedError: Torch cannot hold one of the tensors.
    """
    weights = Weights(db, include).of(snapshot)
    tensors: dict[str, torch.Tensor] = {}
    wanted: list[tuple[Iterator[Span], memoryview]] = []
    for name, weight in weights.tensors.items():
        tensors[name], memory = allocate(weight.info)
        wanted.append((weight.stored.spans(), memory))
    _read_all(db, reads_of(wanted))
    headers = [file.header for file in weights.files.values() if file.header is not None]
    if include is None and len(headers) == 1:
        return rebuild(tensors, headers[0].metadata)
    return dict(tensors)


def _read_all(db: Database, reads: Sequence[ChunkRead]) -> None:
    db.reporter.started(Stage.LOAD, sum(read.nbytes for read in reads))
    reader = db.reader.with_local(db.cache)

    def perform(read: ChunkRead) -> int:
        read.perform(db, reader)
        return read.nbytes

    try:
        with reader.ahead() as announce:
            announce([read.chunk for read in reads])
            for nbytes in db.workers.map(perform, reads):
                db.reporter.advanced(Stage.LOAD, nbytes)
    finally:
        db.reporter.finished(Stage.LOAD)


def load_each(db: Database, wanted: Iterable[StoredTensor]) -> Iterator[torch.Tensor]:
    """Yield tensors one by one; only neighbours that share a chunk are read together.

    Raises:
        IntegrityError: The store is damaged.
        UnsupportedError: Torch cannot hold one of the tensors.
    """
    for _, group in groupby(wanted, key=lambda s: s.info if s.is_alone else s.chunks):
        tensors = _load_together(db, list(group))
        while tensors:  # none is kept here while the caller uses it, and drops it
            yield tensors.pop(0)


def _load_together(db: Database, wanted: Sequence[StoredTensor]) -> list[torch.Tensor]:
    allocated = [allocate(stored.info) for stored in wanted]
    spans = [stored.spans() for stored in wanted]
    _read_all(db, reads_of(zip(spans, (memory for _, memory in allocated), strict=True)))
    return [tensor for tensor, _ in allocated]


class LazyTensor(Handle):
    """A tensor in a store. Indexing it reads only the chunks that the result needs.

    Attributes:
        name: Its name.
        dtype: The safetensors code of its element type, such as ``"BF16"``.
        shape: Its dimensions, in elements.
        nbytes: Its size in bytes.

    Example:
        >>> weight = repository.tensor("main", "model.embed_tokens.weight")
        >>> rows = weight[1000:1100]  # reads the chunks of 100 rows
    """

    def __init__(self, db: Database, stored: StoredTensor) -> None:
        self._info = info = stored.info
        self._stored = stored
        self.name = info.name
        self.dtype = info.dtype.code
        self.shape = info.shape
        self.nbytes = info.nbytes
        self._db = self._below = db

    def _how_to_reopen(self) -> str:
        return f"{self._db._how_to_reopen()}, and get the tensor from it again"

    def __repr__(self) -> str:
        return f"LazyTensor({self.name!r}, {self.dtype}, {list(self.shape)})"

    def load(self) -> torch.Tensor:
        """Read the whole tensor."""
        return self._read(self._info, 0)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Return the elements that the same index selects from the whole tensor.

        If the first index is a slice or an integer, only the rows that it spans are read.

        Raises:
            IndexError: The index is out of range, under torch's rules.
            IntegrityError: The store is damaged.
        """
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        if not self.shape or self._info.dtype.bits < 8:  # a row may start in the middle of a byte
            return self.load()[index]
        if isinstance(first, slice) and (first.step or 1) > 0:
            start, stop, step = first.indices(self.shape[0])
            return self._rows(start, max(start, stop))[(slice(None, None, step), *rest)]
        if isinstance(first, int) and not isinstance(first, bool):
            row = range(self.shape[0])[first]
            return self._rows(row, row + 1)[(0, *rest)]
        return self.load()[index]

    def _rows(self, start: int, stop: int) -> torch.Tensor:
        """Read the rows from `start` to before `stop`, each of which is a whole number of bytes."""
        info = self._info
        row_bytes = info.nbytes // max(1, self.shape[0])
        shape, nbytes = (stop - start, *self.shape[1:]), (stop - start) * row_bytes
        return self._read(TensorInfo(info.name, info.dtype, shape, 0, nbytes), start * row_bytes)

    def _read(self, part: TensorInfo, start: int) -> torch.Tensor:
        """Read a part of the tensor's bytes, from `start` on, as a tensor."""
        tensor, memory = allocate(part)
        spans = self._stored.spans(start, start + part.nbytes)
        _read_all(self._db, reads_of([(spans, memory)]))
        return tensor


def find_tensor(db: Database, snapshot: Snapshot, name: str, file: str | None) -> LazyTensor:
    """Return a tensor of a version by its name, without reading its bytes.

    Args:
        db: The store.
        snapshot: The version.
        name: The tensor's name.
        file: The path of its file. None looks among the version's weights first, then in all
            files.

    Raises:
        NotFoundError: No file has a tensor of this name, or several files have different ones.
        InvalidInputError: The index of the weights is malformed or names missing tensors.
    """
    weight = _find_weight(db, snapshot, name) if file is None else None
    found = [weight] if weight is not None else _find_all(db, snapshot, name, file)
    if not found:
        raise NotFoundError(ErrorCode.TENSOR_NOT_FOUND, f"the version has no tensor {name!r}")
    contents = TensorContents(db, snapshot.id)
    if not all(contents.same(other.stored, found[0].stored) for other in found):
        paths = ", ".join(other.file.path for other in found[:_MAX_NAMED_FILES])
        raise NotFoundError(
            ErrorCode.AMBIGUOUS,
            f"{len(found)} files have a tensor {name!r}, and they differ: name the file, for "
            f"example one of {paths}",
        )
    return LazyTensor(db, found[0].stored)


def _find_weight(db: Database, snapshot: Snapshot, name: str) -> Weight | None:
    try:
        return Weights(db).find(snapshot, name)
    except InvalidInputError as error:
        if error.code is not ErrorCode.AMBIGUOUS:
            raise
        return None  # the weights are ambiguous, but only one file may have this tensor


def _find_all(db: Database, snapshot: Snapshot, name: str, file: str | None) -> list[Weight]:
    return [
        Weight(entry, stored)
        for entry in snapshot.files
        if file in (None, entry.path)
        for stored in stored_tensors(entry, db.config.chunk_size)
        if stored.info.name == name
    ]
