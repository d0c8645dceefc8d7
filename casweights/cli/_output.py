"""The one way out for everything a verb has to say.

Data goes to standard output, everything else to standard error. A verb hands over values; this
module decides what becomes of them: aligned and coloured text for people, JSON for programs, or
only the essential for shell scripts.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from casweights.cli._text import cut, printable, width

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

Row = Mapping[str, Any]


class Mode(Enum):
    """Whom the output is for."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


class Span(NamedTuple):
    """A stretch of text in one colour."""

    text: str
    color: str | None = None


Line = str | Sequence[Span]


class Column(NamedTuple):
    """A column of a table for people.

    Attributes:
        key: The field of the rows that it shows.
        show: From the field's value to its text.
        title: Its heading; a table without titles has no heading.
        right: Whether to align it to the right.
        color: Its colour.
    """

    key: str
    show: Callable[[Any], str] = str
    title: str = ""
    right: bool = False
    color: str | None = None


class OutputError(Exception):
    """An output stream takes no more: its reader has left, or the disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


class Output:
    """Where the verbs write to.

    Attributes:
        mode: Whom for.
    """

    def __init__(self) -> None:
        self.mode = Mode.HUMAN

    @property
    def is_terminal(self) -> bool:
        """Whether standard output is one."""
        return sys.stdout.isatty()

    def record(self, data: Row, lines: Iterable[Line], *, essential: str | None = None) -> None:
        """One result.

        Args:
            data: Its fields, for programs.
            lines: The same for people.
            essential: The field that is all a shell script wants, a list's items in lines of their
                own; None if there is nothing.
        """
        if self.mode is Mode.JSON:
            self._write(to_json(data) + "\n")
        elif self.mode is Mode.HUMAN:
            for line in lines:
                self._print(line)
        elif essential is not None:
            value = data[essential]
            for item in value if isinstance(value, list) else [value]:
                self._print(str(item))

    def summary(self, data: Row, lines: Iterable[Line], *, essential: str | None = None) -> None:
        """The result of a long command, after its events."""
        self.record({"message_type": "summary", **data}, lines, essential=essential)

    def event(self, message_type: str, data: Row, line: Line | None = None) -> None:
        """Something that happened on the way.

        Args:
            message_type: What.
            data: Its fields, for programs.
            line: The same for people and shell scripts; None if it is for programs only.
        """
        if self.mode is Mode.JSON:
            self._write(to_json({"message_type": message_type, **data}) + "\n")
            self.flush()
        elif line is not None:
            self._print(line)

    def listing(
        self, rows: Iterable[Row], lines: Callable[[Row], Iterable[Line]], *, essential: str
    ) -> None:
        """Any number of results; each is written as soon as it is known.

        Args:
            rows: The results.
            lines: From a result to what people read.
            essential: The field that is all a shell script wants.
        """
        if self.mode is Mode.JSON:
            self._write_array(rows)
            return
        for row in rows:
            for line in [str(row[essential])] if self.mode is Mode.QUIET else lines(row):
                self._print(line)

    def _write_array(self, rows: Iterable[Row]) -> None:
        lead = "["
        for row in rows:
            self._write(lead + to_json(row))
            lead = ",\n"
        self._write("[]\n" if lead == "[" else "]\n")

    def table(self, rows: Iterable[Row], columns: Sequence[Column], *, essential: str) -> None:
        """Results whose fields are aligned for people."""
        if self.mode is not Mode.HUMAN:
            self.listing(rows, lambda _: (), essential=essential)
            return
        for line in table_lines(list(rows), columns):
            self._print(line)

    def raw(self, data: bytes | memoryview) -> None:
        """Bytes as they are."""
        with _stream_errors():
            sys.stdout.flush()
            sys.stdout.buffer.write(data)

    def hint(self, message: str) -> None:
        """What to do next."""
        if self.mode is Mode.HUMAN:
            self._print(f"Hint: {message}", sys.stderr)

    def warning(self, code: str, message: str) -> None:
        """What is done, and will not do what people expect."""
        if self.mode is Mode.JSON:
            self.event("warning", {"code": code, "message": message})
        else:
            self._print([Span("Warning: ", "yellow"), Span(message)], sys.stderr)

    def error(self, message: str) -> None:
        """What went wrong."""
        self._print([Span("Error: ", "red"), Span(message)], sys.stderr)

    def flush(self) -> None:
        """Pass on what was written."""
        with _stream_errors():
            sys.stdout.flush()

    def _write(self, text: str) -> None:
        with _stream_errors():
            sys.stdout.write(text)

    def _print(self, line: Line, stream: TextIO | None = None) -> None:
        stream = stream or sys.stdout
        colored, room = _is_colored(stream), math.inf
        if stream is sys.stdout and stream.isatty() and self.mode is Mode.HUMAN:
            room = shutil.get_terminal_size().columns
        parts = []
        for span in [Span(line)] if isinstance(line, str) else line:
            text = printable(span.text)
            if room < math.inf:
                text = cut(text, int(room))
                room -= width(text)
            parts.append(click.style(text, fg=span.color) if colored and span.color else text)
        with _stream_errors():
            stream.write("".join(parts).rstrip() + "\n")


def _is_colored(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def _stream_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(error) from error


def table_lines(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[Span]]:
    """Rows, and a heading if the columns have titles, as aligned lines."""
    cells = [[printable(column.show(row[column.key])) for column in columns] for row in rows]
    titled = any(column.title for column in columns)
    if titled:
        cells.insert(0, [column.title for column in columns])
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    lines = []
    for number, texts in enumerate(cells):
        spans: list[Span] = []
        for text, column, room in zip(texts, columns, widths, strict=True):
            color = "bright_black" if titled and number == 0 else column.color
            pad = " " * (room - width(text))
            spans += [Span("  " if spans else ""), Span(pad if column.right else "")]
            spans += [Span(text, color), Span("" if column.right else pad)]
        lines.append(spans)
    return lines


def fields(pairs: Iterable[tuple[str, str]]) -> list[list[Span]]:
    """Labels and values as aligned lines; pairs without a value are left out."""
    shown = [(label, value) for label, value in pairs if value]
    room = max((len(label) for label, _ in shown), default=0)
    return [[Span(label.ljust(room), "bright_black"), Span(f"  {value}")] for label, value in shown]


def to_json(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    """IDs as hexadecimal, times as ISO 8601 in UTC, floats that JSON lacks by their names."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
