"""Real LoRA adapters on tiny models, as versions in the store of their base."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

import casweights
from casweights.errors import InvalidInputError, NotFoundError
from casweights.stores.memory import MemoryStore

peft = pytest.importorskip("peft")

from casweights.integrations.peft import commit_adapter, load_adapter, merged_state  # noqa: E402
from casweights.integrations.transformers import CasweightsCallback, from_pretrained  # noqa: E402
from tests.integrations.tiny import llama, same_weights, trainer  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel

    from casweights import Repository
    from casweights.testing import CountingStore

# peft reads an attribute of models that transformers renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")

CONFIG = "adapter_config.json"


def adapted(model: Any, name: str = "default", seed: int = 1) -> PeftModel:
    """A LoRA of rank 2 with an effect, unlike a LoRA before its training."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    made: PeftModel = peft.get_peft_model(model, config, adapter_name=name)
    return made


@pytest.fixture
def base(repo: Repository, tmp_path: Path) -> casweights.Snapshot:
    """The base of the adapters, on the branch ``main``."""
    llama().save_pretrained(tmp_path / "base")
    return repo.commit(tmp_path / "base")


def test_an_adapter_is_a_small_version_that_names_its_base(
    repo: Repository, objects: CountingStore, base: casweights.Snapshot
) -> None:
    model = adapted(from_pretrained(repo))
    objects.reset()
    version = commit_adapter(
        repo, model, "lora", base="main", message="polite", author="me", metadata={"lr": 0.1}
    )
    assert {file.path for file in version.files} >= {CONFIG, "adapter_model.safetensors"}
    assert version.metadata == {"lr": 0.1, "base": str(base.id)}
    assert (version.message, version.author) == ("polite", "me")
    kinds = [name.split("/")[0] for name, _ in objects.writes]
    assert kinds == ["snapshots", "signatures", "refs"]  # the snapshot has the frames
    assert sum(nbytes for _, nbytes in objects.writes) < 20_000
    loaded = load_adapter(repo, "lora")
    assert same_weights(loaded, model)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_an_adapter_does_not_depend_on_the_path_of_its_base(
    repo: Repository, base: casweights.Snapshot
) -> None:
    one = commit_adapter(repo, adapted(from_pretrained(repo)), "one", base=base)
    two = commit_adapter(repo, adapted(from_pretrained(repo)), "two", base=base)
    assert one.files == two.files
    config = json.loads(b"".join(repo.read("one", CONFIG)))
    assert config["base_model_name_or_path"] is None


def test_pushing_an_adapter_pushes_its_base(repo: Repository, base: casweights.Snapshot) -> None:
    model = adapted(from_pretrained(repo))
    first = commit_adapter(repo, model, "lora", base=base)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    second = commit_adapter(repo, model, "lora", base=base)
    assert [version.id for version in repo.log("lora")] == [second.id, first.id, base.id]
    with casweights.open(MemoryStore(), create=True, config=repo.config) as other:
        repo.push(other, ["lora"])
        assert same_weights(load_adapter(other, "lora"), model)


def test_several_adapters_of_one_base_are_kept_apart(
    repo: Repository, base: casweights.Snapshot
) -> None:
    model = adapted(from_pretrained(repo), "polite")
    torch.manual_seed(2)
    model.add_adapter("rude", model.peft_config["polite"])
    for name in ("polite", "rude"):
        version = commit_adapter(repo, model, name, base=base, adapter_name=name)
        assert CONFIG in {file.path for file in version.files}
    with pytest.raises(InvalidInputError, match="no adapter 'default': choose one of polite, rude"):
        commit_adapter(repo, model, "lora", base=base)

    loaded = load_adapter(repo, "polite", llama(), adapter_name="polite", is_trainable=True)
    assert load_adapter(repo, "rude", loaded, adapter_name="rude") is loaded
    assert same_weights(loaded, model)
    trained = {name for name, value in loaded.named_parameters() if value.requires_grad}
    assert trained
    assert all("polite" in name for name in trained)


def test_a_saved_directory_is_committed_as_it_is(
    repo: Repository, base: casweights.Snapshot, tmp_path: Path
) -> None:
    model = adapted(from_pretrained(repo))
    model.save_pretrained(str(tmp_path / "adapter"))
    commit_adapter(repo, tmp_path / "adapter", "lora", base=base)
    repo.checkout("lora", tmp_path / "copy")
    for path in (tmp_path / "adapter").iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    assert same_weights(load_adapter(repo, "lora"), model)


def test_checkpoints_of_a_trainer_are_adapters(
    repo: Repository, base: casweights.Snapshot, tmp_path: Path
) -> None:
    callback = CasweightsCallback(repo, "lora", parent=base, metadata={"base": str(base.id)})
    run = trainer(tmp_path / "run", callback, model=adapted(from_pretrained(repo)), max_steps=1)
    run.train()
    assert [version.id for version in repo.log("lora")][1:] == [base.id]
    assert same_weights(load_adapter(repo, "lora"), run.model)


def test_sources_and_versions_without_an_adapter_are_refused(
    repo: Repository, base: casweights.Snapshot, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=f"no {CONFIG}"):
        commit_adapter(repo, tmp_path / "base", "lora", base=base)
    with pytest.raises(InvalidInputError, match="is not an adapter"):
        load_adapter(repo, "main")
    commit_adapter(repo, adapted(llama()), "lora", base=base)
    with pytest.raises(NotFoundError, match="load_adapter"):
        from_pretrained(repo, "lora")


def test_the_base_must_be_in_the_store(repo: Repository, tmp_path: Path) -> None:
    model = adapted(llama())
    with pytest.raises(NotFoundError):
        commit_adapter(repo, model, "lora", base="main")
    model.save_pretrained(str(tmp_path / "adapter"))
    repo.commit(tmp_path / "adapter")
    with pytest.raises(InvalidInputError, match="names no base"):
        load_adapter(repo, "main")
    assert same_weights(load_adapter(repo, "main", llama()), model)


def test_arguments_for_loading_a_given_model_are_refused(
    repo: Repository, base: casweights.Snapshot
) -> None:
    commit_adapter(repo, adapted(llama()), "lora", base=base)
    assert load_adapter(repo, "lora", dtype=torch.bfloat16).base_model.dtype == torch.bfloat16
    with pytest.raises(InvalidInputError, match="dtype"):
        load_adapter(repo, "lora", llama(), dtype=torch.bfloat16)


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_a_merged_model_is_published_under_the_names_of_its_base(
    repo: Repository, saved: list[str] | None
) -> None:
    names = llama().state_dict().keys()
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "embed_tokens"],
        modules_to_save=saved,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(llama(), config)
    with pytest.raises(InvalidInputError, match="is not merged: call"):
        merged_state(model)
    model.merge_adapter()
    state = merged_state(model)
    assert state.keys() == names
    with casweights.Publisher(repo) as publisher:
        publisher.publish(state)
    with casweights.Subscriber(repo) as subscriber:
        replica = llama()
        subscriber.sync(replica)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        wanted = model.train(False)(ids).logits
        assert torch.equal(replica.train(False)(ids).logits, wanted)
