"""TRL's trainer, or the calls that it makes, with servers that are real except for the model."""

from __future__ import annotations

import inspect
import logging
import queue
import subprocess
import sys
import time
import warnings
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import casweights
from casweights.errors import (
    CasweightsError,
    ErrorCode,
    InvalidInputError,
    NotFoundError,
)
from casweights.integrations.trl import CasweightsWeightTransfer, VLLMServer
from casweights.sync.subscriber import Subscriber
from tests.integrations.replicas import Replica, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

UPDATE = [
    "/pause?mode=keep",
    "/start_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/resume",
]


@pytest.fixture
def store(tmp_path: Path) -> str:
    casweights.open(tmp_path / "store", create=True).close()
    return str(tmp_path / "store")


@pytest.fixture
def replica() -> Iterator[Replica]:
    with serving(Replica()) as replica:
        yield replica


@pytest.fixture
def other() -> Iterator[Replica]:
    with serving(Replica()) as replica:
        yield replica


def state(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "a.weight": torch.randn(300, 200, generator=generator).bfloat16(),
        "b.weight": torch.randn(100, generator=generator),
    }
    weights["a.weight"].view(-1)[step::97] += step
    return weights


def sync(transfer: CasweightsWeightTransfer, weights: dict[str, torch.Tensor]) -> None:
    """One sync as in the trainer, see ``AsyncGRPOTrainer._sync_weight_merged``."""
    transfer.pause()
    transfer.send_weights(iter(weights.items()))
    transfer.resume()


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in ((ours[name], theirs[name]) for name in ours)
    )


def test_every_sync_reaches_every_server(store: str, replica: Replica, other: Replica) -> None:
    transfer = CasweightsWeightTransfer(store, servers=[replica.url, other.url])
    transfer.init_weight_transfer()
    versions = []
    for step in range(3):
        sync(transfer, state(step))
        versions.append(str(transfer.version))
        for server in (replica, other):
            assert same(server.weights, state(step))
            assert server.weight_version == versions[-1]
            assert not server.paused
    transfer.destroy()
    for server in (replica, other):
        assert server.paths() == ["/health", "/init_weight_transfer_engine", *UPDATE * 3]
        assert [update["expect"] for update in server.updates()] == [None, *versions[:2]]
        assert [update["snapshot"] for update in server.updates()] == versions
    with casweights.open(store) as repo:
        assert [str(s.id) for s in repo.log("main")] == versions[::-1]
        assert [s.metadata["step"] for s in repo.log("main")] == [2, 1, 0]


