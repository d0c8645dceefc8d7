"""The errors of casweights: one small tree.

::

    CasweightsError
    ├── InvalidInputError (ValueError)    an argument or a source is not valid
    ├── NotFoundError (LookupError)       a store, ref, snapshot, file or tensor does not exist
    ├── ConflictError                     another writer was first, or data would be lost
    ├── StaleError                        live tensors are not at the expected version
    ├── IntegrityError                    stored bytes are damaged, forged or missing
    ├── UnsupportedError                  valid, but this version of casweights cannot do it
    ├── WrongProcessError (TypeError)     a handle of another process, or a copy of a handle
    ├── ClosedError (ValueError)          a handle is used after it was closed
    └── StoreError                        the storage failed (disk full, no permission, ...)

The classes tell how to handle an error. The precise cause is ``error.code``, an `ErrorCode`. Its
values are stable: new ones may be added, existing ones are never renamed or reused. Notes on an
error (PEP 678) say what may have been meant.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casweights.ids import SnapshotId, Suspect

_MAX_MESSAGE = 1000  # characters: messages quote names, and those of a hostile store may be huge
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
    EXPIRED = "expired"
    CLOCKS_DIFFER = "clocks-differ"
    BUSY = "busy"


class CasweightsError(Exception):
    """Base of all errors that casweights raises on purpose.

    Attributes:
        code: The precise cause. Its value is stable across versions.
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
    """Cut the middle out of a message that is too long."""
    if len(message) <= _MAX_MESSAGE:
        return message
    # The beginning says what is wrong, and the end what to do.
    half = (_MAX_MESSAGE - len(_CUT)) // 2
    return message[:half] + _CUT + message[-half:]


class InvalidInputError(CasweightsError, ValueError):
    """An argument or a source is not valid."""


class NotFoundError(CasweightsError, LookupError):
    """A store, ref, snapshot, file or tensor does not exist."""


class ConflictError(CasweightsError):
    """Another writer was first, or the operation would lose data; nothing was overwritten.

    Attributes:
        snapshot: ID of a version that was stored, but could not become the head of its branch. It
            stays in the store. None if no version was stored.
        files: Paths of the files that a checkout would have lost; empty for other conflicts.
    """

    snapshot: SnapshotId | None = None
    files: tuple[str, ...] = ()


class StaleError(CasweightsError):
    """Live tensors are not at the version that the operation expects."""


class IntegrityError(CasweightsError):
    """Stored bytes are damaged, truncated, forged or missing.

    Attributes:
        suspect: The damaged frame or pack; None if the damage is elsewhere.
    """

    suspect: Suspect | None = None


class UnsupportedError(CasweightsError):
    """The request is valid, but this version of casweights cannot carry it out."""


class WrongProcessError(CasweightsError, TypeError):
    """A handle is used in another process than its own, or it is copied or pickled.

    It is a `TypeError`, as Python raises for objects that cannot be pickled.
    """


class ClosedError(CasweightsError, ValueError):
    """A handle is used after it was closed, or after its store was closed.

    It is a `ValueError`, as Python raises for closed files.
    """


class StoreError(CasweightsError):
    """The storage failed: no space, no permission, no connection.

    Attributes:
        snapshot: ID of a version that a commit stored before the storage failed. It is unknown
            whether the branch has moved to it. It stays in the store. None if no version was
            stored.
    """

    snapshot: SnapshotId | None = None
