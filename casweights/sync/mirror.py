"""The last published bits of a state, kept in host memory to find and encode what changes."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from casweights.content.files import SourceFile
from casweights.content.states import STATE_FILE, StateFile
from casweights.content.torch_types import tensor_bytes
from casweights.format.layout import Piece, file_pieces, grid, runs
from casweights.sync.batches import make_batches
from casweights.sync.changes import ChunkRef, ElementChange, find_change, take_back
from casweights.sync.devices import (
    device_changes,
    flat_patterns,
    host_memory,
    host_patterns,
    is_on_host,
)
from casweights.system.buffers import copy, scratch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch

    from casweights.format.manifest import Snapshot
    from casweights.format.safetensors import Header, TensorInfo
    from casweights.ids import ChunkId
    from casweights.system.buffers import Pool
    from casweights.system.threads import Workers


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at a state found.

    Attributes:
        raw_header: The header of the state's file, verbatim.
        header: The same, parsed.
        size: The file's bytes.
        undo: What takes chunks back to where they were before, where they changed: changes, of
            which the last one was made last.
        changed: How many elements changed; None where that was not counted.
    """

    raw_header: bytes
    header: Header
    size: int
    undo: dict[ChunkRef[str], list[ElementChange]]
    changed: int | None = None


class Mirror:
    """A copy of a state in host memory, that is brought up to date by `scan`.

    Args:
        state: The state; its bits are copied.
        chunk_size: Bytes of a chunk.
        workers: Threads for copying and comparing.
        on_device: Whether to keep another copy beside each tensor on an accelerator, so that
            nothing but changes crosses to the host. Otherwise the mirror goes to the device.

    Attributes:
        layout: That of the states it is a copy of.
        version: The version whose bits were here; None if that is not known.
    """

    def __init__(
        self, state: StateFile, chunk_size: int, workers: Workers, *, on_device: bool
    ) -> None:
        self._chunk_size = chunk_size
        self._workers = workers
        self._on_device = on_device
        self._memory: dict[str, memoryview] = {}
        self._shadows: dict[str, torch.Tensor] = {}
        self.layout = state.layout
        self.version: Snapshot | None = None
        self._put_off: Scan | None = None  # found, and part of no version yet
        self._claimed: Scan | None = None  # part of one that is not durable, or not known to be
        self._grid: _Grid | None = None
        self._batches = list(make_batches(state, chunk_size, on_device=on_device))
        for batch in self._batches:
            self._memory.update(batch.parts())
        self._single = [info for info in state.header.tensors if info.name not in self._memory]
        for info in self._single:
            live = state.tensor(info.name)
            self._memory[info.name] = host_memory(info.nbytes, live)
            if not is_on_host(live):
                flat = flat_patterns(live.contiguous())
                if on_device:  # the mirror is a copy of the shadow: the tensor may change
                    flat = self._shadows[info.name] = flat.clone()
                host_patterns(self._memory[info.name], flat).copy_(flat)
                continue
            pieces = self._pieces(info, tensor_bytes(live))
            for _ in workers.map(self._copy, pieces):
                pass

    def grid(self, file: KeptState) -> _Grid:
        """The pieces of a state's file; they are cut once for all whose tensors lie alike."""
        if self._grid is None or not self._grid.fits(file):
            self._grid = _Grid(file, self._chunk_size)
        return self._grid

    def _pieces(self, info: TensorInfo, data: memoryview) -> Iterator[tuple[Piece, memoryview]]:
        for piece in grid(0, info.nbytes, info.dtype, self._chunk_size, info.name):
            yield piece, data[piece.offset : piece.offset + piece.nbytes]

    def _copy(self, job: tuple[Piece, memoryview]) -> None:
        piece, data = job
        copy(self.chunk(piece), data)

    def chunk(self, piece: Piece) -> memoryview:
        """A chunk's bytes."""
        return self._at(chunk_of(piece))

    def first(self, state: StateFile) -> Scan:
        """What there is to say of the state that this is a fresh copy of."""
        return _scanned(state, {})

    def scan(self, state: StateFile) -> Scan:
        """Find what changed in a state of the same layout, and make the same changes here."""
        undo: dict[ChunkRef[str], list[ElementChange]] = {}
        for batch in self._batches:
            for name, change in batch.update(state):
                undo[ChunkRef(name, 0)] = [change]
        for piece, change in self._changes(state):
            undo[chunk_of(piece)] = [change]
        return _scanned(state, undo)

    def merge(self, older: Scan | None, newer: Scan) -> Scan:
        """Two scans, one right after the other, as one; the newer one is the last there was."""
        if older is None:
            return newer
        undo = dict(older.undo)
        for place, changes in newer.undo.items():
            undo[place] = self._shortened(place, [*undo.get(place, []), *changes])
        return replace(newer, undo=undo)

    def _shortened(self, place: ChunkRef[str], changes: list[ElementChange]) -> list[ElementChange]:
        """The same way back, in no more memory than the chunk itself."""
        if sum(change.nbytes for change in changes) <= len(self._at(place)):
            return changes
        return [ElementChange(None, self._before(place, changes), changes[0].width)]

    def _at(self, place: ChunkRef[str]) -> memoryview:
        start = place.number * self._chunk_size
        return self._memory[place.tensor][start : start + self._chunk_size]

    def _before(self, place: ChunkRef[str], changes: list[ElementChange]) -> bytearray:
        """What a chunk was before it was changed."""
        before = bytearray(self._at(place))
        take_back(memoryview(before), changes)
        return before

    @property
    def is_settled(self) -> bool:
        """Whether all that was found until now is durable, so that what comes is tried first."""
        return self.version is not None and self._claimed is None and self._put_off is None

    def put_off(self, scan: Scan) -> None:
        """Take note of what was found and is not to be published before the next scan is."""
        self._put_off = self.merge(self._put_off, scan)

    def claim(self, scan: Scan) -> Scan:
        """What to publish: all that changed since the last version that is durable."""
        found, self._put_off = self.merge(self._put_off, scan), None
        self._claimed = self.merge(self._claimed, found)
        if self.version is not None:
            self._claimed = self._counted(self._claimed)
        return self._claimed

    def _counted(self, scan: Scan) -> Scan:
        """The same with the number of changes, and without what changed there and back."""
        undo, changed = {}, 0
        for place, change, count in self._workers.map(self._net, scan.undo.items()):
            if change is not None and count:
                undo[place] = [change]
                changed += count
        return replace(scan, undo=undo, changed=changed)

    def _net(
        self, job: tuple[ChunkRef[str], list[ElementChange]]
    ) -> tuple[ChunkRef[str], ElementChange | None, int]:
        """All changes of a chunk as one, and of how many elements it is."""
        place, changes = job
        chunk, net = self._at(place), next(iter(changes), None)
        if len(changes) > 1:
            net = find_change(chunk, memoryview(self._before(place, changes)), changes[0].width)
        return place, net, net.differing(chunk) if net else 0

    def publish(self, version: Snapshot) -> None:
        """Take note that what was claimed is durable."""
        self.version, self._claimed = version, None

    def _changes(self, state: StateFile) -> Iterator[tuple[Piece, ElementChange]]:
        """Find and make the changes of the tensors that are in no batch."""
        hosted = []
        for info in self._single:
            if is_on_host(state.tensors[info.name]):
                hosted.append(info)
            else:
                yield from self._device_changes(info, state.tensor(info.name))
        jobs = (
            job
            for info in hosted
            for job in self._pieces(info, tensor_bytes(state.tensor(info.name)))
        )
        yield from filter(None, self._workers.map(self._host_change, jobs))

    def _host_change(self, job: tuple[Piece, memoryview]) -> tuple[Piece, ElementChange] | None:
        piece, data = job
        kept = self.chunk(piece)
        change = find_change(kept, data, piece.dtype.width)
        if change is None:
            return None
        change.exchange(kept)
        return piece, change

    def _device_changes(
        self, info: TensorInfo, tensor: torch.Tensor
    ) -> Iterator[tuple[Piece, ElementChange]]:
        live = flat_patterns(tensor.contiguous())
        shadow = self._shadows.get(info.name)
        kept = host_patterns(self._memory[info.name], live) if shadow is None else shadow
        pieces = list(grid(0, info.nbytes, info.dtype, self._chunk_size, info.name))
        found = device_changes(live, kept, self._chunk_size, advance=shadow is not None)
        for number, change in found:
            change.exchange(self.chunk(pieces[number]))
            yield pieces[number], change


