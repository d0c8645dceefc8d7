"""Stores versions of a real model and checks that they come back identical, byte by byte.

The first part uses a store in a directory, the second a store in a bucket of a local Hugging Face
Hub. In the third part, a trainer publishes every step of another model to a bucket, and replicas
follow it. Everything runs in a temporary directory without a network connection. The exit status is
1 if a check fails.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import casweights
from tools.demos import hub, local
from tools.demos.common import RECIPES, MismatchError
from tools.demos.live import story

if TYPE_CHECKING:
    from collections.abc import Iterator


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/demo", description=__doc__)
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="run the first part in DIR and keep it"
    )
    keep: Path | None = parser.parse_args().keep
    if keep and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        parser.error(f"--keep needs a new or empty directory, got {keep}")
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, _end)
    start = time.perf_counter()
    print(
        "casweights stores versions of model weights, each byte once. Six versions of a real model:"
    )
    try:
        with work_directory(keep) as work:
            local.run(work)
            hub.run(work)
            story.run(work)
    except (MismatchError, casweights.CasweightsError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    print(
        f"\nAll checks passed: {len(RECIPES)} versions from the directory and from the bucket, and "
        f"live weights of replicas; {time.perf_counter() - start:.0f} s."
    )
    if keep:
        programs, store = Path(sys.executable).parent, local.STORE
        print(
            f"To look around:\n   cd {keep}; export PATH={programs}:$PATH CASWEIGHTS_STORE={store}"
        )
        print(f"   casweights branch; casweights stats; casweights show {local.RELEASE}")
    return 0


@contextmanager
def work_directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="casweights-demo-") as directory:
        yield Path(directory)


def _end(number: int, _: object) -> None:
    """End by an exception, so that temporary files are deleted and processes end."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
