"""Measures how well signatures predict the sizes of differences between the files of a directory.

Every safetensors file is encoded as the difference from every other one with equal bytes of data,
tensor by tensor, and the sizes are compared with those that two signatures predict. Prints a row
for each pair and one line of JSON. Usage: tools/bench/run relatives DIR
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from casweights.format.differences import encode_difference
from casweights.format.layout import file_pieces
from casweights.format.safetensors import LENGTH_SIZE, Header, header_size, parse_header
from casweights.format.sampling import Samples
from casweights.format.signature import Signature
from casweights.operations.prediction import predict

CHUNK = 4 << 20


class File(NamedTuple):
    """A file of weights, and its signature."""

    path: Path
    header: Header
    content: bytearray
    signature: Signature


class Pair(NamedTuple):
    """A file, another one as its base, and the bytes of the difference: predicted, and real."""

    new: Path
    base: Path
    predicted: float
    real: int


def read(path: Path) -> File:
    """Read and sample a file."""
    content = bytearray(path.read_bytes())
    size = header_size(bytes(content[:LENGTH_SIZE]), len(content))
    header = parse_header(bytes(content[:size]), len(content) - size)
    samples = Samples([("", len(content), header)])
    for piece in file_pieces(len(content), header, CHUNK):
        samples.add("", piece, memoryview(content)[piece.offset : piece.offset + piece.nbytes])
    signature = Signature.of(samples)
    if signature is None:
        raise SystemExit(f"{path} has no tensors")
    return File(path, header, content, signature)


def real_size(new: File, base: File) -> int:
    """Return the bytes of the differences of all chunks, those that have none stored raw."""
    total = 0
    moved = len(base.content) - len(new.content)  # headers may differ in length
    for piece in file_pieces(len(new.content), new.header, CHUNK):
        start, end = piece.offset, piece.offset + piece.nbytes
        raw = memoryview(new.content)[start:end]
        old = memoryview(base.content)[start + moved : end + moved]
        encoded = encode_difference(raw, old, piece.dtype, piece.extents)
        total += piece.nbytes if encoded is None else len(encoded[1])
    return total


def measure(files: list[File]) -> list[Pair]:
    """Return all pairs of files whose tensors lie at the same places."""
    pairs = []
    for new, base in permutations(files, 2):
        if [(t.start, t.shape) for t in new.header.tensors] == [
            (t.start, t.shape) for t in base.header.tensors
        ]:
            predicted = sum(match.nbytes for match in predict(new.signature, base.signature))
            pairs.append(Pair(new.path, base.path, predicted, real_size(new, base)))
            print(f"{new.path} from {base.path}: {predicted:,.0f} predicted, {pairs[-1].real:,}")
    return pairs


def summary(pairs: list[Pair]) -> dict[str, float]:
    """Return what choosing the smallest prediction costs, and how far predictions are off."""
    paid = least = best = 0
    new_files = {pair.new for pair in pairs}
    for new in new_files:
        choices = [pair for pair in pairs if pair.new == new]
        chosen, nearest = min(choices, key=lambda p: p.predicted), min(p.real for p in choices)
        paid, least = paid + chosen.real, least + nearest
        best += chosen.real == nearest
    errors = [math.log(p.predicted / p.real) for p in pairs if p.predicted and p.real > 10_000]
    return {
        "pairs": len(pairs),
        "files": len(new_files),
        "best_chosen": best,
        "bytes_of_chosen": paid / max(least, 1),
        "mean_ratio": math.exp(statistics.fmean(errors)) if errors else 1.0,
        "spread": math.exp(statistics.pstdev(errors)) if errors else 1.0,
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="tools/bench/run relatives", description=__doc__)
    made.add_argument("directory", type=Path, help="holds safetensors files, in any folders")
    return made


def main() -> int:
    paths = sorted(parser().parse_args().directory.rglob("*.safetensors"))
    begin = time.process_time()
    files = [read(path) for path in paths]
    sampled = time.process_time() - begin
    found = summary(measure(files))
    print(json.dumps(found | {"read_and_sample_seconds": sampled}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
