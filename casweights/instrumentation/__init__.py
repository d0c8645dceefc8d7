"""Listeners for the events of casweights: log lines, progress bars, Prometheus metrics.

`Tee` makes one listener of several.
"""

from __future__ import annotations

from casweights.instrumentation.tee import Tee

__all__ = ["Tee"]
