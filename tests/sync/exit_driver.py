"""Programs that end without closing their publishers; run by `test_exit.py` as a process.

Each program is a fork of this process, which has no threads, and ends with the end of the
interpreter, as programs do. Its standard error is written to a file. A program that runs for more
than `LIMIT` seconds is ended.
"""

from __future__ import annotations

import functools
import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.database import writer
from casweights.errors import ErrorCode, StoreError, WrongProcessError
from casweights.stores.local import LocalStore
from casweights.sync.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casweights.system.buffers import Buffer

LIMIT = 120  # seconds
torch.set_num_threads(1)  # threads of torch would be missing in forks
STATE = {"w": torch.arange(100_000)}


class Late(LocalStore):
    """Writes snapshots only after the main thread has ended."""

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        if name.startswith("snapshots/"):
            threading.main_thread().join()
        return super().put(name, parts)


class Stuck(LocalStore):
    """Never returns from a write."""

    reached = threading.Event()
    where = "snapshots/"

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        if name.startswith(self.where):
            self.reached.set()
            threading.Event().wait()
        return super().put(name, parts)


class Failing(LocalStore):
    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        if name.startswith("snapshots/"):
            raise StoreError(ErrorCode.NO_SPACE, "the disk is full")
        return super().put(name, parts)


def publish(
    store: LocalStore, steps: Sequence[int] = (1, 2), *, exit_timeout: float = LIMIT
) -> Publisher:
    publisher = Publisher(store, "live", exit_timeout=exit_timeout)
    for step in steps:
        STATE["w"] += 1
        publisher.publish(STATE, step=step)
    return publisher


def end_normally(root: Path) -> None:
    publish(Late(root))


def end_with_a_status(root: Path) -> None:
    publish(Late(root))
    sys.exit(7)


def end_with_an_error(root: Path) -> None:
    publish(Late(root))
    raise LookupError("the program's own")


def end_before_another_thread(root: Path) -> None:
    """A thread opens its publisher when the main thread has ended already."""

    def run() -> None:
        threading.main_thread().join()
        publish(LocalStore(root))

    publish(LocalStore(root), ()).close()
    threading.Thread(target=run).start()
    Publisher(LocalStore(root), "other")  # is open at that time


def end_of_a_child(method: str, root: Path) -> None:
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=end_normally, args=[root])
    child.start()
    child.join()
    sys.exit(child.exitcode)


def end_while_a_write_hangs(root: Path) -> None:
    publish(Stuck(root), exit_timeout=0.2)


def end_while_a_pack_hangs(root: Path) -> None:
    """If a version has several packs, other threads write them than the snapshot."""
    Stuck.where = "packs/"
    vars(writer)["PACK_TARGET"] = 4 * KiB
    publish(Stuck(root), (1,), exit_timeout=0.2)


def end_without_a_wait(root: Path) -> None:
    publish(Stuck(root), exit_timeout=0)


def end_by_an_interrupt(root: Path) -> None:
    """The interrupt comes when the main thread has ended, and the program waits for others."""
    # Python ignores the signal if the parent did, as in a shell's background jobs.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Interrupting(LocalStore):
        def put(self, name: str, parts: Sequence[Buffer]) -> bool:
            if name.startswith("snapshots/"):
                threading.main_thread().join()
                while True:  # the first interrupt may come before the wait begins
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(5)
            return super().put(name, parts)

    publish(Interrupting(root))


def end_with_a_failure(root: Path) -> None:
    publish(Failing(root), (1,))


def end_with_a_conflict(root: Path) -> None:
    publisher = Publisher(LocalStore(root), "live")
    with casweights.open(root) as store:
        store.commit({"w": "theirs"}, branch="live")
    publisher.publish(STATE, step=1)


def end_with_failures_that_were_raised(root: Path) -> None:
    publisher = publish(Failing(root), (1,))
    try:
        publisher.close()
    except StoreError:
        sys.exit(5)


def fork_while_a_write_hangs(root: Path) -> None:
    """The child ends normally, and has nothing to wait for."""
    publisher = publish(Stuck(root), exit_timeout=0.2)
    Stuck.reached.wait()
    child = os.fork()
    if child == 0:
        try:
            publisher.publish(STATE, step=3)
        except WrongProcessError:
            sys.exit(9)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


PROGRAMS: dict[str, Callable[[Path], None]] = {
    **{
        program.__name__: program
        for program in (
            end_normally,
            end_with_a_status,
            end_with_an_error,
            end_before_another_thread,
            end_while_a_write_hangs,
            end_while_a_pack_hangs,
            end_without_a_wait,
            end_by_an_interrupt,
            end_with_a_failure,
            end_with_a_conflict,
            end_with_failures_that_were_raised,
            fork_while_a_write_hangs,
        )
    },
    "end_of_a_forked_child": functools.partial(end_of_a_child, "fork"),
    "end_of_a_spawned_child": functools.partial(end_of_a_child, "spawn"),
}


def main(folder: Path) -> None:
    """Run all programs at once; returns in each of them, and finally in the process itself."""
    gc.freeze()
    names = {}
    for name, program in PROGRAMS.items():
        (folder / name).mkdir()
        child = os.fork()
        if child == 0:
            errors = os.open(folder / name / "stderr", os.O_WRONLY | os.O_CREAT)
            os.dup2(errors, 2)
            signal.alarm(LIMIT)
            root = folder / name / "store"
            casweights.open(root, create=True, config=StoreConfig(chunk_size=64 * KiB)).close()
            program(root)
            return
        names[child] = name
    for _ in PROGRAMS:
        child, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        (folder / names[child] / "status").write_text(json.dumps(code))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
