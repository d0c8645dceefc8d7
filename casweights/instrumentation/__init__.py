"""Reporters for the events of casweights: log lines, progress bars, Prometheus metrics.

`Tee` combines several reporters into one.
"""

from __future__ import annotations

from casweights.instrumentation.tee import Tee

__all__ = ["Tee"]
