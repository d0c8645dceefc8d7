"""Our parser and the reference library accept the same headers, generated or written by hand."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import safetensors
from hypothesis import strategies as st

from casweights.errors import InvalidInputError
from casweights.format.safetensors import may_be, parse_header
from tests.lengths import examples

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = b"abcd"


def reference(text: bytes, data: bytes) -> dict[str, Any] | None:
    """Return the tensors that the reference library finds in a file; None if it refuses it."""
    file = len(text).to_bytes(8, "little") + text + data
    try:
        found = safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return None
    return {name: (e["dtype"], e["shape"], bytes(e["data"])) for name, e in found}


def ours(text: bytes, data: bytes) -> dict[str, Any] | None:
    raw = len(text).to_bytes(8, "little") + text
    try:
        header = parse_header(raw, len(data))
    except InvalidInputError:
        return None
    assert may_be(raw + data, len(raw) + len(data))
    return {
        t.name: (t.dtype.code, list(t.shape), data[t.start : t.start + t.nbytes])
        for t in header.tensors
    }


@pytest.fixture(scope="module")
def spec() -> Callable[[bytes, bytes], dict[str, Any] | None]:
    """Return a function that reads a header with the independent reader."""
    reader = import_module("tools.spec.reader")

    def sizes(text: bytes, data: bytes) -> Any:
        try:
            found = reader.parse_header(len(text).to_bytes(8, "little") + text, "the header")
        except reader.FAILURES:
            return None
        sizes = sorted(tensor.size for tensor in found.values())
        return sizes if sum(sizes) == len(data) else None

    return sizes


def check(text: bytes, data: bytes, spec: Callable[[bytes, bytes], Any]) -> None:
    theirs = reference(text, data)
    assert ours(text, data) == theirs
    sizes = None if theirs is None else sorted(len(content) for *_, content in theirs.values())
    assert spec(text, data) == sizes


# JSON text is built piece by piece, so that it can contain what no Python value represents.
odd_strings = [
    "\\u0061",
    "é",
    "\\ud83d\\ude00",
    "\\ud800",
    "\\udc00",
    "\\ud83d\\u0041",
    "\\\\ud800",
]
odd_strings += ["\x7f", "\x01", "\\u0000", "\\n", "\\x", "U8", "__metadata__", '\\"', "[{", ""]
strings = st.sampled_from([*"abt", *odd_strings]).map(lambda text: f'"{text}"')
odd_numbers = ["-0", "-1", "0.0", "4.0", "4e0", "01", "1.", ".5", "+1", "1e999", "1e-999", "NaN"]
odd_numbers += ["Infinity", "-Infinity", "-", "1" + "0" * 400, "1" + "0" * 5000]
numbers = st.sampled_from([*"01234", *odd_numbers, *map(str, (2**32, 2**63, 2**64 - 1, 2**64))])
scalars = st.one_of(strings, numbers, st.sampled_from(["null", "true", "false", ""]))
spaces = st.sampled_from(["", "", "", " ", "\n", "\t", "\r", "\x0b", "\u00a0"])


def joined(parts: list[str], brackets: str, space: str) -> str:
    return brackets[0] + space + f",{space}".join(parts) + space + brackets[1]


def mapping(pairs: list[tuple[str, str]], space: str = "") -> str:
    return joined([f"{key}{space}:{value}" for key, value in pairs], "{}", space)


values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(joined, st.lists(inner, max_size=3), st.just("[]"), spaces),
        st.builds(mapping, st.lists(st.tuples(strings, inner), max_size=3), spaces),
        st.integers(1, 130).map(lambda depth: "[" * depth + "]" * depth),
        st.integers(1, 130).map(lambda depth: '{"a":' * depth + "1" + "}" * depth),
    ),
    max_leaves=4,
)
odd = st.integers(0, 15).map(lambda n: n == 0)
names = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"é"', '""'])
filled = st.sampled_from([("U8", "4", "0,4"), ("F4", "2,4", "0,4"), ("F32", "", "0,4")])
nothing = st.sampled_from([("U8", "0", "4,4"), ("F64", "3,0", "0,0"), ("BOOL", "0", "0,4")])


@st.composite
def blanks(draw: st.DrawFn) -> str:
    return draw(spaces if draw(odd) else st.sampled_from(["", " ", "\n\t\r"]))


@st.composite
def entries(draw: st.DrawFn, fields: tuple[str, str, str]) -> str:
    """Draw the entry of a tensor that is mostly valid."""
    code, shape, offsets = fields
    if draw(odd):
        shape += "," * bool(shape) + draw(numbers)
    parts = {'"dtype"': f'"{code}"', '"shape"': f"[{shape}]", '"data_offsets"': f"[{offsets}]"}
    if draw(odd):
        long_form = draw(st.sampled_from(['{"%s":null}', '{"%s":{}}', '{"%s":null,"%s":null}']))
        parts['"dtype"'] = long_form.replace("%s", code)
    if draw(odd):
        parts[draw(st.sampled_from(list(parts)))] = draw(values)
    if draw(odd):
        return joined([*parts.values(), *draw(st.lists(values, max_size=1))], "[]", "")
    pairs = list(parts.items())
    if draw(odd):
        pairs += draw(st.lists(st.tuples(strings, values), max_size=2))
    if draw(odd):
        pairs.append(draw(st.sampled_from(pairs)))
    if draw(odd):
        pairs.pop(0)
    return mapping(draw(st.permutations(pairs)), draw(blanks()))


texts = st.lists(st.tuples(names, names), max_size=3)
metadata = st.tuples(
    st.just('"__metadata__"'),
    st.one_of(st.builds(mapping, texts, blanks()), st.just("null"), values),
)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    chosen = [draw(filled), *draw(st.lists(st.one_of(nothing, nothing, filled), max_size=2))]
    pairs = [(draw(strings if draw(odd) else names), draw(entries(one))) for one in chosen]
    pairs += draw(st.lists(metadata, max_size=2) if draw(odd) else st.lists(metadata, max_size=1))
    text = mapping(draw(st.permutations(pairs)), draw(blanks()))
    if draw(odd):
        text = draw(values)
    return (draw(blanks()) + text + draw(values if draw(odd) else blanks())).encode()


@hypothesis.given(text=headers(), data=st.sampled_from([DATA] * 9 + [b""]))
@hypothesis.settings(max_examples=examples(150))
def test_generated_headers_are_read_as_by_the_reference_library(
    spec: Callable[[bytes, bytes], Any], text: bytes, data: bytes
) -> None:
    check(text, data, spec)


FIELDS = '"dtype":"U8","shape":[4],"data_offsets":[0,4]'
TENSOR = f'"t":{{{FIELDS}}}'
WRONG_SIZE = '"t":{"dtype":"U8","shape":[9],"data_offsets":[0,4]}'


def empty(shape: str, dtype: str = "U8") -> str:
    return f'{{{TENSOR},"e":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[4,4]}}}}'


def with_extra(value: str) -> str:
    return f'{{"t":{{"x":{value},{FIELDS}}}}}'


TAKEN = {
    "null for metadata": f'{{"__metadata__":null,{TENSOR}}}',
    "a metadata key twice": f'{{"__metadata__":{{"a":"1","a":"2"}},{TENSOR}}}',
    "a tensor twice": f"{{{WRONG_SIZE},{TENSOR}}}",
    "white space around": f" \n\t\r{{{TENSOR}}} \n\t\r",
    "a tensor as an array": '{"t":["U8",[4],[0,4]]}',
    "a dtype as an object": '{"t":[{"U8":null},[4],[0,4]]}',
    "more fields": with_extra('[1.5,-0,{"a":[],"a":{}}]'),
    "a field nested 125 deep": with_extra("[" * 125 + "]" * 125),
    "an integer above 64 bits elsewhere": with_extra("1" + "0" * 30),
    "the largest dimension": empty(f"[{2**64 - 1},0]", "F64"),
    "a large product behind zero": empty("[0,4294967296,4294967296]"),
    "a long header with more fields": with_extra(json.dumps([[["x" * 30]] * 10] * 300)),
}
REFUSED = {
    "metadata twice": f'{{"__metadata__":{{}},"__metadata__":{{}},{TENSOR}}}',
    "an overridden metadata value that is no string": (
        f'{{"__metadata__":{{"a":1,"a":"2"}},{TENSOR}}}'
    ),
    "an overridden tensor without fields": f'{{"t":{{}},{TENSOR}}}',
    "a field twice": f'{{"t":{{"dtype":"U8",{FIELDS}}}}}',
    "minus zero as an offset": '{"t":{"dtype":"U8","shape":[4],"data_offsets":[-0,4]}}',
    "minus zero as a dimension": empty("[-0]"),
    "a field nested 126 deep": with_extra("[" * 126 + "]" * 126),
    "a number out of range elsewhere": with_extra("1e999"),
    "an integer out of range elsewhere": with_extra("1" + "0" * 400),
    "half a surrogate pair elsewhere": with_extra('"\\ud800"'),
    "no number elsewhere": with_extra("NaN"),
    "a dimension of 2^64": empty(f"[0,{2**64}]"),
    "a large product before zero": empty("[4294967296,4294967296,0]"),
    "vertical white space": f"\x0b{{{TENSOR}}}",
}


@pytest.mark.parametrize("text", TAKEN.values(), ids=TAKEN)
def test_headers_that_the_reference_library_opens_are_accepted(
    spec: Callable[[bytes, bytes], Any], text: str
) -> None:
    assert reference(text.encode(), DATA) is not None
    check(text.encode(), DATA, spec)


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_headers_that_the_reference_library_refuses_are_refused(
    spec: Callable[[bytes, bytes], Any], text: str
) -> None:
    assert reference(text.encode(), DATA) is None
    check(text.encode(), DATA, spec)


@pytest.mark.parametrize("field", ["[],", "{},", "[[[]]],", '{"a":{}},'])
def test_a_header_with_too_many_brackets_is_refused_before_decoding(
    field: str, monkeypatch: pytest.MonkeyPatch, spec: Callable[[bytes, bytes], Any]
) -> None:
    text = with_extra("[" + field * 30_000 + "0]").encode()
    assert spec(text, DATA) is None
    monkeypatch.setattr("casweights.format.strictjson.json", None)
    assert ours(text, DATA) is None


def test_brackets_in_names_do_not_count(spec: Callable[[bytes, bytes], Any]) -> None:
    text = f'{{"__metadata__":{{"a":"{"[{" * 30_000}"}},{TENSOR}}}'.encode()
    assert reference(text, DATA) is not None
    check(text, DATA, spec)
