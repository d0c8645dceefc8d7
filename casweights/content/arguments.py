"""Check the arguments of callers, and convert them to one form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

from casweights.config import Compression
from casweights.content.files import scan
from casweights.content.trees import ExtraState, without_extra_state
from casweights.errors import ErrorCode, InvalidInputError
from casweights.system.files import to_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casweights.content.files import SourceFile


def to_list(given: Sequence[str]) -> Sequence[str]:
    """Return a list of patterns or names; a single string becomes a list with this string."""
    return [given] if isinstance(given, str) else given


def to_sources(
    source: str | os.PathLike[str] | Mapping[Any, Any],
    exclude: Sequence[str],
    opaque: Sequence[str],
    extra_state: ExtraState = "keep",
) -> list[SourceFile]:
    """Return the files to commit, at least one.

    Args:
        source: A directory, a file or a state dict.
        exclude: Patterns of files and folders of a directory to leave out.
        opaque: Patterns of files to store as plain bytes.
        extra_state: Whether to keep what modules return from ``get_extra_state``.

    Raises:
        InvalidInputError: The source is of another type, contains no file, or cannot be read.
        UnsupportedError: A tensor of the state dict cannot be stored.
    """
    if isinstance(source, Mapping):
        from casweights.content.states import StateFile

        check_choice("extra_state", extra_state, get_args(ExtraState))
        return [StateFile(without_extra_state(source) if extra_state == "drop" else source)]
    if isinstance(source, str | os.PathLike):
        files = scan(to_path(source), exclude=to_list(exclude), opaque=to_list(opaque))
        if not files:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT,
                f"{os.fspath(source)} contains no file to commit: check the path and the exclude "
                "patterns",
            )
        return files
    raise InvalidInputError(
        ErrorCode.BAD_ARGUMENT,
        "the source must be a path or a state dict (for a module, module.state_dict()), got "
        f"{type(source).__name__}",
    )


def check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    """Check that an argument is one of the choices.

    Args:
        name: The argument's name, for the error.
        given: What the caller passed.
        choices: The values that the argument may have.

    Raises:
        InvalidInputError: It is another value.
    """
    if given not in choices:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"{name} must be one of {', '.join(choices)}, got {given!r}"
        )


def check_compression(compression: Compression) -> Compression:
    """Return `compression` if it is a known policy.

    Raises:
        InvalidInputError: It is not.
    """
    check_choice("compression", compression, get_args(Compression))
    return compression


def check_grace(grace: timedelta) -> timedelta:
    """Return a grace time if it is not negative.

    Raises:
        InvalidInputError: It is.
    """
    if grace < timedelta(0):
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"the grace time must be at least 0, got {grace}"
        )
    return grace


def to_utc(time: datetime | None) -> datetime:
    """Convert a time to UTC; None becomes the current time.

    Raises:
        InvalidInputError: It has no time zone, or its year in UTC is outside 1 to 9999.
    """
    if time is None:
        return datetime.now(UTC)
    if time.tzinfo is None:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"time must have a time zone, got {time}: pass tzinfo, e.g. UTC"
        )
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"time must be in the years 1 to 9999 in UTC, got {time}"
        ) from None
