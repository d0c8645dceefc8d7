"""The last published bits of a state, kept in host memory to find and encode what changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from casweights.buffers import scratch, uninitialized
from casweights.format.layout import Piece, grid
from casweights.sources import SourceFile
from casweights.sync.changes import Change, find_change, take_back
from casweights.sync.devices import device_changes, flat_patterns, host_patterns
from casweights.tensors import STATE_FILE, StateFile, tensor_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from casweights.buffers import Pool
    from casweights.format.manifest import Snapshot
    from casweights.format.safetensors import Header, TensorInfo
    from casweights.ids import ChunkId
    from casweights.parallel import Workers


class Place(NamedTuple):
    """A chunk of a tensor."""

    tensor: str
    number: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at a state found.

    Attributes:
        raw_header: The header of the state's file, verbatim.
        header: The same, parsed.
        size: The file's bytes.
        undo: What takes chunks back to where they were before, where they changed: changes, of
            which the last one was made last.
        elements: How many elements the state has.
        changed: How many of them changed; None where nothing is known of the state before.
    """

    raw_header: bytes
    header: Header
    size: int
    undo: dict[Place, list[Change]]
    elements: int
    changed: int | None


class Mirror:
    """A copy of a state in host memory, that is brought up to date by `scan`.

    Args:
        state: The state; its bits are copied.
        chunk_size: Bytes of a chunk.
        workers: Threads for copying and comparing.
        on_device: Whether to keep another copy beside each tensor on an accelerator, so that
            nothing but changes crosses to the host. Otherwise the mirror goes to the device.

    Attributes:
        layout: See `layout`.
        version: The version whose bits were here; None if that is not known.
        lost: What takes the mirror back to that version, where more is under way than one step.
    """

    def __init__(
        self, state: StateFile, chunk_size: int, workers: Workers, *, on_device: bool
    ) -> None:
        self._chunk_size = chunk_size
        self._workers = workers
        self._on_device = on_device
        self._memory: dict[str, memoryview] = {}
        self._shadows: dict[str, torch.Tensor] = {}
        self.layout = layout(state)
        self.version: Snapshot | None = None
        self.lost: Scan | None = None
        for info in state.header.tensors:
            live = state.tensor(info.name)
            self._memory[info.name] = _host_memory(info.nbytes, live)
            if live.device.type != "cpu":
                flat = flat_patterns(live.contiguous())
                if on_device:
                    self._shadows[info.name] = flat.clone()
                host_patterns(self._memory[info.name], flat).copy_(flat)
                continue
            pieces = self._pieces(info, tensor_bytes(live))
            for _ in workers.map(self._copy, pieces):
                pass

    def _pieces(self, info: TensorInfo, data: memoryview) -> Iterator[tuple[Piece, memoryview]]:
        for piece in grid(0, info.nbytes, info.dtype, self._chunk_size, info.name):
            yield piece, data[piece.offset : piece.offset + piece.nbytes]

    def _copy(self, job: tuple[Piece, memoryview]) -> None:
        piece, data = job
        np.copyto(np.frombuffer(self.chunk(piece), np.uint8), np.frombuffer(data, np.uint8))

    def chunk(self, piece: Piece) -> memoryview:
        """A chunk's bytes."""
        start = piece.number * self._chunk_size
        return self._memory[str(piece.tensor)][start : start + piece.nbytes]

    def first(self, state: StateFile) -> Scan:
        """What there is to say of the state that this is a fresh copy of."""
        return self._scanned(state, {}, None)

    def scan(self, state: StateFile) -> Scan:
        """Find what changed in a state of the same layout, and make the same changes here."""
        undo: dict[Place, list[Change]] = {}
        for piece, change in self._changes(state):
            undo[Place(str(piece.tensor), piece.number)] = [change]
        changed = sum(change.count for changes in undo.values() for change in changes)
        return self._scanned(state, undo, changed)

    def merge(self, older: Scan, newer: Scan) -> Scan:
        """Two scans, one right after the other, as one; the newer one is the last there was."""
        undo = dict(older.undo)
        for place, changes in newer.undo.items():
            undo[place] = self._shortened(place, [*undo.get(place, []), *changes])
        known = older.changed is not None and newer.changed is not None
        changed = sum(change.count for changes in undo.values() for change in changes)
        return replace(newer, undo=undo, changed=min(changed, newer.elements) if known else None)

    def _shortened(self, place: Place, changes: list[Change]) -> list[Change]:
        """The same way back, in no more memory than the chunk itself."""
        memory = self._memory[place.tensor]
        start = place.number * self._chunk_size
        chunk = memory[start : start + self._chunk_size]
        if sum(change.nbytes for change in changes) <= len(chunk):
            return changes
        before = bytearray(chunk)
        take_back(memoryview(before), changes)
        return [Change(None, before, changes[0].width)]

    def claim(self, scan: Scan) -> Scan:
        """What to publish, so that nothing is lost of versions before it that failed."""
        self.lost = scan if self.lost is None else self.merge(self.lost, scan)
        return self.lost

    def publish(self, version: Snapshot) -> None:
        """Take note that what was claimed is durable."""
        self.version, self.lost = version, None

    def _scanned(
        self, state: StateFile, undo: dict[Place, list[Change]], changed: int | None
    ) -> Scan:
        sizes = (info.nbytes // info.dtype.width for info in state.header.tensors)
        return Scan(state.raw_header, state.header, state.size, undo, sum(sizes), changed)

    def _changes(self, state: StateFile) -> Iterator[tuple[Piece, Change]]:
        hosted = []
        for info in state.header.tensors:
            if state.tensors[info.name].device.type == "cpu":
                hosted.append(info)
            else:
                yield from self._device_changes(info, state.tensor(info.name))
        jobs = (
            job
            for info in hosted
            for job in self._pieces(info, tensor_bytes(state.tensor(info.name)))
        )
        for found in self._workers.map(self._host_change, jobs):
            if found is not None:
                yield found

    def _host_change(self, job: tuple[Piece, memoryview]) -> tuple[Piece, Change] | None:
        piece, data = job
        kept = self.chunk(piece)
        change = find_change(kept, data, piece.dtype.width)
        if change is None:
            return None
        change.exchange(kept)
        return piece, change

    def _device_changes(
        self, info: TensorInfo, tensor: torch.Tensor
    ) -> Iterator[tuple[Piece, Change]]:
        live = flat_patterns(tensor.contiguous())
        shadow = self._shadows.get(info.name)
        kept = host_patterns(self._memory[info.name], live) if shadow is None else shadow
        pieces = list(grid(0, info.nbytes, info.dtype, self._chunk_size, info.name))
        for number, change in device_changes(live, kept, self._chunk_size):
            change.exchange(self.chunk(pieces[number]))
            yield pieces[number], change
        if shadow is not None:
            shadow.copy_(live)


class KeptState(SourceFile):
    """The file of a scanned state, out of its mirror; and the chunks of the version before it.

    Args:
        mirror: The mirror, which is left alone until the file is read.
        scan: What was found since that version.
    """

    path = STATE_FILE

    def __init__(self, mirror: Mirror, scan: Scan) -> None:
        self.raw_header, self.header, self.size = scan.raw_header, scan.header, scan.size
        self._mirror = mirror
        self._undo = scan.undo
        self._ids: dict[Place, ChunkId] = {}
        self._pieces: dict[ChunkId, Piece] = {}
        before = mirror.version
        for file in before.files if before else ():
            if file.path == STATE_FILE and before:
                for chunk, piece in file.pieces(before.config.chunk_size):
                    self._ids[Place(str(piece.tensor), piece.number)] = chunk
                    self._pieces[chunk] = piece

    def chunk_id(self, piece: Piece) -> ChunkId | None:
        """See `SourceFile.chunk_id`."""
        place = Place(str(piece.tensor), piece.number)
        return None if place in self._undo else self._ids.get(place)

    def read(self, run: Sequence[Piece], buffers: Pool) -> list[memoryview]:
        """See `SourceFile.read`; no bytes are copied."""
        return [self._mirror.chunk(piece) for piece in run]

    def __contains__(self, chunk: object) -> bool:
        """Whether the version before has this chunk."""
        return chunk in self._pieces

    def get(self, chunk: ChunkId) -> memoryview | None:
        """See `HeldChunks.get`."""
        piece = self._pieces.get(chunk)
        if piece is None:
            return None
        out = scratch(piece.nbytes)
        return out if self.readinto(chunk, out) else None

    def readinto(self, chunk: ChunkId, out: memoryview) -> bool:
        """See `NearbyChunks.readinto`."""
        piece = self._pieces.get(chunk)
        if piece is None or piece.nbytes != len(out):
            return False
        np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(self._mirror.chunk(piece), np.uint8))
        take_back(out, self._undo.get(Place(str(piece.tensor), piece.number), ()))
        return True


def layout(state: StateFile) -> Mapping[str, tuple[str, tuple[int, ...], str]]:
    """What states must share to have a mirror in common: names, dtypes, shapes, devices."""
    return {
        info.name: (info.dtype.code, info.shape, str(state.tensors[info.name].device))
        for info in state.header.tensors
    }


def _host_memory(nbytes: int, live: torch.Tensor) -> memoryview:
    """Memory to copy a tensor to; such as an accelerator can read from while others work."""
    if live.device.type != "cuda":
        return uninitialized(nbytes)
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy().data
