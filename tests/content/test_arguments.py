"""Paths and times that the system or the format does not allow raise errors of this library."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch
from click.testing import CliRunner
from hypothesis import strategies as st

import casweights
from casweights import (
    CasweightsError,
    InvalidInputError,
    Publisher,
    Repository,
    Subscriber,
)
from casweights.cli._app import root
from casweights.errors import ErrorCode
from casweights.stores.url import open_object_store
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ODD = ["\0", "\ud800", "\udc80", "\udfff", "a" * 300, "\n", "~", "..", ".", "é", "file", "folder"]
TOO_LONG = "/".join(["folder"] * 1000)


def strange(folder: str) -> st.SearchStrategy[str]:
    """Paths with odd characters, too long or empty ones, and a file in place of a folder."""
    parts = st.sampled_from(ODD) | st.text(max_size=3).filter(lambda text: "/" not in text)
    inside = st.lists(parts, min_size=1, max_size=4).map(lambda names: "/".join([folder, *names]))
    fixed = ["", "\0", "file://", "file://\0", "hf://buckets/a/b\0", "hf://buckets/\ud800/b"]
    return inside.filter(lambda path: "/.." not in path) | st.sampled_from(
        [*fixed, f"{folder}/{TOO_LONG}", f"{folder}/file", f"{folder}/file/x", f"{folder}/folder"]
    )


def attempt(source: Callable[[], object]) -> None:
    with suppress(CasweightsError):
        source()


def publish(store: Repository, extra: str) -> None:
    with Publisher(store, extra=extra) as publisher:
        publisher.publish({"w": torch.ones(1)})


def opened(path: str, **options: Any) -> None:
    casweights.open(path, **options).close()


USES: dict[str, Callable[[Repository, str], object]] = {
    "open": lambda _, path: opened(path),
    "create": lambda _, path: opened(path, create=True),
    "notes": lambda store, path: opened(store.url, notes=path),
    "object store": lambda _, path: open_object_store(path),
    "commit": lambda store, path: store.commit(path),
    "checkout": lambda store, path: store.checkout("main", path),
    "read": lambda store, path: b"".join(store.read("main", path)),
    "tensor": lambda store, path: store.tensor("main", "w", file=path),
    "publisher": lambda _, path: Publisher(path).close(),
    "extra": publish,
    "subscriber": lambda _, path: Subscriber(path).close(),
}
COMMANDS = {
    "init": ["init", "PATH"],
    "store": ["--store", "PATH", "log"],
    "commit": ["--store", "STORE", "commit", "PATH"],
    "checkout": ["--store", "STORE", "checkout", "main", "PATH"],
    "cat": ["--store", "STORE", "cat", "main", "PATH"],
    "push from": ["--store", "PATH", "push", "TARGET", "--all"],
    "pull to": ["--store", "PATH", "pull", "STORE", "--shallow", "--create"],
    "push": ["--store", "STORE", "push", "PATH"],
    "pull": ["--store", "STORE", "pull", "PATH"],
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # no request is sent
    monkeypatch.chdir(tmp_path)  # a checkout to `file://` makes a folder `file:` in it
    with casweights.open(tmp_path / "store", create=True, workers=1) as repository:
        repository.commit({"w": torch.ones(1)})
        yield repository


@pytest.mark.parametrize("use", USES)
@hypothesis.settings(max_examples=examples(8))
@hypothesis.given(data=st.data())
def test_odd_paths_raise_only_our_errors_in_the_library(
    store: Repository, use: str, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "file").write_text("x")
        Path(folder, "folder").mkdir()
        path = data.draw(strange(folder))
        attempt(lambda: USES[use](store, path))


@pytest.mark.parametrize("command", COMMANDS)
@hypothesis.settings(max_examples=6)
@hypothesis.given(data=st.data())
def test_odd_paths_cause_no_traceback_on_the_command_line(
    store: Repository, command: str, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "file").write_text("x")
        Path(folder, "folder").mkdir()
        path = data.draw(strange(folder))
        places = {"PATH": path, "STORE": store.url, "TARGET": f"{folder}/target"}
        result = CliRunner().invoke(root, [places.get(word, word) for word in COMMANDS[command]])
        assert "this is a bug" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("use", [use for use in USES if use not in ("read", "tensor")])
@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("", ErrorCode.BAD_ARGUMENT),
        ("a\0b", ErrorCode.BAD_PATH),
        ("a\ud800", ErrorCode.BAD_PATH),
    ],
    ids=["empty", "NUL", "surrogate"],
)
def test_impossible_paths_are_refused_with_their_code(
    store: Repository, use: str, path: str, code: ErrorCode
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        USES[use](store, path)
    assert caught.value.code is code


def test_a_path_of_bytes_is_refused(store: Repository) -> None:
    class Raw(os.PathLike[str]):
        def __fspath__(self) -> Any:
            return b"there"

    with pytest.raises(InvalidInputError, match="is not text"):
        store.checkout("main", Raw())


zones = st.integers(-24 * 60 + 1, 24 * 60 - 1).map(lambda n: timezone(timedelta(minutes=n)))
times = st.datetimes(timezones=zones | st.just(UTC)) | st.datetimes()


@hypothesis.settings(max_examples=examples(30))
@hypothesis.given(time=times)
@hypothesis.example(time=datetime.fromisoformat("9999-12-31T23:59:00-12:00"))
@hypothesis.example(time=datetime.fromisoformat("0001-01-01T00:00:00+12:00"))
@hypothesis.example(time=datetime.fromisoformat("9999-12-31T23:59:59.999999+00:00"))
@hypothesis.example(time=datetime.fromisoformat("0001-01-01T00:00:00+00:00"))
def test_every_time_is_kept_or_refused(time: datetime) -> None:
    with casweights.open("memory://", create=True, workers=1) as store, suppress(InvalidInputError):
        version = store.commit({"w": torch.ones(1)}, time=time)
        assert store.snapshot(version.id).time == time


@pytest.mark.parametrize("time", ["9999-12-31T23:59:00-12:00", "0001-01-01T00:00:00+00:01"])
def test_times_outside_the_years_of_utc_are_refused(store: Repository, time: str) -> None:
    with pytest.raises(InvalidInputError, match="years 1 to 9999") as caught:
        store.commit({"w": torch.ones(1)}, time=datetime.fromisoformat(time))
    assert caught.value.code is ErrorCode.BAD_ARGUMENT
