"""What the benchmark of many versions measures on, and how it counts bytes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

import casweights
from casweights import Publisher
from casweights.database.packs import list_packs, read_pack_index
from casweights.format import names
from casweights.format.pack import encode_frames
from casweights.stores.local import LocalStore
from casweights.stores.memory import MemoryStore
from tools.bench.histories import CONFIG, SHARE, publish_run, small_model
from tools.bench.lifecycle import growth, main
from tools.bench.lifecycle.chunky import Chunky
from tools.bench.lifecycle.parts import parts_of
from tools.bench.lifecycle.synthetic import add_synthetic

if TYPE_CHECKING:
    from pathlib import Path

    from casweights.stores.base import ObjectInfo, ObjectStore

VERSIONS, CHUNKS = 4, 10


def test_history_from_memory_has_the_frames_of_a_run_in_a_directory(tmp_path: Path) -> None:
    run = publish_run(VERSIONS)
    run.store.write(tmp_path / "written")
    model = small_model(0)
    model.make()
    casweights.open(tmp_path / "real", create=True, config=CONFIG).close()
    with Publisher(tmp_path / "real") as publisher:
        for n in range(VERSIONS):
            model.step(SHARE)
            publisher.publish(model.tensors(), step=n)
    stores = [LocalStore(tmp_path / name) for name in ("written", "real")]
    written, real = ([info.name for info in store.list()] for store in stores)
    assert _frames(stores[0]) == _frames(stores[1]) != []
    assert _moves(written) == _moves(real)
    assert len(written) == len(real)
    with casweights.open(tmp_path / "written") as store:
        assert not store.verify().problems
        assert len(list(store.log())) == VERSIONS


def _frames(store: ObjectStore) -> list[bytes]:
    """Return chunk and checksum of each frame, sorted, since the IDs of versions have the time."""
    found = [at.frame for info in list_packs(store) for at in read_pack_index(store, info)]
    return sorted(frame.chunk + frame.checksum for frame in found)


def _moves(listed: list[str]) -> list[str]:
    return [name for name in listed if name.startswith(names.REFS)]


def test_parts_of_versions_are_all_bytes_that_they_added(tmp_path: Path) -> None:
    model, path, store, found = Chunky(CHUNKS), tmp_path / "model.safetensors", MemoryStore(), []
    with casweights.open(store, create=True) as repository:
        for _ in range(2):
            before = {info.name: info.size for info in store.list()}
            model.write(path)
            version = repository.commit(path)
            model.check(version)
            parts, known = parts_of(store, before, [version])
            assert parts.total == sum(i.size for i in store.list()) - sum(before.values())
            assert known == {info.name for info in store.list()}
            found.append(parts)
            model.step()
    first, step = found
    assert [what for what, nbytes in step.items().items() if not nbytes] == ["signature"]
    assert all((first + step).items().values())


@pytest.mark.usefixtures("packs_apart")
def test_synthetic_version_has_the_objects_and_the_index_of_a_real_step(tmp_path: Path) -> None:
    model, path, store = Chunky(CHUNKS), tmp_path / "model.safetensors", MemoryStore()
    model.write(path)
    with casweights.open(store, create=True) as repository:
        known = {info.name for info in store.list()}
        add_synthetic(repository.database, path, VERSIONS)
        synthetic = _new_objects(store, known)
        assert len(synthetic) == 3 * VERSIONS
        repository.commit(path)
        known = {info.name for info in store.list()}
        model.step()
        model.write(path)
        real = repository.commit(path)
        model.check(real)
        assert repository.load("main").keys() == model.state.keys()
        history = list(repository.log())
        assert len(history) == VERSIONS + 2
        assert [len(version.files[0].chunks) for version in history] == [CHUNKS] * len(history)
    in_step = _new_objects(store, known)
    assert [name.partition("/")[0] for name in sorted(in_step)] == ["packs", "refs", "snapshots"]
    [real_index] = _index_bytes(store, in_step)
    assert max(_index_bytes(store, synthetic)) == pytest.approx(real_index, rel=0.1)


def _new_objects(store: MemoryStore, known: set[str]) -> dict[str, ObjectInfo]:
    return {info.name: info for info in store.list() if info.name not in known}


def _index_bytes(store: MemoryStore, infos: dict[str, ObjectInfo]) -> list[int]:
    """Bytes of the columns of each version's frames."""
    objects = [info for name, info in infos.items() if name.startswith(names.PACKS)]
    read = [[at.frame for at in read_pack_index(store, info)] for info in objects]
    return [len(encode_frames(frames)) for frames in read]


def test_rows_are_printed_as_tables_and_as_a_line_of_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["lifecycle", "--smoke", "--only", "objects", "small"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main.main() == 0
    printed = capsys.readouterr().out
    assert printed.startswith(main.TITLE)
    rows = json.loads(printed.splitlines()[-1])["results"]
    assert [row["what"][0] for row in rows] == ["4", "4", "6"]
    assert all(row["target"] for row in rows)


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--steps", growth.FROM, "more than 200, got 200"),
        ("--versions", 10, "more than 10, got 10"),
    ],
)
def test_counts_that_leave_nothing_to_compare_are_refused_before_anything_runs(
    option: str,
    value: int,
    what: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["lifecycle", option, str(value)])
    with pytest.raises(SystemExit):
        main.main()
    printed = capsys.readouterr()
    assert f"{option} must be {what}" in printed.err
    assert not printed.out


@pytest.mark.slow
def test_growth_of_memory_covers_the_steps_from_the_first_count_to_the_last(
    tmp_path: Path,
) -> None:
    rows = growth.row_growth(tmp_path, steps=3, chunks=CHUNKS, first=2)
    assert [row.what for row in rows] == [
        "8 growth of a trainer, steps 2 to 3",
        "8 growth of a replica, steps 2 to 3",
    ]
    assert all(row.ours < row.target for row in rows if row.target)
