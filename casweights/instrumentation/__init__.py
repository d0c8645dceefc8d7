"""Listeners for the events of casweights, one file per library that they need."""

from __future__ import annotations

from casweights.instrumentation.tee import Tee

__all__ = ["Tee"]
