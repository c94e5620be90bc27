"""The matrix products of a linear loss, and the types in which they are computed.

Note [Types of the products]
The type of computation is float32, or float64 of float64 tensors. Products of 16-bit matrices are computed in it where
the processor has no instructions for them: it multiplies them 7 to 200 times slower than the same in float32 (measured,
AVX2), and a sum in float32 that is rounded once is more exact. So the rows of a chunk and blocks of the weight are
converted on the way, which costs 4 % of the product at 256 rows.

A GPU, and a processor with AVX-512 BF16 or AMX in bfloat16, multiplies 16-bit matrices as they are, on the processor
2.2 to 2.5 times faster than in float32 (measured), and adds in float32: logits and their gradient are rounded once, to
16 bits, as torch's are. A GPU's product may come out in float32. A processor's comes out rounded, which for the sum of
one chunk is where it goes; products of several chunks are added up in float32, with a rounding for each. What all rows
have in common, 1 / N of a mean, is multiplied in the product, not before: of most rows the gradient of the target's
logit is nearly -1 / N, which is rounded in the same direction in all of them, and no sum evens it out. Below
``_FEWEST_MULTIPLICATIONS`` in a call there is no millisecond to be gained, and the products are exact.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from . import placement

__all__ = ["add_product", "has_instructions_for", "logits_into", "product_dtype", "product_over_operand"]

_COPIED_BYTES = 16 << 20  # of an operand's last rows
_ADDED_BYTES = 4 << 20  # of a product in float32 on its way to a sum
_FEWEST_MULTIPLICATIONS = 1 << 24


@cache
def _has_bfloat16_instructions() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def has_instructions_for(dtype: torch.dtype) -> bool:
    """Whether this processor's matrix products in a type of 16 bits are faster than in float32, as torch calls them."""
    return dtype == torch.bfloat16 and _has_bfloat16_instructions() and bool(torch.backends.mkldnn.enabled)


def product_dtype(tensor: Tensor, num_multiplications: int) -> torch.dtype:
    """In which the products of the layer take their matrices."""
    if not placement.is_on_host(tensor):
        return tensor.dtype
    keeps = num_multiplications >= _FEWEST_MULTIPLICATIONS and has_instructions_for(tensor.dtype)
    return tensor.dtype if keeps else accumulation_dtype(tensor.dtype)


def _stands_for_a_gpu(tensor: Tensor) -> bool:
    """A test's: its products are in the type of computation."""
    return tensor.is_cpu and not placement.is_on_host(tensor)


def logits_into(out: Tensor, bias: Tensor | None, rows: Tensor, weight: Tensor) -> None:
    """``rows @ weight.T + bias`` in the type of all of them, added up in the type of computation."""
    if _stands_for_a_gpu(out):
        dtype = accumulation_dtype(out.dtype)
        logits = torch.mm(rows.to(dtype), weight.t().to(dtype))
        out.copy_(logits if bias is None else logits + bias)
    elif bias is None:
        torch.mm(rows, weight.t(), out=out)
    else:
        torch.addmm(bias, rows, weight.t(), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor, *, is_first: bool, alpha: float = 1.0) -> None:
    """Adds ``alpha * a @ b`` to ``total``, of which nothing is read if it is the first one.

    ``total`` is of their type or of the wider one in which it is added up.
    """
    beta = int(not is_first)
    if a.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a, b, beta=beta, alpha=alpha, out_dtype=total.dtype, out=total)
    elif _stands_for_a_gpu(a):
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), beta=beta, alpha=alpha, out=total)
    elif a.dtype != total.dtype:
        _add_rounded_product(total, a, b, is_first=is_first, alpha=alpha)
    else:
        torch.addmm(total, a, b, beta=beta, alpha=alpha, out=total)


def _add_rounded_product(total: Tensor, a: Tensor, b: Tensor, *, is_first: bool, alpha: float) -> None:
    """Block by block of rows, so that the product is added from the cache."""
    step = max(1, _ADDED_BYTES // max(1, total.shape[1] * total.itemsize))
    rounded = a.new_empty(min(step, total.shape[0]), total.shape[1])
    wide = torch.empty_like(rounded, dtype=total.dtype)
    for begin in range(0, total.shape[0], step):
        sums = total[begin : begin + step]
        product = rounded[: len(sums)]
        torch.addmm(product, a[begin : begin + step], b, beta=0, alpha=alpha, out=product)
        if is_first:
            sums.copy_(product)
        else:
            sums += wide[: len(sums)].copy_(product)


def product_over_operand(total: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0) -> None:
    """``total = alpha * a @ b``, where ``a`` is contiguous and the end of ``total``'s memory, and has fewer columns.

    Row i of ``a`` begins where ``total`` has its row i + (rows - i) (1 - inner / columns): as many rows as lie between
    are computed at once, into memory of rows of ``a`` that have been used. The last ones are copied.
    """
    (rows, columns), inner = total.shape, a.shape[1]

    def multiply(begin: int, end: int, operand: Tensor) -> None:
        add_product(total[begin:end], operand, b, is_first=True, alpha=alpha)

    begin = 0
    while (left := rows - begin) * inner * a.itemsize > _COPIED_BYTES and (free := left * (columns - inner) // columns):
        multiply(begin, begin + free, a[begin : begin + free])
        begin += free
    multiply(begin, rows, a[begin:].clone())
