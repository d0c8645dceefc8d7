"""Build and check the names of objects in a store, and of refs."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from casweights.errors import ErrorCode, IntegrityError, InvalidInputError
from casweights.format.portable import part_problem
from casweights.ids import CarriedPackId, Digest, PackId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from casweights.ids import ArchiveId, SegmentId, SnapshotId


D = TypeVar("D", bound=Digest)

CONFIG = "casweights.json"
PACKS = "packs/"
SNAPSHOTS = "snapshots/"
SEGMENTS = "segments/"
ARCHIVES = "versions/"
DAMAGED = "damaged/"
EXPIRED = "expired/"
POLICIES = "policies/"
LOST = "lost/"
ASIDE = "aside/"
COLLECTIONS = "collections/"
SIGNATURES = "signatures/"
NO_SIGNATURES = f"{SIGNATURES}off"  # exists in a store that is to have none
REFS = "refs/"
HEADS = f"{REFS}heads/"
TAGS = f"{REFS}tags/"

REF_SUFFIX = ".ref"
STEP_SUFFIX = ".step"  # of a move whose object is the version itself
OFF_SUFFIX = ".off"  # of a mark, which stands for the whole log of a deleted ref
POSITION_DIGITS = 12  # a fixed number, so that names sort as positions do
POSITION = f"(?!0{{{POSITION_DIGITS}}})[0-9]{{{POSITION_DIGITS}}}"  # a pattern: from 1
WRITER_DIGITS = 16  # hexadecimal, random: enough that two writers never draw the same
MAX_REF_NAME = 200  # characters: leaves room for the rest of a move's name
_SUFFIXES = (REF_SUFFIX, STEP_SUFFIX, OFF_SUFFIX)
_REF_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=-]*")


def pack_name(pack: PackId) -> str:
    """Return the name of the object that holds a pack's frames."""
    return f"{SNAPSHOTS if isinstance(pack, CarriedPackId) else PACKS}{pack}"


def pack_of(name: str) -> PackId:
    """Return the pack in a pack object, or in a snapshot object: the inverse of `pack_name`.

    Raises:
        IntegrityError: The object has another name.
    """
    if name.startswith(SNAPSHOTS):
        return parse_id(CarriedPackId, SNAPSHOTS, name)
    return parse_id(PackId, PACKS, name)


def snapshot_name(snapshot: SnapshotId) -> str:
    """Return the object name of a snapshot."""
    return f"{SNAPSHOTS}{snapshot}"


def archive_name(archive: ArchiveId) -> str:
    """Return the object name of an archive of versions."""
    return f"{ARCHIVES}{archive}"


def parse_id(kind: type[D], folder: str, name: str) -> D:
    """Parse the ID in the name of a pack or snapshot.

    Args:
        kind: Type of the ID.
        folder: The folder that `name` begins with, such as ``packs/``.
        name: Name of the object.

    Raises:
        IntegrityError: The rest of the name is not an ID in lowercase hexadecimal.
    """
    with suppress(ValueError):
        found = kind.from_hex(name.removeprefix(folder))
        if folder + found.hex() == name:  # `from_hex` also accepts capitals
            return found
    kind_of_id = folder.removesuffix("s/")
    raise IntegrityError(
        ErrorCode.CORRUPT_OBJECT, f"{name} is damaged: its name is not a {kind_of_id} ID"
    )


def segment_name(segment: SegmentId) -> str:
    """Return the object name of a segment."""
    return f"{SEGMENTS}{segment}"


def move_name(
    kind: str,
    ref: str,
    position: int,
    snapshot: SnapshotId | None = None,
    before: SnapshotId | None = None,
    writer: str = "",
    suffix: str = REF_SUFFIX,
) -> str:
    """Return the object name of a move of a ref.

    In stores without exclusive create, several writers may use one position, so the name also
    contains `snapshot`, `before` and `writer`. Other stores need none of the three.

    Args:
        kind: `HEADS` or `TAGS`.
        ref: The branch or tag.
        position: Number of the move, from 1.
        snapshot: The version that the ref moves to.
        before: The version that the ref moves from; None for the first move.
        writer: `WRITER_DIGITS` random hexadecimal digits that distinguish this writer's move.
        suffix: `REF_SUFFIX`, `STEP_SUFFIX` or `OFF_SUFFIX`.
    """
    rest = "".join(f"-{part}" for part in (snapshot, before, writer) if part)
    return f"{kind}{ref}/{position:0{POSITION_DIGITS}}{rest}{suffix}"


def is_ref_name(name: str) -> bool:
    """Return whether a branch or tag can have this name."""
    return len(name) <= MAX_REF_NAME and all(
        _REF_PART.fullmatch(part) and not part.endswith(_SUFFIXES) for part in name.split("/")
    )


def check_ref_name(name: str) -> str:
    """Return `name` if a branch or tag can have it.

    Raises:
        InvalidInputError: `name` is too long, has a part that ends in ``.ref``, ``.step`` or
            ``.off``, or has parts that are empty, do not begin with a letter, digit or underscore,
            or contain characters other than ASCII letters, digits and ``._+=-``.
    """
    if not is_ref_name(name):
        raise InvalidInputError(
            ErrorCode.BAD_NAME,
            f"{name!r} is not a valid name for a branch or tag: use letters, digits and . _ + = - "
            "in parts separated by /, beginning with a letter or digit, not ending in "
            f"{REF_SUFFIX}, {STEP_SUFFIX} or {OFF_SUFFIX}",
        )
    return name


class RefNames:
    """The names of a store's branches, or of its tags, to check new names against."""

    def __init__(self, names: Iterable[str]) -> None:
        self._folders: dict[str, tuple[str, str]] = {}  # lower case: (as written, the ref)
        for name in names:
            self._add(name)

    def _add(self, name: str) -> None:
        for folder in _folders(name):
            self._folders.setdefault(folder.lower(), (folder, name))

    def add(self, name: str) -> None:
        """Add a new name if every directory can hold it together with the existing ones.

        Raises:
            InvalidInputError: The name is not valid, Windows cannot hold it, or it or a folder in
                it differs only in case from an existing name or a folder in one.
        """
        for part in check_ref_name(name).split("/"):
            problem = part_problem(part)
            for suffix in _SUFFIXES:
                if part.lower().endswith(suffix):
                    problem = f"ends in {suffix}"
            if problem:
                raise _bad_new(name, f"some systems cannot hold it: {part!r} {problem}")
        if (other := self.similar(name)) is not None:
            raise _bad_new(name, f"some disks cannot tell it from the existing {other!r}")
        self._add(name)

    def similar(self, name: str) -> str | None:
        """Return an existing name whose folder differs only in case from one of this name."""
        for folder in _folders(name):
            existing, other = self._folders.get(folder.lower(), (folder, ""))
            if existing != folder:
                return other
        return None


def _folders(name: str) -> Iterator[str]:
    """Return all folders that contain a ref's moves: ``a`` and ``a/b`` for ``a/b``."""
    parts = name.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts) + 1))


def _bad_new(name: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        ErrorCode.BAD_NAME,
        f"cannot create a branch or tag named {name!r}: {why}. Choose another name",
    )