def test_servers_generate_until_the_version_is_durable(
    store: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = []
    answer = replica.answer

    def look(path: str, body: Any) -> None:
        with casweights.open(store) as repo:
            heads.append((path, str(repo.branches().get("main"))))
        answer(path, body)

    monkeypatch.setattr(replica, "answer", look)
    transfer = CasweightsWeightTransfer(store, servers=[replica.url])
    transfer.init_weight_transfer()
    sync(transfer, state(0))
    version = str(transfer.version)
    transfer.destroy()
    assert ("/pause?mode=keep", version) in heads


def test_no_server_is_contacted_if_the_version_cannot_be_stored(
    store: str, replica: Replica
) -> None:
    transfer = CasweightsWeightTransfer(store, servers=[replica.url])
    transfer.init_weight_transfer()
    sync(transfer, state(0))
    calls = replica.paths()
    rmtree(store)
    Path(store).touch()
    with pytest.raises(CasweightsError):
        sync(transfer, state(1))
    assert replica.paths() == calls
    transfer.destroy()


def test_without_servers_replicas_follow_the_branch(store: str) -> None:
    transfer = CasweightsWeightTransfer(store, "policy")
    transfer.init_weight_transfer()
    sync(transfer, state(4))
    transfer.destroy()
    weights = {name: torch.zeros_like(tensor) for name, tensor in state(4).items()}
    with Subscriber(store, "policy") as subscriber:
        subscriber.sync(weights)
    assert same(weights, state(4))


def test_a_server_that_lost_its_base_fetches_the_whole_version(
    store: str, replica: Replica
) -> None:
    transfer = CasweightsWeightTransfer(store, servers=[replica.url])
    transfer.init_weight_transfer()
    sync(transfer, state(0))
    first = str(transfer.version)
    replica.forget()
    sync(transfer, state(1))
    assert same(replica.weights, state(1))
    assert [update["expect"] for update in replica.updates()] == [None, first, None]
    transfer.destroy()


def test_a_server_that_fails_stays_paused_and_its_base_is_unknown(
    store: str, replica: Replica, other: Replica
) -> None:
    transfer = CasweightsWeightTransfer(store, servers=[replica.url, other.url])
    transfer.init_weight_transfer()
    sync(transfer, state(0))
    first = str(transfer.version)
    other.failures["/update_weights"] = 2
    with pytest.raises(CasweightsError, match="1 of 2 servers stay paused") as caught:
        sync(transfer, state(1))
    assert other.url in str(caught.value)
    assert "out of luck" in str(caught.value)
    second = str(transfer.version)
    assert same(replica.weights, state(1))
    assert same(other.weights, state(0))
    assert (replica.paused, other.paused) == (False, True)
    assert (replica.weight_version, other.weight_version) == (second, first)

    sync(transfer, state(2))
    assert replica.updates()[-1]["expect"] == second
    assert other.updates()[-1]["expect"] is None
    assert same(other.weights, state(2))
    assert not other.paused
    transfer.destroy()


def test_other_servers_resume_without_one_that_fails(
    store: str, replica: Replica, other: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    transfer = CasweightsWeightTransfer(
        store, servers=[replica.url, other.url], on_failure="continue"
    )
    transfer.init_weight_transfer()
    other.failures["/update_weights"] = 1
    with caplog.at_level(logging.WARNING):
        sync(transfer, state(0))
    assert other.url in caplog.text
    assert (replica.paused, other.paused) == (False, True)
    sync(transfer, state(1))
    assert same(other.weights, state(1))
    assert not other.paused
    replica.failures["/start_weight_update"] = 2
    other.failures["/finish_weight_update"] = 3  # the second request finishes the first update
    with pytest.raises(CasweightsError, match="2 of 2"):
        sync(transfer, state(2))
    transfer.destroy()


def test_an_unfinished_update_is_finished_before_the_next(store: str, replica: Replica) -> None:
    transfer = CasweightsWeightTransfer(store, servers=[replica.url])
    transfer.init_weight_transfer()
    replica.failures["/finish_weight_update"] = 1
    with pytest.raises(CasweightsError):
        sync(transfer, state(0))
    replica.active = True  # as in workers that did not fail
    sync(transfer, state(1))
    assert same(replica.weights, state(1))
    transfer.destroy()


def test_a_server_that_does_not_answer_in_time_is_an_error(store: str, replica: Replica) -> None:
    transfer = CasweightsWeightTransfer(store, servers=[replica.url], transfer_timeout=0.2)
    transfer.init_weight_transfer()
    replica.hanging.add("/update_weights")
    with pytest.raises(CasweightsError, match=r"no answer to /update_weights within 0\.2 s") as e:
        sync(transfer, state(0))
    assert e.value.code is ErrorCode.UNREACHABLE
    assert len(replica.updates()) == 1  # no second request: the first may be in progress
    transfer.destroy()


def test_the_start_of_a_server_is_awaited(
    store: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("casweights.integrations.trl._POLL_SECONDS", 0.01)
    replica.failures["/health"] = 3
    transfer = CasweightsWeightTransfer(store, servers=[replica.url])
    transfer.init_weight_transfer()
    transfer.destroy()
    assert replica.paths() == ["/health"] * 4 + ["/init_weight_transfer_engine"]


def test_an_absent_server_and_one_without_the_engine_are_errors(
    store: str, replica: Replica
) -> None:
    absent = CasweightsWeightTransfer(store, servers=["http://127.0.0.1:9"], start_timeout=0)
    with pytest.raises(CasweightsError, match="no answer to /health"):
        absent.init_weight_transfer()
    absent.destroy()
    replica.failures["/init_weight_transfer_engine"] = 1
    plain = CasweightsWeightTransfer(store, servers=[replica.url])
    with pytest.raises(CasweightsError, match="weight-transfer-config"):
        plain.init_weight_transfer()
    plain.destroy()


@pytest.mark.parametrize("url", ["replica:8000", "ftp://replica", "http://"])
def test_a_server_without_a_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="http://host:8000"):
        VLLMServer(url)


def test_no_store_is_opened_before_init_weight_transfer(tmp_path: Path) -> None:
    transfer = CasweightsWeightTransfer(tmp_path / "none")
    with pytest.raises(InvalidInputError, match="init_weight_transfer"):
        transfer.send_weights(iter(()))
    with pytest.raises(NotFoundError):
        transfer.init_weight_transfer()
    transfer.destroy()
    assert not (tmp_path / "none").exists()


def test_trl_is_not_imported() -> None:
    code = "import sys, casweights.integrations.trl; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"trl", "transformers", "requests"} & set(run.stdout.split())


def test_the_transfer_has_the_methods_of_the_protocol() -> None:
    trainer = trl_trainer()
    protocol = trainer.WeightTransferProtocol
    names = [name for name in vars(protocol) if not name.startswith("_")]
    assert set(names) >= {"init_weight_transfer", "pause", "send_weights", "resume", "destroy"}
    for name in names:
        ours = inspect.signature(getattr(CasweightsWeightTransfer, name))
        assert list(ours.parameters) == list(inspect.signature(getattr(protocol, name)).parameters)


def trl_trainer() -> Any:
    """The module of TRL's trainer."""
    pytest.importorskip("trl", "1.16")
    with warnings.catch_warnings(action="ignore"):  # on experimental features, and of its imports
        from trl.experimental.async_grpo import async_grpo_trainer
    return async_grpo_trainer


class Rollouts:
    """A rollout worker with invented samples; it records the real versions of the policy."""

    def __init__(self, samples: list[Any], policies: list[str], replica: Replica) -> None:
        self.rollout_buffer: queue.Queue[Any] = queue.Queue()
        self.metrics_queue: queue.Queue[Any] = queue.Queue()
        self.versions: list[int] = []
        self._samples, self._policies, self._replica = samples, policies, replica

    def start(self) -> None:
        for sample in self._samples:
            self.rollout_buffer.put(sample)

    def stop(self) -> None:
        pass

    def update_model_version(self, model_version: int) -> None:
        self.versions.append(model_version)
        self._policies.append(self._replica.weight_version)

    def check_health(self, stale_after_s: float) -> None:
        pass


class PlainAttention:
    """Stands in for the kernel that TRL downloads, which needs a GPU."""

    @staticmethod
    def flash_attn_varlen_func(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        query_starts: torch.Tensor,
        key_starts: torch.Tensor,
        *_: Any,
        softmax_scale: float,
        **__: Any,
    ) -> torch.Tensor:
        out = []
        for n in range(len(query_starts) - 1):
            rows = slice(query_starts[n], query_starts[n + 1])
            columns = slice(key_starts[n], key_starts[n + 1])
            q, k, v = (x.transpose(0, 1)[None] for x in (query[rows], key[columns], value[columns]))
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
            mask = mask.tril(k.shape[2] - q.shape[2])
            heads = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=softmax_scale, enable_gqa=True
            )
            out.append(heads[0].transpose(0, 1))
        return torch.cat(out)


def tiny_model(directory: Path) -> Any:
    """Write a model of 3000 parameters, and return a tokenizer for it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    config = transformers.Qwen2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).save_pretrained(directory)
    words = {"<pad>": 0, "<eos>": 1} | {f"w{n}": n for n in range(2, 32)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def sample(module: Any, group: int) -> Any:
    return module.RolloutSample(
        prompt=[{"role": "user", "content": "w2 w3"}],
        completion=[{"role": "assistant", "content": "w4 w5"}],
        input_ids=np.array([2, 3, 4, 5]),
        completion_mask=np.array([0, 0, 1, 1]),
        old_log_probs=np.array([0.0, 0.0, -3.4, -3.4], np.float32),
        advantage=1.0 if group % 2 else -1.0,
        model_version=1,
        group_id=group,
        metrics={},
        enqueued_at=time.time(),
    )


@pytest.mark.filterwarnings("ignore::Warning")  # of trl, transformers and accelerate
def test_the_servers_end_with_the_weights_of_the_trainer(
    tmp_path: Path,
    store: str,
    replica: Replica,
    other: Replica,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After two optimizer steps of the real trainer, bit for bit."""
    module = trl_trainer()
    pytest.importorskip("requests")
    from datasets import Dataset
    from trl.experimental.async_grpo import packing

    monkeypatch.setattr(packing, "_flash_attn", lambda: PlainAttention)
    monkeypatch.setattr(module, "get_peak_flops_per_device", lambda *_: None)  # needs CUDA
    tokenizer = tiny_model(tmp_path / "model")
    policies: list[str] = []
    rollouts = Rollouts([sample(module, n) for n in range(4)], policies, replica)
    transfer = CasweightsWeightTransfer(store, servers=[replica.url, other.url])
    trainer = module.AsyncGRPOTrainer(
        model=str(tmp_path / "model"),
        args=module.AsyncGRPOConfig(
            output_dir=str(tmp_path / "out"),
            max_steps=2,
            per_device_train_batch_size=1,
            learning_rate=1e-3,
            report_to=[],
            use_cpu=True,
            bf16=False,
            dtype="float32",
            token_budget=0,
            save_strategy="no",
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": ["w2 w3"] * 4}),
        rollout_worker=rollouts,
        weight_transfer=transfer,
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()

    after = {name: p.detach() for name, p in trainer.model.named_parameters()}
    assert not same(before, after)
    with casweights.open(store) as repo:
        versions = [str(version.id) for version in repo.log("main")][::-1]
        assert same(repo.load("main~2"), before)
    assert len(versions) == 3  # before the first step, and after each
    assert rollouts.versions == [1, 2, 3]
    assert policies == versions  # the server's version at each change that TRL reported
    for server in (replica, other):
        assert same(server.weights, after)
        assert server.paths() == ["/health", "/init_weight_transfer_engine", *UPDATE * 3]
