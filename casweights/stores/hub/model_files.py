"""The files of a model repository of the Hub, to read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from casweights.errors import ErrorCode, InvalidInputError, UnsupportedError
from casweights.stores.base import Capabilities, ObjectInfo, ObjectStore, missing, truncated
from casweights.stores.hub.api import HubApi

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.system.buffers import Buffer

_SCHEME = "hf://"
_PART = "[A-Za-z0-9_][A-Za-z0-9._-]*"
_URL = re.compile(rf"{_SCHEME}(?:models/)?({_PART}/{_PART})(?:@([A-Za-z0-9._/-]+))?/?")


class ModelFiles(ObjectStore):
    """The files of one revision of a model repository, by their paths. Nothing can be written.

    Args:
        repository: Name of the repository, as ``"namespace/name"``.
        revision: A branch, tag or commit of it. All reads are of the commit that it names at the
            first call.
        endpoint: URL of the Hub; by default huggingface_hub's own (``HF_ENDPOINT``).
        token: Access token; by default the one that huggingface_hub finds.
    """

    capabilities = Capabilities(cheap_reads=False)

    def __init__(
        self,
        repository: str,
        revision: str = "main",
        *,
        endpoint: str | None = None,
        token: str | None = None,
    ) -> None:
        self._repository = repository
        self._revision = revision
        self._hub = HubApi(repository, endpoint, token)
        self._hub.where = f"model repository {repository}"
        self._api = f"{self._hub.endpoint}/api/models/{repository}"
        self._commit = ""
        self._files: dict[str, int] = {}

    @property
    def url(self) -> str:
        """URL of the repository, ``hf://namespace/name``."""
        at = "" if self._revision == "main" else f"@{self._revision}"
        return f"{_SCHEME}{self._repository}{at}"

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if not self._commit:
            revision = quote(self._revision, safe="")
            found = self._hub.request("GET", f"{self._api}/revision/{revision}").json()
            commit = str(found["sha"])
            tree = self._hub.files_below(f"{self._api}/tree/{commit}", recursive="true")
            self._files = {str(file["path"]): int(file["size"]) for file in tree}
            self._commit = commit
        names = sorted(name for name in self._files if name.startswith(prefix))
        return (ObjectInfo(name, self._files[name]) for name in names)

    def size(self, name: str) -> int:
        for info in self.list(name):
            if info.name == name:
                return info.size
        raise missing(name)

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        if not out:
            return
        if start + len(out) > self.size(name):
            raise truncated(name)
        url = f"{self._hub.endpoint}/{self._repository}/resolve/{self._commit}/{quote(name)}"
        data = self._hub.read_range(url, name, start, len(out))
        if len(data) != len(out):
            raise truncated(name)
        out[:] = data

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        raise self._read_only()

    def delete(self, name: str) -> None:
        raise self._read_only()

    def _read_only(self) -> UnsupportedError:
        return UnsupportedError(
            ErrorCode.UNSUPPORTED, f"{self.url} is a model repository, which is only read"
        )


def parse_model_url(url: str) -> tuple[str, str]:
    """Return the name and the revision of the model repository at a URL.

    Raises:
        InvalidInputError: The URL is not that of a model repository.
    """
    match = _URL.fullmatch(url)
    if match is None or ".." in url or match[1].startswith("datasets/"):
        raise InvalidInputError(
            ErrorCode.BAD_ARGUMENT,
            f"{url} names no model repository of the Hub: give {_SCHEME}NAMESPACE/NAME or "
            f"{_SCHEME}NAMESPACE/NAME@REVISION",
        )
    return match[1], match[2] or "main"
