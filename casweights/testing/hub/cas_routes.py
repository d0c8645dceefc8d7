"""The HTTP API of the CAS, and of the CDN that serves its bytes, on a port of their own."""

from __future__ import annotations

import hmac
import json
import secrets
from typing import TYPE_CHECKING, Any, Literal

from casweights.testing.hub.messages import Answer, Refusal, Route, json_answer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from casweights.testing.hub.cas import Cas, Part
    from casweights.testing.hub.clock import Clock
    from casweights.testing.hub.conditions import Weather
    from casweights.testing.hub.messages import Request

Right = Literal["read", "write"]

_HASH = "([0-9a-f]{64})"


class Tokens:
    """Issues and checks tokens of the CAS.

    A token consists of a right, the time at which it expires and a signature, so that tokens need
    not be stored and remain valid after a restart.

    Args:
        path: File with the key of the signatures; it is created if missing.
        clock: The source of times, by which tokens expire.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        if not path.exists():
            path.write_bytes(secrets.token_bytes(32))
        self._secret = path.read_bytes()

    def issue(self, right: Right, lifetime: float) -> tuple[str, int]:
        """Return a token with this right, and the time in seconds at which it expires.

        Args:
            right: What the token allows.
            lifetime: Seconds until it expires.
        """
        end = int(self._clock.now() / 1_000_000 + lifetime)
        claim = f"{right}.{end}"
        return f"{claim}.{self._seal(claim)}", end

    def check(self, token: str | None, right: Right) -> None:
        """Check that a token grants a right.

        Raises:
            Refusal: The token is missing, unknown, expired, or for reading only.
        """
        claim, _, seal = (token or "").rpartition(".")
        if not hmac.compare_digest(seal, self._seal(claim)):
            raise Refusal(401, "the token is unknown")
        granted, _, end = claim.partition(".")
        if int(end) < self._clock.now() / 1_000_000:
            raise Refusal(401, "the token has expired")
        if right == "write" and granted != "write":
            raise Refusal(403, "the token is for reading only")

    def _seal(self, claim: str) -> str:
        return hmac.digest(self._secret, claim.encode(), "sha256").hex()


class CasRoutes:
    """Handlers of requests to the CAS and the CDN.

    Args:
        cas: The stored xorbs and files.
        tokens: Checks the tokens of requests.
        weather: Decides whether xorbs are uploaded by grants.

    Attributes:
        url: Address of the port; set it before the first request.
    """

    def __init__(self, cas: Cas, tokens: Tokens, weather: Weather) -> None:
        self._cas = cas
        self._tokens = tokens
        self._weather = weather
        self._grants: dict[str, str] = {}  # hashes of xorbs, by the ID of the grant
        self.url = ""

    def routes(self) -> list[Route]:
        """The routes of the port."""
        return [
            Route("xorb_read", "GET HEAD", f"/xorbs/{_HASH}", self.xorb_read),
            Route("cdn_read", "GET HEAD", f"/files/{_HASH}", self.cdn_read),
            Route("chunk_query", "GET", "/v1/chunks/[^/]+/.*", self.chunk_query),
            Route("xorb_grant", "POST", f"/v1/xorb-grants/[^/]+/{_HASH}", self.xorb_grant),
            Route("granted_upload", "PUT", "/granted/([0-9a-f]{32})", self.granted_upload),
            Route("xorb_commit", "POST", f"/v1/xorb-commits/[^/]+/{_HASH}/grant/(.+)", self.commit),
            Route("xorb_head", "HEAD", f"/v1/xorbs/[^/]+/{_HASH}", self.xorb_head),
            Route("xorb_upload", "POST", f"/v1/xorbs/[^/]+/{_HASH}", self.xorb_upload),
            Route("shard_upload", "POST", "/(v[12])/shards", self.shard_upload),
            Route("file_head", "HEAD", f"/v1/files/{_HASH}", self.file_head),
            Route("reconstruction", "GET", f"/(v[12])/reconstructions/{_HASH}", self.reconstruct),
            Route("telemetry", "POST", "/v1/telemetry", self.telemetry),
        ]

    def telemetry(self, request: Request) -> Answer:
        """Accept the client's telemetry and discard it."""
        request.read()
        return json_answer({})

    def chunk_query(self, request: Request) -> Answer:
        """Report every chunk as unknown, because there is no global deduplication."""
        self._tokens.check(request.token, "read")
        raise Refusal(404, "this chunk is not known")

    def xorb_grant(self, request: Request) -> Answer:
        """Return an address for the upload of a xorb, unless it is stored already.

        The answer 404 makes the client upload it with `xorb_upload` instead.
        """
        self._tokens.check(request.token, "write")
        xorb = request.args[0]
        if self._cas.keep_xorb(xorb):
            return json_answer({"was_inserted": False})
        if not self._weather.conditions.upload_grants:
            raise Refusal(404, "this server issues no grants: upload the xorb directly")
        grant = secrets.token_hex(16)
        self._grants[grant] = xorb
        url = f"{self.url}/granted/{grant}"
        return json_answer({"id": grant, "method": "PUT", "url": url, "headers": {}}, 201)

    def granted_upload(self, request: Request) -> Answer:
        """Store a xorb that was uploaded by a grant, which serves as its token."""
        xorb = self._grants.get(request.args[0])
        if xorb is None:
            raise Refusal(403, "the grant is unknown")
        self._cas.put_xorb(xorb, request.save)
        return Answer()

    def commit(self, request: Request) -> Answer:
        """Confirm the upload of a xorb by a grant, which ends the grant."""
        self._tokens.check(request.token, "write")
        xorb, grant = request.args
        if self._grants.pop(grant, None) != xorb or not self._cas.has_xorb(xorb):
            raise Refusal(404, "no xorb was uploaded with this grant")
        return json_answer({"was_inserted": True})

    def xorb_head(self, request: Request) -> Answer:
        """Answer 200 if a xorb is stored, and 404 otherwise."""
        self._tokens.check(request.token, "read")
        if not self._cas.has_xorb(request.args[0]):
            raise Refusal(404, f"xorb {request.args[0]} is not stored")
        return Answer()

    def xorb_upload(self, request: Request) -> Answer:
        """Store a xorb that the client sends directly."""
        self._tokens.check(request.token, "write")
        if not self._weather.conditions.direct_uploads:
            raise Refusal(404, "this server takes no xorbs without a grant")
        return json_answer({"was_inserted": self._cas.put_xorb(request.args[0], request.save)})

    def shard_upload(self, request: Request) -> Answer:
        """Register the files of a shard."""
        self._tokens.check(request.token, "write")
        new = self._cas.put_shard(request.read())
        if request.args[0] == "v1":
            return json_answer({"result": int(new)})
        # Version 2 of the API may report progress, one JSON object per line, before the result.
        end = json.dumps({"type": "result"}).encode() + b"\n"
        return Answer(body=end, headers={"Content-Type": "application/x-ndjson"})

    def file_head(self, request: Request) -> Answer:
        """Answer with the size of a file as the content length, or 404."""
        self._tokens.check(request.token, "read")
        self._cas.terms(request.args[0])
        return Answer(headers={"Content-Length": str(self._cas.size(request.args[0]))})

    def reconstruct(self, request: Request) -> Answer:
        """Return the chunks that make up a file, or a range of it, and their addresses."""
        self._tokens.check(request.token, "read")
        version, name = request.args
        self._cas.terms(name)
        size = self._cas.size(name)
        start, end = request.range(size) or (0, size)
        parts = self._cas.parts(name, start, end)
        terms = [
            {
                "hash": part.term.xorb,
                "unpacked_length": part.term.size,
                "range": {"start": part.term.first, "end": part.term.end},
            }
            for part in parts
        ]
        return json_answer(
            {
                # Chunks are sent whole, so the client skips the bytes before its range.
                "offset_into_first_range": start - parts[0].start if parts else 0,
                "terms": terms,
                **self._sources(parts, version),
            }
        )

    def xorb_read(self, request: Request) -> Answer:
        """Return a range of a xorb's stored bytes."""
        body = self._cas.slice(request.args[0], request.range)
        partial = request.range(1 << 62) is not None
        size = body.path.stat().st_size
        return _bytes_answer(body, partial=partial, start=body.start, size=size)

    def cdn_read(self, request: Request) -> Answer:
        """Return a range of a file's bytes."""
        name = request.args[0]
        self._cas.terms(name)
        size = self._cas.size(name)
        wanted = request.range(size)
        start, end = wanted or (0, size)
        body = self._cas.read(name, start, end)
        return _bytes_answer(body, partial=wanted is not None, start=start, size=size, tag=name)

    def _sources(self, parts: Sequence[Part], version: str) -> dict[str, Any]:
        """Return the addresses of parts by xorb, in the form of a version of the API."""
        sources = {
            xorb: [self._source(xorb, span, version) for span in spans]
            for xorb, spans in self._cas.spans(parts).items()
        }
        return {"fetch_info" if version == "v1" else "xorbs": sources}

    def _source(self, xorb: str, span: tuple[int, int], version: str) -> dict[str, Any]:
        offsets = self._cas.index(xorb).offsets
        chunks = {"start": span[0], "end": span[1]}
        # Ranges of bytes include their end, as in HTTP; ranges of chunks do not.
        places = {"start": offsets[span[0]], "end": offsets[span[1]] - 1}
        url = f"{self.url}/xorbs/{xorb}?bytes={places['start']}-{places['end']}"
        if version == "v1":
            return {"url": url, "range": chunks, "url_range": places}
        return {"url": url, "ranges": [{"chunks": chunks, "bytes": places}]}


def _bytes_answer(
    body: Any, *, partial: bool, start: int, size: int, tag: str | None = None
) -> Answer:
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    if tag is not None:
        headers["ETag"] = f'"{tag}"'
    if partial:
        headers["Content-Range"] = f"bytes {start}-{start + body.size - 1}/{size}"
    return Answer(206 if partial else 200, body, headers)
