"""A Hugging Face Hub for tests and experiments: it runs on this machine and costs nothing.

The real, unmodified ``huggingface_hub`` and ``hf_xet`` talk to it when ``HF_ENDPOINT``, or the
``endpoint`` of an ``HfApi``, is its URL::

    with LocalHub() as hub:
        hub.create_bucket("me/weights")
        api = HfApi(endpoint=hub.url, token="any")
        api.batch_bucket_files("me/weights", add=[(b"hello", "greeting.txt")])
        assert hub.counters().requests["batch"] == 1
        hub.conditions = Conditions(latency=0.05, error_rate=0.1)

`LocalHub` serves from threads of this process and is for tests; `LocalHubProcess` is the same in
a process of its own, which can be killed and started again; ``python -m casweights.testing.hub``
is that process for people.

It imitates buckets (create, list, batches, listings, lookups, downloads, tokens of the CAS), the
storage that hf_xet uploads to and downloads from, small model and dataset repositories with one
branch, where a commit is refused if its parent is not the head, and PutObject and GetObject of
the S3 gateway under ``/s3/{namespace}/{bucket}/{key}``. It binds to 127.0.0.1 only.

It does not imitate: global deduplication between clients (a question for a chunk is answered with
"unknown"), organizations, rights beyond the tables of tokens and users (nobody asks whether the
source of a copy may be read), rate limits, the server's own limits on sizes and numbers of
operations, CDN caching and regions, expiring or signed URLs, keys, signatures and listings of S3
(everybody may read and write there), the event feed, bucket settings other than whether it is
private, the old name of a bucket that was moved, moves of repositories, LFS, pull requests,
branches and tags of repositories, and any check that content has the hash that it is stored under.
A listing that lags shows the whole bucket as it was, which need not be how the real one lags.
Speeds and latencies of the real Hub are not known to it, nor when it frees bytes that no path names
any more: set them with `Conditions`. Bytes that are freed can be neither read nor named, only
uploaded again. A client that remembers to have sent them, as hf_xet does, does not ask whether they
are still there, and its upload is refused.

Its clock is that of this machine unless a test holds or advances it::

    hub.conditions = Conditions(free_after=3600)
    api.batch_bucket_files("me/weights", delete=["greeting.txt"])
    hub.clock.advance(3600)
"""

from __future__ import annotations

from casweights.testing.hub.conditions import Conditions, Counts
from casweights.testing.hub.hub import LocalHub
from casweights.testing.hub.process import LocalHubProcess

__all__ = ["Conditions", "Counts", "LocalHub", "LocalHubProcess"]
