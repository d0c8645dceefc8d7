"""Tests that the local Hub frees bytes without a path."""

from __future__ import annotations

import random
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from casweights.testing.hub import Conditions, LocalHub, LocalHubProcess
from tests.hub.conftest import BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from huggingface_hub import HfApi

    from tests.hub.conftest import Client

AT_ONCE = Conditions(free_after=0)
CONTENT = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub", conditions=AT_ONCE) as hub:
        hub.create_bucket(BUCKET)
        hub.clock.hold()
        yield hub


class Storage:
    """The answers of the CAS and its CDN for a file that is or was in the bucket."""

    def __init__(
        self, client: Client, hub: LocalHub | LocalHubProcess, api: HfApi, path: str
    ) -> None:
        (file,) = api.get_bucket_paths_info(BUCKET, [path])
        self.hash = file.xet_hash
        self._session: Any = client.hub.utils.get_session()
        self._hub = hub
        self.xorbs = [term["hash"] for term in self._ask("reconstructions").json()["terms"]]

    def statuses(self) -> set[int]:
        """Return the statuses of all requests that lead to the bytes."""
        found = {self._ask("reconstructions").status_code, self._status(f"files/{self.hash}")}
        return found | {self._status(f"xorbs/{xorb}") for xorb in self.xorbs}

    def _ask(self, what: str) -> Any:
        url = f"{self._hub.url}/api/buckets/{BUCKET}/xet-read-token"
        headers = {"Authorization": f"Bearer {self._session.get(url).json()['accessToken']}"}
        return self._session.get(f"{self._hub.cas_url}/v1/{what}/{self.hash}", headers=headers)

    def _status(self, place: str) -> int:
        return int(self._session.get(f"{self._hub.cas_url}/{place}").status_code)


