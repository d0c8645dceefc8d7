"""Saving and loading through torch.distributed.checkpoint, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.metadata import Metadata

if TYPE_CHECKING:
    import pytest
    from torch.distributed.checkpoint.api import CheckpointException

    from casweights.integrations.dcp import CasweightsReader, CasweightsWriter

SHARDS = "shards/rank-0000.safetensors"


def save(state: dict[str, Any], writer: CasweightsWriter, **options: Any) -> Metadata:
    metadata = state_dict_saver.save(state, storage_writer=writer, **options)
    assert isinstance(metadata, Metadata)
    return metadata


def load(state: dict[str, Any], reader: CasweightsReader, **options: Any) -> dict[str, Any]:
    state_dict_loader.load(state, storage_reader=reader, **options)
    return state


def cause(error: pytest.ExceptionInfo[CheckpointException]) -> BaseException:
    """The error of rank 0."""
    failure: BaseException = error.value.failures[0][0]
    return failure
