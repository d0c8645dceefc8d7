"""The exit status, message and hint for each error: the only place that decides them."""

from __future__ import annotations

import sys
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import click

from casweights.cli._output import Mode, OutputError, to_json
from casweights.cli._streams import discard
from casweights.errors import (
    CasweightsError,
    ConflictError,
    ErrorCode,
    IntegrityError,
    NotFoundError,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.cli._output import Output


class Exit(IntEnum):
    """The exit statuses of commands. Append-only; 3 is reserved for work that is partly done."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NO_STORE = 10
    CONFLICT = 11
    PERMISSION = 12
    INTEGRITY = 13
    UNREACHABLE = 14
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS = {
    Exit.OK: "done",
    Exit.ERROR: "an error; the message says which",
    Exit.USAGE: "the command line is not valid",
    Exit.NO_STORE: "there is no store",
    Exit.CONFLICT: "something exists already, or another writer was first",
    Exit.PERMISSION: "no permission",
    Exit.INTEGRITY: "the store is damaged",
    Exit.UNREACHABLE: "the store cannot be reached",
    Exit.INTERRUPTED: "interrupted",
}

# The first row that fits decides; None stands for all codes.
_STATUSES: tuple[tuple[type[CasweightsError], ErrorCode | None, Exit], ...] = (
    (NotFoundError, ErrorCode.STORE_NOT_FOUND, Exit.NO_STORE),
    (ConflictError, None, Exit.CONFLICT),
    (StoreError, ErrorCode.NO_PERMISSION, Exit.PERMISSION),
    (StoreError, ErrorCode.UNREACHABLE, Exit.UNREACHABLE),
    (StoreError, ErrorCode.OFFLINE, Exit.UNREACHABLE),
    (IntegrityError, None, Exit.INTEGRITY),
)

_HINTS = {
    ErrorCode.REF_NOT_FOUND: "`casweights branch` and `casweights tag` list the existing names",
    ErrorCode.SNAPSHOT_NOT_FOUND: "`casweights log REF` lists versions and their IDs",
    ErrorCode.FILE_NOT_FOUND: "`casweights ls REF` lists the files of a version",
    ErrorCode.CORRUPT_OBJECT: "`casweights verify` lists all damage",
    ErrorCode.UNSAVED_FILES: "`casweights commit` stores them; --force overwrites or deletes them",
    ErrorCode.EXPIRED: "`casweights log REF` lists the versions that stayed",
    ErrorCode.MISSING_CHUNK: "`casweights verify` lists all damage",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as the command line reports it.

    Attributes:
        status: The exit status.
        code: The precise cause: an `ErrorCode` or one of the command line's own.
        message: What happened.
        hints: What may have been meant, or what to do next.
        extra: Further fields of the JSON, for programs.
    """

    status: Exit
    code: str
    message: str
    hints: Sequence[str] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def status_of(error: CasweightsError) -> Exit:
    """Return the exit status for an error of the library."""
    for kind, code, status in _STATUSES:
        if isinstance(error, kind) and code in (None, error.code):
            return status
    return Exit.ERROR


def status_of_all(errors: Sequence[CasweightsError]) -> Exit:
    """Return the exit status for several errors: that of damage before all others."""
    statuses = {status_of(error) for error in errors}
    return max(statuses, default=Exit.OK)


def describe(error: BaseException) -> Failure:
    """Return the report of an error. Its notes replace the general hint for its code."""
    match error:
        case CasweightsError():
            snapshot, files = getattr(error, "snapshot", None), getattr(error, "files", ())
            return Failure(
                status=status_of(error),
                code=error.code,
                message=error.message,
                hints=_hints(error),
                extra=({"id": snapshot} if snapshot else {}) | ({"files": files} if files else {}),
            )
        case click.UsageError():
            return Failure(status=Exit.USAGE, code="usage", message=error.format_message())
        case KeyboardInterrupt() | click.Abort():
            status = Exit.INTERRUPTED
            return Failure(status=status, code="interrupted", message="interrupted")
        # The reader has left on purpose, as in `| head`: a message would only disturb.
        case OutputError(error=BrokenPipeError()) | BrokenPipeError():
            return Failure(status=Exit.BROKEN_PIPE, code="", message="")
        case OutputError():
            message = f"cannot write the output: {error.error.strerror}"
            return Failure(status=Exit.ERROR, code=ErrorCode.IO_FAILED, message=message)
        case OSError():
            return Failure(status=Exit.ERROR, code=ErrorCode.IO_FAILED, message=str(error))
        case MemoryError():
            message = "there is not enough memory"
            return Failure(status=Exit.ERROR, code="no-memory", message=message)
        case _:
            return Failure(
                status=Exit.ERROR,
                code="internal-error",
                message=f"this is a bug of casweights: {type(error).__name__}: {error}",
                extra={"traceback": "".join(traceback.format_exception(error))},
            )


def _hints(error: CasweightsError) -> Sequence[str]:
    notes: Sequence[str] = getattr(error, "__notes__", ())
    return notes or ([_HINTS[error.code]] if error.code in _HINTS else ())


@contextmanager
def reported(out: Output, *, as_json: bool) -> Iterator[None]:
    """Report an error that the block raises, and exit with its status."""
    try:
        yield
    except click.exceptions.Exit:  # the end of --help, --version, and of verbs with a status
        raise
    except (Exception, KeyboardInterrupt) as error:
        failure = describe(error)
        if isinstance(error, OutputError | OSError | KeyboardInterrupt):
            # The interpreter would write the buffer at its end, and fail or block again.
            discard(sys.stdout)
        with suppress(OSError, OutputError):  # standard error is closed: the status must do
            _report(failure, error, out, as_json=as_json or out.mode is Mode.JSON)
        raise click.exceptions.Exit(failure.status) from error


def _report(failure: Failure, error: BaseException, out: Output, *, as_json: bool) -> None:
    if failure.status is Exit.BROKEN_PIPE:
        return
    if as_json:
        data = {"code": failure.code, "message": failure.message, "exit_code": failure.status}
        line = to_json({"message_type": "error", **data, **failure.extra})
        sys.stderr.write(line + "\n")
    elif isinstance(error, click.UsageError):
        error.show()
    else:
        sys.stderr.write(failure.extra.get("traceback", ""))
        out.error(failure.message)
        for hint in failure.hints:
            out.hint(hint)
