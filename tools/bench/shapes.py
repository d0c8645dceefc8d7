"""Measures what a change costs that comes with another shape of the model.

A version is committed with 1 % of its elements changed, and with other names, files, ranks, fused
or split tensors, other layers, or another type at the same time. The reference is the same change
alone: both versions have the new shape. Prints a table and one line of JSON.
Usage: tools/bench/run shapes
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

import casweights
from tools.bench.harness import compared, report
from tools.bench.layouts import SHARE, Layout, Size, model, stepped, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casweights import Repository
    from tools.bench.harness import Result
    from tools.bench.layouts import State

    Write = Callable[[State, Path], Path]

_PLAIN = Layout()
_NAMES_TARGET, _TARGET = 1.05, 1.10
_SMALL = Size(width=128, inner=352, tokens=1000, layers=6)  # all tensors share chunks
_TRAINED = 1e-4  # what training adds to a weight, one standard deviation


class Case(NamedTuple):
    """A change of shape.

    Attributes:
        name: Its name.
        olds: Writes each version that the new one may be made from, the parent first.
        new: Writes the version that has the change, and the one that the reference begins with.
        target: The most that the change may cost, in proportion to the reference.
        state: The weights.
        change: Changes weights.
        has_parent: Whether the new version's parent is declared.
    """

    name: str
    olds: Sequence[Write]
    new: Write
    target: float = _TARGET
    state: Callable[[], State] = model
    change: Callable[[State], State] = stepped
    has_parent: bool = True


def _cases() -> list[Case]:
    plain, fused, grouped = _laid(_PLAIN), _laid(Layout(fused="all")), _laid(Layout(fused="groups"))
    renamed, cut = _laid(Layout(renamed=True)), _laid(Layout(ranks=4, by_columns=True))
    sources = [plain, *(_other(seed) for seed in (1, 2))]
    pt, moved = _pickled("pytorch_model.bin"), _pickled("consolidated.pt")
    return [
        Case("1 renamed", [plain], renamed, _NAMES_TARGET),
        Case("2 renamed, resharded", [plain], _laid(Layout(renamed=True, files=3)), _NAMES_TARGET),
        Case("3 q/k/v, gate/up fused", [plain], fused),
        Case("4 fused by groups of heads", [plain], grouped),
        Case("5 fused ones split, renamed", [fused], renamed),
        Case("6 fused in shared chunks", [plain], fused, state=lambda: model(_SMALL)),
        Case("7 two ranks made four", [_laid(Layout(ranks=2))], _laid(Layout(ranks=4))),
        Case("8 cut by rows for four", [plain], _laid(Layout(ranks=4))),
        Case("9 cut by columns, too", [plain], cut),
        Case("10 joined by columns, too", [cut], plain),
        Case("11 layers put in twice", [plain], _layers(0, 1, 2, 1, 2, 3)),
        Case("12 layers left out", [plain], _layers(0, 3)),
        Case("13 stitched of three", sources, _stitched, has_parent=False),
        Case("14 the same, one declared", sources, _stitched),
        Case("15 fp32 made bf16", [plain], _cast, state=_floats, change=_changed_floats),
        Case("16 fp32, all trained, fused", [plain], fused, state=_floats, change=_trained),
        Case("17 .bin renamed to .pt", [pt], moved, _NAMES_TARGET),
    ]


def _laid(layout: Layout) -> Write:
    return lambda state, folder: write(layout.of(state), folder)


def _other(seed: int) -> Write:
    """Return what writes a model that has nothing to do with the weights it is given."""
    return lambda _, folder: write(_PLAIN.of(model(seed=seed)), folder)


def _stitched(state: State, folder: Path) -> Path:
    sources = [state, *(model(seed=seed) for seed in (1, 2))]
    mixed = {name: sources[n % 3][name] for n, name in enumerate(state)}
    return write(_PLAIN.of(mixed), folder)


def _layers(*numbers: int) -> Write:
    """Return what writes a model of some layers of the one that it is given."""

    def written(state: State, folder: Path) -> Path:
        made = {name: tensor for name, tensor in state.items() if ".layers." not in name}
        for at, number in enumerate(numbers):
            prefix = f"model.layers.{number}."
            own = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
            for name, tensor in own.items():
                made[name.replace(prefix, f"model.layers.{at}.")] = tensor.clone()
        return write(_PLAIN.of(made), folder)

    return written


def _cast(state: State, folder: Path) -> Path:
    return write(_PLAIN.of({name: t.bfloat16() for name, t in state.items()}), folder)


def _pickled(name: str) -> Write:
    def written(state: State, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        torch.save(state, folder / name)
        return folder

    return written


def _floats() -> State:
    noise = torch.Generator().manual_seed(3)
    return {
        name: tensor.float() * (1 + torch.rand(tensor.shape, generator=noise) / 256)
        for name, tensor in model().items()
    }


def _trained(state: State) -> State:
    noise = torch.Generator().manual_seed(4)
    return {
        name: tensor + _TRAINED * torch.randn(tensor.shape, generator=noise)
        for name, tensor in state.items()
    }


def _changed_floats(state: State) -> State:
    """Return the state with a share of the elements changed by one step of bf16."""
    noise = torch.Generator().manual_seed(5)
    changed = {}
    for name, tensor in state.items():
        is_moved = torch.rand(tensor.shape, generator=noise) < SHARE
        changed[name] = torch.where(is_moved, tensor * (1 + 1 / 128), tensor)
    return changed


def rows() -> list[Result]:
    """Compare each change with the same change alone."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(_cases()):
            print(f"  {case.name}", end="\r", file=sys.stderr)
            ours = _added(case, case.olds, Path(scratch) / f"{number}-ours")
            alone = case._replace(has_parent=True)
            reference = _added(alone, [case.new], Path(scratch) / f"{number}-alone")
            found.append(_row(case, ours, reference))
    return found


def _added(case: Case, olds: Sequence[Write], folder: Path) -> int:
    """Commit versions, and return the bytes of the frames of the one with the change."""
    state = case.state()
    with casweights.open(folder / "store", create=True) as repo:
        for number, old in enumerate(olds):
            repo.commit(old(state, folder / "model"), branch=f"old-{number}")
        before = _frames(repo)
        changed = case.new(case.change(state), folder / "model")
        repo.commit(changed, branch="new", parent="old-0" if case.has_parent else None)
        found = _frames(repo) - before
    shutil.rmtree(folder)
    return found


def _frames(repo: Repository) -> int:
    return repo.stats().pack_bytes


def _row(case: Case, ours: int, reference: int) -> Result:
    note = f"bytes of frames; {SHARE:.0%} changed, or all where it says so"
    return compared(case.name, ours, reference, "bytes", target=case.target, note=note)


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="tools/bench/run shapes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main() -> int:
    parser().parse_args()
    facts: dict[str, object] = {
        "bytes of the model": sum(tensor.nbytes for tensor in model().values())
    }
    return report("Changes that come with another shape", facts, rows())


if __name__ == "__main__":
    sys.exit(main())
