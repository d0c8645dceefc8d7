"""The parts of a vLLM worker that an engine uses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from tests.integrations.fused_model import equal, served

if TYPE_CHECKING:
    import pytest

    from tests.integrations.fused_model import Model, Weights


class Worker:
    """Calls an engine as a worker of vLLM does, and records how weights are written."""

    def __init__(self, adapter: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
        from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

        record_metadata_for_reloading(model)
        adapter.register()
        self.model = model
        self.engine = WeightTransferEngineFactory.create_engine(
            SimpleNamespace(backend="casweights"),
            SimpleNamespace(parallel_config=None, model_config=SimpleNamespace(quantization=None)),
            torch.device("cpu"),
            model,
        )
        self.whole = 0
        self.patched: list[str] = []
        reload = adapter.initialize_layerwise_reload
        patch = adapter.load_checkpoint_weight_patches

        def count(model: Any) -> None:
            self.whole += 1
            reload(model)

        def note(model: Any, patches: list[Any], **options: Any) -> None:
            self.patched += [p.name for p in patches]
            patch(model, patches, **options)

        monkeypatch.setattr(adapter, "initialize_layerwise_reload", count)
        monkeypatch.setattr(adapter, "load_checkpoint_weight_patches", note)

    def init(self, **info: Any) -> None:
        self.engine.init_transfer_engine(self.engine.parse_init_info(info))

    def update(self, **info: Any) -> None:
        self.engine.start_weight_update()
        self.engine.receive_weights(self.engine.parse_update_info(info))
        self.engine.finish_weight_update()

    def holds(self, weights: Weights) -> bool:
        expected = served(weights, self.model.rank, self.model.ranks)
        return equal(dict(self.model.state_dict()), expected)