class KeptState(SourceFile):
    """The file of a scanned state, out of its mirror; and the chunks of the version before it.

    Args:
        mirror: The mirror, which is left alone until the file is read.
        scan: What was found since that version.
    """

    path = STATE_FILE
    header: Header

    def __init__(self, mirror: Mirror, scan: Scan) -> None:
        self.raw_header, self.header, self.size = scan.raw_header, scan.header, scan.size
        self._mirror = mirror
        self._undo = scan.undo
        self._grid = mirror.grid(self)
        self._changed = sorted(self._grid.numbers[place] for place in scan.undo)
        files = mirror.version.files if mirror.version else ()
        self._ids = next((file.chunks for file in files if file.path == STATE_FILE), ())
        self._pieces = dict(zip(self._ids, self._grid.pieces, strict=False))

    def pieces(self, chunk_size: int) -> Iterator[Piece]:
        """See `SourceFile.pieces`."""
        return iter(self._grid.pieces)

    def runs(self, chunk_size: int) -> Iterable[list[Piece]]:
        """See `SourceFile.runs`."""
        return self._grid.runs

    def chunk_ids(self, run: Sequence[Piece]) -> list[ChunkId | None]:
        """See `SourceFile.chunk_ids`."""
        first = self._grid.numbers[chunk_of(run[0])]
        ids: list[ChunkId | None] = list(self._ids[first : first + len(run)])
        begin, end = (bisect_left(self._changed, n) for n in (first, first + len(run)))
        for number in self._changed[begin:end] if ids else ():
            ids[number - first] = None
        return ids or [None] * len(run)

    def base(self, piece: Piece) -> ChunkId | None:
        """See `SourceFile.base`."""
        return self._ids[self._grid.numbers[chunk_of(piece)]] if self._ids else None

    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        """See `SourceFile.read`; no bytes are copied."""
        return [self._mirror.chunk(piece) for piece in run]

    @property
    def is_used(self) -> bool:
        """See `LocalChunks.is_used`."""
        return True

    def __contains__(self, chunk: object) -> bool:
        """Whether the version before has this chunk."""
        return chunk in self._pieces

    def get(self, chunk: ChunkId) -> memoryview | None:
        """See `TrustedChunks.get`."""
        piece = self._pieces.get(chunk)
        if piece is None:
            return None
        out = scratch(piece.nbytes)
        return out if self.readinto(chunk, out) else None

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """See `LocalChunks.readinto`."""
        piece = self._pieces.get(chunk)
        if piece is None or piece.nbytes != len(out):
            return False
        copy(out, self._mirror.chunk(piece))
        take_back(out, self._undo.get(chunk_of(piece), ()))
        return True


class _Grid:
    """The pieces of a file.

    Args:
        file: A file with a header.
        chunk_size: Bytes of a chunk.

    Attributes:
        pieces: All of them, in file order.
        runs: The same, see `SourceFile.runs`.
        numbers: The number of each in that order.
    """

    def __init__(self, file: KeptState, chunk_size: int) -> None:
        self._header, self._size = file.header, file.size
        self.pieces = list(file_pieces(file.size, file.header, chunk_size))
        self.runs = list(runs(self.pieces, chunk_size))
        self.numbers = {chunk_of(piece): number for number, piece in enumerate(self.pieces)}

    def fits(self, file: KeptState) -> bool:
        """Whether these are the pieces of a file, too."""
        same = file.header.tensors is self._header.tensors
        return same and file.size == self._size


def chunk_of(piece: Piece) -> ChunkRef[str]:
    """The chunk of a tensor that a piece of a safetensors file is."""
    return ChunkRef(str(piece.tensor), piece.number)


def _scanned(state: StateFile, undo: dict[ChunkRef[str], list[ElementChange]]) -> Scan:
    return Scan(state.raw_header, state.header, state.size, undo)
