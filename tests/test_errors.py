"""The tree of errors."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from casweights import errors
from casweights.errors import (
    CasweightsError,
    ClosedError,
    ConflictError,
    ErrorCode,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StaleError,
    StoreError,
    UnsupportedError,
    WrongProcessError,
)
from casweights.ids import SnapshotId

LEAVES = [
    InvalidInputError,
    NotFoundError,
    ConflictError,
    StaleError,
    IntegrityError,
    UnsupportedError,
    WrongProcessError,
    ClosedError,
    StoreError,
]


def test_the_error_classes_match_the_drawing() -> None:
    assert errors.__doc__ is not None
    drawn = re.findall(r"[├└]── (\w+)(?: \((\w+)\))?", errors.__doc__)
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert {name for name, _ in drawn} | {"CasweightsError"} == classes.keys()
    for name, builtin in drawn:
        bases = [base.__name__ for base in classes[name].__bases__]
        assert bases == ["CasweightsError", *([builtin] if builtin else [])]


@pytest.mark.parametrize("kind", LEAVES)
def test_errors_pickle_and_copy_with_their_notes(kind: type[CasweightsError]) -> None:
    error = kind(ErrorCode.IO_FAILED, "it failed")
    error.add_note("a note")
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(copied) is kind
        assert copied.code is ErrorCode.IO_FAILED
        assert str(copied) == copied.message == "it failed"
        assert copied.__notes__ == ["a note"]


@pytest.mark.parametrize("kind", [ConflictError, StoreError])
def test_errors_of_commits_keep_their_snapshot(kind: type[ConflictError | StoreError]) -> None:
    error = kind(ErrorCode.REF_MOVED, "moved")
    assert error.snapshot is None
    error.snapshot = SnapshotId(b"s" * 32)
    assert pickle.loads(pickle.dumps(error)).snapshot == error.snapshot


def test_builtin_exception_types_catch_our_errors() -> None:
    with pytest.raises(ValueError, match="bad"):
        raise InvalidInputError(ErrorCode.BAD_ARGUMENT, "bad")
    with pytest.raises(LookupError, match="gone"):
        raise NotFoundError(ErrorCode.REF_NOT_FOUND, "gone")


def test_codes_are_stable() -> None:
    """Append to this list; never change a value."""
    assert [code.value for code in ErrorCode] == [
        "bad-argument",
        "bad-name",
        "bad-path",
        "bad-safetensors",
        "bad-state",
        "source-unreadable",
        "source-changed",
        "store-not-found",
        "object-not-found",
        "ref-not-found",
        "snapshot-not-found",
        "file-not-found",
        "tensor-not-found",
        "ambiguous",
        "already-exists",
        "ref-moved",
        "corrupt-object",
        "missing-chunk",
        "newer-format",
        "unsupported",
        "no-space",
        "no-permission",
        "io-failed",
        "unreachable",
        "target-mismatch",
        "stale",
        "torn",
        "unsaved-files",
        "bad-index",
        "wrong-process",
        "foreign-refs",
        "closed",
        "lfs-pointer",
        "stored-twice",
        "offline",
        "expired",
        "clocks-differ",
        "busy",
    ]
