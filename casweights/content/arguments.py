"""What callers pass, checked and made uniform."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
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
    """A pattern or name alone is a list of one: its letters are no patterns."""
    return [given] if isinstance(given, str) else given


def to_sources(
    source: str | os.PathLike[str] | Mapping[Any, Any],
    exclude: Sequence[str],
    opaque: Sequence[str],
    extra_state: ExtraState = "keep",
) -> list[SourceFile]:
    """The files to commit, at least one."""
    if isinstance(source, Mapping):
        from casweights.content.states import StateFile

        check_choice("extra_state", extra_state, get_args(ExtraState))
        return [StateFile(without_extra_state(source) if extra_state == "drop" else source)]
    if isinstance(source, str | os.PathLike):
        files = scan(to_path(source), exclude=to_list(exclude), opaque=to_list(opaque))
        if not files:
            raise InvalidInputError(
                ErrorCode.BAD_ARGUMENT, f"there is no file to commit in {os.fspath(source)}"
            )
        return files
    raise InvalidInputError(
        ErrorCode.BAD_ARGUMENT,
        f"cannot commit a {type(source).__name__}: pass a path or a state dict (of a module: "
        "module.state_dict())",
    )


def check_choice(name: str, given: str, choices: tuple[str, ...]) -> None:
    """Refuse an argument that is none of these."""
    if given not in choices:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"{name}={given!r}: choose one of {', '.join(choices)}"
        )


def check_compression(compression: Compression) -> Compression:
    """A policy that there is."""
    if compression not in get_args(Compression):
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"unknown compression {compression!r}: choose 'auto', 'fast' or 'small'",
        )
    return compression


def to_utc(time: datetime | None) -> datetime:
    """A moment in UTC; None is now.

    Raises:
        InvalidInputError: It has no time zone, or its year in UTC is none from 1 to 9999.
    """
    if time is None:
        return datetime.now(UTC)
    if time.tzinfo is None:
        raise InvalidInputError(ErrorCode.BAD_ARGUMENT, "`time` needs a time zone")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT, f"`time` is {time}: in UTC, years go from 1 to 9999"
        ) from None
