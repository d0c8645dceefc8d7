"""The standard streams of the process, including those that its caller has closed."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO


def open_standard_streams() -> None:
    """Make writes to closed streams fail, and let the open ones accept every character.

    If a descriptor stayed closed, the next file that is opened would get it, and the output of
    libraries would go into that file.
    """
    for name, descriptor in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            _occupy(descriptor)
            mode = "w" if descriptor else "r"
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        # A name with a character that the encoding lacks must not end the command.
        if descriptor and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Drop the buffered output of a stream, which the interpreter would try to write at exit."""
    with suppress(OSError, ValueError):
        _redirect_to_null(stream.fileno(), os.O_WRONLY)


def _occupy(descriptor: int) -> None:
    """Open a closed descriptor such that every use of it fails."""
    with suppress(OSError):
        os.fstat(descriptor)
        return
    # The wrong way round on purpose: reading from standard input and writing to the others fails.
    _redirect_to_null(descriptor, os.O_RDONLY if descriptor else os.O_WRONLY)


def _redirect_to_null(descriptor: int, flags: int) -> None:
    null = os.open(os.devnull, flags)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
