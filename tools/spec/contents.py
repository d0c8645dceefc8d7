"""What the golden stores contain: models, and state dicts. Part of `golden`."""

import io
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

WIDE = 4_100  # tensors: their IDs need two pages of 4,096


def bf16(count: int, seed: int) -> bytes:
    """Return random weights, of which one in a hundred is not finite or is zero."""
    numbers = random.Random(seed)
    odd = (0.0, -0.0, float("inf"), float("-inf"), float("nan"))
    weights = (
        numbers.choice(odd) if numbers.random() < 0.01 else numbers.gauss(0, 0.02)
        for _ in range(count)
    )
    return b"".join(struct.pack("<f", weight)[2:] for weight in weights)


def fp8(count: int, seed: int) -> bytes:
    """Return random weights of either sign, with few exponents."""
    numbers = random.Random(seed)
    return bytes(int(numbers.gauss(60, 8)) | numbers.choice((0, 128)) for _ in range(count))


def write_safetensors(
    path: Path, tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str]
) -> None:
    """Write a file by hand, so that no other library decides its bytes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, (dtype, shape, data) in tensors.items():
        offsets = [start, start + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        start += len(data)
    text = json.dumps(header).encode() + b"   "
    content = [len(text).to_bytes(8, "little"), text, *(data for _, _, data in tensors.values())]
    path.write_bytes(b"".join(content))


def write_model(folder: Path) -> None:
    """Write the first version: two shards, and files that often accompany weights."""
    (folder / "nested/deeply").mkdir(parents=True)
    (folder / "nested/deeply/empty").write_bytes(b"")
    (folder / "nested/ünïcode 名.txt").write_text("text that zstd likes\n" * 200, encoding="utf-8")
    (folder / "optimizer.bin").write_bytes(random.Random(1).randbytes(3_000))
    write_safetensors(
        folder / "model-00001-of-00002.safetensors",
        {
            "embed.weight": ("BF16", [320, 110], bf16(35_200, seed=2)),
            "embed.bias": ("F32", [110], struct.pack("<110f", *range(110))),
            "embed.none": ("F16", [0, 7], b""),
            "embed.scale": ("F64", [], struct.pack("<d", -0.1)),
        },
        {"format": "pt", "note": 'quotes " and \u00fcmlauts'},
    )
    write_safetensors(
        folder / "model-00002-of-00002.safetensors",
        {
            "head.weight": ("F8_E4M3", [20, 100], fp8(2_000, seed=3)),
            "head.tied": ("BF16", [320, 110], bf16(35_200, seed=2)),
            "head.1.frozen": ("BF16", [100, 60], bf16(6_000, seed=8)),
            "head.1.weight": ("BF16", [100, 60], bf16(6_000, seed=9)),
            "head.index": ("I64", [2_000], struct.pack("<2000q", *range(2_000))),
            "head.mask": ("BOOL", [9], bytes([1, 0, 0, 1, 1, 0, 1, 0, 1])),
        },
        {},
    )


def change_model(folder: Path) -> None:
    """Turn the first version into the second: change a tensor, and add and remove a file."""
    shard = folder / "model-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1_000:-990] = bytes(10)
    shard.write_bytes(content)
    (folder / "optimizer.bin").unlink()
    (folder / "nested/zeros.bin").write_bytes(bytes(150_000))


def train_model(folder: Path, share: float, seed: int) -> None:
    """Flip the last bit of a share of the weights, similar to a training step."""
    numbers = random.Random(seed)
    for shard in sorted(folder.glob("*.safetensors")):
        content = bytearray(shard.read_bytes())
        data = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:data])
        for name, tensor in header.items():
            if name.endswith((".weight", ".tied", ".bias")):
                width = {"BF16": 2, "F32": 4, "F8_E4M3": 1}[tensor["dtype"]]
                start, end = tensor["data_offsets"]
                for n in range(data + start, data + end, width):
                    if numbers.random() < share:
                        content[n] ^= 1
        shard.write_bytes(content)


def resize_embedding(folder: Path, rows: int) -> None:
    """Give a tensor of the first version another number of rows."""
    shard = folder / "model-00001-of-00002.safetensors"
    old = bf16(35_200, seed=2)[: 220 * rows]
    write_safetensors(
        shard, {"embed.weight": ("BF16", [rows, 110], old.ljust(220 * rows, b"\0"))}, {}
    )


def cut_embedding(folder: Path) -> None:
    """Divide a tensor of the first version by columns."""
    shard = folder / "model-00001-of-00002.safetensors"
    whole = np.frombuffer(bf16(35_200, seed=2), "<u2").reshape(320, 110)
    parts = {"left": whole[:, :60], "right": whole[:, 60:]}
    write_safetensors(
        shard, {f"embed.{k}": ("BF16", list(p.shape), p.tobytes()) for k, p in parts.items()}, {}
    )


def write_wide(folder: Path) -> None:
    """Write a file whose header and whose list of chunks have several structure chunks.

    Neighbouring tensors are of different dtypes, so that each has a chunk of its own.
    """
    folder.mkdir()
    tensors = {f"t{n}": ("IU"[n % 2] + "8", [1], bytes([n % 5])) for n in range(WIDE)}
    write_safetensors(folder / "wide.safetensors", tensors, {})


def change_wide(folder: Path, number: int) -> None:
    """Change one tensor of the file, whose ID is in the first page."""
    content = bytearray((folder / "wide.safetensors").read_bytes())
    content[number - WIDE] = 100 + number
    (folder / "wide.safetensors").write_bytes(content)


def make_state() -> dict[str, Any]:
    """Return a nested state dict with tied tensors and values of all kinds."""
    numbers = random.Random(4)
    tied = torch.tensor([numbers.gauss(0, 1) for _ in range(1_500)]).reshape(30, 50)
    moments = torch.tensor([numbers.gauss(0, 1) for _ in range(500)], dtype=torch.float64)
    return {
        "model": {"wte": tied, "lm_head": tied, "norm": torch.ones(17, dtype=torch.bfloat16)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": moments}},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "amsgrad": False, "params": [0]}],
        },
        "complex": torch.complex(tied[0], tied[1]),
        "mask": tied[2] > 0,
        "empty": torch.zeros(0, 3, dtype=torch.int16),
        "epoch": 7,
        "best": float("inf"),
        "name": "gelb\u00fc",
        "nothing": None,
    }


def make_state_of_all_kinds() -> dict[Any, Any]:
    """Return a state dict with every kind of node, and with names that clash."""
    array = np.arange(600, dtype=np.int32).reshape(20, 30)
    weight = torch.arange(40, dtype=torch.float16)
    return {
        "tensor": weight,
        "array": array,
        "same array": [array, (array, weight)],
        "odd array": array[::-2, 3::5].astype(np.float64),
        "empty array": np.zeros((0, 2), np.bool_),
        "scalars": (np.float32(0.1), np.int64(-1), np.bool_(True), np.complex64(1 - 2j)),
        "layer._extra_state": b"\x00\xff bytes",
        "no bytes": b"",
        "stream": io.BytesIO(bytes(range(256)) * 3),
        "values": [None, True, False, 0, -7, 2**70, 0.1, -0.0, 1e300, float("-inf"), "\u540d\n"],
        "empty": {"dict": {}, "list": [], "tuple": ()},
        "a": {"b": torch.ones(3), 1: torch.ones(4), "1": torch.zeros(5)},
        "a.b": torch.zeros(6),
        "": {"": torch.full((2,), 7.0)},
        "__metadata__": torch.tensor(1),
        -1: "a key that is an integer",
    }
