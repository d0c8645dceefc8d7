"""The HTTP API of buckets on the Hub's port, and an S3 gateway in front of them."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from casweights.testing.hub.access import OWN_NAMESPACE
from casweights.testing.hub.messages import Answer, Refusal, Route, json_answer

if TYPE_CHECKING:
    from casweights.testing.hub.access import Access
    from casweights.testing.hub.buckets import Buckets, Entry
    from casweights.testing.hub.cas import Cas
    from casweights.testing.hub.cas_routes import Right, Tokens
    from casweights.testing.hub.conditions import Weather
    from casweights.testing.hub.messages import Request

_ID = "([^/]+)/([^/]+)"
_API = f"/api/buckets/{_ID}"
_PAGE = 1000  # entries of a page if the client names no limit
_LARGEST_PAGE = 5000
_LARGEST_LOOKUP = 2000  # paths of one request
# A client that accepts this type wants the hash of a file instead of a redirection to its bytes.
_FILE_INFO = "application/vnd.xet-fileinfo+json"


class BucketRoutes:
    """Handlers of requests about buckets.

    The three URLs are known only once the ports are bound; set them before the first request.

    Args:
        buckets: The buckets and their files.
        cas: The storage of the files' bytes.
        access: Checks the rights of requests.
        tokens: Issues tokens of the CAS.
        weather: Decides which requests fail and which listings lag.

    Attributes:
        url: Address of the Hub's port.
        cas_url: Address of the CAS, to which clients are sent for uploads.
        cdn_url: Address of the CDN, to which clients are sent for downloads.
    """

    def __init__(
        self, buckets: Buckets, cas: Cas, access: Access, tokens: Tokens, weather: Weather
    ) -> None:
        self._buckets = buckets
        self._cas = cas
        self._access = access
        self._tokens = tokens
        self._weather = weather
        self.url = ""
        self.cas_url = ""
        self.cdn_url = ""

    def routes(self) -> list[Route]:
        """The routes of the Hub's port that concern buckets."""
        return [
            Route("whoami", "GET", "/api/whoami-v2", self.whoami),
            Route("registry", "GET", "/api/agent-harnesses", self.registry),
            Route("bucket_create", "POST", _API, self.create),
            Route("bucket_info", "GET", _API, self.info),
            Route("bucket_delete", "DELETE", _API, self.delete),
            Route("bucket_list", "GET", "/api/buckets/([^/]+)", self.list),
            Route("bucket_settings", "PUT", f"{_API}/settings", self.change_settings),
            Route("bucket_move", "POST", "/api/repos/move", self.move),
            Route("tree", "GET", f"{_API}/tree(?:/(.*))?", self.tree),
            Route("paths_info", "POST", f"{_API}/paths-info", self.paths_info),
            Route("batch", "POST", f"{_API}/batch", self.batch),
            Route("token", "GET", f"{_API}/xet-read-token", self.read_token),
            Route("token", "GET", f"{_API}/xet-write-token", self.write_token),
            Route("resolve", "GET HEAD", f"/buckets/{_ID}/resolve/(.+)", self.resolve),
            Route("s3_put", "PUT", f"/s3/{_ID}/(.+)", self.s3_put),
            Route("s3_get", "GET HEAD", f"/s3/{_ID}/(.+)", self.s3_get),
        ]

    def whoami(self, request: Request) -> Answer:
        """Describe the user who sends the request."""
        return json_answer({"type": "user", "name": self._access.user(request), "orgs": []})

    def registry(self, _: Request) -> Answer:
        """Return an empty registry of agents, which clients ask for once a day."""
        return json_answer({"standardEnvVars": [], "harnesses": {}})

    def create(self, request: Request) -> Answer:
        """Create a bucket."""
        self._access.write(request, self._namespace(request))
        bucket = self._id(request)
        wish = request.json()
        private = wish.get("private") is True or wish.get("visibility") == "private"
        value = {"url": f"{self.url}/buckets/{bucket}", "name": request.args[1], "id": bucket}
        if self._buckets.create(bucket, private):
            return json_answer(value)
        # The real Hub answers 409 with the bucket's description, which `exist_ok=True` relies on.
        message = "You already created this bucket"
        return json_answer({**value, "error": message}, 409, {"X-Error-Message": message})

    def info(self, request: Request) -> Answer:
        """Describe a bucket."""
        return json_answer(self._buckets.find(self._readable(request)).to_json())

    def delete(self, request: Request) -> Answer:
        """Delete a bucket."""
        self._access.write(request, self._namespace(request))
        self._buckets.drop(self._id(request))
        return json_answer({})

    def list(self, request: Request) -> Answer:
        """Describe the buckets of a namespace that the caller may read."""
        namespace = self._namespace(request)
        is_own = request.args[0] == OWN_NAMESPACE
        if not (is_own or self._buckets.has_namespace(namespace)):
            raise Refusal(404, f"Namespace not found: {namespace}")
        found = self._buckets.describe(namespace, request.query.get("search", ""))
        may_read = self._access.may_read
        return json_answer(
            [value for value in found if may_read(request, namespace, value["private"])]
        )

    def move(self, request: Request) -> Answer:
        """Rename a bucket, also into another namespace; its old name is no longer found."""
        wish = request.json()
        if wish["type"] != "bucket":
            raise Refusal(400, f"this Hub can move buckets only, got type {wish['type']!r}")
        old, new = wish["fromRepo"], wish["toRepo"]
        for bucket in (old, new):
            self._access.write(request, bucket.partition("/")[0])
        self._buckets.move(old, new)
        return json_answer({})

    def change_settings(self, request: Request) -> Answer:
        """Make a bucket private or public."""
        self._access.write(request, self._namespace(request))
        self._buckets.set_private(self._id(request), request.json()["private"] is True)
        return json_answer({})

    def tree(self, request: Request) -> Answer:
        """List files and folders, one page per request."""
        bucket = self._readable(request)
        query = request.query
        limit = max(1, min(int(query.get("limit", _PAGE)), _LARGEST_PAGE))
        found = self._buckets.page(
            bucket,
            request.args[2],
            recursive=query.get("recursive", "true").lower() in ("true", "1"),
            after=base64.urlsafe_b64decode(query.get("cursor", "")).decode(),
            limit=limit + 1,  # one more shows whether another page follows
            lag=self._weather.conditions.listing_lag,
        )
        if len(found) <= limit:
            return json_answer(found)
        cursor = base64.urlsafe_b64encode(found[limit - 1]["path"].encode()).decode()
        link = f"{self.url}{request.path}?{urlencode({**query, 'cursor': cursor})}"
        return json_answer(found[:limit], headers={"Link": f'<{link}>; rel="next"'})

    def paths_info(self, request: Request) -> Answer:
        """Describe files by path; missing files are left out."""
        bucket = self._readable(request)
        paths = request.json()["paths"]
        if len(paths) > _LARGEST_LOOKUP:
            raise Refusal(400, f"at most {_LARGEST_LOOKUP} paths per request, got {len(paths)}")
        found = self._buckets.lookup(bucket, paths, self._weather.conditions.paths_info_lag)
        return json_answer([entry.to_json() for entry in found])

    def batch(self, request: Request) -> Answer:
        """Add, copy and delete files."""
        lines = request.lines()
        deletes = any(line.get("type") == "deleteFile" for line in lines)
        self._access.write(request, self._namespace(request), deletes=deletes)
        failures = self._buckets.batch(self._id(request), lines, self._weather.line_fails)
        value = {
            "success": not failures,
            "processed": len(lines),
            "succeeded": len(lines) - len(failures),
            "failed": [asdict(failure) for failure in failures],
        }
        # As the real Hub: an error only if every line failed, otherwise a list of failures.
        return json_answer(value, 422 if failures and len(failures) == len(lines) else 200)

    def read_token(self, request: Request) -> Answer:
        """Issue a token for reading from the CAS."""
        self._readable(request)
        return self._token("read")

    def write_token(self, request: Request) -> Answer:
        """Issue a token for writing to the CAS."""
        self._access.write(request, self._namespace(request), deletes=False)
        self._buckets.find(self._id(request))
        return self._token("write")

    def resolve(self, request: Request) -> Answer:
        """Redirect to the bytes of a file, or describe the file if the client requests that."""
        bucket = self._readable(request)
        entry = self._entry(bucket, request.args[2])
        refresh = f"{self.url}/api/buckets/{bucket}/xet-read-token"
        headers = {
            "X-Xet-Hash": entry.hash,
            "X-Linked-Size": str(entry.size),
            "X-Linked-Etag": f'"{entry.hash}"',
            "ETag": f'"{entry.hash}"',
            "Accept-Ranges": "bytes",
            "Link": f'<{refresh}>; rel="xet-auth"',
        }
        if _FILE_INFO in request.headers.get("accept", ""):
            value = {"hash": entry.hash, "size": entry.size, "refreshUrl": refresh}
            return json_answer(value, headers=headers)
        name = quote(entry.path.rpartition("/")[2], safe="")
        location = f"{self.cdn_url}/files/{entry.hash}?filename={name}"
        return Answer(302, headers={**headers, "Location": location})

    def s3_put(self, request: Request) -> Answer:
        """PutObject: store the body as a file of the bucket, subject to If-Match headers."""
        self._buckets.find(self._id(request))
        data = request.read()

        def allowed(entry: Entry | None) -> None:
            """Check the conditions of the request against the file that exists now."""
            tag = None if entry is None else f'"{entry.hash}"'
            wanted = request.headers.get("if-match")
            if request.headers.get("if-none-match") == "*" and tag is not None:
                raise Refusal(412, "PreconditionFailed: the object exists")
            if wanted is not None and tag is None:
                raise Refusal(404, "NoSuchKey")
            if wanted is not None and wanted.strip('"') != str(tag).strip('"'):
                raise Refusal(412, "PreconditionFailed: the object has another ETag")

        entry = self._buckets.put(self._id(request), request.args[2], data, allowed)
        return Answer(headers={"ETag": f'"{entry.hash}"'})

    def s3_get(self, request: Request) -> Answer:
        """GetObject and HeadObject: return the bytes of a file and its tag."""
        entry = self._entry(self._id(request), request.args[2])
        body = self._cas.read(entry.hash, 0, entry.size)
        return Answer(body=body, headers={"ETag": f'"{entry.hash}"'})

    def _token(self, right: Right) -> Answer:
        token, end = self._tokens.issue(right, self._weather.conditions.token_lifetime)
        value = {"casUrl": self.cas_url, "exp": end, "accessToken": token}
        headers = {
            "X-Xet-Cas-Url": self.cas_url,
            "X-Xet-Token-Expiration": str(end),
            "X-Xet-Access-Token": token,
        }
        return json_answer(value, headers=headers)

    def _readable(self, request: Request) -> str:
        """Return the ID of the bucket that a request is about, if it may be read."""
        bucket = self._buckets.find(self._id(request))
        self._access.read(request, bucket.namespace, bucket.private)
        return bucket.id

    def _entry(self, bucket: str, path: str) -> Entry:
        entry = self._buckets.entry(bucket, path)
        if entry is None:
            raise Refusal(404, f"Entry not found: {path}", "EntryNotFound")
        return entry

    def _namespace(self, request: Request) -> str:
        """Return the namespace that a request is about."""
        name = request.args[0]
        return self._access.user(request) if name == OWN_NAMESPACE else name

    def _id(self, request: Request) -> str:
        """Return the ID of the bucket that a request is about."""
        return f"{self._namespace(request)}/{request.args[1]}"
