"""Whatever is asked of a version that expired and is gone, the error says that it expired."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

from casweights import Repository, Subscriber
from casweights.errors import ErrorCode, NotFoundError
from casweights.stores.memory import MemoryStore
from tests.copying_bucket import Bucket
from tests.expiring import KEEP, fill, open_store, remove, state

if TYPE_CHECKING:
    from pathlib import Path

    from casweights.stores.base import ObjectStore

# `resolve` looks up no ID that it is given as one, and `expect` is what a target holds.
EXEMPT = {(Repository, "resolve", "ref"), (Subscriber, "sync", "expect")}
EXEMPT.add((Subscriber, "patches", "expect"))


def parameters() -> Iterator[tuple[type, str, str]]:
    """Yield each parameter of a public method that takes a ref."""
    for owner in (Repository, Subscriber):
        for name, method in inspect.getmembers(owner, inspect.isfunction):
            for parameter in inspect.signature(method).parameters.values():
                if not name.startswith("_") and re.search(r"\bRef\b", str(parameter.annotation)):
                    yield owner, name, parameter.name


PARAMETERS = sorted(set(parameters()) - EXEMPT, key=str)


def test_the_methods_that_take_refs_are_found() -> None:
    assert set(parameters()) >= EXEMPT
    found = {name for _, name, _ in PARAMETERS}
    assert found >= {"commit", "checkout", "diff", "tag", "drop_displaced", "log", "prefetch"}


@pytest.fixture(params=["memory", "bucket"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    return Bucket() if request.param == "bucket" else MemoryStore()


@pytest.mark.parametrize(("owner", "method", "parameter"), PARAMETERS)
def test_the_error_says_when_the_version_expired(
    store: ObjectStore, tmp_path: Path, owner: type, method: str, parameter: str
) -> None:
    ids = fill(store)
    with open_store(store) as repo:
        old = repo.snapshot(ids[0])
        repo.expire(KEEP, apply=True)
    remove(store, [old.id])
    arguments: dict[str, Any] = {
        "source": state(50),
        "directory": tmp_path / "out",
        "target": {"w": torch.zeros(64)},
        "branch": "main" if method == "drop_displaced" else "new",
        "name": "new",
        "path": "any",
    }
    for given in (str(old.id), old.id, old):
        arguments[parameter] = given
        check(store, owner, method, arguments)


def check(store: ObjectStore, owner: type, method: str, known: dict[str, Any]) -> None:
    """Call a method with some of these arguments, and a branch for all other refs."""
    with open_store(store) as repo:
        called = getattr(repo if owner is Repository else Subscriber(repo, "main"), method)
        parameters = inspect.signature(called).parameters
        arguments = {name: known.get(name, "main") for name in ("old", "new", "at")} | known
        arguments = {name: value for name, value in arguments.items() if name in parameters}
        with pytest.raises(NotFoundError, match=r"\(number 1\) expired on .*last 2") as caught:
            exhaust(called(**arguments))
    assert caught.value.code is ErrorCode.EXPIRED


def exhaust(result: object) -> None:
    if isinstance(result, Iterator):
        list(result)
