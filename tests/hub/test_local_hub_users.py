"""Tests of moved buckets, settings of buckets, and their owners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casweights.testing.hub import LocalHub, LocalHubProcess
from tests.hub.conftest import BUCKET

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from huggingface_hub import HfApi

    from tests.hub.conftest import Client

USERS = {"hf_ann": "ann", "hf_bob": "bob"}


def test_a_moved_bucket_keeps_its_files(
    client: Client, hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    hub.create_bucket("me/taken")
    api.batch_bucket_files(BUCKET, add=[(b"content", "a")])
    with pytest.raises(client.hub.errors.HfHubHTTPError, match="409"):
        api.move_bucket(BUCKET, "me/taken")
    api.move_bucket(BUCKET, "team/new")
    assert [bucket.id for bucket in api.list_buckets("team")] == ["team/new"]
    api.download_bucket_files("team/new", [("a", tmp_path / "got")])
    assert (tmp_path / "got").read_bytes() == b"content"
    with pytest.raises(client.hub.errors.BucketNotFoundError):
        api.bucket_info(BUCKET)


def test_a_bucket_can_become_private_and_public(client: Client, tmp_path: Path) -> None:
    with LocalHub(tmp_path, {"writer": "write"}) as hub:
        hub.create_bucket(BUCKET)
        writer, other = client.api(hub, "writer"), client.api(hub, "no")
        writer.update_bucket_settings(BUCKET, private=True)
        with pytest.raises(client.hub.errors.HfHubHTTPError, match="401"):
            other.bucket_info(BUCKET)
        writer.update_bucket_settings(BUCKET, private=False)
        assert not other.bucket_info(BUCKET).private


def test_moves_and_settings_survive_a_restart(client: Client, tmp_path: Path) -> None:
    with LocalHubProcess(tmp_path, users=USERS) as hub:
        api = client.api(hub, "hf_ann")
        api.create_bucket("ann/old")
        api.move_bucket("ann/old", "ann/new")
        api.update_bucket_settings("ann/new", private=True)
        hub.restart()
        assert api.bucket_info("ann/new").private
        assert [bucket.id for bucket in api.list_buckets()] == ["ann/new"]


def test_users_see_and_change_only_their_own_private_buckets(
    client: Client, tmp_path: Path
) -> None:
    with LocalHub(tmp_path, users=USERS) as hub:
        ann, bob, nobody = (client.api(hub, token) for token in (*USERS, "hf_none"))
        refused = client.hub.errors.HfHubHTTPError
        assert [api.whoami()["name"] for api in (ann, bob)] == ["ann", "bob"]
        assert ann.create_bucket("private", private=True).bucket_id == "ann/private"
        ann.create_bucket("ann/open")
        assert [bucket.id for bucket in ann.list_buckets()] == ["ann/open", "ann/private"]
        assert list(bob.list_buckets()) == []
        for other, status in ((bob, "404"), (nobody, "401")):
            assert [bucket.id for bucket in other.list_buckets("ann")] == ["ann/open"]
            with pytest.raises(refused, match=status):
                other.bucket_info("ann/private")
        changes: list[Callable[[HfApi], object]] = [
            lambda api: api.create_bucket("ann/third"),
            lambda api: api.batch_bucket_files("ann/open", delete=["a"]),
            lambda api: api.update_bucket_settings("ann/open", private=True),
            lambda api: api.move_bucket("ann/open", "bob/open"),
            lambda api: api.delete_bucket("ann/open"),
            lambda api: api.create_repo("ann/repo"),
        ]
        for other, status in ((bob, "403"), (nobody, "401")):
            for change in changes:
                with pytest.raises(refused, match=status):
                    change(other)
        bob.create_repo("bob/repo", private=True)
        assert bob.repo_info("bob/repo").private
        with pytest.raises(refused, match="404"):
            ann.repo_info("bob/repo")
