"""Objects of a sharded state that are no tensors: which load without trust, and which do not."""

from __future__ import annotations

import datetime
import io
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from casweights.errors import UnsupportedError
from casweights.integrations.dcp import CasweightsReader, CasweightsWriter
from casweights.integrations.dcp.objects import check_loaded
from tests.integrations.dcp_verbs import cause, load, save

if TYPE_CHECKING:
    from casweights import Repository

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

CODES = [
    *("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"),
    *("S3", "U3", "longdouble", "clongdouble"),
]
SHAPES: list[tuple[int, ...]] = [(), (0,), (3,), (2, 0, 3), (2, 3)]


def in_pickle(value: object) -> io.BytesIO:
    blob = io.BytesIO()
    torch.save(value, blob)
    return blob


@pytest.mark.parametrize("code", CODES)
def test_plain_numpy_values_load_without_trust(repo: Repository, code: str) -> None:
    arrays = [np.arange(int(np.prod(shape))).reshape(shape).astype(code) for shape in SHAPES]
    arrays += [np.asfortranarray(arrays[-1]), arrays[-1][:, ::2], arrays[-1].T]
    arrays += [arrays[-1].astype(arrays[-1].dtype.newbyteorder(">"))]
    scalar = arrays[4][1, 2]
    state = {"nested": {"arrays": tuple(arrays), "scalar": scalar}, "w": torch.ones(2)}
    save(state, CasweightsWriter(repo))
    target = {"nested": {"arrays": (), "scalar": None}, "w": torch.zeros(2)}
    loaded = load(target, CasweightsReader(repo))["nested"]
    assert type(loaded["scalar"]) is type(scalar)
    assert loaded["scalar"] == scalar
    native = [a.dtype.newbyteorder("=") for a in arrays]  # as torch's own reader returns them
    assert [a.dtype.newbyteorder("=") for a in loaded["arrays"]] == native
    assert all(map(np.array_equal, loaded["arrays"], arrays))


def test_arrays_of_objects_and_bytes_in_memory_load_without_trust(repo: Repository) -> None:
    rest = io.BytesIO(b"fp8 scales")
    rest.seek(3)
    state = {
        "o": np.array([1, "x", None], object),
        "b": [io.BytesIO(b"1"), np.float64(2)],
        "r": rest,
    }
    save(state, CasweightsWriter(repo))
    loaded = load({"o": None, "b": [None, None], "r": io.BytesIO()}, CasweightsReader(repo))
    assert loaded["o"].tolist() == [1, "x", None]
    assert loaded["b"][0].getvalue() == b"1"
    assert loaded["r"].read() == b" scales"


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, dtype=[("a", "i4")]),
        np.ma.ones(2),
        np.random.default_rng(0),
        np.datetime64("2026"),
    ],
    ids=["structured", "masked", "generator", "moment"],
)
def test_other_objects_of_numpy_are_refused_while_saving(repo: Repository, value: object) -> None:
    with pytest.raises(CheckpointException) as caught:
        save({"deep": {"x": [value]}, "w": torch.ones(2)}, CasweightsWriter(repo))
    assert isinstance(cause(caught), UnsupportedError)
    assert "deep.x" in str(cause(caught))
    assert repo.branches() == {}


def test_objects_that_need_trust_are_logged_while_saving(
    repo: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    save(
        {"when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), "n": 1}, CasweightsWriter(repo)
    )
    ours = [record for record in caplog.records if record.name.startswith("casweights.")]
    assert len(ours) == 1
    assert "'when'" in ours[0].getMessage()
    assert "datetime.datetime" in ours[0].getMessage()


def test_allowing_the_types_in_the_error_is_enough(repo: Repository) -> None:
    day = datetime.date(2026, 1, 1)
    save({"day": [day, np.float32(1)]}, CasweightsWriter(repo))
    with pytest.raises(CheckpointException) as caught:
        load({"day": [None, None]}, CasweightsReader(repo, weights_only=True))
    assert "it needs datetime.date" in str(cause(caught))
    with torch.serialization.safe_globals([datetime.date]):
        assert load({"day": [None, None]}, CasweightsReader(repo))["day"][0] == day


@pytest.mark.parametrize("allowed", [[np.ndarray], [np.dtype], [np.float64, np.int64]])
def test_checks_leave_the_allowed_types_of_the_program_unchanged(allowed: list[Any]) -> None:
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals(allowed):
        check_loaded("x", in_pickle(io.BytesIO(b"x")))
        assert set(torch.serialization.get_safe_globals()) == before | set(allowed)
    check_loaded("x", in_pickle([np.ones(2), b""]))
    assert set(torch.serialization.get_safe_globals()) == before


class Forged:
    """Pickles as the given reduction."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def double() -> Any:
    return np.dtype("f8")


REDUCED = np.ones(1).__reduce__()
MAKE, SCALAR = REDUCED[0], np.float64(1).__reduce__()[0]
FORGERIES = {
    "memory without content": Forged(MAKE, (np.ndarray, (1 << 40,), b"b")),
    "another class": Forged(MAKE, (np.dtype, (0,), b"b")),
    "a void type": Forged(np.dtype, ("V8", False, True)),
    "a type of fields": Forged(np.dtype, ([("a", "O")], False, True)),
    "a type that says it holds objects": Forged(
        np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 63)
    ),
    "a type of another size": Forged(
        np.dtype, ("f8", False, True), (3, "<", None, None, None, 1 << 30, 1, 0)
    ),
    "an array of too little": Forged(
        MAKE, (np.ndarray, (0,), b"b"), (1, (1 << 40,), double(), False, b"12345678")
    ),
    "an array with a negative size": Forged(
        MAKE, (np.ndarray, (0,), b"b"), (1, (-1, -1), double(), False, b"12345678")
    ),
    "an array of pointers": Forged(
        MAKE, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, b"12345678")
    ),
    "a scalar of too little": Forged(SCALAR, (double(), b"1")),
    "a scalar of nothing": Forged(SCALAR, (1, b"1")),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_pickle_that_numpy_would_not_write_is_refused(forgery: str) -> None:
    blob = in_pickle([FORGERIES[forgery]])
    with pytest.raises(UnsupportedError):
        check_loaded("x", blob)


def test_checks_on_several_threads_do_not_disturb_each_other() -> None:
    errors: list[BaseException] = []

    def check() -> None:
        try:
            for _ in range(20):
                check_loaded("x", in_pickle([np.ones(2), io.BytesIO(b"x")]))
        except UnsupportedError as error:
            errors.append(error)

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
