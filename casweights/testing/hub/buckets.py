"""Buckets: tables from paths to files of the CAS, with a history for listings that lag."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import asdict, dataclass
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from casweights.testing.hub.clock import Clock, timestamp
from casweights.testing.hub.messages import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from casweights.testing.hub.cas import Cas
    from casweights.testing.hub.journal import Event, Journal

_REMEMBERED_CHANGES = 100_000  # per bucket: bounds memory, and how far a listing can lag


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a bucket.

    Attributes:
        path: Name of the file in the bucket.
        hash: Hash of the file in the CAS.
        size: Number of bytes.
        mtime: Time of modification that the client gave, in milliseconds since the epoch.
        uploaded_at: Time of the upload by the server's clock, in microseconds since the epoch.
        content_type: Media type that the client gave, if any.
    """

    path: str
    hash: str
    size: int
    mtime: int
    uploaded_at: int
    content_type: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the file's entry in a listing."""
        value: dict[str, Any] = {
            "type": "file",
            "path": self.path,
            "size": self.size,
            "xetHash": self.hash,
            "mtime": timestamp(self.mtime * 1000),
            "uploadedAt": timestamp(self.uploaded_at),
        }
        return value if self.content_type is None else value | {"contentType": self.content_type}


@dataclass(frozen=True, slots=True)
class _Change:
    """The state of a path before a change, with which the change can be undone."""

    moment: int
    path: str
    before: Entry | None