def forget(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the client forget the bytes that it sent, like a client on another machine."""
    monkeypatch.setenv("HF_XET_SHARD_CACHE_SUBDIR", uuid.uuid4().hex)
    client.hub.utils._xet.abort_xet_session()


def add(api: HfApi, path: str, content: bytes = CONTENT) -> None:
    api.batch_bucket_files(BUCKET, add=[(content, path)])


@pytest.mark.parametrize("how", ["delete", "overwrite", "drop the bucket"])
def test_bytes_are_freed_with_the_last_path(
    client: Client, hub: LocalHub, api: HfApi, how: str
) -> None:
    hub.create_bucket("me/other")
    add(api, "a")
    storage = Storage(client, hub, api, "a")
    api.batch_bucket_files(BUCKET, copy=[("bucket", BUCKET, storage.hash, "b")])
    api.batch_bucket_files("me/other", copy=[("bucket", BUCKET, storage.hash, "c")])
    api.batch_bucket_files("me/other", delete=["c"])
    api.batch_bucket_files(BUCKET, delete=["a"])
    assert storage.statuses() == {200}
    if how == "delete":
        api.batch_bucket_files(BUCKET, delete=["b"])
    elif how == "overwrite":
        add(api, "b", OTHER)
    else:
        api.delete_bucket(BUCKET)
        hub.create_bucket(BUCKET)
    assert storage.statuses() == {404}
    assert list((hub.folder / "xorbs").glob(f"*/{storage.xorbs[0]}")) == []


def test_freed_bytes_cannot_be_named_and_can_be_sent_again(
    client: Client,
    hub: LocalHub,
    api: HfApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add(api, "a")
    name = Storage(client, hub, api, "a").hash
    api.batch_bucket_files(BUCKET, delete=["a"])
    lines = b'{"type": "addFile", "path": "b", "xetHash": "%b", "mtime": 0}\n' % name.encode()
    session = client.hub.utils.get_session()
    answer = session.post(f"{hub.url}/api/buckets/{BUCKET}/batch", content=lines)
    assert answer.json()["failed"] == [{"path": "b", "error": "unknown xet hash"}]
    with pytest.raises(client.hub.errors.BucketBatchError, match="unknown xet hash"):
        api.batch_bucket_files(BUCKET, copy=[("bucket", BUCKET, name, "b")])
    forget(client, monkeypatch)
    add(api, "b")
    assert Storage(client, hub, api, "b").hash == name
    api.download_bucket_files(BUCKET, [("b", tmp_path / "got")])
    assert (tmp_path / "got").read_bytes() == CONTENT


def test_a_rename_in_one_batch_keeps_the_bytes(client: Client, hub: LocalHub, api: HfApi) -> None:
    add(api, "a")
    storage = Storage(client, hub, api, "a")
    copy = ("bucket", BUCKET, storage.hash, "b")
    api.batch_bucket_files(BUCKET, copy=[copy], delete=["a"])
    assert storage.statuses() == {200}


def test_a_xorb_is_kept_while_a_file_needs_it(
    client: Client, hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    both = CONTENT + OTHER
    api.batch_bucket_files(BUCKET, add=[(both, "both"), (CONTENT + b"end", "one")])
    one, two = (Storage(client, hub, api, path) for path in ("one", "both"))
    assert set(one.xorbs) & set(two.xorbs)
    api.batch_bucket_files(BUCKET, delete=["one"])
    assert 404 in one.statuses()
    api.download_bucket_files(BUCKET, [("both", tmp_path / "got")])
    assert (tmp_path / "got").read_bytes() == both


def test_bytes_are_freed_after_the_configured_time_unless_named_again(
    client: Client, hub: LocalHub, api: HfApi
) -> None:
    hub.conditions = Conditions(free_after=60)
    add(api, "a")
    storage = Storage(client, hub, api, "a")
    for _ in range(3):
        api.batch_bucket_files(BUCKET, delete=["a"])
        hub.clock.advance(59)
        assert storage.statuses() == {200}
        add(api, "a")
        hub.clock.advance(59)
    api.batch_bucket_files(BUCKET, delete=["a"])
    hub.clock.advance(60)
    assert storage.statuses() == {404}


def test_bytes_that_were_never_named_are_freed_after_the_grace(
    client: Client, hub: LocalHub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.conditions = replace(AT_ONCE, failing_lines=1)
    with pytest.raises(client.hub.errors.BucketBatchError):
        add(api, "a")
    (xorb,) = (hub.folder / "xorbs").glob("*/*")
    hub.clock.advance(AT_ONCE.upload_grace - 1)
    api.bucket_info(BUCKET)
    assert xorb.exists()
    hub.clock.advance(1)
    api.bucket_info(BUCKET)
    assert not xorb.exists()
    forget(client, monkeypatch)
    add(api, "a")
    assert Storage(client, hub, api, "a").statuses() == {200}


def test_uploaded_bytes_survive_the_deletion_of_another_path(
    client: Client, hub: LocalHub, api: HfApi
) -> None:
    """Two clients send the same bytes; one deletes its path before the other names its own."""
    add(api, "a")
    storage = Storage(client, hub, api, "a")
    hub.conditions = replace(AT_ONCE, failing_path="b")
    with pytest.raises(client.hub.errors.BucketBatchError):
        add(api, "b")
    api.batch_bucket_files(BUCKET, delete=["a"])
    assert storage.statuses() == {200}
    hub.clock.advance(AT_ONCE.upload_grace)
    assert storage.statuses() == {404}


def test_an_empty_file_is_never_freed(client: Client, hub: LocalHub, api: HfApi) -> None:
    session = client.hub.utils.get_session()
    for _ in range(2):
        assert session.put(f"{hub.url}/s3/{BUCKET}/empty", content=b"").status_code == 200
        api.batch_bucket_files(BUCKET, delete=["empty"])
    add(api, "empty", b"")
    assert api.bucket_info(BUCKET).total_files == 1


def test_objects_of_s3_are_freed(client: Client, hub: LocalHub) -> None:
    session = client.hub.utils.get_session()
    url = f"{hub.url}/s3/{BUCKET}/a"
    for content in (CONTENT, OTHER, CONTENT):
        session.put(url, content=content)
        assert session.get(url).content == content
        assert len(list((hub.folder / "xorbs").glob("*/*"))) == 1


def test_nothing_is_freed_by_default(client: Client, hub: LocalHub, api: HfApi) -> None:
    hub.conditions = Conditions()
    add(api, "a")
    storage = Storage(client, hub, api, "a")
    api.batch_bucket_files(BUCKET, delete=["a"])
    hub.clock.advance(1e9)
    assert storage.statuses() == {200}


def test_a_restarted_hub_remembers_freed_bytes_and_times_of_deletion(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditions = Conditions(free_after=60)
    with LocalHubProcess(tmp_path / "hub", conditions=conditions) as hub:
        hub.create_bucket(BUCKET)
        hub.clock.hold()
        api = client.api(hub)
        api.batch_bucket_files(BUCKET, add=[(CONTENT, "a"), (OTHER, "b")])
        first, second = (Storage(client, hub, api, path) for path in "ab")
        api.batch_bucket_files(BUCKET, delete=["a"])
        hub.clock.advance(30)
        api.batch_bucket_files(BUCKET, delete=["b"])
        hub.restart()
        assert first.statuses() == second.statuses() == {200}
        hub.clock.advance(30)
        assert (404 in first.statuses(), second.statuses()) == (True, {200})
        hub.conditions = Conditions()
        hub.restart()
        assert (404 in first.statuses(), second.statuses()) == (True, {200})
        hub.conditions = conditions
        hub.clock.advance(30)
        assert second.statuses() == {404}
        forget(client, monkeypatch)
        add(api, "c")
        assert Storage(client, hub, api, "c").statuses() == {200}
