"""The logits of a linear layer, a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from . import placement
from .linear_chunk_sizes import CHUNK_BYTES, rows_in_gradient, rows_of_chunk
from .linear_products import add_product, logits_into, product_dtype

__all__ = ["Chunk", "LinearChunks"]

_CONVERTED_BYTES = 16 << 20  # of a block of a 16-bit weight in float32
_MOVED_BYTES = 2 << 20  # of gradients on their way to where the logits were


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
        """See Note [Logits in the memory of the weight's gradient] (linear_chunk_sizes.py)."""
        num_logits, in_features = self.weight.shape
        begin = num_logits * (in_features - self._first_rows)
        self._borrowed = weight_gradient.view(-1)[begin:].view(num_logits, self._first_rows).t()

    @property
    def input_gradient_dtype(self) -> torch.dtype:
        """In which the products of the way back come out."""
        return self.product_dtype if self._on_host else self.dtype

    @property
    def weight_gradient_dtype(self) -> torch.dtype:
        """In which those of all chunks are added up: see Note [One chunk] (linear_chunk_sizes.py)."""
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
