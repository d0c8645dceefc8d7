"""The memory in which a publisher captures states: a copy of the last one, and undo changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from casweights.sync.changes import ElementChange, find_change, take_back
from casweights.sync.file_grid import FileGrid, refs_of
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
    """The result of comparing a state with the one before.

    Attributes:
        raw_header: The header of the state's file, verbatim.
        header: The parsed header.
        size: Bytes of the file.
        undo: For each chunk that changed, the changes that restore its former content, oldest
            first. They are undone in reverse order.
        changed: Number of elements that changed; None if they were not counted.
    """

    raw_header: bytes
    header: Header
    size: int
    undo: dict[ChunkRef[str], list[ElementChange]]
    changed: int | None = None


class Mirror:
    """A copy of the last state, and the changes that lead back to the last durable version.

    The result of a scan takes one of three routes until it is part of a durable version::

        scan ──▶ merge      the state is left out: the next scan includes its changes
          │
          ├────▶ put_off    it cannot be published now: the next claim includes its changes
          │
          └────▶ claim ──▶ [encode, write] ──▶ publish    the version is durable: `version`
                   ▲              │
                   └── fails ─────┘                       claimed until a later version is durable

    `is_settled` means that no scan is put off or claimed. One thread at a time may use a mirror;
    `Handoff` decides which one. There are two exceptions. `publish` may run while a caller scans,
    because a scan reads nothing that `publish` writes. `merge` runs while no thread uses the
    mirror. A scan that fails leaves a mixture of two states: drop the mirror then.

    Args:
        state: The state; its bits are copied.
        chunk_size: Bytes of a chunk.
        workers: Threads for copying and comparing.
        on_device: Where to compare, see `StateCopy`.

    Attributes:
        layout: The layout of the states that the mirror can hold.
        version: The last durable version that was captured here; None before the first one.
    """

    def __init__(
        self, state: StateFile, chunk_size: int, workers: Workers, *, on_device: bool
    ) -> None:
        self._chunk_size = chunk_size
        self._workers = workers
        self._copy = StateCopy(state, chunk_size, workers, on_device=on_device)
        self._grid: FileGrid | None = None
        self._put_off: Scan | None = None  # not part of any version yet
        self._claimed: Scan | None = None  # in a version not known to be durable
        self.layout = state.layout
        self.version: Snapshot | None = None

    def chunk(self, piece: Piece) -> memoryview:
        """Return the bytes of a chunk.

        They are not copied where they are in one tensor: the next scan changes them.
        """
        parts = [self._copy.chunk(ref) for ref, _ in refs_of(piece)]
        return parts[0] if len(parts) == 1 else memoryview(bytearray().join(parts))

    def grid(self, scan: Scan) -> FileGrid:
        """Return the pieces of a scanned state's file; computed once for equal layouts."""
        if self._grid is None or not self._grid.fits(scan.header, scan.size):
            self._grid = FileGrid(scan.header, scan.size, self._chunk_size)
        return self._grid

    def first(self, state: StateFile) -> Scan:
        """Return a scan without changes, of the state from which the mirror was made."""
        return _scanned(state, {})

    def scan(self, state: StateFile) -> Scan:
        """Find the changes of a state, and make them in the copy, too.

        The caller checks that the state has the mirror's `layout`.
        """
        return _scanned(state, {ref: [change] for ref, change in self._copy.update(state)})

    def merge(self, older: Scan | None, newer: Scan) -> Scan:
        """Join two consecutive scans; `newer` must be the last scan of this mirror."""
        if older is None:
            return newer
        undo = dict(older.undo)
        for ref, changes in newer.undo.items():
            undo[ref] = self._shortened(ref, [*undo.get(ref, []), *changes])
        return replace(newer, undo=undo)

    def _shortened(self, ref: ChunkRef[str], changes: list[ElementChange]) -> list[ElementChange]:
        """Return equivalent undo changes that need no more memory than the chunk itself."""
        if sum(change.nbytes for change in changes) <= len(self._copy.chunk(ref)):
            return changes
        return [ElementChange(None, self._before(ref, changes), changes[0].width)]

    def _before(self, ref: ChunkRef[str], changes: list[ElementChange]) -> bytearray:
        """Return the bytes that a chunk had before these changes were made."""
        before = bytearray(self._copy.chunk(ref))
        take_back(memoryview(before), changes)
        return before

    @property
    def is_settled(self) -> bool:
        """Whether every change found so far is part of a durable version."""
        return self.version is not None and self._claimed is None and self._put_off is None

    def put_off(self, scan: Scan) -> None:
        """Keep the changes of a scan for the next claim."""
        self._put_off = self.merge(self._put_off, scan)

    def claim(self, scan: Scan) -> Scan:
        """Return all changes since the last durable version, to be published now.

        They stay claimed until `publish`, so that after a failure the next claim includes them.
        """
        found, self._put_off = self.merge(self._put_off, scan), None
        self._claimed = self.merge(self._claimed, found)
        if self.version is not None:
            self._claimed = self._counted(self._claimed)
        return self._claimed

    def _counted(self, scan: Scan) -> Scan:
        """Return the scan with its number of changes, without chunks that changed back."""
        undo, changed = {}, 0
        for ref, change, count in self._workers.map(self._net, scan.undo.items()):
            if change is not None and count:
                undo[ref] = [change]
                changed += count
        return replace(scan, undo=undo, changed=changed)

    def _net(
        self, job: tuple[ChunkRef[str], list[ElementChange]]
    ) -> tuple[ChunkRef[str], ElementChange | None, int]:
        """Merge a chunk's changes; return the result and the number of elements that differ."""
        ref, changes = job
        chunk, net = self._copy.chunk(ref), next(iter(changes), None)
        if len(changes) > 1:
            net = find_change(chunk, memoryview(self._before(ref, changes)), changes[0].width)
        return ref, net, net.differing(chunk) if net else 0

    def publish(self, version: Snapshot) -> None:
        """Record that the version with all claimed changes is durable."""
        self.version, self._claimed = version, None


def _scanned(state: StateFile, undo: dict[ChunkRef[str], list[ElementChange]]) -> Scan:
    """Return the scan of a state with these undo changes."""
    return Scan(state.raw_header, state.header, state.size, undo)
