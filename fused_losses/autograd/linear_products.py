"""The matrix products of a linear loss, and the types in which they are computed.

Note [Types of the products]
The type of computation is float32, or float64 of float64 tensors. On the CPU every product is computed in it: a
processor without 16-bit matrix instructions multiplies 16-bit matrices 7 to 200 times slower than the same in float32
(measured, AVX2), and a sum in float32 that is rounded once is more exact. So of 16-bit tensors the rows of a chunk and
blocks of the weight are converted on the way, which costs 4 % of the product at 256 rows. A GPU multiplies 16-bit
matrices as they are, and adds in float32: the logits and their gradient are rounded once, to 16 bits, and the gradients
of the layer come out in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators.class_axis import accumulation_dtype
from . import backward

__all__ = ["add_product", "logits_into", "product_dtype", "product_over_operand"]

_COPIED_BYTES = 16 << 20  # of an operand's last rows


def product_dtype(tensor: Tensor) -> torch.dtype:
    """In which the products of the layer take their matrices."""
    return accumulation_dtype(tensor.dtype) if backward.is_on_host(tensor) else tensor.dtype


def logits_into(out: Tensor, bias: Tensor | None, rows: Tensor, weight: Tensor) -> None:
    """``rows @ weight.T + bias`` in the type of all of them, added up in the type of computation."""
    dtype = accumulation_dtype(out.dtype)
    if out.is_cpu and dtype != out.dtype:  # what stands for a GPU's product where there is none
        logits = torch.mm(rows.to(dtype), weight.t().to(dtype))
        out.copy_(logits if bias is None else logits + bias)
    elif bias is None:
        torch.mm(rows, weight.t(), out=out)
    else:
        torch.addmm(bias, rows, weight.t(), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor, *, is_first: bool) -> None:
    """Adds ``a @ b`` to ``total``, of which nothing is read if it is the first one.

    ``total`` is of their type or of the wider one in which it is added up.
    """
    beta = int(not is_first)
    if a.dtype != total.dtype and a.is_cuda:
        torch.addmm(total, a, b, beta=beta, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a.to(total.dtype), b.to(total.dtype), beta=beta, out=total)  # as above


def product_over_operand(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total = a @ b``, where ``a`` is contiguous and the end of ``total``'s memory, and has fewer columns.

    Row i of ``a`` begins where ``total`` has its row i + (rows - i) (1 - inner / columns): as many rows as lie between
    are computed at once, into memory of rows of ``a`` that have been used. The last ones are copied.
    """
    (rows, columns), inner = total.shape, a.shape[1]
    begin = 0
    while (left := rows - begin) * inner * a.itemsize > _COPIED_BYTES and (free := left * (columns - inner) // columns):
        torch.mm(a[begin : begin + free], b, out=total[begin : begin + free])
        begin += free
    torch.mm(a[begin:].clone(), b, out=total[begin:])
