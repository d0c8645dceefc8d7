"""Run a local Hub until it is interrupted."""

from __future__ import annotations

import argparse
import signal
from typing import Literal

from casweights.testing import hub


def main() -> None:
    """The program."""
    options = _parser().parse_args()
    conditions = hub.Conditions(latency=options.latency, bandwidth=options.bandwidth)
    tokens = dict(options.token) if options.token or options.check_tokens else None
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # also for the threads of the server
    with hub.LocalHub(
        options.folder,
        tokens,
        conditions,
        port=options.port,
        cas_port=options.cas_port,
        users=dict(options.user) or None,
    ) as server:
        print(f"HF_ENDPOINT={server.url}", f"CAS={server.cas_url}", sep="\n", flush=True)
        signal.sigwait(ends)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m casweights.testing.hub",
        description=hub.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="port of the Hub (default: any that is free)")
    add("--cas-port", type=int, default=0, help="port of CAS and CDN (default: any that is free)")
    add("--folder", help="where everything is kept (default: a temporary folder)")
    add("--latency", type=float, default=0.0, help="seconds added to every request")
    add("--bandwidth", type=float, help="bytes a second in each direction")
    add(
        "--token",
        type=_token,
        action="append",
        default=[],
        metavar="TOKEN:RIGHT",
        help="a token that may read or write; may be given several times",
    )
    add(
        "--user",
        type=_user,
        action="append",
        default=[],
        metavar="TOKEN:NAME",
        help="whose a token is; may be given several times (default: all are the same user's)",
    )
    add("--check-tokens", action="store_true", help="refuse all that have none of the tokens")
    return parser


def _token(text: str) -> tuple[str, Literal["read", "write"]]:
    token, _, right = text.rpartition(":")
    if right == "read":
        return token, "read"
    if right == "write":
        return token, "write"
    raise argparse.ArgumentTypeError("a token ends in :read or :write")


def _user(text: str) -> tuple[str, str]:
    token, _, name = text.rpartition(":")
    return token, name


if __name__ == "__main__":
    main()
