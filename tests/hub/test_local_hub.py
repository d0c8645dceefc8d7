"""Tests of the local Hub with the real client."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import pytest

from casweights.testing.hub import Conditions, LocalHub, LocalHubProcess
from tests.hub.conftest import BUCKET

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from huggingface_hub import BucketFile, HfApi

    from tests.hub.conftest import Client


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size}/{seed}").randbytes(size)


def text(size: int) -> bytes:
    words = (b"line %d of a text that can be compressed\n" % number for number in range(size))
    out = bytearray()
    while len(out) < size:
        out += next(words)
    return bytes(out[:size])


def floats(size: int) -> bytes:
    """Return bytes like those of floats, which the client stores grouped by their position."""
    words = noise(size // 2)
    return b"".join(words[at : at + 2] + b"\x3c\x3f" for at in range(0, size // 2, 2))


OBJECTS: dict[str, Callable[[], bytes]] = {
    "empty": bytes,
    "one": lambda: b"1",
    "text": lambda: text(100_000),
    "long/text": lambda: text(700_001),
    "noise": lambda: noise(5_000_000),
    "floats": lambda: floats(1_200_000),
}


def resolve(client: Client, hub: LocalHub, path: str, **headers: str) -> Any:
    session = client.hub.utils.get_session()
    url = f"{hub.url}/buckets/{BUCKET}/resolve/{path}"
    return session.get(url, headers=headers, follow_redirects=True)


def download(api: HfApi, path: str, folder: Path) -> bytes:
    api.download_bucket_files(BUCKET, [(path, folder / "got")], raise_on_missing_files=True)
    return (folder / "got").read_bytes()


def files(api: HfApi, prefix: str | None = None) -> list[BucketFile]:
    found = api.list_bucket_tree(BUCKET, prefix, recursive=True)
    return [file for file in found if file.type == "file"]


def test_objects_are_downloaded_as_they_were_uploaded(
    client: Client, hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    data = {path: make() for path, make in OBJECTS.items()}
    api.batch_bucket_files(BUCKET, add=[(content, path) for path, content in data.items()])
    assert {file.path: file.size for file in files(api)} == {p: len(c) for p, c in data.items()}
    for path, content in data.items():
        assert download(api, path, tmp_path) == content
        assert resolve(client, hub, path).content == content


def test_a_large_object_is_downloaded_as_it_was_uploaded(
    client: Client, hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    content = noise(100_000_000)
    (tmp_path / "large").write_bytes(content)
    api.batch_bucket_files(BUCKET, add=[(str(tmp_path / "large"), "large")])
    assert hub.counters().requests["xorb_upload"] == 2
    assert download(api, "large", tmp_path) == content
    middle = resolve(client, hub, "large", Range="bytes=70000000-70000999")
    assert (middle.status_code, middle.content) == (206, content[70_000_000:70_001_000])


def test_a_stream_returns_the_requested_range(client: Client, tmp_path: Path) -> None:
    content = noise(3_000_000) + text(300_000)
    ranges = ((0, 1), (1_234_567, 1_300_000), (2_999_990, 3_100_000), (3_299_999, 3_300_000))
    # The Hub needs its own process: hf_xet 1.6 holds the GIL while it waits for a stream.
    with LocalHubProcess(tmp_path) as hub:
        api = client.api(hub)
        api.create_bucket(BUCKET)
        api.batch_bucket_files(BUCKET, add=[(content, "object")])
        (file,) = files(api)
        group = client.xet.XetSession().new_download_stream_group(
            token_refresh_url=f"{hub.url}/api/buckets/{BUCKET}/xet-read-token",
            token_refresh_headers={},
        )
        info = client.xet.XetFileInfo(file.xet_hash, file.size)
        for start, end in ranges:
            parts = group.download_stream(info, start=start, end=end)
            assert b"".join(bytes(part) for part in parts) == content[start:end]


@pytest.mark.parametrize("path", ["text", "long/text", "floats", "noise"])
def test_an_http_range_returns_the_requested_bytes(
    client: Client, hub: LocalHub, api: HfApi, path: str
) -> None:
    content = OBJECTS[path]()
    api.batch_bucket_files(BUCKET, add=[(content, path)])
    for wish, part in {
        "bytes=0-0": content[:1],
        "bytes=65000-90000": content[65000:90001],
        "bytes=99999-": content[99999:],
        "bytes=-10": content[-10:],
    }.items():
        answer = resolve(client, hub, path, Range=wish)
        assert (answer.status_code, answer.content) == (206, part)
    assert resolve(client, hub, path, Range=f"bytes={len(content)}-").status_code == 416


def test_a_second_upload_sends_nothing(hub: LocalHub, api: HfApi) -> None:
    content = noise(2_000_000, seed=1)
    api.batch_bucket_files(BUCKET, add=[(content, "a")])
    sent = hub.counters().bytes_in_by_route["xorb_upload"]
    assert sent > len(content)
    api.batch_bucket_files(BUCKET, add=[(content, "b")])
    assert hub.counters().bytes_in_by_route["xorb_upload"] == sent
    assert len({file.xet_hash for file in files(api)}) == 1


def test_a_failed_operation_does_not_stop_its_batch(
    client: Client, hub: LocalHub, api: HfApi
) -> None:
    api.batch_bucket_files(BUCKET, add=[(b"1", "a"), (b"2", "b")])
    with pytest.raises(client.hub.errors.BucketBatchError) as caught:
        api.batch_bucket_files(BUCKET, add=[(b"3", "c")], delete=["a", "missing"])
    assert [failure["path"] for failure in caught.value.failures] == ["missing"]
    assert [file.path for file in files(api)] == ["b", "c"]
    with pytest.raises(client.hub.errors.BucketBatchError):
        api.batch_bucket_files(BUCKET, copy=[("bucket", BUCKET, "ab" * 32, "unknown")])
    with pytest.raises(client.hub.errors.BucketBatchError):
        api.batch_bucket_files(BUCKET, add=[(b"4", "../up")])
    hub.conditions = Conditions(failing_lines=1)
    with pytest.raises(client.hub.errors.BucketBatchError):
        api.batch_bucket_files(BUCKET, delete=["c"])
    api.batch_bucket_files(BUCKET, delete=["c"])
    hub.conditions = Conditions(failing_path="bad/")
    with pytest.raises(client.hub.errors.BucketBatchError) as caught:
        api.batch_bucket_files(BUCKET, add=[(b"5", "bad/x"), (b"6", "good/x")])
    assert [failure["path"] for failure in caught.value.failures] == ["bad/x"]
    assert [file.path for file in files(api)] == ["b", "good/x"]


def test_a_copy_from_another_bucket_has_the_same_bytes(
    hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    hub.create_bucket("me/other")
    api.batch_bucket_files("me/other", add=[(b"content", "a")])
    (file,) = api.list_bucket_tree("me/other")
    assert file.type == "file"
    api.batch_bucket_files(BUCKET, copy=[("bucket", "me/other", file.xet_hash, "b")])
    assert download(api, "b", tmp_path) == b"content"


def test_listings_show_files_and_folders_in_order(hub: LocalHub, api: HfApi) -> None:
    paths = [f"logs/{number:04}" for number in range(2500)]
    paths += ["logs.json", "logs_old/x", "logs/deep/er/x", "z"]
    api.batch_bucket_files(BUCKET, add=[(b"same", "first")])
    (first,) = files(api)
    for at in range(0, len(paths), 1000):
        copies = [("bucket", BUCKET, first.xet_hash, path) for path in paths[at : at + 1000]]
        api.batch_bucket_files(BUCKET, copy=copies)
    hub.reset_counters()
    assert [file.path for file in files(api)] == sorted([*paths, "first"])
    assert hub.counters().requests == {"tree": 3}
    assert [file.path for file in files(api, "logs.")] == ["logs.json"]
    assert [entry.path for entry in api.list_bucket_tree(BUCKET, recursive=False)] == [
        "first",
        "logs",
        "logs.json",
        "logs_old",
        "z",
    ]
    inner = [entry.path for entry in api.list_bucket_tree(BUCKET, "logs/", recursive=False)]
    assert inner == [*paths[:2500], "logs/deep"]
    found = api.get_bucket_paths_info(BUCKET, ["z", "missing", "first"])
    assert [entry.path for entry in found] == ["z", "first"]
    info = api.bucket_info(BUCKET)
    assert (info.total_files, info.size) == (2505, 4 * 2505)


def test_upload_times_strictly_increase(api: HfApi) -> None:
    api.batch_bucket_files(BUCKET, add=[(b"x", f"{number}") for number in range(20)])
    api.batch_bucket_files(BUCKET, add=[(b"x", "3")])
    by_path = {file.path: file.uploaded_at for file in files(api)}
    moments = [by_path[str(number)] for number in (*range(3), *range(4, 20), 3)]
    assert None not in moments
    assert moments == sorted(set(moments), key=moments.index) == sorted(moments, key=str)


def test_listings_and_look_ups_lag_separately(hub: LocalHub, api: HfApi) -> None:
    api.batch_bucket_files(BUCKET, add=[(b"1", "a"), (b"2", "b")])
    before = files(api)
    hub.conditions = Conditions(listing_lag=3600)
    assert files(api) == []
    assert len(list(api.get_bucket_paths_info(BUCKET, ["a", "b"]))) == 2
    hub.conditions = Conditions(paths_info_lag=3600)
    assert files(api) == before
    assert list(api.get_bucket_paths_info(BUCKET, ["a", "b"])) == []


def test_buckets_are_created_listed_and_deleted(client: Client, hub: LocalHub, api: HfApi) -> None:
    url = api.create_bucket("me/new", private=True)
    assert url.bucket_id == "me/new"
    assert api.bucket_info("me/new").private
    with pytest.raises(client.hub.errors.HfHubHTTPError, match="409"):
        api.create_bucket("me/new")
    api.create_bucket("me/new", exist_ok=True)
    assert [bucket.id for bucket in api.list_buckets("me")] == ["me/new", BUCKET]
    assert [bucket.id for bucket in api.list_buckets("me", search="wei")] == [BUCKET]
    api.delete_bucket("me/new")
    for ask in (api.bucket_info, api.delete_bucket, lambda name: list(api.list_bucket_tree(name))):
        with pytest.raises(client.hub.errors.BucketNotFoundError):
            ask("me/new")
    with pytest.raises(client.hub.errors.EntryNotFoundError):
        api.get_bucket_file_metadata(BUCKET, "missing")


def test_a_token_permits_only_what_its_role_allows(client: Client, tmp_path: Path) -> None:
    with LocalHub(tmp_path, {"writer": "write", "reader": "read"}) as hub:
        writer, reader, other = (client.api(hub, token) for token in ("writer", "reader", "no"))
        error = client.hub.errors.HfHubHTTPError
        writer.create_bucket(BUCKET, private=True)
        writer.batch_bucket_files(BUCKET, add=[(b"secret", "a")])
        assert download(reader, "a", tmp_path) == b"secret"
        with pytest.raises(error, match="403 Forbidden: Forbidden: you must use a token"):
            reader.batch_bucket_files(BUCKET, delete=["a"])
        session = client.xet.XetSession()  # an error may spoil the shared one
        refresh = {
            "token_refresh_url": f"{hub.url}/api/buckets/{BUCKET}/xet-write-token",
            "token_refresh_headers": {"authorization": "Bearer reader"},
        }
        errors = (OSError, RuntimeError)
        with pytest.raises(errors), session.new_upload_commit(**refresh) as commit:
            commit.start_upload_bytes(b"more", sha256=client.xet.SKIP_SHA256)
        for ask in (lambda: other.bucket_info(BUCKET), lambda: files(other)):
            with pytest.raises(error, match="401"):
                ask()
        with pytest.raises(error, match="401"):
            other.batch_bucket_files(BUCKET, delete=["a"])
        writer.create_bucket("me/open")
        assert other.bucket_info("me/open").total_files == 0
        assert [bucket.id for bucket in other.list_buckets("me")] == ["me/open"]


def test_short_lived_tokens_are_renewed(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    hub.conditions = Conditions(token_lifetime=1)
    for number in range(3):
        api.batch_bucket_files(BUCKET, add=[(noise(50_000, number), "a")])
        assert download(api, "a", tmp_path) == noise(50_000, number)
    assert hub.counters().requests["token"] >= 6


def test_a_corrupted_byte_reaches_the_client(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    for path in ("noise", "long/text", "floats"):
        content = OBJECTS[path]()
        api.batch_bucket_files(BUCKET, add=[(content, path)])
        hub.corrupt_object(BUCKET, path, 300_000)
        got = download(api, path, tmp_path)
        wrong = [at for at in range(len(content)) if got[at] != content[at]]
        assert (len(got), wrong) == (len(content), [300_000])
    with pytest.raises(LookupError):
        hub.corrupt_object(BUCKET, "missing", 0)


def test_the_client_survives_faults(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    content = noise(1_000_000, seed=2)
    routes = frozenset({"xorb_upload", "shard_upload", "reconstruction", "xorb_read"})
    hub.conditions = Conditions(
        error_rate=0.2, reset_rate=0.1, lost_answer_rate=0.1, truncate_rate=0.1, only=routes, seed=4
    )
    for number in range(4):
        content = noise(1_000_000, seed=number + 10)
        api.batch_bucket_files(BUCKET, add=[(content, f"{number}")])
        assert download(api, f"{number}", tmp_path) == content
    assert hub.counters().total > 4 * 9


def test_a_commit_on_an_old_parent_is_refused(client: Client, hub: LocalHub, api: HfApi) -> None:
    repo: dict[str, Any] = {"repo_id": "me/refs", "repo_type": "dataset"}
    api.create_repo(**repo, private=True)
    api.create_repo(**repo, exist_ok=True)
    first = api.repo_info(**repo).sha
    add = client.hub.CommitOperationAdd

    def commit(path: str, content: bytes, parent: str | None) -> str:
        operation = add(path_in_repo=path, path_or_fileobj=content)
        message = f"set {path}"
        done = api.create_commit(
            operations=[operation], commit_message=message, parent_commit=parent, **repo
        )
        return str(done.oid)

    second = commit("heads/main", b"1", first)
    with pytest.raises(client.hub.errors.HfHubHTTPError, match="412"):
        commit("heads/main", b"2", first)
    third = commit("heads/deep/er", b"3", second)
    assert api.repo_info(**repo).sha == third
    assert api.repo_info(**repo, revision=second).sha == second
    flat = [entry.path for entry in api.list_repo_tree(**repo)]
    assert flat == [".gitattributes", "heads"]
    deep = [
        entry.path for entry in api.list_repo_tree(**repo, path_in_repo="heads", recursive=True)
    ]
    assert deep == ["heads/deep", "heads/deep/er", "heads/main"]
    session = client.hub.utils.get_session()
    for revision, status in ((second, 404), (third, 200), ("main", 200), ("other", 404)):
        url = f"{hub.url}/datasets/me/refs/resolve/{revision}/heads/deep/er"
        assert session.get(url).status_code == status
    delete = client.hub.CommitOperationDelete(path_in_repo="heads/main")
    api.create_commit(operations=[delete], commit_message="drop", parent_commit=third, **repo)
    assert "heads/main" not in api.list_repo_files(**repo)
    api.delete_repo(**repo)
    with pytest.raises(client.hub.errors.RepositoryNotFoundError):
        api.repo_info(**repo)


def test_one_of_many_racing_commits_wins(client: Client, api: HfApi) -> None:
    api.create_repo("me/race")
    wins: list[str] = []

    def race(name: str) -> None:
        for number in range(5):
            head = api.repo_info("me/race").sha
            content = f"{name} {number}".encode()
            add = client.hub.CommitOperationAdd(path_in_repo="head", path_or_fileobj=content)
            try:
                done = api.create_commit("me/race", [add], commit_message=name, parent_commit=head)
            except client.hub.errors.HfHubHTTPError as error:
                assert error.response.status_code == 412  # noqa: PT017
            else:
                wins.append(done.oid)

    threads = [threading.Thread(target=race, args=(str(number),)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 5 <= len(set(wins)) == len(wins)
    assert api.repo_info("me/race").sha in wins


def test_objects_that_s3_puts_are_files_of_the_bucket(
    client: Client, hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    session = client.hub.utils.get_session()
    url = f"{hub.url}/s3/{BUCKET}/refs/main"
    first = session.put(url, content=b"one", headers={"If-None-Match": "*"})
    assert first.status_code == 200
    assert session.put(url, content=b"two", headers={"If-None-Match": "*"}).status_code == 412
    wrong = {"If-Match": '"0"'}
    assert session.put(url, content=b"two", headers=wrong).status_code == 412
    assert session.put(f"{url}2", content=b"two", headers=wrong).status_code == 404
    content = text(200_000)
    right = {"If-Match": first.headers["ETag"]}
    second = session.put(url, content=content, headers=right)
    assert second.status_code == 200
    assert session.put(url, content=b"three", headers=right).status_code == 412
    got = session.get(url)
    assert (got.content, got.headers["ETag"]) == (content, second.headers["ETag"])
    assert download(api, "refs/main", tmp_path) == content
    assert (
        resolve(client, hub, "refs/main", Range="bytes=66000-70000").content == content[66000:70001]
    )


def test_everything_survives_a_kill(client: Client, tmp_path: Path) -> None:
    with LocalHubProcess(tmp_path / "hub", conditions=Conditions(latency=0.001)) as hub:
        api = client.api(hub)
        hub.create_bucket(BUCKET)
        content = noise(1_000_000, seed=3)
        api.batch_bucket_files(BUCKET, add=[(content, "a"), (b"x", "b"), (b"y", "c")], delete=[])
        api.batch_bucket_files(BUCKET, delete=["b"])
        api.create_repo("me/refs")
        add = client.hub.CommitOperationAdd(path_in_repo="head", path_or_fileobj=b"1")
        head = api.create_commit("me/refs", [add], commit_message="x").oid
        before = files(api)
        url = hub.url
        hub.kill()
        with pytest.raises(OSError, match=r".*"):
            hub.counters()
        hub.restart()
        assert hub.url == url
        assert hub.conditions == Conditions(latency=0.001)
        assert files(api) == before
        assert download(api, "a", tmp_path) == content
        assert api.repo_info("me/refs").sha == head
        api.batch_bucket_files(BUCKET, add=[(b"z", "d")])
        (last,) = files(api, "d")
        assert str(last.uploaded_at) > max(str(file.uploaded_at) for file in before)
        hub.corrupt_object(BUCKET, "a", 17)
        assert download(api, "a", tmp_path) != content
        counts = hub.counters()
        assert counts.requests["batch"] == 1
        hub.reset_counters()
        assert hub.counters().total == 0
