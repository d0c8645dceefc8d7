"""A local imitation of the Hugging Face Hub, for tests and experiments.

The unmodified ``huggingface_hub`` and ``hf_xet`` use it if ``HF_ENDPOINT``, or the ``endpoint`` of
an ``HfApi``, is its URL::

    with LocalHub() as hub:
        hub.create_bucket("me/weights")
        api = HfApi(endpoint=hub.url, token="any")
        api.batch_bucket_files("me/weights", add=[(b"hello", "greeting.txt")])
        assert hub.counters().requests["batch"] == 1
        hub.conditions = Conditions(latency=0.05, error_rate=0.1)

`LocalHub` serves from threads of this process and suits tests. `LocalHubProcess` runs in a process
of its own, which a test can kill and restart. ``python -m casweights.testing.hub`` runs the same
process from a shell.

The local Hub imitates:

* Buckets: create, list, batches, listings, lookups, downloads, and tokens of the CAS.
* The content-addressed storage (CAS) that hf_xet uploads to and downloads from.
* Small model and dataset repositories with one branch, where a commit is refused if its parent is
  not the head.
* PutObject and GetObject of the S3 gateway under ``/s3/{namespace}/{bucket}/{key}``.

It binds to 127.0.0.1 only.

The local Hub does not imitate:

* Global deduplication between clients: every query for a chunk is answered with "unknown".
* Organizations, and rights beyond the tables of tokens and users: the rights to the source of a
  copy are not checked.
* Rate limits, and the real server's limits on sizes and numbers of operations.
* CDN caching and regions, expiring or signed URLs.
* Keys, signatures and listings of S3: every client may read and write there.
* The event feed, bucket settings other than private or public, and the old name of a moved bucket.
* Moves, LFS, pull requests, branches and tags of repositories.
* Any check that content matches the hash under which it is stored.

The real Hub may behave differently in three ways. Its latency, bandwidth and the time after which
it frees bytes that no path names are not known here: set them with `Conditions`. A listing that
lags shows the whole bucket at an earlier time, which may not be how the real one lags. Freed bytes
can be neither read nor named, only uploaded again; a client that remembers having sent them, as
hf_xet does, does not check whether they still exist, and its upload is refused.

The clock of the local Hub is that of this machine unless a test holds or advances it::

    hub.conditions = Conditions(free_after=3600)
    api.batch_bucket_files("me/weights", delete=["greeting.txt"])
    hub.clock.advance(3600)
"""

from __future__ import annotations

from casweights.testing.hub.conditions import Conditions, Counts
from casweights.testing.hub.hub import LocalHub
from casweights.testing.hub.process import LocalHubProcess

__all__ = ["Conditions", "Counts", "LocalHub", "LocalHubProcess"]
