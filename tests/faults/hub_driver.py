"""Helpers for stores in a bucket of a local Hub. As a program: kills commits to such a store.

Usage: hub_driver.py MOMENT URL FOLDER

The program kills one commit at each step and checks the promises of the store after each kill.
MOMENT selects the steps: "before call" or "after call" for operations on the store, "before step"
or "after step" for requests and uploads to the Hub, or "random". The program prints its counts as
JSON; a broken promise ends it with a traceback.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import casweights
from casweights.config import KiB, StoreConfig
from casweights.stores.cached import CachedStore
from casweights.stores.hub.api import HubApi
from casweights.stores.hub.client import xet
from casweights.stores.hub.store import HubStore
from casweights.stores.hub.xet import XetStorage, XetUpload
from casweights.stores.retry import RetryStore
from casweights.testing.faults import Fault, FaultyStore, kill_process
from tests.disks import wait_for_no_disk
from tests.faults.kill_driver import (
    Model,
    end_of,
    fork,
    kill_after,
    limit_packs,
    look,
    seconds_for,
)
from tests.lengths import choose, moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casweights import Repository, SnapshotId
    from casweights.stores.base import ObjectStore, Parts
    from casweights.stores.hub.locators import XetLocator
    from tests.faults.kill_driver import Digests

BUCKET = "me/weights"
CONFIG = StoreConfig(chunk_size=64 * KiB)
PACK = 192 * KiB  # small enough that a commit of the test model writes several packs
SEED = 20261125
RANDOM_TRIALS = choose(5, 100)


def wrapped(
    url: str,
    prefix: str,
    cache: Path | None = None,
    *,
    patience: float = 60.0,
    stall: float = 10.0,
    token: str | None = None,
) -> ObjectStore:
    """Return a store wrapped as `casweights.open` does, at a Hub given by its URL."""
    bucket = HubStore(BUCKET, prefix, endpoint=url, stall=stall, token=token)
    store: ObjectStore = RetryStore(bucket, patience)
    if cache is not None:
        store = CachedStore(store, cache, 1 << 26, f"{url} {bucket.url}")
    return store


@contextmanager
def opened(
    url: str, prefix: str, cache: Path | None = None, **options: Any
) -> Iterator[Repository]:
    with casweights.open(wrapped(url, prefix, cache, **options), workers=2) as repo:
        yield repo


def new_store(url: str, prefix: str) -> None:
    casweights.open(wrapped(url, prefix), create=True, config=CONFIG).close()


def small_model(folder: Path, seed: int = SEED) -> Model:
    return Model(folder, shards=2, tensors=6, nbytes=64 * KiB, seed=seed)


def sizes(url: str, prefix: str) -> dict[str, int]:
    """Return the size of every object of a store, by name."""
    return {info.name: info.size for info in HubStore(BUCKET, prefix, endpoint=url).list()}


@contextmanager
def watched_uploads() -> Iterator[list[int]]:
    """Record the sizes of all uploads of this process; yield the list."""
    sent: list[int] = []
    original = XetUpload.send

    def send(self: XetUpload, parts: Parts) -> XetLocator:
        sent.append(sum(map(len, parts)))
        return original(self, parts)

    with patch.object(XetUpload, "send", send):
        yield sent


def check_sound(repo: Repository, versions: dict[SnapshotId, Digests], folder: Path) -> None:
    """Check that `verify` finds no problem and that every version is as it was committed."""
    found = repo.verify()
    assert found.problems == (), found.problems
    for version, digests in versions.items():
        repo.checkout(version, folder, delete=True)
        assert look(folder) == digests


def import_client() -> None:
    """Import the Hub's client once for all forks. Its settings must be in the environment."""
    xet()
    from huggingface_hub import (  # noqa: F401
        HfApi,
        cached_assets_path,
        constants,
        get_session,
        hf_raise_for_status,
    )
    from huggingface_hub.utils._headers import build_hf_headers  # noqa: F401


