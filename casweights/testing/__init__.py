"""What store drivers and adapters need to test themselves. Needs pytest and hypothesis.

`StoreTests` is the contract of a store, as a class of tests; `casweights.testing.strategies`
generates state dicts and model directories; `casweights.testing.states` and
`casweights.testing.trees` compare them bit by bit.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("casweights.testing.conformance")

from casweights.testing.conformance import StoreTests  # noqa: E402
from casweights.testing.counting import CountingStore  # noqa: E402
from casweights.testing.wrapper import WrapperStore  # noqa: E402

__all__ = ["CountingStore", "StoreTests", "WrapperStore"]
