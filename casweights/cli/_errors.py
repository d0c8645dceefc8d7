"""From an error to its exit status and message: the one table."""

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
    """What a command's exit status says. Append-only; 3 is kept for work that is partly done."""

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
    Exit.CONFLICT: "something is there already, or another writer was first",
    Exit.PERMISSION: "no permission",
    Exit.INTEGRITY: "the store is damaged",
    Exit.UNREACHABLE: "the store cannot be reached",
    Exit.INTERRUPTED: "interrupted",
}

_STATUSES: tuple[tuple[type[CasweightsError], ErrorCode | None, Exit], ...] = (
    (NotFoundError, ErrorCode.STORE_NOT_FOUND, Exit.NO_STORE),
    (ConflictError, None, Exit.CONFLICT),
    (StoreError, ErrorCode.NO_PERMISSION, Exit.PERMISSION),
    (StoreError, ErrorCode.UNREACHABLE, Exit.UNREACHABLE),
    (StoreError, ErrorCode.OFFLINE, Exit.UNREACHABLE),
    (IntegrityError, None, Exit.INTEGRITY),
)

_HINTS = {
    ErrorCode.REF_NOT_FOUND: "`casweights branch` and `casweights tag` list the names there are",
    ErrorCode.FILE_NOT_FOUND: "`casweights ls REF` lists the files of a version",
    ErrorCode.CORRUPT_OBJECT: "`casweights verify` finds everything that is damaged",
    ErrorCode.UNSAVED_FILES: "`casweights commit` stores them; `--force` gives them up",
    ErrorCode.MISSING_CHUNK: "`casweights verify` finds everything that is damaged",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as the command line reports it.

    Attributes:
        status: The exit status.
        code: The precise cause: an `ErrorCode` or one of the command line's own.
        message: What happened.
        hint: What to do next.
        extra: Further fields for programs.
    """

    status: Exit
    code: str
    message: str
    hint: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def status_of(error: CasweightsError) -> Exit:
    """The exit status for an error of the library."""
    for kind, code, status in _STATUSES:
        if isinstance(error, kind) and code in (None, error.code):
            return status
    return Exit.ERROR


def status_of_all(errors: Sequence[CasweightsError]) -> Exit:
    """The exit status for several errors: damage counts most."""
    statuses = {status_of(error) for error in errors}
    return max(statuses, default=Exit.OK)


def describe(error: BaseException) -> Failure:
    """What to tell about an error."""
    match error:
        case CasweightsError():
            snapshot, files = getattr(error, "snapshot", None), getattr(error, "files", ())
            return Failure(
                status=status_of(error),
                code=error.code,
                message=error.message,
                hint=_HINTS.get(error.code),
                extra=({"id": snapshot} if snapshot else {}) | ({"files": files} if files else {}),
            )
        case click.UsageError():
            return Failure(status=Exit.USAGE, code="usage", message=error.format_message())
        case KeyboardInterrupt() | click.Abort():
            status = Exit.INTERRUPTED
            return Failure(status=status, code="interrupted", message="interrupted")
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


@contextmanager
def reported(out: Output, *, as_json: bool) -> Iterator[None]:
    """Report what goes wrong inside, and exit with its status."""
    try:
        yield
    except click.exceptions.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        failure = describe(error)
        if isinstance(error, OutputError | OSError | KeyboardInterrupt):
            discard(sys.stdout)
        with suppress(OSError, OutputError):  # nobody listens: the status has to do
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
        if failure.hint:
            out.hint(failure.hint)
