"""How many rows of a linear layer's output a chunk has.

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

__all__ = ["CHUNK_BYTES", "OVERWRITTEN_BYTES", "rows_in_gradient", "rows_of_chunk"]

CHUNK_BYTES = 64_000_000  # of logits, and as much again of their gradient
OVERWRITTEN_BYTES = 120_000_000  # of logits that their gradient takes the place of
_FULL_SPEED_ROWS = 256
_GPU_CHUNK_BYTES = 128_000_000
_GPU_MOST_BYTES = 1_000_000_000
_GPU_FULL_SPEED_ROWS = 1024
_ROUNDED_BYTES = 2  # of what comes out of a product of 16-bit matrices
_ROW_STEP = 16  # what a matrix product likes


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
        full_speed = min(_GPU_FULL_SPEED_ROWS, rows_in(_GPU_MOST_BYTES))
        most = max(rows_in(_GPU_CHUNK_BYTES), full_speed, rows_in(weight_bytes))
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
