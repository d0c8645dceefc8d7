"""The `low_rank` encoding: a matrix that is another one plus a product of two narrow matrices.

That is what a merged LoRA adapter does to a weight: all elements change, but the product has few
rows and columns of its own, the *factors*. They predict the new elements, and `sparse` or `dense`
stores what they miss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

from casweights.format.arithmetic import KINDS
from casweights.format.planes import decode_planes, encode_planes
from casweights.kernels import cast
from casweights.kernels.kinds import ElementKind
from casweights.kernels.reference.bits import PayloadReader, varint
from casweights.kernels.reference.differences import unzigzag, zigzag

if TYPE_CHECKING:
    import numpy as np

    from casweights.system.buffers import Buffer

MAX_RANK = 64
_WIDTH = 2  # bytes of a factor
# BLAS divides no more products than these between threads; chunks are decoded on several already.
_PRODUCTS = 1 << 18
_ROWS, _BLOCK = 8, 1 << 14  # rows and elements that are predicted at a time, at least


class Factors(NamedTuple):
    """Two matrices of whole numbers, whose product is what the elements of a matrix gain.

    Attributes:
        left: A row for each row of the matrix, and `rank` columns, int16.
        right: `rank` rows, and a column for each column of the matrix, int16.
        exponent: The product is multiplied by two to the power of it, from -128 to 127.
        start: Position in its row of the first element; the elements before it are missing.
    """

    left: np.ndarray
    right: np.ndarray
    exponent: int
    start: int

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return int(self.right.shape[1])

    def join(self) -> bytes:
        """Return the bytes that `split` reads."""
        import numpy as np

        numbers = np.concatenate([self.left.ravel(), self.right.ravel()])
        coded = encode_planes(zigzag(numbers.view("<u2")).tobytes(), _WIDTH)
        head = (varint(self.columns), varint(self.start), bytes([len(self.right)]))
        return b"".join((*head, bytes([self.exponent & 255]), varint(len(coded)), coded))

    @classmethod
    def split(cls, reader: PayloadReader, count: int) -> Self:
        """Read what `join` returned.

        Args:
            reader: Reads the payload.
            count: Number of elements.

        Raises:
            ValueError: It is malformed, or does not fit the elements.
        """
        import numpy as np

        columns = reader.varint(count)
        start = reader.varint(columns)
        rank, exponent = reader.byte(), reader.byte()
        if not (0 < rank <= MAX_RANK and start < columns):
            raise ValueError("its factors have no rank, too high a one, or no place")
        rows = -(-(start + count) // columns)
        if (size := rank * (rows + columns)) > count:
            raise ValueError("it has more factors than elements")
        coded = reader.take(reader.varint(reader.left))
        plain = bytearray(size * _WIDTH)
        decode_planes(coded, memoryview(plain))
        numbers = unzigzag(np.frombuffer(plain, "<u2")).view("<i2")
        left, right = numbers[: rank * rows], numbers[rank * rows :]
        shift = exponent - 256 * (exponent > 127)
        return cls(left.reshape(rows, rank), right.reshape(rank, columns), shift, start)

    def apply(self, kind: ElementKind, data: memoryview) -> None:
        """Replace elements by what the factors predict.

        Each becomes the nearest of its kind to the sum of itself and the product. Whole numbers are
        added as F64, which is exact in any order; the product and the sum are rounded to F32.

        Args:
            kind: Kind of the elements.
            data: The elements.
        """
        import numpy as np

        count, width, f32 = len(data) // kind.width, kind.width, ElementKind.FLOAT_32
        right = np.ldexp(self.right.astype(np.float64), self.exponent)
        step = max(_ROWS, _BLOCK // self.columns)
        wide = max(1, _PRODUCTS // (step * len(right)))
        for row in range(0, len(self.left), step):
            left = self.left[row : row + step].astype(np.float64)
            blocks = [left @ right[:, at : at + wide] for at in range(0, self.columns, wide)]
            product = np.concatenate(blocks, axis=1).ravel()
            product += 0.0  # so that a zero is positive, in whatever order it was added up
            at = row * self.columns - self.start
            product = product[max(0, -at) : count - at]
            first = max(0, at)
            block = data[first * width : (first + len(product)) * width]
            sums = np.empty(len(product), np.float32)
            cast(block, kind, sums.data, f32, False)
            with np.errstate(all="ignore"):
                sums += product.astype(np.float32)
            cast(sums.data, f32, block, kind, False)


class LowRank(NamedTuple):
    """The content of a payload.

    Attributes:
        kind: Kind of the elements.
        factors: What predicts them from those of the base.
        difference: Encoding and bytes of the difference from the prediction.
    """

    kind: ElementKind
    factors: Factors
    difference: tuple[int, Buffer]

    def join(self) -> bytes:
        """Return the payload."""
        encoding, rest = self.difference
        return b"".join((bytes([self.kind]), self.factors.join(), bytes([encoding]), rest))

    @classmethod
    def split(cls, payload: Buffer, total: int) -> Self:
        """Read a payload for a chunk of `total` bytes.

        Raises:
            ValueError: It is malformed, or does not fit the chunk.
        """
        reader = PayloadReader(payload)
        number = reader.byte()
        if number not in KINDS or total % (kind := ElementKind(number)).width:
            raise ValueError("it predicts elements of an unknown kind, or a part of one")
        factors = Factors.split(reader, total // kind.width)
        encoding = reader.byte()
        return cls(kind, factors, (encoding, reader.take(reader.left)))