class Bucket:
    """One bucket. The caller (`Buckets`) holds its lock during every call.

    Attributes:
        id: Namespace and name, separated by a slash.
        private: Whether reading the bucket needs a token of its owner.
        created_at: Microseconds since the epoch.
        updated_at: Time of the last change, in microseconds since the epoch.
    """

    def __init__(self, id: str, private: bool, created_at: int) -> None:
        self.id = id
        self.private = private
        self.created_at = created_at
        self.updated_at = created_at
        self._entries: dict[str, Entry] = {}
        self._hashes: Counter[str] = Counter()
        self._order: list[str] | None = []  # sorted paths; None after the set of paths changed
        self._past: deque[_Change] = deque(maxlen=_REMEMBERED_CHANGES)

    @property
    def namespace(self) -> str:
        """The part of `id` before the slash."""
        return self.id.partition("/")[0]

    def get(self, path: str) -> Entry | None:
        """Return the file at a path, or None."""
        return self._entries.get(path)

    def has_file(self, hash: str) -> bool:
        """Return whether some path names the file with this hash."""
        return self._hashes[hash] > 0

    def hashes(self) -> Iterator[str]:
        """Yield the hash of the file at each path; a hash repeats if several paths name it."""
        return (entry.hash for entry in self._entries.values())

    def set(self, path: str, entry: Entry | None, moment: int) -> None:
        """Set the file at a path, or remove it if `entry` is None."""
        before = self._entries.pop(path, None)
        if before is not None:
            self._hashes[before.hash] -= 1
        if entry is not None:
            self._entries[path] = entry
            self._hashes[entry.hash] += 1
        if (before is None) != (entry is None):
            self._order = None
        self._past.append(_Change(moment, path, before))
        self.updated_at = moment

    def at(self, moment: int) -> Mapping[str, Entry]:
        """Return all files by path as they were at a time in microseconds since the epoch.

        Times before the oldest remembered change give the state at that change.
        """
        if not self._past or self._past[-1].moment <= moment:
            return self._entries  # the usual case, without a copy
        entries = dict(self._entries)
        for change in reversed(self._past):
            if change.moment <= moment:
                break
            entries.pop(change.path, None)
            if change.before is not None:
                entries[change.path] = change.before
        return entries

    def order(self, entries: Mapping[str, Entry]) -> Sequence[str]:
        """Return the paths of `entries`, a result of `at`, in order."""
        if entries is not self._entries:
            return sorted(entries)
        if self._order is None:
            self._order = sorted(self._entries)
        return self._order

    def to_json(self) -> dict[str, Any]:
        """Return the bucket's description in the API."""
        return {
            "_id": f"{self.created_at:024x}",
            "id": self.id,
            "author": self.namespace,
            "private": self.private,
            "createdAt": timestamp(self.created_at),
            "updatedAt": timestamp(self.updated_at),
            "size": sum(entry.size for entry in self._entries.values()),
            "totalFiles": len(self._entries),
            "repoType": "bucket",
            "cdnRegions": [],
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """A line of a batch that failed: its path and the reason."""

    path: str
    error: str


class Buckets:
    """All buckets of a Hub. Its methods may be called from several threads at once.

    Every change is appended to the journal first and then applied, both under one lock. Replaying
    the journal through `apply` therefore restores the state after a restart.

    Args:
        cas: The storage of the files' bytes.
        journal: The log of changes.
        clock: The source of times.
        skew: Returns the error of the next file's upload time, in seconds.
    """

    def __init__(
        self, cas: Cas, journal: Journal, clock: Clock, skew: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._cas = cas
        self._journal = journal
        self._clock = clock
        self._skew = skew
        self._lock = threading.RLock()
        self._buckets: dict[str, Bucket] = {}
        self._namespaces: set[str] = set()

    def apply(self, event: Event) -> None:
        """Apply an event of the journal to the tables."""
        self._clock.pass_by(event["moment"])
        if event["do"] == "create":
            bucket = Bucket(event["bucket"], event["private"], event["moment"])
            self._buckets[bucket.id] = bucket
            self._namespaces.add(bucket.namespace)
        elif event["do"] == "move":
            bucket = self._buckets.pop(event["bucket"])
            bucket.id = event["to"]
            self._buckets[bucket.id] = bucket
            self._namespaces.add(bucket.namespace)
        elif event["do"] == "settings":
            self._buckets[event["bucket"]].private = event["private"]
        elif event["do"] == "drop":
            for name in self._buckets.pop(event["bucket"]).hashes():
                self._cas.unname(name, event["moment"])
        elif event["do"] == "put":
            entry = Entry(**event["entry"])
            self._set(event["bucket"], entry.path, entry, event["moment"])
        else:
            self._set(event["bucket"], event["path"], None, event["moment"])

    def free(self, after: float | None, grace: float) -> None:
        """Delete bytes that no path names any more.

        Args:
            after: Seconds since the last path was removed; None keeps all bytes.
            grace: Seconds for which uploaded bytes wait for their first path.
        """
        if after is not None:
            with self._lock:
                self._cas.free(after, grace)

    def create(self, bucket: str, private: bool) -> bool:
        """Create a bucket; return False if it exists."""
        with self._lock:
            if bucket in self._buckets:
                return False
            self._do({"do": "create", "bucket": bucket, "private": private})
            return True

    def drop(self, bucket: str) -> None:
        """Delete a bucket and its files.

        Raises:
            Refusal: The bucket does not exist.
        """
        with self._lock:
            self.find(bucket)
            self._do({"do": "drop", "bucket": bucket})

    def move(self, bucket: str, to: str) -> None:
        """Rename a bucket.

        Raises:
            Refusal: The bucket does not exist, or the new name is in use.
        """
        with self._lock:
            self.find(bucket)
            if to in self._buckets:
                raise Refusal(409, f"the bucket {to} exists already")
            self._do({"do": "move", "bucket": bucket, "to": to})

    def set_private(self, bucket: str, private: bool) -> None:
        """Make a bucket private or public."""
        with self._lock:
            self.find(bucket)
            self._do({"do": "settings", "bucket": bucket, "private": private})

    def find(self, bucket: str) -> Bucket:
        """Return a bucket by its ID.

        Raises:
            Refusal: The bucket does not exist.
        """
        try:
            return self._buckets[bucket]
        except KeyError:
            raise Refusal(404, f"Bucket not found: {bucket}", "RepoNotFound") from None

    def has_namespace(self, namespace: str) -> bool:
        """Return whether a namespace contains buckets or once did."""
        return namespace in self._namespaces

    def describe(self, namespace: str, search: str) -> list[dict[str, Any]]:
        """Describe the buckets of a namespace whose names contain `search`, by name."""
        with self._lock:
            return [
                bucket.to_json()
                for name, bucket in sorted(self._buckets.items())
                if name.startswith(f"{namespace}/") and search in name.partition("/")[2]
            ]

    def entry(self, bucket: str, path: str) -> Entry | None:
        """Return the file at a path as it is now, or None.

        Raises:
            Refusal: The bucket does not exist.
        """
        with self._lock:
            return self.find(bucket).get(path)

    def lookup(self, bucket: str, paths: Iterable[str], lag: float) -> list[Entry]:
        """Return the files at these paths as they were `lag` seconds ago, without missing ones."""
        with self._lock:
            entries = self.find(bucket).at(self._moment(lag))
            return [entries[path] for path in paths if path in entries]

    def page(
        self, bucket: str, prefix: str, *, recursive: bool, after: str, limit: int, lag: float
    ) -> list[dict[str, Any]]:
        """Return one page of a listing, as JSON values in the order of paths.

        Args:
            bucket: ID of the bucket.
            prefix: Prefix of the paths to list.
            recursive: Whether to list all files; otherwise the files and folders of one level.
            after: Last path of the previous page.
            limit: Maximum number of entries.
            lag: Age of the listing, in seconds.
        """
        with self._lock:
            found = self.find(bucket)
            entries = found.at(self._moment(lag))
            order = found.order(entries)
            first = bisect_left(order, max(prefix, f"{after}\0") if recursive else prefix)
            paths = takewhile(lambda path: path.startswith(prefix), islice(order, first, None))
            if recursive:
                return [entries[path].to_json() for path in islice(paths, limit)]
            # A folder appears once, with one of the files below it as its sample.
            level = {_folder(path, len(prefix)) or path: path for path in paths}
            names = [name for name in sorted(level) if name > after]
            return [_shown(name, entries[level[name]]) for name in names[:limit]]

    def batch(
        self, bucket: str, lines: Sequence[Mapping[str, Any]], fails: Callable[[str], bool]
    ) -> list[Failure]:
        """Run the lines of a batch: first additions and copies, then deletions.

        Args:
            bucket: ID of the bucket.
            lines: The operations, as the client sent them.
            fails: Decides by the path whether a line fails on purpose.

        Returns:
            The lines that failed. They do not stop the others.

        Raises:
            Refusal: The bucket does not exist.
        """
        with self._lock:
            self.find(bucket)
            return list(self._batch(bucket, lines, fails))

    def put(
        self, bucket: str, path: str, data: bytes, allowed: Callable[[Entry | None], None]
    ) -> Entry:
        """Store bytes as the file at a path, as one atomic step.

        Args:
            bucket: ID of the bucket.
            path: Path of the file.
            data: The bytes.
            allowed: Receives the current file or None, and raises `Refusal` to prevent the change.

        Raises:
            Refusal: The bucket does not exist, or `allowed` prevented the change.
        """
        with self._lock:
            allowed(self.find(bucket).get(path))
            name = self._cas.put_bytes(data)
            line = {"path": path, "xetHash": name, "mtime": self._clock.now() // 1000}
            return self._put(bucket, line)

    def _batch(
        self, bucket: str, lines: Sequence[Mapping[str, Any]], fails: Callable[[str], bool]
    ) -> Iterator[Failure]:
        for line in sorted(lines, key=lambda line: line["type"] == "deleteFile"):
            path = line["path"]
            if fails(path):
                yield Failure(path, "a simulated failure")
            elif line["type"] == "deleteFile":
                if self.find(bucket).get(path) is None:
                    yield Failure(path, "file not found")
                else:
                    self._do({"do": "delete", "bucket": bucket, "path": path})
            elif line["type"] not in ("addFile", "copyFile"):
                yield Failure(path, f"unknown operation {line['type']}")
            elif not valid_path(path):
                yield Failure(path, "invalid path")
            elif not self._has(line):
                yield Failure(path, "unknown xet hash")
            else:
                self._put(bucket, line)

    def _has(self, line: Mapping[str, Any]) -> bool:
        """Return whether the bytes that a line names are stored, for a copy in its source."""
        if line["type"] == "addFile":
            return self._cas.has_file(line["xetHash"])
        source = self._buckets.get(line["sourceRepoId"])
        is_bucket = line["sourceRepoType"] == "bucket"
        return is_bucket and source is not None and source.has_file(line["xetHash"])

    def _set(self, bucket: str, path: str, entry: Entry | None, moment: int) -> None:
        found = self._buckets[bucket]
        before = found.get(path)
        # The new name first: a file that replaces itself must not lose its last name in between.
        if entry is not None:
            self._cas.name(entry.hash)
        if before is not None:
            self._cas.unname(before.hash, moment)
        found.set(path, entry, moment)

    def _put(self, bucket: str, line: Mapping[str, Any]) -> Entry:
        moment = self._clock.tick()
        entry = Entry(
            path=line["path"],
            hash=line["xetHash"],
            size=self._cas.size(line["xetHash"]),
            mtime=int(line["mtime"]),
            uploaded_at=moment + int(self._skew() * 1_000_000),
            content_type=line.get("contentType"),
        )
        self._do({"do": "put", "bucket": bucket, "entry": asdict(entry), "moment": moment})
        return entry

    def _do(self, event: Event) -> None:
        event = {"table": "buckets", "moment": self._clock.tick(), **event}
        self._journal.append([event])  # first: a kill after it loses nothing
        self.apply(event)

    def _moment(self, lag: float) -> int:
        # Without a lag, a time that no clock reaches, so that the latest change is included.
        return self._clock.now() - int(lag * 1_000_000) if lag else 1 << 62


def valid_path(path: str) -> bool:
    """Return whether a bucket accepts a file under this path."""
    parts = path.split("/")
    return not (
        "" in parts or ".." in parts or parts[0] == "." or "\\" in path or "\0" in path
    ) and not path.endswith("..")


def _folder(path: str, known: int) -> str | None:
    """Return the folder that represents a path in a listing of one level; None for a file.

    Args:
        path: Path of a file.
        known: Length of the prefix of the listing.
    """
    slash = path.find("/", known + 1 if path[known : known + 1] == "/" else known)
    return None if slash < 0 else path[:slash]


def _shown(name: str, entry: Entry) -> dict[str, Any]:
    """Return the entry of a listing: the file, or the folder `name` that contains it."""
    if name == entry.path:
        return entry.to_json()
    return {"type": "directory", "path": name, "uploadedAt": timestamp(entry.uploaded_at)}
