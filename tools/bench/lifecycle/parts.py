"""Break the bytes of new versions down by purpose."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Self

from casweights.database.packs import read_pack, read_snapshot_index
from casweights.format import names
from casweights.format.pack import encode_frames

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from casweights import Snapshot
    from casweights.format.pack import Frame
    from casweights.ids import ChunkId
    from casweights.stores.base import ObjectInfo, ObjectStore


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes of objects by purpose; the sum is all of their bytes.

    Attributes:
        frames: Frames of the content.
        index: The other bytes of packs: index, prefix, and trailer. Of snapshots, the columns of
            the frames that they carry.
        structure: Frames of headers and of lists of chunks.
        manifest: Manifests, with the envelope of the object.
        pack_table: Tables of the packs that contain the chunks.
        move: Moves of the branch.
        signature: Signatures, by which other versions find these.
    """

    frames: int = 0
    index: int = 0
    structure: int = 0
    manifest: int = 0
    pack_table: int = 0
    move: int = 0
    signature: int = 0

    def __add__(self, other: Self) -> Parts:
        return Parts(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> int:
        """The sum."""
        return sum(astuple(self))

    def items(self) -> dict[str, int]:
        """Return the bytes by the name of their purpose."""
        return {field.name.replace("_", " "): getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        return ", ".join(f"{what} {nbytes:,}" for what, nbytes in self.items().items())


def parts_of(
    store: ObjectStore, known: Collection[str], versions: Sequence[Snapshot]
) -> tuple[Parts, set[str]]:
    """Break down the objects that versions added to a store.

    Args:
        store: The store.
        known: Names of the objects that existed before.
        versions: The new versions.

    Returns:
        The parts, and the names of all objects that exist now.

    Raises:
        AssertionError: The purpose of an object is unknown.
    """
    infos = list(store.list())
    by_name = {names.snapshot_name(version.id) for version in versions}
    content = {chunk for version in versions for chunk in version.chunks()}
    found = Parts()
    for info in infos:
        if info.name in known:
            continue
        if info.name.startswith(names.PACKS):
            found += _parts_of_pack(store, info, content)
        elif info.name in by_name:
            found += _parts_of_snapshot(store, info, content)
        elif info.name.startswith(names.REFS):
            found += Parts(move=info.size)
        elif info.name.startswith(names.SIGNATURES):
            found += Parts(signature=info.size)
        else:
            raise AssertionError(f"{info.name} is an object of unknown purpose")
    return found, {info.name for info in infos}


def _parts_of_pack(store: ObjectStore, info: ObjectInfo, content: set[ChunkId]) -> Parts:
    found = _parts_of_frames((at.frame for at in read_pack(store, info).locations), content)
    return found + Parts(index=info.size - found.total)


def _parts_of_snapshot(store: ObjectStore, info: ObjectInfo, content: set[ChunkId]) -> Parts:
    index = read_snapshot_index(store, info)
    found = _parts_of_frames(index.frames, content)
    columns = len(encode_frames(index.frames)) if index.frames else 0
    found += Parts(index=columns, pack_table=len(index.table))
    return found + Parts(manifest=info.size - found.total)


def _parts_of_frames(frames: Iterable[Frame], content: set[ChunkId]) -> Parts:
    found = Parts()
    for frame in frames:
        is_own = frame.chunk in content
        found += Parts(frames=frame.size) if is_own else Parts(structure=frame.size)
    return found
