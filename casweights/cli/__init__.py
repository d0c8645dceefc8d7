"""The command line. Heavy modules are imported only when a verb needs them."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run ``casweights`` with the arguments of this process."""
    # An interrupt during imports leaves nothing to clean up, and its traceback would help no user.
    # Shells let commands in the background ignore interrupts: that must stay as it is.
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from casweights.cli._app import run
    from casweights.cli._streams import open_standard_streams

    open_standard_streams()
    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run())
