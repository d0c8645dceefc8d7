"""``casweights diff``: says in words what tensors come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import casweights

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Run


def test_what_a_fused_tensor_comes_from_is_printed(run: Run, tmp_path: Path) -> None:
    q, k = torch.randn(64, 128).bfloat16(), torch.randn(64, 128).bfloat16()
    with casweights.open(tmp_path / "fused", create=True) as store:
        store.commit({"q": q, "k": k})
        store.commit({"qk": torch.cat([q, k])})
    shown = run("diff", "main~1", "main", "--store", str(tmp_path / "fused")).output
    assert "qk  BF16 [128, 128]  fused from q, k, same content" in shown
    assert "1 fused" in shown
    assert "removed" not in shown
    back = run("diff", "main", "main~1", "--store", str(tmp_path / "fused")).output
    assert "q  BF16 [128, 128] -> BF16 [64, 128]  split from qk, same content" in back
