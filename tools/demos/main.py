"""Real versions of a real model go into stores and come back identical, byte by byte.

First into a store in a directory, then into one in a bucket of a local Hugging Face Hub. At last a
trainer publishes every step of another model to such a bucket, and replicas follow it. Everything
happens in a temporary directory, without network, and is checked on the way: the exit status is 1
if anything is not what it must be.
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
        "--keep", type=Path, metavar="DIR", help="do the first part in DIR and leave it there"
    )
    keep: Path | None = parser.parse_args().keep
    if keep and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        parser.error(f"{keep} is not an empty directory")
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, _end)
    start = time.perf_counter()
    print(
        "casweights keeps versions of model weights, each byte once. Here are six of a real model."
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
        f"\nEverything matches: all {len(RECIPES)} versions were compared, from the directory and "
        f"from the bucket, and live weights of replicas; {time.perf_counter() - start:.0f} s."
    )
    if keep:
        programs, store = Path(sys.executable).parent, local.STORE
        print(f"Look around:\n   cd {keep}; export PATH={programs}:$PATH CASWEIGHTS_STORE={store}")
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
    """Unwind, so that nothing is left behind."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
