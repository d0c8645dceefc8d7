"""Real models of a real vLLM with the adapter: ``python -m tests.integrations.vllm_models``.

For machines on which vLLM can be imported; no GPU is needed. Each model is tiny and random,
published in several versions, loaded cold from the store, and updated in place, with one rank and
with two. It must hold the same bits as after vLLM's own loader has read the same checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

import casweights

STEPS = 3
ARCHITECTURES = ("llama", "qwen3", "qwen2-tied")


def tiny(architecture: str) -> Any:
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": 131,  # vLLM pads it
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": architecture.endswith("tied"),
    }
    match architecture:
        case "llama":
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
        case "qwen3":
            return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**shape, head_dim=16))
        case _:
            return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape))


def step(model: torch.nn.Module, number: int) -> None:
    """Change some elements of every other tensor."""
    with torch.no_grad():
        for n, (_, parameter) in enumerate(model.named_parameters()):
            if n % 2 == number % 2:
                parameter.view(-1)[number::37] *= 1.5


def publish(architecture: str, directory: Path) -> list[str]:
    torch.manual_seed(0)
    model = tiny(architecture).to(torch.bfloat16)
    ids = []
    with casweights.open(directory / "store", create=True) as store:
        for number in range(STEPS):
            step(model, number)
            model.save_pretrained(directory / f"step-{number}")
            ids.append(str(store.commit(directory / f"step-{number}").id))
    return ids


def on_cpu() -> None:
    """Make vLLM's build for GPUs run on the CPU."""
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    vllm.platforms._current_platform = CpuPlatform()
    torch.accelerator.empty_cache = lambda: None
    torch.accelerator.synchronize = lambda *_: None


def load(directory: Path, ranks: int, **options: Any) -> tuple[Any, Any]:
    """Load a model as vLLM does; return it with its configuration."""
    from vllm.config import (
        DeviceConfig,
        LoadConfig,
        ModelConfig,
        ParallelConfig,
        VllmConfig,
        set_current_vllm_config,
    )
    from vllm.model_executor.model_loader import get_model

    config = VllmConfig(
        model_config=ModelConfig(
            model=str(directory),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=32,
            enforce_eager=True,
        ),
        load_config=LoadConfig(**options),
        device_config=DeviceConfig("cuda" if torch.cuda.is_available() else "cpu"),
        parallel_config=ParallelConfig(
            tensor_parallel_size=ranks, distributed_executor_backend="mp"
        ),
    )
    with set_current_vllm_config(config):
        prepare(ranks)
        return get_model(vllm_config=config), config


def prepare(ranks: int) -> None:
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    if not torch.distributed.is_initialized():
        rank, port = int(os.environ["RANK"]), os.environ["PORT"]
        init_distributed_environment(ranks, rank, f"tcp://127.0.0.1:{port}", rank, "gloo")
        initialize_model_parallel(ranks, 1)


def run(rank: int, ranks: int, port: int, directory: Path, ids: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "PORT": str(port)}
    if not torch.cuda.is_available():
        on_cpu()
    from vllm.config import WeightTransferConfig, set_current_vllm_config
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader import reload

    adapter: Any = importlib.import_module("casweights.integrations.vllm")
    adapter.register()
    adapter.register()
    store = str(directory / "store")
    extra = {"store": store, "ref": ids[0]}
    model, config = load(
        directory / "step-0", ranks, load_format="casweights", model_loader_extra_config=extra
    )
    check(model, load(directory / "step-0", ranks)[0], "cold start")

    patched: list[int] = []
    patch = adapter.load_checkpoint_weight_patches

    def count(model: Any, patches: list[Any], **options: Any) -> None:
        patched.append(len(patches))
        patch(model, patches, **options)

    adapter.load_checkpoint_weight_patches = count
    engine = WeightTransferEngineFactory.create_engine(
        WeightTransferConfig(backend="casweights"),
        config,
        next(model.parameters()).device,
        model,
    )
    with set_current_vllm_config(config):
        engine.init_transfer_engine(engine.parse_init_info({"store": store}))
        order = [(0, None), (1, ids[0]), (2, ids[1]), (0, None)]
        for number, base in order:
            update = {"store": store, "snapshot": ids[number], "base": base}
            engine.start_weight_update()
            engine.update_weights(update)
            engine.finish_weight_update()
            expected = load(directory / f"step-{number}", ranks)[0]
            check(model, expected, f"update to {number}, patches {patched}")
        if not patched:
            print(f"rank {rank}: loaded whole each time")
        reload.initialize_layerwise_reload(model)
        model.load_weights(iter(engine._host.items()))
        reload.finalize_layerwise_reload(model, config.model_config)
        check(model, expected, "layerwise reload of the copy")
        engine.shutdown()


def check(model: Any, expected: Any, what: str) -> None:
    ours, theirs = dict(model.named_parameters()), dict(expected.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        a, b = parameter.data, theirs[name].data
        same = torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
        assert same, f"{what}: {name} differs"
    print(f"rank {os.environ['RANK']}: {what}: {len(ours)} parameters are the same", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    args = parser.parse_args()
    for architecture in args.architectures:
        for ranks in args.ranks:
            with tempfile.TemporaryDirectory() as name, socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
                free.close()
                print(f"== {architecture}, {ranks} ranks")
                ids = publish(architecture, Path(name))
                spawn(run, args=(ranks, port, Path(name), ids), nprocs=ranks)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
