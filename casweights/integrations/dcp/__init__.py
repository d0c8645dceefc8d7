"""torch.distributed.checkpoint: the shards of all ranks in one version, loaded on any number."""

from __future__ import annotations

from casweights.integrations.dcp.reader import CasweightsReader
from casweights.integrations.dcp.writer import CasweightsWriter

__all__ = ["CasweightsReader", "CasweightsWriter"]
