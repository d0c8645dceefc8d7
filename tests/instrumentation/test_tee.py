"""A tee passes every event to every reporter."""

from __future__ import annotations

from typing import Any

import pytest

from casweights.events import Reporter
from casweights.instrumentation import Tee
from tests.instrumentation.samples import EVENTS, methods


class Recorder(Reporter):
    """Records each event in a list, which several recorders may share."""

    def __init__(self, name: str, heard: list[tuple[str, str, tuple[Any, ...]]]) -> None:
        for event in methods():
            setattr(self, event, lambda *args, event=event: heard.append((name, event, args)))


def test_there_is_a_sample_of_every_event() -> None:
    assert sorted(methods()) == sorted(EVENTS)


@pytest.mark.parametrize("event", methods())
def test_every_event_reaches_every_reporter_in_order(event: str) -> None:
    heard: list[tuple[str, str, tuple[Any, ...]]] = []
    tee = Tee(Recorder("first", heard), Recorder("second", heard))
    getattr(tee, event)(*EVENTS[event])
    assert heard == [("first", event, EVENTS[event]), ("second", event, EVENTS[event])]


@pytest.mark.parametrize("event", methods())
def test_an_error_of_a_reporter_is_not_caught(event: str) -> None:
    heard: list[tuple[str, str, tuple[Any, ...]]] = []

    def fail(*_: object) -> None:
        raise RuntimeError("no")

    failing = Reporter()
    setattr(failing, event, fail)
    tee = Tee(Recorder("first", heard), failing, Recorder("last", heard))
    with pytest.raises(RuntimeError, match="no"):
        getattr(tee, event)(*EVENTS[event])
    assert [name for name, *_ in heard] == ["first"]


def test_a_tee_without_reporters_does_nothing() -> None:
    tee = Tee()
    for event, args in EVENTS.items():
        getattr(tee, event)(*args)
