"""Test tools for authors of store drivers and adapters, and a local Hub for experiments.

`StoreTests` is a class of tests that every store driver must pass, and `CountingStore` records
reads and writes. `casweights.testing.strategies` generates state dicts and model directories;
`casweights.testing.states` and `casweights.testing.trees` compare them bit by bit.

These modules need pytest and hypothesis. `casweights.testing.hub` needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casweights.testing.conformance import StoreTests
    from casweights.testing.counting import CountingStore

__all__ = ["CountingStore", "StoreTests"]


def __getattr__(name: str) -> Any:
    if name == "CountingStore":
        from casweights.testing.counting import CountingStore

        return CountingStore
    if name == "StoreTests":
        # Before the import: pytest explains only the asserts of modules that it rewrites.
        import pytest

        pytest.register_assert_rewrite("casweights.testing.conformance")
        from casweights.testing.conformance import StoreTests

        return StoreTests
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
