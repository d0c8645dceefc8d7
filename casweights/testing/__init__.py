"""What store drivers and adapters need to test themselves, and a local Hub to try things on.

`StoreTests` is the contract of a store, as a class of tests; `casweights.testing.strategies`
generates state dicts and model directories; `casweights.testing.states` and
`casweights.testing.trees` compare them bit by bit. These need pytest and hypothesis;
`casweights.testing.hub` needs neither.
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
        import pytest

        pytest.register_assert_rewrite("casweights.testing.conformance")
        from casweights.testing.conformance import StoreTests

        return StoreTests
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
