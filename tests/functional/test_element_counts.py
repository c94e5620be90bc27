"""The binary losses for every number of elements at which a kernel may change its ways, and its two neighbours."""

import pytest
import torch
from losses import BINARY_CROSS_ENTROPY_WITH_LOGITS, BINARY_LOSSES, FLOAT_DTYPES, REDUCTIONS, sample
from parity import check_parity

# Less than a vector, a vector of 16 float32 and its neighbours, two and four of them; then a block of 1024, 4096 and
# 2**15 elements (torch's grain for a second thread) from both sides, and a size with tails at every level.
ELEMENTS = [1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 1023, 1024, 1025, 4095, 4097, 32767, 32768, 32769, 70001]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("num_elements", ELEMENTS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_binary_losses(loss, dtype, num_elements, reduction, device):
    input, target = sample(loss, (num_elements,), dtype, device)
    # 16-bit sums must not overflow float16: 65504 / 70001 elements is below the mean loss.
    weight = torch.full((num_elements,), 2.0**-4, device=device, dtype=dtype)
    check_parity(loss, input, target, weight=weight, reduction=reduction)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("num_labels", [1, 2, 15, 16, 17, 80, 1000])  # the row length is the period of pos_weight
def test_pos_weight_per_label(num_labels, dtype, device):
    loss = BINARY_CROSS_ENTROPY_WITH_LOGITS
    pos_weight = torch.linspace(0.5, 3, num_labels, device=device).to(dtype)
    check_parity(loss, *sample(loss, (67, num_labels), dtype, device), pos_weight=pos_weight)
