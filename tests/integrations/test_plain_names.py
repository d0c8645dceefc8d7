"""Every integration drops the prefixes of wrappers from names, by the same rule.

A reader loads a version into a model that is not wrapped. A writer makes a version of a wrapped
model. Names that ``commit`` stores are kept.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import casweights
from casweights.errors import ErrorCode, InvalidInputError
from casweights.integrations.trl import CasweightsWeightTransfer
from tests.integrations import vllm_parts
from tests.integrations.fused_model import Model, checkpoint, served
from tests.integrations.vllm_worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from casweights import Repository

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from peft import get_peft_model_state_dict  # noqa: E402

from casweights.integrations.peft import commit_adapter, load_adapter, merged_state  # noqa: E402
from casweights.integrations.transformers import from_pretrained  # noqa: E402
from tests.integrations.tiny import llama  # noqa: E402

pytestmark = [
    # Raised by torch itself, on importing its compiler.
    pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning"),
    # peft reads an attribute of models that transformers renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning"),
]

State = dict[str, torch.Tensor]
PREFIXES = ["_orig_mod.", "module.", "_orig_mod.module."]


@pytest.fixture
def vllm() -> Iterator[Any]:
    """`casweights.integrations.vllm`, imported again for each test."""
    with vllm_parts.stand_in():
        import casweights.integrations.vllm

        yield casweights.integrations.vllm


class Host:
    """The environment of a reader: a store, a folder, and vLLM.

    Attributes:
        prefix: The prefix of every name in the store.
    """

    def __init__(self, repo: Repository, folder: Path, vllm: Any, prefix: str) -> None:
        self.repo, self.folder, self.vllm, self.prefix = repo, folder, vllm, prefix
        self.patcher = pytest.MonkeyPatch()

    def prefixed(self, state: State) -> State:
        return {self.prefix + name: tensor.clone() for name, tensor in state.items()}

    def commit(self, step: int) -> str:
        return str(self.repo.commit(self.prefixed(checkpoint(step))).id)


def through_subscriber(host: Host) -> tuple[State, State]:
    host.commit(0)
    live = {name: torch.zeros_like(tensor) for name, tensor in checkpoint(0).items()}
    with casweights.Subscriber(host.repo) as subscriber:
        subscriber.sync(live)
    return live, checkpoint(0)


def through_patches(host: Host) -> tuple[State, State]:
    first, second = host.commit(0), host.commit(1)
    live = {name: tensor.clone() for name, tensor in checkpoint(0).items()}
    host_copy = {name: tensor.clone() for name, tensor in checkpoint(0).items()}
    with casweights.Subscriber(host.repo) as subscriber:
        subscriber.sync(live, to=first)
        for patch in subscriber.patches(to=second):
            assert patch.indices is not None
            host_copy[patch.name].view(-1)[patch.indices] = patch.values
    return host_copy, checkpoint(1)


def vllm_loader(host: Host) -> tuple[State, State]:
    host.commit(0)
    config = SimpleNamespace(model_loader_extra_config={"store": host.repo.url})
    model = Model()
    plain = SimpleNamespace(quantization=None)
    host.vllm.CasweightsModelLoader(config).load_weights(model, plain)
    return dict(model.state_dict()), served(checkpoint(0))


def vllm_engine_at_start(host: Host) -> tuple[State, State]:
    return _served_by_engine(host, [0])


def vllm_engine_while_it_serves(host: Host) -> tuple[State, State]:
    return _served_by_engine(host, [0, 1, 2])


def _served_by_engine(host: Host, steps: list[int]) -> tuple[State, State]:
    worker = Worker(host.vllm, Model(), host.patcher)
    for step in steps:
        worker.update(store=host.repo.url, snapshot=host.commit(step))
    worker.engine.shutdown()
    assert worker.whole == 1
    assert len(set(worker.patched)) == (3 if len(steps) > 1 else 0)
    return dict(worker.model.state_dict()), served(checkpoint(steps[-1]))


def pretrained(suffix: str, shards: int) -> Callable[[Host], tuple[State, State]]:
    """A reader of a transformers checkpoint in a number of files with this suffix."""

    def read(host: Host) -> tuple[State, State]:
        model = llama()
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(host.folder)
        _save(host.prefixed(dict(model.state_dict())), host.folder, suffix, shards)
        host.repo.commit(host.folder)
        return dict(from_pretrained(host.repo).state_dict()), dict(model.state_dict())

    return read


def _save(state: State, folder: Path, suffix: str, shards: int) -> None:
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    weight_map = {}
    for n in range(shards):
        name = f"{stem}-{n + 1:05}-of-{shards:05}{suffix}" if shards > 1 else stem + suffix
        part = {key: state[key] for key in list(state)[n::shards]}
        weight_map.update(dict.fromkeys(part, name))
        if suffix == ".safetensors":
            save_file(part, folder / name, {"format": "pt"})
        else:
            torch.save(part, folder / name)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


def base_of_an_adapter(host: Host) -> tuple[State, State]:
    read = pretrained(".safetensors", 1)
    read(host)
    model = adapted(llama())
    commit_adapter(host.repo, model, "lora", base="main")
    return dict(load_adapter(host.repo, "lora").state_dict()), dict(model.state_dict())


def adapter_of_a_wrapped_model(host: Host) -> tuple[State, State]:
    """A directory is committed as it is, with the names of the model that wrote it."""
    model = adapted(llama())
    model.save_pretrained(str(host.folder))
    file = host.folder / "adapter_model.safetensors"
    start = "base_model.model."
    names = {name.removeprefix(start): tensor for name, tensor in load_file(file).items()}
    save_file({start + name: t for name, t in host.prefixed(names).items()}, file)
    host.repo.commit(host.folder)
    return dict(load_adapter(host.repo, "main", llama()).state_dict()), dict(model.state_dict())


READERS: dict[str, Callable[[Host], tuple[State, State]]] = {
    "subscriber": through_subscriber,
    "patches": through_patches,
    "vllm-loader": vllm_loader,
    "vllm-engine-at-start": vllm_engine_at_start,
    "vllm-engine-while-it-serves": vllm_engine_while_it_serves,
    "transformers-safetensors": pretrained(".safetensors", 1),
    "transformers-safetensors-shards": pretrained(".safetensors", 2),
    "transformers-bin": pretrained(".bin", 1),
    "transformers-bin-shards": pretrained(".bin", 2),
    "peft-base": base_of_an_adapter,
    "peft-adapter": adapter_of_a_wrapped_model,
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("reader", READERS)
def test_a_reader_drops_a_prefix_that_every_name_has(
    reader: str, prefix: str, local_repo: Repository, tmp_path: Path, vllm: Any
) -> None:
    (tmp_path / "folder").mkdir()
    host = Host(local_repo, tmp_path / "folder", vllm, prefix)
    with host.patcher.context():
        found, expected = READERS[reader](host)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_loader_keeps_a_prefix_that_some_names_lack(local_repo: Repository, vllm: Any) -> None:
    state = {"module.a": torch.ones(2), "_orig_mod.b": torch.ones(2)}
    local_repo.commit(state)
    config = SimpleNamespace(model_loader_extra_config={"store": local_repo.url})
    found = dict(vllm.CasweightsModelLoader(config).get_all_weights(None, Model()))
    assert found.keys() == state.keys()


@pytest.mark.parametrize(
    "options",
    [{}, {"use_safetensors": False}, {"variant": "fp16"}],
    ids=["first", "bin", "variant"],
)
def test_the_names_of_the_file_that_transformers_chooses_decide(
    options: dict[str, Any], local_repo: Repository, tmp_path: Path
) -> None:
    model = llama()
    state = dict(model.state_dict())
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path / "folder")
    wrapped = {f"module.{name}": tensor.clone() for name, tensor in state.items()}
    pickled = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    save_file(wrapped, tmp_path / "folder" / "model.safetensors", {"format": "pt"})
    torch.save(pickled, tmp_path / "folder" / "pytorch_model.bin")
    torch.save(state, tmp_path / "folder" / "pytorch_model.fp16.bin")
    local_repo.commit(tmp_path / "folder")
    found = dict(from_pretrained(local_repo, **options).state_dict())
    assert all(torch.equal(found[name], state[name]) for name in state)


def adapted(model: Any) -> Any:
    """A model with adapters of rank 2 that have an effect."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Attention()
        self.head = nn.Linear(4, 2)


