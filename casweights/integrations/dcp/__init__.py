"""torch.distributed.checkpoint: shards of all ranks in one version, loaded on any rank count."""

from __future__ import annotations

from casweights.integrations.dcp.reader import CasweightsReader
from casweights.integrations.dcp.writer import CasweightsWriter

__all__ = ["CasweightsReader", "CasweightsWriter"]
