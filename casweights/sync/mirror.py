"""What a publisher captures states in: a copy of the last one, and the way back from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from casweights.sync.changes import ElementChange, find_change, take_back
from casweights.sync.file_grid import FileGrid, chunk_of
from casweights.sync.state_copy import StateCopy

if TYPE_CHECKING:
    from casweights.content.states import StateFile
    from casweights.format.layout import Piece
    from casweights.format.manifest import Snapshot
    from casweights.format.safetensors import Header
    from casweights.sync.changes import ChunkRef
    from casweights.system.threads import Workers


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at a state found.

    Attributes:
        raw_header: The header of the state's file, verbatim.
        header: The parsed header.
        size: Bytes of the file.
        undo: The way back: for each chunk that changed, the changes that undo it. The last one is
            undone first.
        changed: Number of elements that changed; None if they were not counted.
    """

    raw_header: bytes
    header: Header
    size: int
    undo: dict[ChunkRef[str], list[ElementChange]]
    changed: int | None = None


class Mirror:
    """A copy of the last state, and the way back to the last durable version.

    What a scan finds goes one of these ways until it is part of a durable version::

        scan ──▶ merge      the state is left out: the next scan has its changes, too
          │
          ├────▶ put_off    it cannot be published now: the next claim has its changes, too
          │
          └────▶ claim ──▶ [encode, write] ──▶ publish    the version is durable: `version`
                   ▲              │
                   └── fails ─────┘                       claimed until a later version is durable

    `is_settled` says that nothing is put off or claimed. One thread at a time may use a mirror,
    except for `publish` and `merge`: `Handoff` gives the turns. `publish` may run while a caller
    scans, because a scan reads nothing that it writes. `merge` runs while nobody has the mirror. A
    scan that fails leaves a mixture of two states: drop the mirror then.

    Args:
        state: The state; its bits are copied.
        chunk_size: Bytes of a chunk.
        workers: Threads for copying and comparing.
        on_device: Where to compare, see `StateCopy`.

    Attributes:
        layout: The layout of the states that it can hold.
        version: The last durable version that was captured here; None if there is none yet.
    """

    def __init__(
        self, state: StateFile, chunk_size: int, workers: Workers, *, on_device: bool
    ) -> None:
        self._chunk_size = chunk_size
        self._workers = workers
        self._copy = StateCopy(state, chunk_size, workers, on_device=on_device)
        self._grid: FileGrid | None = None
        self._put_off: Scan | None = None  # found, and part of no version yet
        self._claimed: Scan | None = None  # part of a version that is not known to be durable
        self.layout = state.layout
        self.version: Snapshot | None = None

    def chunk(self, piece: Piece) -> memoryview:
        """The bytes of a chunk."""
        return self._copy.chunk(chunk_of(piece))

    def grid(self, scan: Scan) -> FileGrid:
        """The pieces of a state's file; they are cut once for all whose tensors lie alike."""
        if self._grid is None or not self._grid.fits(scan.header, scan.size):
            self._grid = FileGrid(scan.header, scan.size, self._chunk_size)
        return self._grid

    def first(self, state: StateFile) -> Scan:
        """The scan of the state that the mirror was made of."""
        return _scanned(state, {})

    def scan(self, state: StateFile) -> Scan:
        """Find what changed in a state of the same layout, and make the same changes here."""
        return _scanned(state, {ref: [change] for ref, change in self._copy.update(state)})

    def merge(self, older: Scan | None, newer: Scan) -> Scan:
        """Join two consecutive scans; the newer one is the last one that was made."""
        if older is None:
            return newer
        undo = dict(older.undo)
        for ref, changes in newer.undo.items():
            undo[ref] = self._shortened(ref, [*undo.get(ref, []), *changes])
        return replace(newer, undo=undo)

    def _shortened(self, ref: ChunkRef[str], changes: list[ElementChange]) -> list[ElementChange]:
        """The same way back, in no more memory than the chunk itself."""
        if sum(change.nbytes for change in changes) <= len(self._copy.chunk(ref)):
            return changes
        return [ElementChange(None, self._before(ref, changes), changes[0].width)]

    def _before(self, ref: ChunkRef[str], changes: list[ElementChange]) -> bytearray:
        """The bytes that a chunk had before these changes."""
        before = bytearray(self._copy.chunk(ref))
        take_back(memoryview(before), changes)
        return before

    @property
    def is_settled(self) -> bool:
        """Whether everything that was found is durable, so that the next scan is tried first."""
        return self.version is not None and self._claimed is None and self._put_off is None

    def put_off(self, scan: Scan) -> None:
        """Keep what was found for the next claim."""
        self._put_off = self.merge(self._put_off, scan)

    def claim(self, scan: Scan) -> Scan:
        """Everything that changed since the last durable version, to be published now."""
        found, self._put_off = self.merge(self._put_off, scan), None
        self._claimed = self.merge(self._claimed, found)
        if self.version is not None:
            self._claimed = self._counted(self._claimed)
        return self._claimed

    def _counted(self, scan: Scan) -> Scan:
        """The same with the number of changes, and without chunks that changed there and back."""
        undo, changed = {}, 0
        for ref, change, count in self._workers.map(self._net, scan.undo.items()):
            if change is not None and count:
                undo[ref] = [change]
                changed += count
        return replace(scan, undo=undo, changed=changed)

    def _net(
        self, job: tuple[ChunkRef[str], list[ElementChange]]
    ) -> tuple[ChunkRef[str], ElementChange | None, int]:
        """Merge a chunk's changes; returns the result and how many elements differ."""
        ref, changes = job
        chunk, net = self._copy.chunk(ref), next(iter(changes), None)
        if len(changes) > 1:
            net = find_change(chunk, memoryview(self._before(ref, changes)), changes[0].width)
        return ref, net, net.differing(chunk) if net else 0

    def publish(self, version: Snapshot) -> None:
        """Record that the version with everything that was claimed is durable."""
        self.version, self._claimed = version, None


def _scanned(state: StateFile, undo: dict[ChunkRef[str], list[ElementChange]]) -> Scan:
    return Scan(state.raw_header, state.header, state.size, undo)
