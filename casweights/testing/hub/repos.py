"""Small git repositories: one branch, whole files, and a compare-and-swap on its head."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casweights.testing.hub.clock import timestamp
from casweights.testing.hub.messages import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from casweights.testing.hub.clock import Clock
    from casweights.testing.hub.journal import Event, Journal

BRANCH = "main"

_FIRST_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


@dataclass(frozen=True, slots=True)
class Commit:
    """A state of a repository.

    Attributes:
        sha: Its name.
        title: What the committer said.
        moment: Microseconds since the epoch.
        files: The content of every file by its path.
    """

    sha: str
    title: str
    moment: int
    files: Mapping[str, bytes]


@dataclass(slots=True)
class Repo:
    """A repository.

    Attributes:
        kind: As ``"dataset"``.
        id: Namespace and name.
        private: Whether only those with a token may read it.
        commits: By sha, in order.
    """

    kind: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        """The last commit."""
        return next(reversed(self.commits.values()))

    def at(self, revision: str) -> Commit:
        """The commit that a revision names.

        Raises:
            Refusal: If there is none.
        """
        if revision in (BRANCH, f"refs/heads/{BRANCH}"):
            return self.head
        commit = self.commits.get(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def to_json(self, commit: Commit) -> dict[str, Any]:
        """As the API describes it at a commit."""
        first = next(iter(self.commits.values()))
        return {
            "_id": first.sha[:24],
            "id": self.id,
            "author": self.id.partition("/")[0],
            "sha": commit.sha,
            "private": self.private,
            "gated": False,
            "disabled": False,
            "createdAt": timestamp(first.moment),
            "lastModified": timestamp(self.head.moment),
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }


def blob_id(data: bytes) -> str:
    """The name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Repos:
    """All repositories; may be used by many threads at once.

    Args:
        journal: Keeps them.
        clock: Gives the times.
    """

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        self._repos: dict[tuple[str, str], Repo] = {}

    def apply(self, event: Event) -> None:
        """Take over an event of the journal."""
        self._clock.pass_by(event["moment"])
        key = (event["kind"], event["repo"])
        if event["do"] == "create":
            self._repos[key] = Repo(*key, event["private"])
        elif event["do"] == "drop":
            del self._repos[key]
        else:
            self._commit(self._repos[key], event)

    def create(self, kind: str, name: str, private: bool) -> bool:
        """Create a repository with a first commit; False if there is one."""
        with self._lock:
            if (kind, name) in self._repos:
                return False
            self._do("create", kind, name, private=private)
            self._do(
                "commit", kind, name, title="initial commit", put=_texts(_FIRST_FILES), drop=[]
            )
            return True

    def drop(self, kind: str, name: str) -> None:
        """Delete a repository."""
        with self._lock:
            self.find(kind, name)
            self._do("drop", kind, name)

    def find(self, kind: str, name: str) -> Repo:
        """The repository of that kind and name.

        Raises:
            Refusal: If there is none.
        """
        try:
            return self._repos[kind, name]
        except KeyError:
            raise Refusal(404, f"Repository not found: {name}", "RepoNotFound") from None

    def commit(self, kind: str, name: str, revision: str, lines: Sequence[Event]) -> Commit:
        """Add a commit to the branch.

        Raises:
            Refusal: If the head is not the parent that the first line names, or if a line cannot
                be done; then nothing is.
        """
        header, *changes = lines
        parent = header["value"].get("parentCommit")
        with self._lock:
            repo = self.find(kind, name)
            if revision != BRANCH:
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            if parent is not None and repo.head.sha != parent:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            put: dict[str, bytes] = {}
            drop: list[str] = []
            for change in changes:
                _collect(repo.head, change, put, drop)
            title = header["value"]["summary"]
            self._do("commit", kind, name, title=title, put=_texts(put), drop=drop)
            return repo.head

    def _do(self, do: str, kind: str, name: str, **values: Any) -> None:
        event = {
            "table": "repos",
            "do": do,
            "kind": kind,
            "repo": name,
            "moment": self._clock.tick(),
            **values,
        }
        self._journal.append([event])
        self.apply(event)

    def _commit(self, repo: Repo, event: Event) -> None:
        parent = repo.head.sha if repo.commits else None
        files = dict(repo.head.files) if repo.commits else {}
        for path in event["drop"]:
            files.pop(path, None)
        files |= {path: base64.b64decode(text) for path, text in event["put"].items()}
        seed = json.dumps([parent, event], sort_keys=True).encode()
        sha = hashlib.sha1(seed, usedforsecurity=False).hexdigest()
        repo.commits[sha] = Commit(sha, event["title"], event["moment"], files)


def listing(commit: Commit, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders below a folder of a commit, in order.

    Raises:
        Refusal: If there is no such folder.
    """
    start = f"{folder}/" if folder else ""
    found = dict(_listing(commit, start, recursive=recursive))
    if folder and not found:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
    return [found[path] for path in sorted(found)]


def described(commit: Commit, paths: Iterable[str]) -> list[dict[str, Any]]:
    """Those of these files that a commit has."""
    files = {path: commit.files[path] for path in paths if path in commit.files}
    return [_file_entry(path, data) for path, data in files.items()]


def _file_entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": blob_id(data), "size": len(data)}


def _listing(
    commit: Commit, start: str, *, recursive: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, data in commit.files.items():
        if not path.startswith(start):
            continue
        slashes = [at for at in range(len(start), len(path)) if path[at] == "/"]
        for slash in slashes if recursive else slashes[:1]:
            folder = path[:slash]
            yield (
                folder,
                {
                    "type": "directory",
                    "path": folder,
                    "oid": blob_id(f"{commit.sha}/{folder}".encode()),
                    "size": 0,
                },
            )
        if recursive or not slashes:
            yield path, _file_entry(path, data)


def _texts(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: base64.b64encode(data).decode() for path, data in files.items()}


def _collect(head: Commit, change: Event, put: dict[str, bytes], drop: list[str]) -> None:
    """Take note of what a line of a commit changes."""
    key, path = change["key"], change["value"]["path"]
    if key == "file":
        content = change["value"]["content"]
        is_text = change["value"].get("encoding") == "utf-8"
        put[path] = content.encode() if is_text else base64.b64decode(content)
    elif key == "deletedFile" and path in head.files:
        drop.append(path)
    elif key == "deletedFolder":
        start = f"{path.rstrip('/')}/"
        drop.extend(name for name in head.files if name.startswith(start))
    elif key == "deletedFile":
        raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    else:
        raise Refusal(422, f"{key} is not imitated")
