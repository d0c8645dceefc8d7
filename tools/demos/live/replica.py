"""A replica of the demo's third part: a process that starts without weights and follows them.

It generates a batch of rollouts for each new version. A second thread fetches changes while the
main thread generates, so that generation pauses only while tensors are written.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import casweights
from tools.demos.live.wire import PUBLISHED, STORE, Delivery, Journal, RolloutFolder, digest
from tools.models import rl_task

if TYPE_CHECKING:
    from casweights.ids import SnapshotId

POLL = 0.1  # seconds between two polls of the branch


class Replica:
    """Live weights, which follow the latest version except for some steps.

    Args:
        store: The store to follow.
        name: Name of the replica.
        journal: The journal to write to.
        lag: Steps that the replica skips, during which it generates with old weights.
    """

    def __init__(
        self, store: casweights.Repository, name: str, journal: Journal, lag: range
    ) -> None:
        self.store = store
        self.name = name
        self.journal = journal
        self.lag = lag
        self.folder = RolloutFolder()
        self.subscriber = casweights.Subscriber(store)
        self.policy: Any = None
        self.heads: SimpleQueue[SnapshotId | BaseException] = SimpleQueue()

    def run(self) -> None:
        stop = threading.Event()
        with self.subscriber:
            self.policy = self.new_policy(self.first_version())
            watch = threading.Thread(target=self.watch, args=[stop])
            watch.start()
            try:
                while not self.follow():
                    pass
            finally:
                stop.set()
                watch.join()
        weights = digest(self.policy.state_dict())
        self.journal.write("done", snapshot=str(self.subscriber.version), digest=weights)

    def first_version(self) -> SnapshotId:
        while (head := self.subscriber.head()) is None:
            time.sleep(POLL)
        return head

    def new_policy(self, version: SnapshotId) -> Any:
        """Return a model of the version's architecture, with arbitrary weights."""
        config = json.loads(b"".join(self.store.read(version, "config.json")))
        models: Any = AutoModelForCausalLM
        return models.from_config(AutoConfig.for_model(**config), dtype=PUBLISHED)

    def watch(self, stop: threading.Event) -> None:
        try:
            self.subscriber.follow(self.fetch, stop=stop, interval=POLL, max_interval=2 * POLL)
        except BaseException as error:  # the main thread raises it
            self.heads.put(error)

    def fetch(self, head: SnapshotId) -> None:
        if self.step_of(head) not in self.lag:
            head = self.subscriber.prefetch(self.policy)
        self.heads.put(head)

    def follow(self) -> bool:
        """Sync to a new head and generate rollouts; return whether the version was the last one."""
        head = self.heads.get()
        while not self.heads.empty():
            head = self.heads.get()
        if isinstance(head, BaseException):
            raise head
        if head == self.subscriber.version:
            return False
        if self.step_of(head) not in self.lag:
            self.sync()
        version = self.subscriber.version
        assert version is not None
        if self.store.snapshot(version).metadata["last"]:
            return True
        delivery = Delivery(rl_task.generate(self.policy), version)
        self.folder.put(f"{self.name}/{head}", delivery)
        return False

    def sync(self) -> None:
        stats = self.subscriber.sync(self.policy)
        self.journal.write(
            "synced",
            step=self.step_of(stats.snapshot),
            lag=stats.lag,
            first=stats.previous is None,
            fetched_bytes=stats.fetched_bytes,
            fetch=stats.download_seconds + stats.decode_seconds + stats.verify_seconds,
            pause=stats.apply_seconds,
        )

    def step_of(self, version: SnapshotId) -> int:
        step: int = self.store.snapshot(version).metadata["step"]
        return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--lag", type=int, nargs=2, default=(0, 0), metavar=("FROM", "UNTIL"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    with casweights.open(STORE) as store:
        Replica(store, options.name, Journal(options.journal), range(*options.lag)).run()


if __name__ == "__main__":
    main()
