"""Write the golden stores in tests/golden: small stores that every later version must read.

Run this only when the format changes, in the same commit as docs/format.md. The input is fixed, and
therefore the versions' IDs are; the IDs of stores and the times of refs are not.

    python -m tools.spec.golden FOLDER
"""

import hashlib
import io
import json
import random
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import casweights
from casweights import Keep, Repository, Snapshot, SnapshotId, StoreConfig
from casweights.database.writer import PackWriter
from casweights.format.names import SNAPSHOTS, snapshot_name
from casweights.format.signatures import Entry, encode_many
from casweights.operations.archiving import archive
from casweights.operations.expire import expire
from casweights.operations.sampling import signature_of
from tools.spec.contents import (
    bf16,
    change_model,
    change_wide,
    cut_embedding,
    fp8,
    make_state,
    make_state_of_all_kinds,
    resize_embedding,
    train_model,
    write_model,
    write_safetensors,
    write_wide,
)

CHUNK_SIZE = 65_536
FIRST_TIME = datetime(2025, 1, 1, 12, 30, 15, 250_000, tzinfo=UTC)


def describe(value: Any) -> Any:
    """Return a JSON value that is equal for states that are equal bit by bit."""
    if isinstance(value, torch.Tensor):
        data = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, np.ndarray | np.generic):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        digest = hashlib.sha256(value.tobytes()).hexdigest()
        return [kind, str(value.dtype), list(value.shape), digest]
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, io.BytesIO):
        return {"stream": value.getvalue().hex()}
    if isinstance(value, dict):
        return {"dict": [[key, describe(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [describe(item) for item in value]}
    return {"value": repr(value)}


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def packs_apart() -> Iterator[None]:
    """Let commits write packs and bare snapshots, as for versions that one pack cannot hold."""
    with mock.patch.object(PackWriter, "last", PackWriter.finish):
        yield


def commit_models(store: Repository, model: Path, versions: dict[str, Any]) -> list[Snapshot]:
    """Commit two versions of a model and three steps of training; return the two."""
    write_model(model)
    first = store.commit(
        model,
        message="first",
        author="A. Uthor <a@example.org>",
        metadata={"step": 1, "loss": 0.25, "tags": ["a", None, True], "nested": {"k\u00e9y": -1}},
        time=FIRST_TIME,
    )
    versions[str(first.id)] = describe_version(first, hash_files(model))
    change_model(model)
    later = FIRST_TIME + timedelta(days=1)
    second = store.commit(model, message="second", compression="small", time=later)
    versions[str(second.id)] = describe_version(second, hash_files(model))
    for number, share in enumerate((0.01, 0.02, 0.6)):
        train_model(model, share, seed=5 + number)
        step = store.commit(model, branch="tuned", parent=None if number else second.id, time=later)
        versions[str(step.id)] = describe_version(step, hash_files(model))
    return [first, second]


def make_store(store: Repository, work: Path) -> dict[str, Any]:
    """Fill a store, and return its expected content.

    Some versions are in packs of two generations, some in the objects of their snapshots, and some
    in an archive. A segment covers all of the packs.
    """
    versions: dict[str, Any] = {}
    with packs_apart():
        first, second = commit_models(store, work / "model", versions)
        store.repack(grace=timedelta(0))
    later, state = FIRST_TIME + timedelta(days=1), make_state()
    third = store.commit(state, branch="states/run_1", parent=first.id, time=later)
    odd = make_state_of_all_kinds()
    fourth = store.commit(odd, branch="states/all_kinds", time=later)
    for version, committed in ((third, state), (fourth, odd)):
        folder = work / str(version.id)
        store.checkout(version.id, folder)
        versions[str(version.id)] = describe_version(version, hash_files(folder))
        versions[str(version.id)]["state"] = describe(committed)
    write_model(work / "resized")
    for rows, share in ((300, 0), (350, 0.05)):  # the second one differs from what it is made from
        resize_embedding(work / "resized", rows)
        train_model(work / "resized", share, seed=rows)
        branch = f"resized/{rows}"
        resized = store.commit(work / "resized", branch=branch, parent=first.id, time=later)
        versions[str(resized.id)] = describe_version(resized, hash_files(work / "resized"))
    cut_embedding(work / "resized")
    cut = store.commit(work / "resized", branch="resized/cut", parent=first.id, time=later)
    versions[str(cut.id)] = describe_version(cut, hash_files(work / "resized"))
    commit_exports(store, work / "exports", versions)
    commit_merged(store, work / "merged", versions)
    commit_blocks(store, work / "blocks", versions)
    commit_packs(store, work / "packs", versions)
    based, lineage = commit_based(store, work / "based", [first, second], versions)
    write_wide(work / "wide")
    for number in range(3):
        change_wide(work / "wide", number)
        wide = store.commit(work / "wide", branch="wide", time=later)
        versions[str(wide.id)] = describe_version(wide, hash_files(work / "wide"))
    archive_versions(store, [store.resolve("tuned~1"), third.id, based.id])
    store.branch("old", first.id)
    store.branch("old", second.id, force=True)
    store.tag("v1.0", first.id)
    store.tag("release/2", second.id)
    make_deleted(store, "trimmed", first.id)
    with mock.patch("casweights.operations.maintain._RECENT_PACKS", 0):
        store.maintain(grace=timedelta(0))  # writes a segment, and merges nothing
    make_deleted(store, "deleted", second.id)
    make_deleted(store, "recreated", second.id)
    store.branch("recreated", first.id)
    store.tag("recreated", first.id)
    add_signatures(store, [first.id], [second.id, third.id, fourth.id])
    return {
        "tuned": expire_versions(store),
        "lineage": {str(based.id): lineage},
        "branches": {name: str(target) for name, target in store.branches().items()},
        "tags": {name: str(target) for name, target in store.tags().items()},
        "deleted": {name: str(target) for name, target in store.deleted().items()},
        "versions": versions,
    }


def commit_merged(store: Repository, folder: Path, versions: dict[str, Any]) -> None:
    """Commit a model, and the same with a product of two narrow matrices added to its weight."""
    folder.mkdir()
    weight = torch.frombuffer(bytearray(bf16(35_200, seed=71)), dtype=torch.bfloat16)
    left, right = (torch.tensor(list(fp8(2 * n, seed=72))).reshape(n, 2) for n in (320, 110))
    product = left @ right.T
    for state in (weight, (weight + product.flatten() / 2**20).bfloat16()):
        tensor = ("BF16", [320, 110], state.view(torch.int16).numpy().tobytes())
        write_safetensors(folder / "model.safetensors", {"weight": tensor}, {})
        made = store.commit(folder, branch="merged", time=FIRST_TIME + timedelta(days=1))
        versions[str(made.id)] = describe_version(made, hash_files(folder))


def commit_blocks(store: Repository, folder: Path, versions: dict[str, Any]) -> None:
    """Commit a file of blocks, a scale and 32 numbers each, of which many change with the scale."""
    folder.mkdir()
    for step in range(2):
        numbers, blocks = random.Random(62), b"GGUF"
        for weights in [[numbers.gauss(step / 500, 1) for _ in range(32)] for _ in range(1500)]:
            scale = max(map(abs, weights)) / 127
            blocks += struct.pack("<e32b", scale, *(round(weight / scale) for weight in weights))
        (folder / "model.gguf").write_bytes(blocks)
        version = store.commit(folder, branch="blocks", time=FIRST_TIME + timedelta(days=1))
        versions[str(version.id)] = describe_version(version, hash_files(folder))


def commit_packs(store: Repository, folder: Path, versions: dict[str, Any]) -> None:
    """Commit two tensors of one chunk: zeros, and numbers of 4 bits of which some move."""
    folder.mkdir()
    numbers = [half & 15 for half in fp8(40_000, seed=81)]
    for step in range(2):
        moved = [(number + (n % 7 == 3) * step) % 16 for n, number in enumerate(numbers)]
        packs = bytes(low | high << 4 for low, high in zip(moved[::2], moved[1::2], strict=True))
        tensors = {"frozen": ("U8", [30_000], bytes(30_000)), "packs": ("U8", [20_000], packs)}
        write_safetensors(folder / "model.safetensors", tensors, {})
        version = store.commit(folder, branch="packs", time=FIRST_TIME + timedelta(days=1))
        versions[str(version.id)] = describe_version(version, hash_files(folder))


def commit_exports(store: Repository, folder: Path, versions: dict[str, Any]) -> None:
    """Commit a model in fp32, and exports of it: rounded, and cut off with some changes."""
    folder.mkdir()
    numbers, later = random.Random(61), FIRST_TIME + timedelta(days=1)
    full = np.array([numbers.gauss(0, 0.02) for _ in range(35_200)], "<f4")
    full[:4] = np.inf, -0.0, 1e-41, 70_000
    cut = (full.view("<u4") >> np.uint32(16)).astype("<u2")
    cut[::100] ^= np.uint16(1)
    with np.errstate(over="ignore"):
        half = full.astype("<f2")
    exports = {"full": ("F32", full), "half": ("F16", half), "cut": ("BF16", cut)}
    for name, (dtype, tensor) in exports.items():
        tensors = {"weight": (dtype, [320, 110], tensor.tobytes())}
        write_safetensors(folder / "model.safetensors", tensors, {})
        parent = None if name == "full" else "full"
        version = store.commit(folder, branch=name, parent=parent, time=later)
        versions[str(version.id)] = describe_version(version, hash_files(folder))


def commit_based(
    store: Repository, folder: Path, near: Sequence[Snapshot], versions: dict[str, Any]
) -> tuple[Snapshot, list[Any]]:
    """Commit a version made from another one than its parent; return it and its lineage."""
    base, parent = near
    write_model(folder)
    train_model(folder, 0.01, seed=40)
    zeros = folder / "nested/zeros.bin"  # of the parent
    zeros.write_bytes(bytes(150_000))
    later = FIRST_TIME + timedelta(days=1)
    version = store.commit(folder, branch="based", parent=parent, base=base, time=later)
    versions[str(version.id)] = describe_version(version, hash_files(folder))
    rest = sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and path != zeros
    )
    headers = sum(len(file.raw_header or b"") for file in version.files)
    return version, [[str(base.id), rest - headers], [str(parent.id), 150_000]]


def add_signatures(
    store: Repository, alone: Sequence[SnapshotId], together: Sequence[SnapshotId]
) -> None:
    """Write objects with the signature of one version each, and one with those of several."""
    database = store.database

    def entry(version: SnapshotId) -> Entry:
        loaded = database.snapshots.load(version, with_locations=True)
        signature = signature_of(database, loaded)
        assert signature is not None
        return signature.entry(version)

    database.signatures.add(map(entry, alone))
    several = encode_many(map(entry, together))
    database.store.put(several.name, several.parts)


def make_deleted(store: Repository, name: str, version: SnapshotId) -> None:
    """Make a branch and a tag, and delete both."""
    store.branch(name, version)
    store.tag(name, version)
    store.delete_branch(name)
    store.delete_tag(name)


def expire_versions(store: Repository) -> list[Any]:
    """Let two versions expire, in a record each, and keep a policy; return the history."""
    for last in (2, 1):
        keep, when = Keep(branches="tuned", last=last), FIRST_TIME + timedelta(days=9 - last)
        expire(store.database, [keep], apply=True, clock=partial(when.astimezone, UTC))
    store.set_policy([Keep(branches="t*", every=5, where="eval > 0.5"), Keep(within=timedelta(1))])
    history: list[Any] = []
    for version, gap in store.history("tuned"):
        history.append([str(version.id), version.number])
        history += [[str(row.id), row.number, row.time.isoformat(), row.policy] for row in gap]
    return history


def archive_versions(store: Repository, versions: Sequence[SnapshotId]) -> None:
    """Move some versions into an archive, as maintenance does once they are old."""
    moved, database = set(map(snapshot_name, versions)), store.database
    archive(database, [info for info in database.store.list(SNAPSHOTS) if info.name in moved])


def describe_version(version: Snapshot, files: dict[str, str]) -> dict[str, Any]:
    """Return the expected properties of a version."""
    return {
        "number": version.number,
        "parents": [str(parent) for parent in version.parents],
        "time": version.time.isoformat(),
        "author": version.author,
        "message": version.message,
        "metadata": version.metadata,
        "files": files,
    }


def make_all(folder: Path) -> dict[str, Any]:
    """Write all golden stores into a folder, and return their expected content."""
    expected: dict[str, Any] = {}
    for config in (
        StoreConfig(digest="blake3", chunk_size=CHUNK_SIZE),
        StoreConfig(digest="xxh3-128", chunk_size=CHUNK_SIZE),
    ):
        with (
            tempfile.TemporaryDirectory() as work,
            casweights.open(folder / config.digest, create=True, config=config) as store,
        ):
            expected[config.digest] = make_store(store, Path(work))
    return expected


def main() -> None:
    folder = Path(sys.argv[1])
    for digest in ("blake3", "xxh3-128"):
        shutil.rmtree(folder / digest, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    expected = json.dumps(make_all(folder), indent=2, ensure_ascii=False)
    (folder / "expected.json").write_text(expected + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
