"""Speed and memory of commit, checkout and load against cp, BLAKE3 and safetensors.

Prints a table and one line of JSON.
Usage: tools/bench/run store [--size MiB] [--rounds N] [--dir DIR]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

import casweights
from casweights.config import DEFAULT_CHUNK_SIZE
from casweights.events import Reporter
from casweights.system.buffers import uninitialized
from casweights.system.threads import default_workers
from tools.bench.harness import Result, pair, report

if TYPE_CHECKING:
    from collections.abc import Callable

    from casweights.results import CommitStats

MiB = 1 << 20
MEMORY_LIMIT = 512 * MiB
HELP_LIMIT = 0.150  # seconds
_HIDDEN, _INNER = 2048, 5632

_PEAK = r"""
import sys
import casweights.repository, casweights.operations.commit, casweights.operations.checkout
from tools.bench.memory import peak
verb, store, model, out = sys.argv[1:]
before = peak()
with casweights.open(store, create=True) as s:
    if verb == "commit":
        s.commit(model, compression="fast")
    else:
        s.checkout("main", out)
print(peak() - before)
"""


def make_model(directory: Path, size: int) -> None:
    """Write a bf16 model like a transformer, of about `size` bytes, in shards of up to 1 GiB."""
    directory.mkdir()
    torch.manual_seed(0)
    layer = {"attn": (_HIDDEN, _HIDDEN), "up": (_INNER, _HIDDEN), "norm": (_HIDDEN,)}
    layer_size = 2 * sum(torch.Size(shape).numel() for shape in layer.values())
    shard: dict[str, torch.Tensor] = {}
    shards = 0
    for n in range(max(1, size // layer_size)):
        for name, shape in layer.items():
            shard[f"layers.{n}.{name}.weight"] = (torch.randn(shape) * 0.02).bfloat16()
        if sum(t.nbytes for t in shard.values()) + layer_size > 1024 * MiB:
            save_file(shard, directory / f"model-{shards:05}.safetensors")
            shard, shards = {}, shards + 1
    if shard:
        save_file(shard, directory / f"model-{shards:05}.safetensors")


class Bench:
    """The measurements with one model, below one directory."""

    def __init__(self, work: Path, size: int, rounds: int) -> None:
        self.work = work
        self.model = work / "model"
        self.rounds = rounds
        make_model(self.model, size)
        self.size = sum(path.stat().st_size for path in self.model.iterdir())
        self.store_dir, self.out, self.copy = work / "store", work / "out", work / "copy"

    def fresh(self) -> None:
        """Remove the files of a round, and wait until the disk has written everything."""
        for path in (self.store_dir, self.out, self.copy):
            shutil.rmtree(path, ignore_errors=True)
        os.sync()

    def commit(self) -> None:
        with casweights.open(self.store_dir, create=True) as store:
            store.commit(self.model, compression="fast")

    def cp(self) -> None:
        subprocess.run(["cp", "-r", self.model, self.copy], check=True)

    def cp_fsync(self) -> None:
        self.cp()
        for path in (*self.copy.iterdir(), self.copy):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def hash_files(self) -> None:
        for path in sorted(self.model.iterdir()):
            blake3(max_threads=blake3.AUTO).update_mmap(path).digest()

    def first_commit(self) -> Result:
        return pair(
            "first commit, raw",
            self.commit,
            self.cp_fsync,
            prepare=self.fresh,
            target=1.6,
            rounds=self.rounds,
            note="reference: cp, then fsync. Bound by the disk; in addition, casweights reads and "
            "hashes every byte",
        )

    def unchanged_commit(self) -> Result:
        return pair(
            "commit without changes",
            self.commit,
            self.hash_files,
            target=1.2,
            rounds=self.rounds,
            note="reference: BLAKE3 of the mapped files on all cores. casweights reads to buffers, "
            "so that a file that changes during the commit is never stored half-old",
        )

    def checkout(self) -> Result:
        def ours() -> None:
            with casweights.open(self.store_dir) as store:
                store.checkout("main", self.out)

        def prepare() -> None:
            shutil.rmtree(self.out, ignore_errors=True)
            shutil.rmtree(self.copy, ignore_errors=True)
            os.sync()

        return pair(
            "checkout",
            ours,
            self.cp,
            prepare=prepare,
            target=1.6,
            rounds=self.rounds,
            note="reference: cp without fsync. Every chunk is hashed before it is written; bound "
            "by memory bandwidth (read, hash, write), while cp copies within the kernel",
        )

    def load_safetensors(self) -> None:
        for path in sorted(self.model.iterdir()):
            for tensor in load_file(path).values():
                data = tensor.reshape(-1).view(torch.uint8).numpy().data
                blake3(data, max_threads=blake3.AUTO).digest()

    def load(self) -> Result:
        def ours() -> None:
            with casweights.open(self.store_dir) as store:
                store.load("main")

        return pair(
            "load into tensors",
            ours,
            self.load_safetensors,
            target=1.3,
            rounds=self.rounds,
            note="reference: safetensors' load_file, then BLAKE3 of every tensor on all cores. Its "
            "tensors are a mapping of the file, so that other processes can change them after the "
            "check; those of casweights own their memory",
        )

    def load_limit(self) -> Result:
        def limit() -> None:
            memory = uninitialized(self.size)
            with ThreadPoolExecutor(default_workers()) as pool:
                start = 0
                for path in sorted(self.model.iterdir()):
                    size = path.stat().st_size
                    step = _read_and_hash(path, memory[start : start + size])
                    list(pool.map(step, range(0, size, DEFAULT_CHUNK_SIZE)))
                    start += size

        return pair(
            "the limit of a load",
            limit,
            self.load_safetensors,
            target=None,
            rounds=self.rounds,
            note="instead of casweights: only read the files into new memory and hash it; the "
            "kernel clears the memory and fills it, and BLAKE3 reads it",
        )

    def memory(self, verb: str, size: int) -> Result:
        """Measure the peak memory beyond that of the interpreter with all modules imported."""
        model, store, out = self.work / "big", self.work / "big-store", self.work / "big-out"
        if not model.exists():
            _make_big(model, size)
        command = [sys.executable, "-c", _PEAK, verb, *map(str, (store, model, out))]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return Result(
            what=f"peak memory, {verb} of {size / MiB / 1024:.0f} GiB",
            ours=peak / MiB,
            reference=None,
            unit="MiB",
            ratio=peak / MEMORY_LIMIT,
            target=1.0,
            note="limit 512 MiB; bounded by packs and chunks in flight, for models of any size",
        )


def one_tensor(work: Path, rounds: int) -> list[Result]:
    """Measure bytes and time of a commit in which one of 1,000 tensors changed."""
    model, directory, collect = work / "thousand", work / "thousand-store", _Collect()
    path = model / "model.safetensors"
    model.mkdir()
    tensors = {f"layer.{n}": torch.randn(512, 256).bfloat16() for n in range(1000)}
    save_file(tensors, path)

    def change() -> None:
        tensors["layer.500"].add_(1)
        save_file(tensors, path)

    with casweights.open(directory, create=True, reporter=collect) as store:
        store.commit(model)
        before = _disk_bytes(directory)
        change()
        store.commit(model)
        written = _disk_bytes(directory) - before
        largest = _largest(directory / "snapshots")
        timed = pair(
            "one tensor of 1,000 changed: time",
            lambda: store.commit(model),
            lambda: blake3(max_threads=blake3.AUTO).update_mmap(path).digest(),
            prepare=change,
            target=None,
            rounds=rounds,
            note="reference: BLAKE3 of the file, which any commit has to read; casweights also "
            "parses 1,000 tensors, and writes a pack, a snapshot and a move with fsync",
        )
    chunks = collect.stats[1].new_chunks
    return [_written(written, tensors["layer.500"].nbytes, largest, chunks), timed]


def _written(nbytes: int, changed: int, snapshot: int, chunks: int) -> Result:
    """Return the row on the bytes that a commit of one changed tensor writes."""
    return Result(
        what="one tensor of 1,000 changed: bytes written",
        ours=nbytes / 1024,
        reference=None,
        unit="KiB",
        ratio=nbytes / (changed + snapshot + 1024),
        target=1.0,
        note=f"{chunks} new chunk of {changed} bytes; the limit is that tensor, one snapshot "
        "object, and 1 KiB for the pack's index and the ref",
    )


class _Collect(Reporter):
    """Keeps the statistics of commits."""

    def __init__(self) -> None:
        self.stats: list[CommitStats] = []

    def committed(self, stats: CommitStats) -> None:
        self.stats.append(stats)


def _read_and_hash(path: Path, memory: memoryview) -> Callable[[int], None]:
    def step(start: int) -> None:
        view = memory[start : start + DEFAULT_CHUNK_SIZE]
        with path.open("rb", buffering=0) as file:
            os.preadv(file.fileno(), [view], start)
        blake3(view).digest()

    return step


def help_time(rounds: int) -> Result:
    """Measure the processor time of ``casweights --help``, as the median of `rounds` runs."""
    times = []
    for _ in range(rounds + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "casweights", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    median = statistics.median(times[1:])
    return Result(
        what="casweights --help, CPU",
        ours=median,
        reference=None,
        unit="s",
        ratio=median / HELP_LIMIT,
        target=1.0,
        note="limit 0.150 s; most of it is the start of Python and the import of click",
    )


def _make_big(path: Path, size: int) -> None:
    """Write a safetensors file of `size` bytes in which no two chunks are equal."""
    path.mkdir()
    count = size // (256 * MiB)
    header = casweights_header({f"t{n}": 256 * MiB for n in range(count)})
    with (path / "model.safetensors").open("wb") as file:
        file.write(header)
        block = bytearray(os.urandom(4 * MiB))
        for n in range(count * 64):
            block[:8] = n.to_bytes(8, "little")
            file.write(block)


def casweights_header(sizes: dict[str, int]) -> bytes:
    """Return a safetensors header for tensors of bytes, given their sizes."""
    from casweights.format.dtypes import DTYPES
    from casweights.format.safetensors import build_header

    return build_header([(name, DTYPES["U8"], (size,)) for name, size in sizes.items()], {})


def _disk_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _largest(directory: Path) -> int:
    return max(path.stat().st_size for path in directory.iterdir())


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tools/bench/run store", description=__doc__)
    made.add_argument("--size", type=int, default=2048, help="MiB of the model (default: 2048)")
    made.add_argument(
        "--big", type=int, default=8192, help="MiB of the model of the rows on memory"
    )
    made.add_argument("--rounds", type=int, default=5, help="pairs of a measurement (default: 5)")
    made.add_argument(
        "--dir", type=Path, default=None, help="folder for temporary files (needs space)"
    )
    return made


def main() -> int:
    options = parser().parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as work:
        bench = Bench(Path(work), options.size * MiB, options.rounds)
        results = [
            bench.first_commit(),
            bench.unchanged_commit(),
            bench.checkout(),
            bench.load(),
            bench.load_limit(),
            *one_tensor(Path(work), options.rounds),
        ]
        bench.fresh()
        results += [bench.memory(verb, options.big * MiB) for verb in ("commit", "checkout")]
        results.append(help_time(options.rounds))
        files = len(list(bench.model.iterdir()))
    facts: dict[str, object] = {
        "model": f"{bench.size / MiB:.0f} MiB of bf16 in {files} files",
        "cores": default_workers(),
        "rounds": options.rounds,
    }
    return 1 if report("casweights: the store", facts, results) else 0


if __name__ == "__main__":
    sys.exit(main())
