"""Tests that the local Hub refuses, lists and grants the same as the real one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from casweights.testing.hub import Conditions
from tests.hub.conftest import BUCKET

if TYPE_CHECKING:
    from pathlib import Path

    from huggingface_hub import HfApi

    from casweights.testing.hub import LocalHub
    from tests.hub.conftest import Client

EMPTY_FILE = "0" * 64


def test_a_listing_is_recursive_by_default(api: HfApi) -> None:
    api.batch_bucket_files(BUCKET, add=[(b"a", "a"), (b"b", "sub/b"), (b"c", "sub/deep/c")])
    assert [entry.path for entry in api.list_bucket_tree(BUCKET)] == ["a", "sub/b", "sub/deep/c"]
    below = api.list_bucket_tree(BUCKET, "sub/")
    assert [entry.path for entry in below] == ["sub/b", "sub/deep/c"]
    flat = api.list_bucket_tree(BUCKET, recursive=False)
    assert [(entry.type, entry.path) for entry in flat] == [("file", "a"), ("directory", "sub")]


def test_copying_bytes_that_the_source_does_not_have_fails(
    client: Client, hub: LocalHub, api: HfApi
) -> None:
    hub.create_bucket("me/other")
    api.batch_bucket_files(BUCKET, add=[(b"a", "a"), (b"gone", "gone"), (b"over", "over")])
    listed = api.list_bucket_tree(BUCKET)
    hashes = {file.path: file.xet_hash for file in listed if file.type == "file"}
    api.batch_bucket_files(BUCKET, add=[(b"other", "over")], delete=["gone"])
    refused = [
        ("bucket", BUCKET, EMPTY_FILE),
        ("bucket", BUCKET, hashes["gone"]),
        ("bucket", BUCKET, hashes["over"]),
        ("bucket", "me/other", hashes["a"]),
        ("bucket", "me/none", hashes["a"]),
        ("model", BUCKET, hashes["a"]),
    ]
    for source in refused:
        with pytest.raises(client.hub.errors.BucketBatchError, match="unknown xet hash"):
            api.batch_bucket_files("me/other", copy=[(*source, "x")])
    assert list(api.list_bucket_tree("me/other")) == []
    api.batch_bucket_files("me/other", copy=[("bucket", BUCKET, hashes["a"], "x")])
    api.batch_bucket_files(BUCKET, add=[(b"", "empty")])
    api.batch_bucket_files("me/other", copy=[("bucket", BUCKET, EMPTY_FILE, "y")])
    assert [file.path for file in api.list_bucket_tree("me/other")] == ["x", "y"]


def test_a_pull_request_is_refused_and_commits_nothing(client: Client, api: HfApi) -> None:
    api.create_repo("me/repo")
    before = api.repo_info("me/repo").sha
    with pytest.raises(client.hub.errors.HfHubHTTPError, match="no pull requests"):
        api.upload_file(repo_id="me/repo", path_in_repo="a", path_or_fileobj=b"1", create_pr=True)
    assert api.repo_info("me/repo").sha == before
    assert "a" not in api.list_repo_files("me/repo")


def test_an_unknown_namespace_is_not_found(client: Client, hub: LocalHub, api: HfApi) -> None:
    with pytest.raises(client.hub.errors.HfHubHTTPError) as caught:
        list(api.list_buckets("nobody"))
    assert caught.value.response.status_code == 404
    hub.create_bucket("somebody/b")
    api.delete_bucket("somebody/b")
    assert list(api.list_buckets("somebody")) == []


def test_an_upload_grant_needs_two_more_requests(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    requests = {}
    for grants in (False, True):
        hub.conditions = Conditions(upload_grants=grants)
        hub.reset_counters()
        content = os.urandom(300_000)
        api.batch_bucket_files(BUCKET, add=[(content, f"{grants}")])
        requests[grants] = hub.counters().requests
        api.download_bucket_files(BUCKET, [(f"{grants}", tmp_path / "got")])
        assert (tmp_path / "got").read_bytes() == content
    counted = (
        "xorb_grant",
        "xorb_upload",
        "granted_upload",
        "xorb_commit",
        "shard_upload",
        "batch",
    )
    assert [requests[False][name] for name in counted] == [1, 1, 0, 0, 1, 1]
    assert [requests[True][name] for name in counted] == [1, 0, 1, 1, 1, 1]


def test_a_grant_that_is_unknown_or_unused_is_refused(
    client: Client, hub: LocalHub, api: HfApi
) -> None:
    session = client.hub.utils.get_session()
    assert session.put(f"{hub.cas_url}/granted/{'0' * 32}", content=b"").status_code == 403
    token = session.get(f"{hub.url}/api/buckets/{BUCKET}/xet-write-token").json()["accessToken"]
    unused = f"{hub.cas_url}/v1/xorb-commits/default/{'a' * 64}/grant/{'0' * 32}"
    headers = {"Authorization": f"Bearer {token}"}
    assert session.post(unused, headers=headers).status_code == 404


def test_a_client_asks_once_for_the_registry_of_agents(client: Client, hub: LocalHub) -> None:
    """Unless it is answered, each process asks again, which distorts counts of requests."""
    answer = client.hub.utils.get_session().get(f"{hub.url}/api/agent-harnesses")
    assert answer.json() == {"standardEnvVars": [], "harnesses": {}}
    assert hub.counters().requests["registry"] == 1
