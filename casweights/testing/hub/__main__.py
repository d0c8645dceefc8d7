"""Run a local Hub until it is interrupted."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING

from casweights.testing import hub

if TYPE_CHECKING:
    from casweights.testing.hub.access import Right


def main() -> None:
    """Start a local Hub, print its addresses, and stop at SIGINT or SIGTERM."""
    options = _parser().parse_args()
    conditions = hub.Conditions(latency=options.latency, bandwidth=options.bandwidth)
    tokens = dict(options.token) if options.token or options.check_tokens else None
    ends = {signal.SIGINT, signal.SIGTERM}
    # Before the server starts, because its threads inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with hub.LocalHub(
        options.folder,
        tokens,
        conditions,
        port=options.port,
        cas_port=options.cas_port,
        users=dict(options.user) or None,
    ) as server:
        # `LocalHubProcess` reads the ports from these two lines.
        print(f"HF_ENDPOINT={server.url}", f"CAS={server.cas_url}", sep="\n", flush=True)
        signal.sigwait(ends)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m casweights.testing.hub",
        description=hub.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="port of the Hub (default: a free one)")
    add("--cas-port", type=int, default=0, help="port of the CAS and CDN (default: a free one)")
    add("--folder", help="folder for all data (default: a temporary one)")
    add("--latency", type=float, default=0.0, help="seconds added to every request (default: 0)")
    add("--bandwidth", type=float, help="bytes per second in each direction (default: no limit)")
    add(
        "--token",
        type=_token,
        action="append",
        default=[],
        metavar="TOKEN:RIGHT",
        help="a token, and its right: read, add or write; may be repeated",
    )
    add(
        "--user",
        type=_user,
        action="append",
        default=[],
        metavar="TOKEN:NAME",
        help="the user who owns a token; may be repeated (default: one user owns all)",
    )
    add("--check-tokens", action="store_true", help="refuse requests without a known token")
    return parser


def _token(text: str) -> tuple[str, Right]:
    token, _, right = text.rpartition(":")
    if right == "read":
        return token, "read"
    if right == "add":
        return token, "add"
    if right == "write":
        return token, "write"
    message = f"a token must end in :read, :add or :write, got {text!r}"
    raise argparse.ArgumentTypeError(message)


def _user(text: str) -> tuple[str, str]:
    token, _, name = text.rpartition(":")
    return token, name


if __name__ == "__main__":
    main()
