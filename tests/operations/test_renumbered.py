"""Files that are named after a step are differences from those of the step before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import casweights
from casweights.operations.renumbered import renumbered
from casweights.stores.memory import MemoryStore
from tests.histories import history

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from casweights import Repository, SnapshotId

RANKS = 3


def ranks(step: int, count: int = RANKS) -> list[str]:
    """Return the files of a step as DeepSpeed names them."""
    folder = f"checkpoint-{step}/global_step{step}"
    return [
        *(f"{folder}/bf16_zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in range(count)),
        f"{folder}/mp_rank_00_model_states.pt",
    ]


def shards(step: int, count: int = RANKS) -> list[str]:
    """Return the files of a step as Transformers names them."""
    return [
        f"checkpoint-{step}/model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)
    ]


@pytest.mark.parametrize("files", [ranks, shards])
def test_each_file_is_like_that_of_its_rank_at_the_step_before(files: object) -> None:
    assert callable(files)
    assert renumbered(files(1000), files(999)) == dict(zip(files(1000), files(999), strict=True))


def test_files_that_the_version_has_itself_are_not_renumbered() -> None:
    assert renumbered(["config.json", *shards(5)], ["config.json", *shards(5)]) == {}


def test_of_several_steps_the_last_one_before_counts() -> None:
    """As in a folder in which a trainer keeps its last checkpoints, among others of other names."""
    kept = [*ranks(90), *ranks(200), *ranks(1000)]
    found = renumbered([*ranks(200), *ranks(300)], kept)
    assert found == dict(zip(ranks(300), ranks(200), strict=True))
    assert renumbered(ranks(10), kept) == dict(zip(ranks(10), ranks(90), strict=True))


def test_other_numbers_than_the_step_must_be_equal() -> None:
    assert renumbered(shards(2, 4), shards(1, 3)) == dict(
        zip(shards(2, 4)[:3], shards(1, 3), strict=True)
    )
    assert renumbered(["model-00002-of-00002.bin"], ["model-00001-of-00002.bin", "x"]) == {
        "model-00002-of-00002.bin": "model-00001-of-00002.bin"
    }  # nothing tells that this is no step


def test_paths_of_other_shapes_are_not_alike() -> None:
    assert renumbered(["step_2/a.pt", "b.pt"], ["step_1/b.pt", "2/b.pt", "step_/a.pt"]) == {}


def test_numbers_of_any_length_and_padding_are_compared() -> None:
    long = "9" * 4000
    assert renumbered([f"{long}8/0100.pt"], [f"{long}7/99.pt"]) == {
        f"{long}8/0100.pt": f"{long}7/99.pt"
    }


PATHS = st.lists(st.from_regex(r"[0-9a/٣]{1,6}", fullmatch=True), max_size=8)


@given(PATHS, PATHS)
def test_any_paths_are_like_at_most_one_of_their_shape(paths: list[str], others: list[str]) -> None:
    found = renumbered(paths, others)
    assert found.keys() <= set(paths) - set(others)
    assert set(found.values()) <= set(others)
    assert all(shape(path) == shape(like) for path, like in found.items())
    assert found == renumbered(paths[::-1], others[::-1])


def shape(path: str) -> str:
    parts = "".join("0" if letter in "0123456789" else letter for letter in path)
    while "00" in parts:
        parts = parts.replace("00", "0")
    return parts


# --- In a store.


def write(folder: Path, files: Sequence[str], states: Sequence[torch.Tensor]) -> Path:
    """Write a tensor to each file; those of all files have the same name."""
    for name, state in zip(files, states, strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".pt":
            torch.save({"optimizer_state_dict": {"flat_groups": [state]}}, path)
        else:
            save_file({"w": state}, path)
    return folder


@pytest.fixture(params=["pt", "safetensors"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Four steps of three ranks, each in a folder that is named after the step."""

    def make() -> Iterator[Path]:
        runs = [[state["w"] for state in history(4, 0.01, seed=10 * n)] for n in range(RANKS)]
        for n in range(4):
            names = [f"global_step{98 + n}/rank_{rank}.{request.param}" for rank in range(RANKS)]
            yield write(tmp_path / str(n), names, [run[n] for run in runs])

    return make()


def stored(repo: Repository, version: SnapshotId) -> int:
    return next(row.stored_bytes for row in repo.stats().versions if row.id == version)


def test_a_step_in_a_folder_of_its_own_is_stored_in_few_bytes(
    repo: Repository, folders: Iterator[Path]
) -> None:
    first, *others = [repo.commit(folder).id for folder in folders]
    for version in others:
        assert 30 * stored(repo, version) < stored(repo, first)


def test_a_step_without_a_parent_finds_the_folder_of_another_step(
    repo: Repository, folders: Iterator[Path]
) -> None:
    first = repo.commit(next(folders))
    other = repo.commit(next(folders), branch="other")
    assert other.parents == ()
    assert 30 * stored(repo, other.id) < stored(repo, first.id)


def test_the_header_of_a_renamed_file_is_a_difference_too(repo: Repository, tmp_path: Path) -> None:
    names = torch.randint(1 << 60, (2001,), generator=torch.Generator().manual_seed(0)).tolist()
    sizes = [0]
    for n in range(2):
        file = tmp_path / f"{n}/step_{n}/model.safetensors"
        file.parent.mkdir(parents=True)
        save_file({f"{name:x}": torch.tensor([name]) for name in names[: 2000 + n]}, file)
        repo.commit(tmp_path / str(n))
        sizes.append(repo.stats().pack_bytes - sizes[-1])
    assert 3 * sizes[2] < sizes[1]


def test_a_repack_stores_steps_that_were_stored_whole_as_differences(
    repo: Repository, folders: Iterator[Path]
) -> None:
    first = repo.commit(next(folders))
    for n, folder in enumerate(folders):
        with casweights.open(MemoryStore(), create=True, config=repo.config) as alone:
            alone.commit(folder, branch=f"step-{n}")
            alone.push(repo, f"step-{n}")
    before = repo.stats().pack_bytes
    repo.repack()
    assert before > 3.5 * stored(repo, first.id)
    assert repo.stats().pack_bytes < 1.2 * stored(repo, first.id)
    assert repo.verify().problems == ()