class _Steps:
    """Kills this process before or after its `number`-th request or upload."""

    def __init__(self, number: int, *, after: bool) -> None:
        self._number = number
        self._after = after
        self._lock = threading.Lock()
        self._calls = 0
        self.seen: list[str] = []
        self._watch(HubApi, "request")
        self._watch(HubApi, "read_url")
        self._watch(XetUpload, "send")
        self._watch(XetUpload, "finish")
        self._watch(XetStorage, "download")

    def _watch(self, owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                self._calls += 1
                due = self._calls == self._number
            if due and not self._after:
                kill_process()
            result = original(*args, **options)
            if due:
                kill_process()
            return result

        setattr(owner, name, call)


class Trials:
    """One store in the bucket, whose commits are killed and repeated.

    Only children use the Hub's client, because a process that has used it cannot be forked.
    """

    def __init__(self, url: str, prefix: str, folder: Path) -> None:
        self.url = url
        self.prefix = prefix
        self.folder = folder
        self.model = small_model(folder / "model")
        self.versions: dict[SnapshotId, Digests] = {}
        limit_packs(PACK)
        self._child(partial(new_store, url, prefix))
        self.recover()

    def _child(self, action: Callable[[], Any]) -> Any:
        """Run `action` in a child; return its result, by way of JSON."""
        path = self.folder / "answer"
        assert end_of(fork(lambda: path.write_text(json.dumps(action())))) == "finished"
        return json.loads(path.read_text())

    def commit(self) -> str:
        with opened(self.url, self.prefix) as repo:
            return str(repo.commit(self.model.folder).id)

    def commit_to_death(self, moment: str, number: int) -> None:
        if moment.endswith("step"):
            _Steps(number, after=moment == "after step")
            self.commit()
            return
        fault = Fault(call=number, after=moment == "after call", action=kill_process)
        bucket = HubStore(BUCKET, self.prefix, endpoint=self.url)
        with casweights.open(FaultyStore(bucket, [fault]), workers=2) as repo:
            repo.commit(self.model.folder)

    def recover(self) -> bool:
        """Check the store after a kill and repeat the commit.

        Returns:
            Whether the killed commit had made its version visible.
        """
        log = self._child(self._check_and_repeat)
        known = [str(version) for version in reversed(self.versions)]
        for version in reversed(log[: len(log) - len(known)]):
            self.versions[casweights.SnapshotId.from_hex(version)] = self.model.digests()
        return len(log) - len(known) == 2

    def _check_and_repeat(self) -> list[str]:
        """Check the store, repeat the commit, and return the versions of the branch."""
        known = [str(version) for version in reversed(self.versions)]
        with opened(self.url, self.prefix) as repo:
            log = [str(snapshot.id) for snapshot in repo.log()] if known else []
            assert log[len(log) - len(known) :] == known, "the branch lost a version"
            assert len(log) <= len(known) + 1
            check_sound(repo, self.versions, self.folder / "out")
        before = sizes(self.url, self.prefix)
        with watched_uploads() as sent:
            log.insert(0, self.commit())
        after = sizes(self.url, self.prefix)
        assert before.items() <= after.items()
        assert sum(sent) == sum(after.values()) - sum(before.values()), (
            "bytes that had arrived were sent again"
        )
        with opened(self.url, self.prefix) as repo:
            repo.checkout("main", self.folder / "out", delete=True)
            assert look(self.folder / "out") == self.model.digests()
            assert repo.verify().problems == ()
        return log


def kill_at_every_step(url: str, folder: Path, moment: str) -> Counter[str]:
    """Kill a commit at operations on the store, or at requests to the Hub."""
    ends: Counter[str] = Counter()
    for number in moments(8, moment):
        place = folder / f"trial-{number}"
        place.mkdir()
        trials = Trials(url, f"{moment.replace(' ', '-')}/{number}", place)
        trials.model.step()
        end = end_of(fork(partial(trials.commit_to_death, moment, number)))
        ends[end] += 1
        ends["visible"] += trials.recover()
        shutil.rmtree(place)
        if end == "finished":
            return ends
    raise AssertionError("not reached")


def kill_at_random(url: str, folder: Path) -> Counter[str]:
    ends: Counter[str] = Counter()
    chance = random.Random(SEED)
    trials = Trials(url, "random", folder)
    trials.model.step()
    seconds = seconds_for(trials.commit)
    trials.recover()
    for _ in range(RANDOM_TRIALS):
        trials.model.step()
        ends[kill_after(chance.uniform(0, seconds), trials.commit)] += 1
        ends["visible"] += trials.recover()
    return ends


def main() -> None:
    moment, url, folder = sys.argv[1:]
    wait_for_no_disk()
    with tempfile.TemporaryDirectory() as home:
        os.environ["HF_HOME"] = home
        import_client()
        gc.freeze()
        if moment == "random":
            ends = kill_at_random(url, Path(folder))
        else:
            ends = kill_at_every_step(url, Path(folder), moment)
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
