"""The trainer of the demo's third part: a process that owns the weights.

It waits for rollouts, makes a step of policy gradients with them, and publishes the weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import torch

import casweights
from tools.demos.live.wire import PUBLISHED, STORE, Journal, RolloutFolder, digest
from tools.models import rl_task

if TYPE_CHECKING:
    from casweights.results import PublishStats

POLL = 0.1  # seconds between two polls for rollouts


class Published(casweights.Reporter):
    """Writes the statistics of each version to a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def published(self, stats: PublishStats) -> None:
        changed = stats.elements if stats.changed_elements is None else stats.changed_elements
        self._journal.write(
            "published",
            step=stats.step,
            snapshot=str(stats.snapshot),
            total_bytes=stats.total_bytes,
            stored_bytes=stats.stored_bytes,
            density=changed / stats.elements,
            durable=stats.scan_seconds + stats.encode_seconds + stats.upload_seconds,
        )


class Trainer:
    """Trains a policy and publishes its versions.

    Args:
        store: The store for the versions.
        journal: The journal to write to.
        configuration: A directory for the policy's config.json, which every version includes.
        steps: Number of the last step.
    """

    def __init__(
        self, store: casweights.Repository, journal: Journal, configuration: Path, steps: int
    ) -> None:
        self.store = store
        self.journal = journal
        self.steps = steps
        self.folder = RolloutFolder()
        self.policy = rl_task.new_policy()
        self.policy.config.save_pretrained(configuration)
        self.publisher = casweights.Publisher(
            store, cast={"*": PUBLISHED}, extra=configuration, reporter=Published(journal)
        )

    def run(self) -> None:
        rl_task.train_on_examples(self.policy)
        learner = rl_task.Learner(self.policy)
        with self.publisher:
            self.publish(0)
            for step in range(1, self.steps + 1):
                self.learn(learner, step)
            last = self.publisher.wait()
        assert last is not None
        weights = digest(self.policy.state_dict())
        self.journal.write("done", snapshot=str(last.id), digest=weights)

    def learn(self, learner: rl_task.Learner, step: int) -> None:
        while not (deliveries := self.folder.take()):
            time.sleep(POLL)
        made_at = [self.store.snapshot(d.snapshot).metadata["step"] for d in deliveries]
        reward = learner.step([delivery.rollouts for delivery in deliveries])
        start = time.perf_counter()
        self.publish(step)
        self.journal.write(
            "step",
            step=step,
            reward=reward,
            batches=len(deliveries),
            staleness=mean(step - 1 - made for made in made_at),
            blocked=time.perf_counter() - start,
        )

    def publish(self, step: int) -> None:
        self.publisher.publish(
            self.policy, step=step, message=f"step {step}", metadata={"last": step == self.steps}
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    with casweights.open(STORE) as store, tempfile.TemporaryDirectory() as configuration:
        journal = Journal(options.journal)
        Trainer(store, journal, Path(configuration), options.steps).run()


if __name__ == "__main__":
    main()
