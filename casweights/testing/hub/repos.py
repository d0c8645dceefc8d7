"""Small git repositories: one branch with whole files, and compare-and-swap on its head."""

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
    """A commit of a repository.

    Attributes:
        sha: Its hash.
        title: Its message.
        moment: Time of the commit, in microseconds since the epoch.
        files: The content of every file, by path.
    """

    sha: str
    title: str
    moment: int
    files: Mapping[str, bytes]


@dataclass(slots=True)
class Repo:
    """A repository.

    Attributes:
        kind: ``"model"`` or ``"dataset"``.
        id: Namespace and name, separated by a slash.
        private: Whether reading it needs a token of its owner.
        commits: The commits by their hash, the oldest first.
    """

    kind: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        """The latest commit."""
        return next(reversed(self.commits.values()))

    def at(self, revision: str) -> Commit:
        """Return the commit that a revision names: a hash, or the branch.

        Raises:
            Refusal: The revision does not exist.
        """
        if revision in (BRANCH, f"refs/heads/{BRANCH}"):
            return self.head
        commit = self.commits.get(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def to_json(self, commit: Commit) -> dict[str, Any]:
        """Return the repository's description in the API, at a commit."""
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
    """Return the hash by which git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Repos:
    """All repositories of a Hub. Its methods may be called from several threads at once.

    As with `Buckets`, every change is appended to the journal first and then applied.

    Args:
        journal: The log of changes.
        clock: The source of times.
    """

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        self._repos: dict[tuple[str, str], Repo] = {}

    def apply(self, event: Event) -> None:
        """Apply an event of the journal to the repositories."""
        self._clock.pass_by(event["moment"])
        key = (event["kind"], event["repo"])
        if event["do"] == "create":
            self._repos[key] = Repo(*key, event["private"])
        elif event["do"] == "drop":
            del self._repos[key]
        else:
            self._commit(self._repos[key], event)

    def create(self, kind: str, name: str, private: bool) -> bool:
        """Create a repository with a first commit; return False if it exists."""
        with self._lock:
            if (kind, name) in self._repos:
                return False
            self._do("create", kind, name, private=private)
            self._do(
                "commit", kind, name, title="initial commit", put=_texts(_FIRST_FILES), drop=[]
            )
            return True

    def drop(self, kind: str, name: str) -> None:
        """Delete a repository.

        Raises:
            Refusal: The repository does not exist.
        """
        with self._lock:
            self.find(kind, name)
            self._do("drop", kind, name)

    def find(self, kind: str, name: str) -> Repo:
        """Return a repository by its kind and ID.

        Raises:
            Refusal: The repository does not exist.
        """
        try:
            return self._repos[kind, name]
        except KeyError:
            raise Refusal(404, f"Repository not found: {name}", "RepoNotFound") from None

    def commit(self, kind: str, name: str, revision: str, lines: Sequence[Event]) -> Commit:
        """Add a commit to the branch, all of it or nothing.

        Args:
            kind: Kind of the repository.
            name: ID of the repository.
            revision: The branch.
            lines: A header, which may name the expected parent, and then the changes.

        Raises:
            Refusal: The head is not the expected parent, or a change is not possible.
        """
        header, *changes = lines
        parent = header["value"].get("parentCommit")
        with self._lock:  # the check of the parent and the move of the head are one step
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
        # Not git's own hash, which needs trees; from the event, so that a replay repeats it.
        seed = json.dumps([parent, event], sort_keys=True).encode()
        sha = hashlib.sha1(seed, usedforsecurity=False).hexdigest()
        repo.commits[sha] = Commit(sha, event["title"], event["moment"], files)


def listing(commit: Commit, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """Describe the files and folders below a folder of a commit, in the order of paths.

    Args:
        commit: The commit.
        folder: Path of the folder; empty for the root.
        recursive: Whether to list all levels below the folder, or only the first.

    Raises:
        Refusal: The folder does not exist.
    """
    start = f"{folder}/" if folder else ""
    found = dict(_listing(commit, start, recursive=recursive))
    if folder and not found:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
    return [found[path] for path in sorted(found)]


def described(commit: Commit, paths: Iterable[str]) -> list[dict[str, Any]]:
    """Describe the files at these paths of a commit, without missing ones."""
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
    """Add the change of one line of a commit to `put` and `drop`."""
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
        raise Refusal(422, f"this Hub cannot commit a line with the key {key!r}")
