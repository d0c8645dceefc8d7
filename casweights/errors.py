"""The errors of casweights, one small tree.

::

    CasweightsError
    ├── InvalidInputError (ValueError)    what you passed cannot be used
    ├── NotFoundError (LookupError)       a store, ref, snapshot, file or tensor that is not there
    ├── ConflictError                     somebody else was first
    ├── StaleError                        live tensors are not at the version they should be at
    ├── IntegrityError                    stored bytes are not what they must be
    ├── UnsupportedError                  valid, but not for this version of casweights
    ├── WrongProcessError (TypeError)     a handle that another process made, or a copy of one
    ├── ClosedError (ValueError)          a handle that was closed
    └── StoreError                        the storage below failed (disk full, no permission, ...)

Categories are named by what a handler would do; the precise cause is ``error.code``, an
`ErrorCode` whose values are stable: new ones may be added, none is renamed or reused.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.ids import SnapshotId, Suspect

_MAX_MESSAGE = 1000  # characters: a message may quote names out of a hostile store
_CUT = " ... "


class ErrorCode(StrEnum):
    """The precise cause of an error. Append-only."""

    BAD_ARGUMENT = "bad-argument"
    BAD_NAME = "bad-name"
    BAD_PATH = "bad-path"
    BAD_SAFETENSORS = "bad-safetensors"
    BAD_STATE = "bad-state"
    SOURCE_UNREADABLE = "source-unreadable"
    SOURCE_CHANGED = "source-changed"
    STORE_NOT_FOUND = "store-not-found"
    OBJECT_NOT_FOUND = "object-not-found"
    REF_NOT_FOUND = "ref-not-found"
    SNAPSHOT_NOT_FOUND = "snapshot-not-found"
    FILE_NOT_FOUND = "file-not-found"
    TENSOR_NOT_FOUND = "tensor-not-found"
    AMBIGUOUS = "ambiguous"
    ALREADY_EXISTS = "already-exists"
    REF_MOVED = "ref-moved"
    CORRUPT_OBJECT = "corrupt-object"
    MISSING_CHUNK = "missing-chunk"
    NEWER_FORMAT = "newer-format"
    UNSUPPORTED = "unsupported"
    NO_SPACE = "no-space"
    NO_PERMISSION = "no-permission"
    IO_FAILED = "io-failed"
    UNREACHABLE = "unreachable"
    TARGET_MISMATCH = "target-mismatch"
    STALE = "stale"
    TORN = "torn"
    UNSAVED_FILES = "unsaved-files"
    BAD_INDEX = "bad-index"
    WRONG_PROCESS = "wrong-process"
    FOREIGN_REFS = "foreign-refs"
    CLOSED = "closed"
    LFS_POINTER = "lfs-pointer"
    STORED_TWICE = "stored-twice"
    OFFLINE = "offline"


class CasweightsError(Exception):
    """Base of every error that casweights raises on purpose.

    Attributes:
        code: The precise cause; stable across versions.
        message: What happened and what to do, in one or two sentences.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        message = _shorten(message)
        super().__init__(code, message)  # both in args, so that the error pickles
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


def _shorten(message: str) -> str:
    """Cut the middle out: names that messages quote from hostile files may have megabytes."""
    if len(message) <= _MAX_MESSAGE:
        return message
    half = (_MAX_MESSAGE - len(_CUT)) // 2
    return message[:half] + _CUT + message[-half:]


class InvalidInputError(CasweightsError, ValueError):
    """What the caller passed cannot be used."""


class NotFoundError(CasweightsError, LookupError):
    """A store, ref, snapshot, file or tensor that is not there."""


class ConflictError(CasweightsError):
    """Somebody else was first; nothing of theirs was touched.

    Attributes:
        snapshot: The snapshot that was written but could not become the head of its branch.
            It stays in the store, reachable by this ID.
        files: The files of a directory that would have been lost, by path.
    """

    snapshot: SnapshotId | None = None
    files: tuple[str, ...] = ()


class StaleError(CasweightsError):
    """Live tensors are not at the version that a change of them begins at."""


class IntegrityError(CasweightsError):
    """Stored bytes are not what they must be: damaged, truncated, forged or missing.

    Attributes:
        suspect: The damaged frame or pack, where it is one.
    """

    suspect: Suspect | None = None


class UnsupportedError(CasweightsError):
    """Valid, but this version of casweights cannot do it."""


class WrongProcessError(CasweightsError, TypeError):
    """A handle is used in, copied to or pickled for another process than the one that made it.

    It is a `TypeError` because that is what programs expect of an object that cannot be pickled.
    """


class ClosedError(CasweightsError, ValueError):
    """A handle is used after it, or the store that it works on, was closed.

    It is a `ValueError` because that is what Python's own files raise.
    """


class StoreError(CasweightsError):
    """The storage below failed.

    Attributes:
        snapshot: The snapshot of a commit of which it is unknown whether the branch has moved to
            it, because the storage failed in the middle and cannot be asked. It stays in the
            store, reachable by this ID.
    """

    snapshot: SnapshotId | None = None
