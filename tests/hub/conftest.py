"""Fixtures for the real client and a local Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from casweights.testing.hub import LocalHub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from huggingface_hub import HfApi

    from casweights.testing.hub import LocalHubProcess

BUCKET = "me/weights"


class Client(NamedTuple):
    """The real client, imported after its settings were put into the environment."""

    hub: Any
    xet: Any

    def api(self, hub: LocalHub | LocalHubProcess, token: str = "any") -> HfApi:
        api: HfApi = self.hub.HfApi(endpoint=hub.url, token=token)
        return api


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_XET_CACHE", str(home / "xet"))
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "3")
        patch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "50ms")
        import hf_xet
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils

        yield Client(huggingface_hub, hf_xet)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        hub.create_bucket(BUCKET)
        yield hub


@pytest.fixture
def api(client: Client, hub: LocalHub) -> HfApi:
    return client.api(hub)
