"""The output of all verbs.

Data goes to standard output, everything else to standard error. A verb passes values; this module
writes them as aligned and coloured text for people, as JSON for programs, or as the one essential
field for shell scripts.
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
    """The readers of the output: people, programs, or shell scripts."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


class Span(NamedTuple):
    """Text in one colour; None for the default colour."""

    text: str
    color: str | None = None


Line = str | Sequence[Span]


class Column(NamedTuple):
    """A column of a table for people.

    Attributes:
        key: The field of the rows that it shows.
        show: Makes the text of a cell from the field's value.
        title: Heading of the column; a table without titles has no line of headings.
        right: Whether to align the column to the right.
        color: Colour of the cells.
    """

    key: str
    show: Callable[[Any], str] = str
    title: str = ""
    right: bool = False
    color: str | None = None


class OutputError(Exception):
    """An output stream cannot be written: its reader has left, or the disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


class Output:
    """Writes the results of a verb in one of the three modes.

    Attributes:
        mode: The readers to write for.
    """

    def __init__(self) -> None:
        self.mode = Mode.HUMAN

    @property
    def is_terminal(self) -> bool:
        """Whether standard output is a terminal."""
        return sys.stdout.isatty()

    def record(self, data: Row, lines: Iterable[Line], *, essential: str | None = None) -> None:
        """Write one result.

        Args:
            data: The fields of the result, for programs.
            lines: The result for people.
            essential: The field that shell scripts get; each item of a list has a line of its own.
                None to write nothing for them.
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
        """Write the result of a long command, after its events."""
        self.record({"message_type": "summary", **data}, lines, essential=essential)

    def event(self, message_type: str, data: Row, line: Line | None = None) -> None:
        """Write an event of a long command at once.

        Args:
            message_type: The kind of event, for programs.
            data: The fields of the event, for programs.
            line: The event for people and shell scripts; None to write it for programs only.
        """
        if self.mode is Mode.JSON:
            self._write(to_json({"message_type": message_type, **data}) + "\n")
            self.flush()  # programs that follow the progress read a pipe line by line
        elif line is not None:
            self._print(line)

    def listing(
        self, rows: Iterable[Row], lines: Callable[[Row], Iterable[Line]], *, essential: str
    ) -> None:
        """Write each of several results as soon as it is known.

        Args:
            rows: The fields of each result.
            lines: Makes the lines for people from the fields of a result.
            essential: The field that shell scripts get.
        """
        if self.mode is Mode.JSON:
            self._write_array(rows)
            return
        for row in rows:
            for line in [str(row[essential])] if self.mode is Mode.QUIET else lines(row):
                self._print(line)

    def _write_array(self, rows: Iterable[Row]) -> None:
        # One element per line, so that line-based tools can read the array, too.
        lead = "["
        for row in rows:
            self._write(lead + to_json(row))
            lead = ",\n"
        self._write("[]\n" if lead == "[" else "]\n")

    def table(self, rows: Iterable[Row], columns: Sequence[Column], *, essential: str) -> None:
        """Write results; for people, as a table with aligned columns."""
        if self.mode is not Mode.HUMAN:
            self.listing(rows, lambda _: (), essential=essential)
            return
        for line in table_lines(list(rows), columns):
            self._print(line)

    def raw(self, data: bytes | memoryview) -> None:
        """Write bytes unchanged, in every mode."""
        with _stream_errors():
            sys.stdout.flush()  # text that is still buffered comes before the bytes
            sys.stdout.buffer.write(data)

    def hint(self, message: str) -> None:
        """Write what to do next, for people only."""
        if self.mode is Mode.HUMAN:
            self._print(f"Hint: {message}", sys.stderr)

    def warning(self, code: str, message: str) -> None:
        """Write a warning: the command succeeds, but its result may surprise."""
        if self.mode is Mode.JSON:
            self.event("warning", {"code": code, "message": message})
        else:
            self._print([Span("Warning: ", "yellow"), Span(message)], sys.stderr)

    def error(self, message: str) -> None:
        """Write an error message to standard error."""
        self._print([Span("Error: ", "red"), Span(message)], sys.stderr)

    def flush(self) -> None:
        """Flush standard output."""
        with _stream_errors():
            sys.stdout.flush()

    def _write(self, text: str) -> None:
        with _stream_errors():
            sys.stdout.write(text)

    def _print(self, line: Line, stream: TextIO | None = None) -> None:
        stream = stream or sys.stdout
        # Only results in a terminal are cut to its width: errors and pipes need every character.
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
    # https://no-color.org: an empty NO_COLOR counts as not set.
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextmanager
def _stream_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(error) from error


def table_lines(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[Span]]:
    """Align the cells of a table; return its lines, with headings if the columns have titles."""
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
            # Padding is a span of its own, so that escape sequences surround only the text.
            pad = " " * (room - width(text))
            spans += [Span("  " if spans else ""), Span(pad if column.right else "")]
            spans += [Span(text, color), Span("" if column.right else pad)]
        lines.append(spans)
    return lines


def fields(pairs: Iterable[tuple[str, str]]) -> list[list[Span]]:
    """Align labels and values in lines; leave out pairs without a value."""
    shown = [(label, value) for label, value in pairs if value]
    room = max((len(label) for label, _ in shown), default=0)
    return [[Span(label.ljust(room), "bright_black"), Span(f"  {value}")] for label, value in shown]


def to_json(value: Any) -> str:
    """Return a value as one line of JSON."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    """Convert to types of JSON: IDs in hexadecimal, times in ISO 8601, infinities as strings."""
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
