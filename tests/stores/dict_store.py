"""The smallest driver: it implements only the required methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casweights.stores.base import ObjectInfo, ObjectStore, check_name, missing, truncated

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casweights.system.buffers import Buffer


class DictStore(ObjectStore):
    """Objects in a dictionary that the caller owns."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects

    @property
    def url(self) -> str:
        return "dict://"

    def put(self, name: str, parts: Sequence[Buffer]) -> bool:
        created = check_name(name) not in self._objects
        self._objects.setdefault(name, b"".join(parts))
        return created

    def size(self, name: str) -> int:
        return len(self._get(name))

    def readinto(self, name: str, start: int, out: memoryview) -> None:
        data = self._get(name)[start : start + len(out)]
        if len(data) < len(out):
            raise truncated(name)
        out[:] = data

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for name, data in sorted(self._objects.copy().items()):
            if name.startswith(prefix):
                yield ObjectInfo(name, len(data))

    def delete(self, name: str) -> None:
        self._objects.pop(check_name(name), None)

    def _get(self, name: str) -> bytes:
        try:
            return self._objects[check_name(name)]
        except KeyError:
            raise missing(name) from None
