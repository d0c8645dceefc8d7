"""Chaos test: many processes work on one store while some of them are killed or stopped.

The processes commit, publish, follow, name, repack, verify, push and pull, with the library and
the command line. Each keeps a journal of the results that were reported to it. At the end, the
store must hold all of them, bit for bit, no process may have hung, and none may have ended with an
exit status that is not documented. The program prints its counts and the problems as JSON. If there
are problems, it ends with status 1 and keeps the folder of the run.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import casweights
from casweights.testing.hub import LocalHubProcess
from tests.faults.chaos_oracle import find_problems
from tests.faults.chaos_workers import ROLES, Place, read_journals, work
from tests.faults.hub_driver import BUCKET, import_client
from tests.faults.kill_driver import fork
from tests.faults.sync_states import CONFIG, expect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_HANG = 60.0  # seconds after which a worker counts as hanging
_LAST = 240.0  # seconds for the checks at the end
_TICK = 0.02  # seconds between looks at a child
_BEGUN = {"follow", "read", "make", "repack"}  # work that a run must at least begin,
_DONE = {"commit", "publish"}  # and work that it must complete, before it may end early


class Conductor:
    """Starts the workers, kills and stops them at random, and replaces those that ended.

    Args:
        place: Folder and store of the run.
        seed: Seed of all random choices.
        roles: Roles of the workers, one worker each.

    Attributes:
        problems: Descriptions of what went wrong.
        counts: Number of workers that were killed and stopped, and that ended.
    """

    def __init__(self, place: Place, seed: int, roles: Sequence[str]) -> None:
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self._place = place
        self._seed = seed
        self._roles = roles
        self._chance = random.Random(seed)
        self._workers: dict[str, int] = {}
        self._numbers: Counter[str] = Counter()

    def run(self, seconds: float, disturbances: int) -> None:
        """Disturb the workers until enough time or disturbances have passed; then end them."""
        end = time.monotonic() + seconds
        for role in self._roles:
            self._start(role)
        while time.monotonic() < end and not self._is_enough(disturbances):
            time.sleep(self._chance.uniform(0, 0.4))
            self._disturb(self._chance.choice(self._roles))
            self._replace_the_dead()
        (self._place.folder / "stop").touch()
        self._end()

    def _is_enough(self, disturbances: int) -> bool:
        """Return whether there were enough disturbances, with every kind of work under way."""
        if self.counts["killed"] + self.counts["stopped"] < disturbances:
            return False
        lines = read_journals(self._place.folder / "journal")
        done = {line["what"] for line in lines if line["done"]}
        return done >= _DONE and {line["what"] for line in lines} >= _BEGUN

    def _start(self, role: str) -> None:
        number = self._numbers[role]
        self._numbers[role] += 1
        self._workers[role] = self._child(
            f"{role}-{number}", lambda: work(self._place, role, number, self._seed)
        )

    def _child(self, name: str, action: Callable[[], object]) -> int:
        """Fork a child with a process group of its own, so that signals reach its commands, too."""

        def act() -> None:
            os.setpgid(0, 0)
            errors = os.open(self._place.folder / f"{name}.stderr", os.O_CREAT | os.O_WRONLY)
            os.dup2(errors, 2)
            action()

        child = fork(act)
        with suppress(PermissionError, ProcessLookupError):  # the child did it, or has ended
            os.setpgid(child, child)
        return child

    def _disturb(self, role: str) -> None:
        group = self._workers[role]
        with suppress(ProcessLookupError):  # it ended by itself; `_replace_the_dead` notices
            if self._chance.random() < 0.5:
                os.killpg(group, signal.SIGSTOP)
                time.sleep(self._chance.uniform(0, 0.5))
                os.killpg(group, signal.SIGCONT)
                self.counts["stopped"] += 1
            else:
                os.killpg(group, signal.SIGKILL)
                self.counts["killed"] += 1

    def _replace_the_dead(self) -> None:
        for role, child in [*self._workers.items()]:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self._judge(role, os.waitstatus_to_exitcode(status))
                self._start(role)

    def _judge(self, role: str, code: int) -> None:
        self.counts["ended"] += 1
        if code not in (0, -signal.SIGKILL):
            self.problems.append(f"a worker of {role} ended with {code}")

    def _end(self) -> None:
        deadline = time.monotonic() + _HANG
        for role, child in self._workers.items():
            self._judge(role, self._wait(role, child, deadline))

    def _wait(self, what: str, child: int, deadline: float) -> int:
        """Return the exit status of a child; kill it at the deadline and record that it hangs."""
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(_TICK)
        self.problems.append(f"{what} hangs")
        os.killpg(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def in_child(self, name: str, action: Callable[[], Any]) -> Any:
        """Return the result of `action`, run in a child: this process must not get threads."""
        path = self._place.folder / f"{name}.json"
        child = self._child(name, lambda: path.write_text(json.dumps(action())))
        code = self._wait(name, child, time.monotonic() + _LAST)
        if code == 0:
            return json.loads(path.read_text())
        text = (self._place.folder / f"{name}.stderr").read_text()
        self.problems.append(f"{name} ended with {code}: {text[-1500:]}")
        return None


def run_chaos(
    place: Place, seconds: float, disturbances: int, seed: int, roles: Sequence[str]
) -> dict[str, Any]:
    """Run once; return the counts and the problems."""
    conductor = Conductor(place, seed, roles)
    conductor.in_child("create", lambda: _create(place))
    conductor.run(seconds, disturbances)
    found = conductor.in_child("oracle", lambda: find_problems(place))
    lines = read_journals(place.folder / "journal")
    return {
        "seed": seed,
        "problems": [*conductor.problems, *(found or [])],
        "workers": conductor.counts,
        "begun": Counter(line["what"] for line in lines if not line["done"]),
        "done": Counter(line["what"] for line in lines if line["done"]),
    }


def _create(place: Place) -> None:
    casweights.open(place.objects(), create=True, config=CONFIG).close()


def _prepare_environment(folder: Path, hub: str | None) -> None:
    """Prepare the environment and the imports that all processes of the run inherit."""
    os.environ |= {
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": "hf_chaos",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        **({"HF_ENDPOINT": hub} if hub else {}),
    }
    torch.set_num_threads(1)  # a fork would lose torch's other threads
    if hub:
        import_client()
    expect(59)
    gc.freeze()  # otherwise a collection in a child copies all objects of this process


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/soak/run chaos", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="length of the run, default 300"
    )
    parser.add_argument(
        "--disturbances", type=int, default=sys.maxsize, help="end earlier, after this many"
    )
    parser.add_argument("--seed", type=int, default=None, help="seed of all random choices")
    parser.add_argument(
        "--store", choices=["directory", "hub"], default="directory", help="kind of store to use"
    )
    parser.add_argument("--folder", type=Path, help="folder to keep (default: temporary)")
    parser.add_argument(
        "--roles",
        nargs="+",
        choices=[*ROLES],
        default=[*ROLES],
        metavar="ROLE",
        help=", ".join(ROLES),
    )
    wanted = parser.parse_args()
    seed = random.randrange(1 << 32) if wanted.seed is None else wanted.seed
    folder = wanted.folder or Path(tempfile.mkdtemp(prefix="casweights-chaos-"))
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        hub = None
        if wanted.store == "hub":
            process = stack.enter_context(LocalHubProcess(folder / "hub"))
            process.create_bucket(BUCKET)
            hub = process.url
        _prepare_environment(folder, hub)
        place = Place(folder, hub)
        result = run_chaos(place, wanted.seconds, wanted.disturbances, seed, wanted.roles)
    print(json.dumps(result))
    if result["problems"]:
        print(f"{wanted.store}, seed {seed}: the files of the run are in {folder}", file=sys.stderr)
        print(*result["problems"], sep="\n\n", file=sys.stderr)
        sys.exit(1)
    if wanted.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