def compiled(model: nn.Module) -> nn.Module:
    wrapper = torch.compile(model)
    assert isinstance(wrapper, nn.Module)
    return wrapper


def with_layer(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    def wrapped(model: nn.Module) -> nn.Module:
        model.layer = wrap(model.get_submodule("layer"))
        return model

    return wrapped


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "both": lambda model: compiled(nn.DataParallel(model)),
    "compiled layer": with_layer(compiled),
    "parallel layer": with_layer(nn.DataParallel),
}


def publish(repo: Repository, wrap: Callable[[nn.Module], nn.Module]) -> None:
    with casweights.Publisher(repo) as publisher:
        publisher.publish(wrap(Net()))


def publish_merged(repo: Repository, wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = adapted(wrap(Net()))
    model.merge_adapter()
    with casweights.Publisher(repo) as publisher:
        publisher.publish(merged_state(model))


def publish_merged_inside(repo: Repository, wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = adapted(Net())
    model.merge_adapter()
    outer = wrap in (WRAPS["compiled"], WRAPS["parallel"], WRAPS["both"])
    with casweights.Publisher(repo) as publisher:
        publisher.publish(merged_state(wrap(model) if outer else model))


def transfer_by_trl(repo: Repository, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """TRL passes names and tensors, so only a prefix of all names is detected."""
    outer = wrap in (WRAPS["compiled"], WRAPS["parallel"], WRAPS["both"])
    transfer = CasweightsWeightTransfer(repo)
    transfer.init_weight_transfer()
    transfer.send_weights(iter((wrap(Net()) if outer else Net()).state_dict().items()))
    transfer.destroy()


WRITERS = [publish, publish_merged, publish_merged_inside, transfer_by_trl]


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_names_tensors_as_the_plain_model_does(
    writer: Callable[[Repository, Any], None], wrap: str, local_repo: Repository
) -> None:
    writer(local_repo, WRAPS[wrap])
    assert local_repo.load("main").keys() == Net().state_dict().keys()


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("wrap", ["plain", "compiled", "parallel", "both"])
def test_adapters_of_wrapped_and_plain_models_are_interchangeable(
    wrap: str, inside: bool, local_repo: Repository
) -> None:
    plain, wraps = adapted(llama()), WRAPS[wrap]
    model = adapted(wraps(llama())) if inside else wraps(adapted(llama()))
    base = local_repo.commit(dict(llama().state_dict())).id
    commit_adapter(local_repo, model, "lora", base=base)
    stored = local_repo.load("lora", include=["adapter_model.safetensors"])
    assert stored.keys() == get_peft_model_state_dict(plain).keys()
    target = wraps(llama()) if inside else wraps(adapted(llama()))
    loaded = load_adapter(local_repo, "lora", target, adapter_name="new")
    found = get_peft_model_state_dict(loaded, adapter_name="new")
    assert list(map(torch.sum, found.values())) == list(map(torch.sum, stored.values()))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_commit_and_load_rename_nothing(prefix: str, local_repo: Repository) -> None:
    state = {prefix + name: tensor for name, tensor in Net().state_dict().items()}
    local_repo.commit(state)
    assert local_repo.load("main").keys() == state.keys()


class Clashing(nn.Module):
    """Has a wrapped layer, and a tensor with the plain name of a tensor in that layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.DataParallel(Attention())
        self.layer.norm = nn.LayerNorm(4)


def clash_in_publisher(repo: Repository) -> None:
    with casweights.Publisher(repo) as publisher:
        publisher.publish(Clashing())


def clash_in_subscriber(repo: Repository) -> None:
    repo.commit(dict(Net().state_dict()))
    with casweights.Subscriber(repo) as subscriber:
        subscriber.sync(Clashing())


def clash_in_merged_state(repo: Repository) -> None:
    model = adapted(Clashing())
    model.merge_adapter()
    merged_state(model)


@pytest.mark.parametrize("use", [clash_in_publisher, clash_in_subscriber, clash_in_merged_state])
def test_two_names_that_become_one_are_refused(
    use: Callable[[Repository], None], local_repo: Repository
) -> None:
    with pytest.raises(InvalidInputError, match=r"layer\.norm\.weight") as caught:
        use(local_repo)
    assert caught.value.code is ErrorCode.BAD_STATE
