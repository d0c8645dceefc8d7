"""The command line. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run ``casweights`` with the arguments of this process."""
    from casweights.cli._app import root

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    root(prog_name="casweights")
