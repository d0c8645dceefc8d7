"""A client process that does one job, with folders of its own.

Usage: python -m tools.bench.hub.jobs JOB OPTIONS. JOB is a module of this folder and a function of
it, such as `transfers.push`, which receives a `Probe` and the OPTIONS, a JSON object. The last line
of the output is the result of the function, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tools.bench.hub.probe import Probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    Options = dict[str, Any]

_MODULES = (
    "hf_xet",
    "huggingface_hub",
    "huggingface_hub.hf_api",
    "casweights.operations.checkout",
    "casweights.operations.collect",
    "casweights.operations.commit",
    "casweights.operations.load",
    "casweights.repository",
    "casweights.database.resolve",
    "casweights.content.files",
    "casweights.stores.cached",
    "casweights.stores.hub.store",
    "casweights.stores.retry",
    "casweights.stores.url",
)


def import_modules() -> None:
    """Import the modules that are imported on first use, so that this is not measured."""
    for module in _MODULES:
        import_module(module)


def main(arguments: Sequence[str]) -> int:
    job, options = arguments
    import_modules()
    module, _, name = job.partition(".")
    run = getattr(import_module(f"tools.bench.hub.{module}"), name)
    print(json.dumps(run(Probe(os.environ["HF_ENDPOINT"]), json.loads(options))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
