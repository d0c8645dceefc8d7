"""The HTTP API of git repositories on the Hub's port."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from casweights.testing.hub.messages import Answer, Refusal, Route, json_answer
from casweights.testing.hub.repos import blob_id, described, listing

if TYPE_CHECKING:
    from casweights.testing.hub.access import Access
    from casweights.testing.hub.messages import Request
    from casweights.testing.hub.repos import Repo, Repos

_API = "/api/(models|datasets)/([^/]+/[^/]+)"


class RepoRoutes:
    """Handlers of requests about git repositories.

    Args:
        repos: The repositories.
        access: Checks the rights of requests.

    Attributes:
        url: Address of the Hub's port; set it before the first request.
    """

    def __init__(self, repos: Repos, access: Access) -> None:
        self._repos = repos
        self._access = access
        self.url = ""

    def routes(self) -> list[Route]:
        """The routes of the Hub's port that concern repositories."""
        resolve = "/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"
        return [
            Route("repo_create", "POST", "/api/repos/create", self.create),
            Route("repo_delete", "DELETE", "/api/repos/delete", self.delete),
            Route("repo_info", "GET", f"{_API}(?:/revision/([^/]+))?", self.info),
            Route("repo_tree", "GET", f"{_API}/tree/([^/]+)(?:/(.*))?", self.tree),
            Route("repo_paths_info", "POST", f"{_API}/paths-info/([^/]+)", self.paths_info),
            Route("preupload", "POST", f"{_API}/preupload/([^/]+)", self.preupload),
            Route("commit", "POST", f"{_API}/commit/([^/]+)", self.commit),
            Route("repo_resolve", "GET HEAD", resolve, self.resolve),
        ]

    def create(self, request: Request) -> Answer:
        """Create a repository."""
        kind, name, wish = self._named(request)
        private = wish.get("private") is True or wish.get("visibility") == "private"
        value = {"url": self._page(kind, name), "name": name, "id": name}
        if self._repos.create(kind, name, private):
            return json_answer(value)
        message = f"You already created this {kind} repo"
        return json_answer({**value, "error": message}, 409, {"X-Error-Message": message})

    def delete(self, request: Request) -> Answer:
        """Delete a repository."""
        kind, name, _ = self._named(request)
        self._repos.drop(kind, name)
        return json_answer({})

    def info(self, request: Request) -> Answer:
        """Describe a repository at a revision."""
        repo = self._readable(request, request.args[0], request.args[1])
        commit = repo.at(request.args[2]) if request.args[2] else repo.head
        return json_answer(repo.to_json(commit))

    def tree(self, request: Request) -> Answer:
        """List a folder at a revision, in one page."""
        repo = self._readable(request, request.args[0], request.args[1])
        recursive = request.query.get("recursive", "").lower() in ("true", "1")
        folder = request.args[3].rstrip("/")
        return json_answer(listing(repo.at(request.args[2]), folder, recursive=recursive))

    def paths_info(self, request: Request) -> Answer:
        """Describe files at a revision; missing files are left out."""
        repo = self._readable(request, request.args[0], request.args[1])
        commit = repo.at(request.args[2])
        return json_answer(described(commit, request.form().get("paths", [])))

    def preupload(self, request: Request) -> Answer:
        """Tell the client to send all files within the commit, none by LFS."""
        self._access.write(request, _namespace(request.args[1]), deletes=False)
        repo = self._readable(request, request.args[0], request.args[1])
        commit = repo.at(request.args[2])
        files = [
            {
                "path": path,
                "uploadMode": "regular",
                "shouldIgnore": False,
                "oid": blob_id(commit.files[path]) if path in commit.files else None,
            }
            for path in (file["path"] for file in request.json()["files"])
        ]
        return json_answer({"files": files, "commitOid": commit.sha})

    def commit(self, request: Request) -> Answer:
        """Add a commit."""
        lines = request.lines()
        deletes = any(str(line.get("key")).startswith("deleted") for line in lines)
        self._access.write(request, _namespace(request.args[1]), deletes=deletes)
        if request.query.get("create_pr", "").lower() in ("true", "1"):
            raise Refusal(400, "this Hub has no pull requests: commit without create_pr")
        kind = request.args[0].removesuffix("s")
        name, revision = request.args[1:3]
        commit = self._repos.commit(kind, name, revision, lines)
        url = f"{self._page(kind, name)}/commit/{commit.sha}"
        return json_answer({"success": True, "commitOid": commit.sha, "commitUrl": url})

    def resolve(self, request: Request) -> Answer:
        """Return the bytes of a file at a revision, or a range of them."""
        kind, name, revision, path = request.args
        # In these paths, unlike in those of the API, models have no prefix.
        commit = self._readable(request, kind.rstrip("/") or "models", name).at(revision)
        data = commit.files.get(path)
        if data is None:
            raise Refusal(404, f"Entry not found: {path}", "EntryNotFound")
        start, end = request.range(len(data)) or (0, len(data))
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{blob_id(data)}"',
            "X-Repo-Commit": commit.sha,
        }
        partial = (start, end) != (0, len(data))
        if partial:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return Answer(206 if partial else 200, data[start:end], headers)

    def _readable(self, request: Request, kinds: str, name: str) -> Repo:
        """Return a repository by its kind (in the plural) and ID, if it may be read."""
        repo = self._repos.find(kinds.removesuffix("s"), name)
        self._access.read(request, _namespace(name), repo.private)
        return repo

    def _page(self, kind: str, name: str) -> str:
        return f"{self.url}/datasets/{name}" if kind == "dataset" else f"{self.url}/{name}"

    def _named(self, request: Request) -> tuple[str, str, dict[str, object]]:
        """Return the body of a request, and before it kind and ID of the repository it names.

        Raises:
            Refusal: The names are not valid, or the repository may not be written.
        """
        wish = request.json()
        kind = wish.get("type") or "model"
        name = f"{wish.get('organization') or self._access.user(request)}/{wish['name']}"
        if kind not in ("model", "dataset") or not re.fullmatch(r"[^/]+/[^/]+", name):
            known = "a model or dataset named NAMESPACE/NAME"
            raise Refusal(400, f"a repository must be {known}, got {kind} {name}")
        self._access.write(request, _namespace(name))
        return kind, name, wish


def _namespace(name: str) -> str:
    return name.partition("/")[0]
