"""Helpers for tests of tensors whose rows change, and of the frames that are made from others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from casweights.database.writer import PackWriter
from casweights.format.dtypes import DTYPES
from casweights.format.layout import Piece
from casweights.operations.derivations import Derivation
from casweights.operations.differences import DifferenceEncoder
from tests.histories import CHUNK, step, weights

if TYPE_CHECKING:
    from casweights import Repository, SnapshotId
    from casweights.database.chain import Chain
    from casweights.format.pack import EncodedFrame
    from casweights.ids import ChunkId
    from casweights.operations.slices import ChunkSlice

COLUMNS = 256
ROWS = 3 * CHUNK // (2 * COLUMNS) + 40  # three chunks and a part of one


def embedding(rows: int = ROWS, seed: int = 0) -> torch.Tensor:
    return weights(8, seed)[: rows * COLUMNS].reshape(rows, COLUMNS)


def moved(tensor: torch.Tensor, seed: int = 1, density: float = 0.01) -> torch.Tensor:
    return step(tensor.reshape(-1), density, seed).reshape(tensor.shape)


def chains(repo: Repository, version: SnapshotId | str = "main") -> list[Chain]:
    repo.database.index.load()
    found = [repo.database.index.chain(chunk) for chunk, _ in repo.snapshot(version).pieces()]
    return [chain for chain in found if chain is not None]


def encodings(repo: Repository) -> list[int]:
    """Return the encoding of the last frame of each chunk of the last version."""
    return [chain.frames[-1].frame.encoding for chain in chains(repo)]


def make_encoder(repo: Repository) -> DifferenceEncoder:
    db = repo.database
    db.index.load()
    return DifferenceEncoder(db.reader, db.index, db.cache, db.snapshots.structure, "auto")


def raw_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def piece_of(raw: memoryview) -> Piece:
    return Piece(0, len(raw), DTYPES["BF16"])


def encode(repo: Repository, raw: memoryview, slices: list[ChunkSlice]) -> EncodedFrame:
    [frame] = make_encoder(repo).encode_derived(raw, piece_of(raw), Derivation(slices))
    return frame


def add_pack(repo: Repository, chunk: ChunkId, raw: memoryview, frames: list[EncodedFrame]) -> None:
    """Write a pack of the frames of a chunk, which no version names."""
    writer = PackWriter(repo.database)
    try:
        writer.add(chunk, len(raw), frames)
        writer.finish()
    finally:
        writer.close()
