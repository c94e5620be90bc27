"""A linear layer over chunks of rows: its logits, and the products of the way back, without a tensor of all logits.

Note [Logits in the memory of the weight's gradient]
That gradient has a number for each class and feature, and nothing is in it until the first chunk's product. The logits
of n rows, class by class, fill n / F of it, at its end. So the first chunk may have nearly as many rows as there are
features and takes no memory: its product is computed from the first class on, into memory of classes whose logits have
been multiplied (:func:`linear_products.product_over_operand`). Worth it where the memory of a chunk holds few rows, a
vocabulary of more than 60000 in float32: weight and gradient then pass through the processor once instead of once for
each 240 rows. The kernels read logits whose classes are n apart at the same speed, but for a chunk of few rows.

Note [One chunk]
Where the products of several chunks must be added up in a wider type than their own (linear_products.py), the sum is
one more sweep over it for each chunk, has twice the gradient's size, and is rounded at the end. One chunk has none of
this: it is taken wherever its logits have room, in ``OVERWRITTEN_BYTES`` or in the memory of the weight's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from . import placement
from .linear_products import add_product, logits_into, product_dtype, product_over_operand

__all__ = ["Chunk", "LinearChunks", "LinearGradients", "rows_in_gradient", "rows_of_chunk"]

CHUNK_BYTES = 64_000_000  # of logits, and as much again of their gradient
OVERWRITTEN_BYTES = 120_000_000  # of logits that their gradient takes the place of
_FULL_SPEED_ROWS = 256
GPU_CHUNK_BYTES = 128_000_000
GPU_MOST_BYTES = 1_000_000_000
_GPU_FULL_SPEED_ROWS = 1024
_ROUNDED_BYTES = 2  # of what comes out of a product of 16-bit matrices
_ROW_STEP = 16  # what a matrix product likes
_CONVERTED_BYTES = 16 << 20  # of a block of a 16-bit weight in float32
_MOVED_BYTES = 2 << 20  # of gradients on their way to where the logits were


def rows_of_chunk(num_rows: int, num_logits: int, in_features: int, bytes_per_logit: int, on_host: bool) -> int:
    """How many rows of ``num_logits`` logits a chunk has.

    On a CPU the weight and its gradient pass through the processor once for each chunk: for products at full speed a
    chunk should have hundreds of rows. Measured at 2048 x 256 x 32000 in float32, 2 threads, as a multiple of the
    products over all rows: 1.22 for 128 rows, 1.05 for 256, 0.96 for 512. That it does not fit the caches costs little.
    So the bound is memory: as many rows as ``CHUNK_BYTES`` hold, at least 16, and the chunks as equal as they can be.

    Where that are fewer than 256, ``OVERWRITTEN_BYTES`` are taken, and the gradient is written over the logits. It then
    takes a sweep over the chunk more, but twice the rows are worth it: at 512 x 512 x 128256 1.25 for 112 rows and two
    tensors, 1.21 over the logits, 1.07 for 176 rows; at 4096 x 64 x 32000 the sweep alone costs 7 %.

    A GPU adds each chunk's product to a gradient of the weight in float32, which moves 8 bytes an element: from about a
    thousand rows on the product takes longer. Memory is at its peak when the sums are rounded, with a gradient of the
    weight beside them, and a chunk of as many rows as there are features is no larger than that. Measured on an H200 in
    bfloat16, as a multiple of the products over chunks of 2**28 logits: at 8192 x 4096 x 128256 1.51 for 464 rows, 1.19
    for 1024, 1.09 for 4096; at 8192 x 2048 x 32000 1.92 for 512, 1.60 for 1024, 1.38 for 2048, 1.31 for 4096.

    Products of 16 bits on a CPU: see Note [One chunk].

    Threads are no part of the rule, so that they are none of the result's bits.
    """

    def rows_in(size: int) -> int:
        return max(_ROW_STEP, size // max(1, num_logits * bytes_per_logit) // _ROW_STEP * _ROW_STEP)

    if not on_host:
        weight_bytes = num_logits * in_features * bytes_per_logit
        most = max(rows_in(GPU_CHUNK_BYTES), min(_GPU_FULL_SPEED_ROWS, rows_in(GPU_MOST_BYTES)), rows_in(weight_bytes))
    else:
        most, overwritten = rows_in(CHUNK_BYTES), rows_in(OVERWRITTEN_BYTES)
        is_one = bytes_per_logit == _ROUNDED_BYTES and num_rows <= overwritten
        if is_one or most < min(_FULL_SPEED_ROWS, num_rows):
            most = overwritten
    num_chunks = max(1, -(-num_rows // most))
    equal = -(-num_rows // num_chunks)
    return max(1, min(most, -(-equal // _ROW_STEP) * _ROW_STEP, num_rows))


def rows_in_gradient(num_rows: int, in_features: int, chunk_rows: int, bytes_per_logit: int) -> int:
    """How many rows' logits the memory of the weight's gradient is to hold on a CPU, 0 for none.

    Memory of a sixteenth of the features is left for the product to begin in. See Note [Logits in the memory of the
    weight's gradient] and, of products of 16 bits, Note [One chunk].

    Args:
        chunk_rows: of a chunk with memory of its own.
    """
    most = (in_features - in_features // 16) // _ROW_STEP * _ROW_STEP
    if bytes_per_logit == _ROUNDED_BYTES:
        return num_rows if chunk_rows < num_rows <= most else 0
    return min(num_rows, most) if chunk_rows < min(_FULL_SPEED_ROWS, num_rows, most) else 0


class Chunk(NamedTuple):
    """Some of the rows that count, counted among these, and where they are among all rows."""

    begin: int
    end: int
    where: Tensor | None

    def take(self, tensor: Tensor) -> Tensor:
        """Their part of a tensor that has the rows first."""
        return tensor[self.begin : self.end] if self.where is None else tensor.index_select(0, self.where)

    def put(self, tensor: Tensor, part: Tensor) -> None:
        """The reverse of :meth:`take`."""
        if self.where is None:
            tensor[self.begin : self.end].copy_(part)
        else:
            tensor.index_copy_(0, self.where, part)


class LinearChunks:
    """The logits ``input @ weight.T + bias``, a chunk of rows at a time in the same memory.

    Args:
        input: (N, F).
        weight: (C * D, F), where D is the number of heads with C classes each.
        bias: (C * D) or ``None``.
        shape: of a row of logits: (C,), or (C, D).
        kept: the rows that count, or ``None`` for all.
        chunk_rows: rows of a chunk, or ``None`` for :func:`rows_of_chunk`.
    """

    def __init__(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: tuple[int, ...],
        kept: Tensor | None,
        chunk_rows: int | None,
    ) -> None:
        self.input, self.weight, self.kept = input, weight, kept
        self.dtype = accumulation_dtype(input.dtype)
        self.product_dtype = product_dtype(input, input.shape[0] * weight.numel())
        self._on_host = placement.is_on_host(input)
        self._bias = None if bias is None else bias.to(self.product_dtype)
        self._shape = shape
        self.num_rows = input.shape[0] if kept is None else kept.shape[0]  # that count
        self._asked_rows = chunk_rows
        self._chunk_rows = self._rows_of_chunk(self.num_rows)
        self._first_rows = 0  # of the chunk whose memory is borrowed
        self._borrowed: Tensor | None = None
        self._logits: Tensor | None = None
        self._logits_of_all: Tensor | None = None  # that were computed before

    def _rows_of_chunk(self, num_rows: int) -> int:
        num_logits, in_features = self.weight.shape
        layer = (num_logits, in_features, self.product_dtype.itemsize, self._on_host)
        return max(1, min(self._asked_rows or rows_of_chunk(num_rows, *layer), num_rows))

    def wants_to_borrow(self) -> bool:
        """Whether the first chunk's logits are to stand in the memory of the weight's gradient, to be given to
        :meth:`borrow` before there are any. Their gradient must then be written over them.
        """
        in_features = self.weight.shape[1]
        if self._asked_rows is None and self._on_host and self._logits_of_all is None:
            item_bytes = self.product_dtype.itemsize
            self._first_rows = rows_in_gradient(self.num_rows, in_features, self._chunk_rows, item_bytes)
        if self._first_rows:
            self._chunk_rows = self._rows_of_chunk(self.num_rows - self._first_rows)
        return self._first_rows > 0

    def borrow(self, weight_gradient: Tensor) -> None:
        """See Note [Logits in the memory of the weight's gradient]."""
        num_logits, in_features = self.weight.shape
        begin = num_logits * (in_features - self._first_rows)
        self._borrowed = weight_gradient.view(-1)[begin:].view(num_logits, self._first_rows).t()

    @property
    def input_gradient_dtype(self) -> torch.dtype:
        """In which the products of the way back come out."""
        return self.product_dtype if self._on_host else self.dtype

    @property
    def weight_gradient_dtype(self) -> torch.dtype:
        """In which those of all chunks are added up: see Note [One chunk]."""
        is_one = self.num_rows <= max(self._first_rows, self._chunk_rows)
        return self.input_gradient_dtype if is_one else self.dtype

    @property
    def overwritten(self) -> bool:
        """Whether there is to be no second tensor of the size of a chunk's logits: see :func:`rows_of_chunk`."""
        bytes_of_chunk = self._chunk_rows * self.weight.shape[0] * self.product_dtype.itemsize
        return self._first_rows > 0 or bytes_of_chunk > CHUNK_BYTES

    def __iter__(self) -> Iterator[Chunk]:
        begin, end = 0, min(self._first_rows or self._chunk_rows, self.num_rows)
        while begin < self.num_rows:
            yield Chunk(begin, end, None if self.kept is None else self.kept[begin:end])
            begin, end = end, min(end + self._chunk_rows, self.num_rows)

    def rows(self, chunk: Chunk) -> Tensor:
        """The chunk's rows of the input in the type of the products."""
        return chunk.take(self.input).to(self.product_dtype)

    def small_logits(self) -> Tensor | None:
        """Those of all rows, which :meth:`logits` has computed, where they are few enough to be kept."""
        is_small = (
            self._logits is not None and len(self._logits) == self.num_rows and self._logits.nbytes <= CHUNK_BYTES
        )
        return self._logits if is_small else None

    def reuse(self, small_logits: Tensor) -> None:
        """Of another object for the same tensors. Their gradient may be written over them."""
        if small_logits.dtype == self.product_dtype:  # oneDNN may have been switched off meanwhile
            self._logits_of_all = small_logits

    def logits(self, rows: Tensor) -> Tensor:
        """Of these rows, in memory that the next chunk's take over."""
        if self._logits_of_all is not None:
            return self._logits_of_all.view(rows.shape[0], *self._shape)
        if self._borrowed is not None:
            logits, self._borrowed = self._borrowed, None
        else:
            if self._logits is None:
                self._logits = rows.new_empty(self._chunk_rows, self.weight.shape[0])
            logits = self._logits[: rows.shape[0]]
        for begin, end, weight in self._weight_blocks():
            bias = None if self._bias is None else self._bias[begin:end]
            logits_into(logits[:, begin:end], bias, rows, weight)
        return logits.view(rows.shape[0], *self._shape)

    @property
    def rounds(self) -> bool:
        """Whether products come out in a narrower type than that of computation."""
        return self.input_gradient_dtype != self.dtype

    def gradient_over(self, logits: Tensor, gradient_of: Callable[[slice], Tensor]) -> Tensor:
        """The gradient of a chunk's logits by an operator that makes a tensor of it: in their place, if it must be.

        Args:
            gradient_of: of some rows of the chunk.
        """
        if not (self.overwritten and self._on_host):
            return gradient_of(slice(0, len(logits)))
        step = max(1, _MOVED_BYTES // (logits[0].numel() * logits.itemsize))
        for begin in range(0, len(logits), step):
            rows = slice(begin, min(begin + step, len(logits)))
            logits[rows].copy_(gradient_of(rows))
        return logits

    def input_gradient_into(self, out: Tensor, logit_gradient: Tensor, alpha: float) -> None:
        """The chunk's rows of the gradient of the input, times ``alpha``, in its type."""
        if not self.weight.shape[0]:
            out.zero_()
        for begin, end, weight in self._weight_blocks():
            add_product(out, logit_gradient[:, begin:end], weight, is_first=begin == 0, alpha=alpha)

    def _weight_blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """See Note [Types of the products]. A weight of their type is one block; others are converted, one block after
        the other in the same memory.
        """
        num_logits, in_features = self.weight.shape
        if self.weight.dtype == self.product_dtype:
            yield 0, num_logits, self.weight
            return
        step = max(1, _CONVERTED_BYTES // max(1, in_features * self.product_dtype.itemsize))
        converted = self.weight.new_empty(min(step, num_logits), in_features, dtype=self.product_dtype)
        for begin in range(0, num_logits, step):
            end = min(begin + step, num_logits)
            yield begin, end, converted[: end - begin].copy_(self.weight[begin:end])


class LinearGradients:
    """The gradients of input, weight and bias that are wanted, summed over the chunks.

    Args:
        alpha: of the products: what the chunks' gradients of the logits are still to be multiplied by.
        lends: whether the chunks may have their logits in the memory of the weight's gradient.
    """

    def __init__(
        self, chunks: LinearChunks, wanted: tuple[bool, bool, bool], *, alpha: float = 1.0, lends: bool = False
    ) -> None:
        input, weight = chunks.input, chunks.weight
        self._chunks, self._alpha = chunks, alpha
        self.input = self.weight = self.bias = None
        self._is_first = True
        if wanted[0]:
            make = torch.empty if chunks.kept is None else torch.zeros
            self.input = make(input.shape, dtype=chunks.input_gradient_dtype, device=input.device)
        self._lent = lends and wanted[1] and chunks.wants_to_borrow()
        if wanted[1]:
            self.weight = torch.empty(weight.shape, dtype=chunks.weight_gradient_dtype, device=input.device)
            if self._lent:
                chunks.borrow(self.weight)
        if wanted[2]:
            self.bias = torch.zeros(weight.shape[0], dtype=chunks.dtype, device=input.device)

    def add(self, chunk: Chunk, rows: Tensor, logit_gradient: Tensor) -> None:
        logit_gradient = logit_gradient.flatten(1)
        if self.input is not None:
            self._put_input(self.input, chunk, logit_gradient)
        if self.bias is not None:
            # Where products are rounded, so are these sums, which float32 accumulates in any case: asked for the wider
            # type, torch makes a copy of all logits in it.
            dtype = logit_gradient.dtype if self._chunks.rounds else self.bias.dtype
            self.bias.add_(logit_gradient.sum(0, dtype=dtype), alpha=self._alpha)
        if self.weight is not None and self._is_first and self._lent:
            # Last: it takes the place of its operand.
            product_over_operand(self.weight, logit_gradient.t(), rows, self._alpha)
        elif self.weight is not None:
            add_product(self.weight, logit_gradient.t(), rows, is_first=self._is_first, alpha=self._alpha)
        self._is_first = False

    def _put_input(self, total: Tensor, chunk: Chunk, logit_gradient: Tensor) -> None:
        if chunk.where is None:
            self._chunks.input_gradient_into(chunk.take(total), logit_gradient, self._alpha)
        else:
            part = total.new_empty(chunk.end - chunk.begin, total.shape[1])
            self._chunks.input_gradient_into(part, logit_gradient, self._alpha)
            chunk.put(total, part)

    def total(self) -> list[Tensor | None]:
        if self._is_first and self.weight is not None:
            self.weight.zero_()
        return [self.input, self.weight, self.bias]
