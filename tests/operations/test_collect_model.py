"""Random sequences of everything that writes and collects lose no version, see `collect_model`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING
from unittest.mock import patch

import hypothesis
import pytest

from casweights.operations import collections
from casweights.stores.hub.store import HubStore
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from casweights.stores.retry import RetryStore
from casweights.testing.hub import LocalHub
from tests.copying_bucket import Bucket
from tests.driven import FREEING
from tests.lengths import examples as number_of
from tests.operations.collect_model import CollectMachine

if TYPE_CHECKING:
    from datetime import timedelta

    from casweights.stores.base import ObjectStore


class Directory(CollectMachine):
    def make_objects(self, name: str) -> ObjectStore:
        return LocalStore(self.folder / name)


class Memory(CollectMachine):
    def make_objects(self, name: str) -> ObjectStore:
        return MemoryStore()


class InBucket(CollectMachine):
    def make_objects(self, name: str) -> ObjectStore:
        return Bucket()


class OnHub(CollectMachine):
    """Both stores are in one bucket of a local Hub, which frees bytes without a name at once."""

    def __init__(self) -> None:
        super().__init__()
        self.hub = self.patches.enter_context(LocalHub())
        self.hub.create_bucket("me/weights")
        self.hub.conditions = FREEING
        now = patch.object(collections, "machine_time", lambda: self.hub.clock.now() / 1e6)
        self.patches.enter_context(now)

    def make_objects(self, name: str) -> ObjectStore:
        return RetryStore(HubStore("me/weights", name, endpoint=self.hub.url, clock_skew=0.0))

    def pass_time(self, by: timedelta) -> None:
        self.hub.clock.advance(by.total_seconds())


KINDS: dict[str, type[CollectMachine]] = {
    kind.__name__: kind for kind in (Directory, Memory, InBucket, OnHub)
}


@pytest.mark.parametrize(
    ("machine", "examples", "steps"),
    [(Directory, 3, 30), (Memory, 4, 30), (InBucket, 4, 30), (OnHub, 2, 12)],
)
def test_no_sequence_loses_a_version(
    machine: type[CollectMachine], examples: int, steps: int
) -> None:
    settings = hypothesis.settings(
        max_examples=number_of(examples),
        stateful_step_count=steps,
        phases=[hypothesis.Phase.generate],  # shrinking a failure takes minutes
        report_multiple_bugs=False,
    )
    hypothesis.stateful.run_state_machine_as_test(machine, settings=settings)


def main() -> None:
    """Run other sequences than the tests do, and more of them."""
    parser = argparse.ArgumentParser(prog="tools/soak/run model", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="InBucket", help="kind of store")
    parser.add_argument("--examples", type=int, default=1000, help="sequences, default 1000")
    wanted = parser.parse_args()
    settings = hypothesis.settings(
        max_examples=wanted.examples,
        stateful_step_count=60,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=True,
    )
    hypothesis.stateful.run_state_machine_as_test(KINDS[wanted.kind], settings=settings)


if __name__ == "__main__":
    main()
