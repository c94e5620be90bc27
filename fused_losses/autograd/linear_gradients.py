"""The gradients of a linear layer, summed over chunks of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from .linear_chunks import Chunk, LinearChunks
from .linear_products import add_product, product_over_operand

__all__ = ["LinearGradients"]


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
