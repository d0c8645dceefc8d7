"""First part of the demo: versions of a real model in a store in a directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

import casweights
from casweights.events import Stage
from casweights.results import ChangeKind, CommitStats
from tools.demos.common import (
    BASE,
    MODELS,
    RECIPES,
    WIDTH,
    MismatchError,
    Recipe,
    check,
    compare_files,
    heading,
    megabytes,
    say,
    size_on_disk,
)
from tools.models import variants

RELEASE = "v1.0"
STORE = "store"
WORDS = "embeddings.word_embeddings.weight"
# transformers recomputes it and does not save it.
DERIVED = "embeddings.position_ids"
SENTENCES = ("I want my money back.", "Please refund the purchase.")


@dataclass
class Version:
    """A version that was committed, with its sizes and times."""

    name: str
    directory: Path
    snapshot: casweights.Snapshot
    stats: CommitStats
    stored_bytes: int
    commit_seconds: float
    checkout_seconds: float = 0.0


class Observer(casweights.Reporter):
    """Keeps the statistics of the last commit and load."""

    commit: CommitStats
    loaded_bytes = 0

    def committed(self, stats: CommitStats) -> None:
        self.commit = stats

    def started(self, stage: Stage, total: int) -> None:
        if stage is Stage.LOAD:
            self.loaded_bytes = total


def commit_all(work: Path) -> dict[str, Version]:
    heading("1. Commit a pretrained model and then five variants of it")
    say(">>> store = casweights.open('store', create=True)")
    say(">>> store.commit('models/pretrained', branch='main', message='...')")
    say("or $ casweights commit models/pretrained --branch main --message '...'")
    observer = Observer()
    versions: dict[str, Version] = {}
    with casweights.open(work / STORE, create=True, reporter=observer) as store:
        for recipe in RECIPES:
            directory = work / MODELS / recipe.name
            parent = versions.get(recipe.parent or "")
            made = recipe.make(parent.directory if parent else variants.base_directory(), directory)
            version = commit(store, observer, recipe, directory, parent)
            versions[recipe.name] = version
            losses = f"; loss {made[0]:.2f} -> {made[-1]:.2f}" if isinstance(made, list) else ""
            say(f"{short(version)}  on {recipe.branch:<10}  {recipe.message}{losses}")
        store.tag(BASE, versions[BASE].snapshot)
        store.tag(RELEASE, versions["tuned"].snapshot)
    return versions


def commit(
    store: casweights.Repository,
    observer: Observer,
    recipe: Recipe,
    directory: Path,
    parent: Version | None,
) -> Version:
    """Commit a version; a new branch begins at its parent."""
    before = size_on_disk(Path(store.url))
    start = time.perf_counter()
    snapshot = store.commit(
        directory,
        branch=recipe.branch,
        parent=parent.snapshot if parent and recipe.branch not in store.branches() else None,
        message=recipe.message,
    )
    seconds = time.perf_counter() - start
    stored = size_on_disk(Path(store.url)) - before
    stats = observer.commit
    check(stats.snapshot == snapshot.id, "the reported version is not the one committed")
    check(
        stats.total_bytes == size_on_disk(directory),
        "the size of a version is not that of its files",
    )
    return Version(recipe.name, directory, snapshot, stats, stored, seconds)


def show_history(work: Path, store: casweights.Repository, versions: dict[str, Version]) -> None:
    heading("2. Show the history of the fp16 model")
    casweights_command(work, "log", "fp16")
    lineage = [versions[name].snapshot.id for name in ("fp16", "tuned", BASE)]
    check([snapshot.id for snapshot in store.log("fp16")] == lineage, "the history differs")


def compare(work: Path, store: casweights.Repository) -> None:
    heading("3. Show what the new words changed (only manifests are read)")
    casweights_command(work, "diff", BASE, "vocabulary")
    rows = sum(c.nbytes for c in store.diff(BASE, "vocabulary").changes if c.tensor == WORDS)
    check(0 < rows <= store.config.chunk_size, "the old rows of the enlarged tensor are not shared")
    changes = store.diff(BASE, "frozen").changes
    tuned = [c.tensor for c in changes if c.tensor and c.kind is ChangeKind.CHANGED]
    check(len(tuned) > 0, "fine-tuning changed nothing")
    check(not any(name.startswith("embeddings.") for name in tuned), "frozen tensors changed")


def check_out_by_id(work: Path, base: Version) -> None:
    heading("4. Check out the published model by its ID, and compare SHA-256 with the original")
    casweights_command(work, "checkout", short(base), "copy")
    for path, digest in compare_files(variants.base_directory(), work / "copy").items():
        say(f"{digest[:16]}...  {path:<34} identical")


def run_model(store: casweights.Repository, observer: Observer, base: Version) -> None:
    heading("5. Load versions directly into the real model")
    say(f">>> model.load_state_dict(store.load('{short(base)}'))")
    with torch.no_grad():
        original = variants.Encoder(variants.base_directory())(SENTENCES)
        loaded = stored_encoder(store, short(base))(SENTENCES)
        tuned = stored_encoder(store, RELEASE)(SENTENCES)
    check(bits(original) == bits(loaded), "the model from the store computes other values")
    check(not torch.equal(original, tuned), "fine-tuning did not change the model's results")
    say(f"Cosine similarity of '{SENTENCES[0]}' and '{SENTENCES[1]}':")
    for source, (left, right) in (
        ("the original file", original),
        (f"{BASE} from the store, bit for bit the same", loaded),
        (f"{RELEASE} from the store, fine-tuned", tuned),
    ):
        say(f"{left @ right:.6f}  {source}")
    say(f">>> store.tensor('{BASE}', '{WORDS}')[2000:2002]")
    tensor = store.tensor(BASE, WORDS)
    rows = tensor[2000:2002]
    expected = load_file(base.directory / "model.safetensors")[WORDS][2000:2002]
    check(torch.equal(rows, expected), "rows of a tensor differ from the original")
    read = observer.loaded_bytes
    say(f"Read for two rows: {megabytes(read)} of the tensor's {megabytes(tensor.nbytes)}.")


def stored_encoder(store: casweights.Repository, ref: str) -> variants.Encoder:
    """Return the model with all of its weights from a version."""
    encoder = variants.Encoder(variants.base_directory())
    for parameter in encoder.model.parameters():
        parameter.data.fill_(torch.nan)
    result = encoder.model.load_state_dict(store.load(ref), strict=False)
    check(not result.missing_keys, f"{ref} lacks {result.missing_keys}")
    check(set(result.unexpected_keys) <= {DERIVED}, f"{ref} also has {result.unexpected_keys}")
    return encoder


def check_everything(store: casweights.Repository, versions: dict[str, Version]) -> None:
    heading("6. Check out all versions, compare every file and tensor, and verify the store")
    say(">>> store.checkout(id, directory); store.load(id); store.verify()")
    for version in versions.values():
        with tempfile.TemporaryDirectory(dir=version.directory.parent) as target:
            start = time.perf_counter()
            store.checkout(version.snapshot.id, target)
            version.checkout_seconds = time.perf_counter() - start
            compare_files(version.directory, Path(target))
        compare_tensors(version.directory, store.load(version.snapshot.id))
    say(f"{len(versions)} versions are identical: files by SHA-256, and tensors bit by bit.")
    found = store.verify()
    check(not found.problems, f"the store has problems: {found.problems}")
    say(f"{found.frames} frames in {found.packs} packs are sound.")


def compare_tensors(original: Path, state: dict[str, torch.Tensor]) -> None:
    """Compare loaded tensors with those that safetensors reads from the original file."""
    (file,) = original.glob("*.safetensors")
    expected = load_file(file)
    check(expected.keys() == state.keys(), f"{file} has other tensors than were loaded")
    for name, tensor in expected.items():
        check(tensor.dtype == state[name].dtype, f"{name} of {file} was loaded as another type")
        check(tensor.shape == state[name].shape, f"{name} of {file} was loaded in another shape")
        check(bits(tensor) == bits(state[name]), f"{name} of {file} was loaded with other bits")


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def damage_a_copy(work: Path, base: Version) -> None:
    heading("7. Flip one bit in a copy of the store, and try to check out")
    with tempfile.TemporaryDirectory(dir=work) as directory:
        copy, target = Path(directory, "store"), Path(directory, "target")
        shutil.copytree(work / STORE, copy)
        pack = min((copy / "packs").iterdir(), key=lambda path: path.stat().st_mtime)
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.write_bytes(content)
        with casweights.open(copy) as store:
            try:
                store.checkout(base.snapshot.id, target)
            except casweights.IntegrityError as error:
                say(textwrap.fill(f"IntegrityError: {error}", WIDTH))
            else:
                raise MismatchError("a checkout did not notice the damage")
            check(len(store.verify().problems) > 0, "verify did not notice the damage")
        check(
            not any(map(Path.is_file, target.rglob("*"))), "files were written from damaged bytes"
        )
    say("No file was written.")


def print_table(work: Path, versions: dict[str, Version]) -> None:
    heading("8. Sizes and times of six versions")
    say(f"{'':<12}{'plain copy':>12}{'new to store':>14}{'stored':>12}{'':>8}  commit  checkout")
    for version in versions.values():
        stats = version.stats
        sizes = table_sizes(stats.total_bytes, stats.new_bytes, version.stored_bytes)
        times = f"{version.commit_seconds:6.2f} s {version.checkout_seconds:7.2f} s"
        say(f"{version.name:<12}{sizes}  {times}")
    stored = size_on_disk(work / STORE)
    plain = size_on_disk(work / MODELS)
    new = sum(version.stats.new_bytes for version in versions.values())
    say(f"{'on disk':<12}{table_sizes(plain, new, stored)}")
    check(plain == sum(v.stats.total_bytes for v in versions.values()), "the copies do not add up")
    others = stored - sum(version.stored_bytes for version in versions.values())
    check(0 < others < 1000, f"{others} bytes of the store belong to no version")
    say("")
    say("new to store: bytes that no earlier version has; stored: their size in the store")


def table_sizes(plain: int, new: int, stored: int) -> str:
    sizes = f"{megabytes(plain):>12}{megabytes(new):>14}{megabytes(stored):>12}"
    return f"{sizes}{stored / plain:>8.1%}"


def short(version: Version) -> str:
    return str(version.snapshot.id)[:12]


def casweights_command(work: Path, *arguments: str) -> None:
    """Run a command in the working directory, and print its output."""
    say(f"$ casweights {' '.join(arguments)}")
    done = subprocess.run(
        [Path(sys.executable).with_name("casweights"), *arguments],
        cwd=work,
        env={**os.environ, "CASWEIGHTS_STORE": STORE},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    say(done.stdout.rstrip())
    check(done.returncode == 0, f"casweights ended with exit status {done.returncode}")


def run(work: Path) -> None:
    """Run this part in a directory; the versions stay in its folder `MODELS`."""
    versions = commit_all(work)
    base, observer = versions[BASE], Observer()
    with casweights.open(work / STORE, reporter=observer) as store:
        show_history(work, store, versions)
        compare(work, store)
        check_out_by_id(work, base)
        run_model(store, observer, base)
        check_everything(store, versions)
    damage_a_copy(work, base)
    print_table(work, versions)
