"""Tests of the local Hub's clock, which tests control."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from casweights.testing.hub import Conditions, LocalHub, LocalHubProcess
from tests.hub.conftest import BUCKET

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from huggingface_hub import HfApi

    from tests.hub.conftest import Client


def moment(api: HfApi, path: str) -> datetime:
    """Return the upload time of a file by the Hub's clock."""
    (file,) = api.get_bucket_paths_info(BUCKET, [path])
    assert file.uploaded_at is not None
    return file.uploaded_at


def test_a_held_clock_moves_only_when_it_is_advanced(hub: LocalHub, api: HfApi) -> None:
    hub.clock.hold()
    api.batch_bucket_files(BUCKET, add=[(b"a", "a")])
    hub.clock.advance(3600)
    api.batch_bucket_files(BUCKET, add=[(b"b", "b")])
    passed = moment(api, "b") - moment(api, "a")
    assert timedelta(hours=1) < passed < timedelta(hours=1, milliseconds=1)


def test_advancing_a_running_clock_makes_it_jump(hub: LocalHub, api: HfApi) -> None:
    api.batch_bucket_files(BUCKET, add=[(b"a", "a")])
    hub.clock.advance(3600)
    api.batch_bucket_files(BUCKET, add=[(b"b", "b")])
    assert moment(api, "b") - moment(api, "a") > timedelta(hours=1)


def test_the_clock_cannot_go_back(hub: LocalHub) -> None:
    with pytest.raises(ValueError, match="cannot go back"):
        hub.clock.advance(-1)


def test_a_lagging_listing_catches_up_after_the_configured_time(hub: LocalHub, api: HfApi) -> None:
    hub.clock.hold()
    api.batch_bucket_files(BUCKET, add=[(b"a", "a")])
    hub.conditions = Conditions(listing_lag=60)
    assert list(api.list_bucket_tree(BUCKET)) == []
    hub.clock.advance(59.5)
    assert list(api.list_bucket_tree(BUCKET)) == []
    hub.clock.advance(0.5)
    assert [file.path for file in api.list_bucket_tree(BUCKET)] == ["a"]


def test_a_token_expires_after_its_lifetime(client: Client, hub: LocalHub) -> None:
    hub.clock.hold()
    session = client.hub.utils.get_session()
    token = session.get(f"{hub.url}/api/buckets/{BUCKET}/xet-read-token").json()["accessToken"]

    def status() -> int:
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{hub.cas_url}/v1/reconstructions/{'0' * 64}"
        return int(session.get(url, headers=headers).status_code)

    hub.clock.advance(hub.conditions.token_lifetime - 1)
    assert status() == 200
    hub.clock.advance(2)
    assert status() == 401


def test_the_client_survives_a_jump_beyond_the_lifetime_of_its_tokens(
    hub: LocalHub, api: HfApi, tmp_path: Path
) -> None:
    for number in range(2):
        content = b"%d" % number * 70_000
        api.batch_bucket_files(BUCKET, add=[(content, "a")])
        api.download_bucket_files(BUCKET, [("a", tmp_path / "got")])
        assert (tmp_path / "got").read_bytes() == content
        hub.clock.advance(2 * hub.conditions.token_lifetime)


def test_the_clock_of_another_process_survives_a_kill(client: Client, tmp_path: Path) -> None:
    with LocalHubProcess(tmp_path / "hub") as hub:
        hub.create_bucket(BUCKET)
        api = client.api(hub)
        hub.clock.hold()
        hub.clock.advance(3600)
        api.batch_bucket_files(BUCKET, add=[(b"a", "a")])
        hub.kill()
        hub.restart()
        api.batch_bucket_files(BUCKET, add=[(b"b", "b")])
        assert timedelta(0) < moment(api, "b") - moment(api, "a") < timedelta(milliseconds=1)
        hub.clock.advance(10)
        api.batch_bucket_files(BUCKET, add=[(b"c", "c")])
        assert moment(api, "c") - moment(api, "b") >= timedelta(seconds=10)
        with pytest.raises(ValueError, match="cannot go back"):
            hub.clock.advance(-1)
