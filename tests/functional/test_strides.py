"""Inputs, targets, weights and output gradients that are not contiguous, for every loss."""

import pytest
import torch
from layouts import (
    LAYOUTS,
    class_axis_last,
    contiguous,
    cut_from_wider_rows,
    every_second_element,
    offset_by_one_element,
    transposed,
)
from losses import (
    BINARY_LOSSES,
    CLASS_LOSSES,
    CROSS_ENTROPY,
    FLOAT_DTYPES,
    LOSSES,
    NLL_LOSS,
    sample,
    sample_class_probabilities,
    sample_input,
)
from parity import check_parity, run

SHAPES = [
    (9, 5),  # few classes
    (3, 200),  # many classes
    (4, 5, 19),  # one inner axis, of a vector and a tail
    (2, 21, 6, 7),  # images
    (2, 3, 2, 5, 4),  # volumes
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_layout_of_the_input(loss, dtype, shape, layout, device):
    input, target = sample(loss, shape, dtype, device)
    laid_out = layout(input)
    assert torch.equal(laid_out, input)
    check_parity(loss, laid_out, target, reduction="mean")
    check_parity(loss, laid_out, target, reduction="none")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layout_of_class_probabilities(shape, layout, device):
    logits = sample_input(CROSS_ENTROPY, shape, device=device)
    target = layout(sample_class_probabilities(shape, device=device))
    check_parity(CROSS_ENTROPY, logits, target)
    check_parity(CROSS_ENTROPY, layout(logits), target, reduction="none")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_layout_of_a_binary_target_and_weight(loss, shape, layout, device):
    input, target = sample(loss, shape, device=device)
    weight = layout(torch.rand(shape, device=device))
    check_parity(loss, input, layout(target), weight=weight)
    check_parity(loss, layout(input), target, weight=weight, reduction="none")


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_channels_last(loss, dtype, memory_format, device):
    shape = (2, 21, 5, 7) if memory_format == torch.channels_last else (2, 5, 3, 4, 5)
    input, target = sample(loss, shape, dtype, device)
    check_parity(loss, input.to(memory_format=memory_format), target)
    check_parity(loss, input.to(memory_format=memory_format), target, reduction="none")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_shifted_language_model_logits(loss, dtype, device):
    """logits (B, T, V), the last step dropped and the classes moved to axis 1, as next-token losses are written."""
    by_time = sample_input(CROSS_ENTROPY, (2, 130, 10), dtype, device).transpose(1, 2).contiguous()
    logits = by_time[:, :-1].transpose(1, 2)
    target = torch.randint(130, (2, 9), device=device)
    assert logits.shape == (2, 130, 9) and not logits.is_contiguous()
    check_parity(loss, logits, target)
    check_parity(loss, logits, target, reduction="none")


@pytest.mark.parametrize("dim", [0, 1], ids=["one row for all", "one value per row"])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_expanded_input_gathers_its_gradient(loss, dim, device):
    base = sample_input(loss, (6, 5), torch.float64, device).narrow(dim, 0, 1)
    _, target = sample(loss, (6, 5), torch.float64, device)
    check_parity(loss, base.expand(6, 5), target, reduction="none")
    gradients = []
    for function in (loss.ours, loss.torchs):
        leaf = base.detach().requires_grad_()
        gradients += torch.autograd.grad(function(leaf.expand(6, 5), target), leaf)
    assert gradients[0].shape == base.shape
    twelve_sums = 12 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(gradients[0], gradients[1], rtol=twelve_sums, atol=twelve_sums)


@pytest.mark.parametrize("num_classes", [5, 100, 2000])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_row_of_logits_for_all_positions_of_an_image(reduction, num_classes, device):
    """Logits of an image as a whole against the labels of its pixels, some of them ignored."""
    pooled = sample_input(CROSS_ENTROPY, (4, num_classes), device=device)
    target = torch.randint(num_classes, (4, 9, 11), device=device)
    target[:, 2:5, ::3] = 255
    for logits in (
        pooled[:, :, None, None].expand(4, num_classes, 9, 11),
        pooled[:, :, None, None].expand(-1, -1, 9, 1),
    ):
        labels = target[..., : logits.size(-1)].contiguous()
        check_parity(CROSS_ENTROPY, logits, labels, reduction=reduction, ignore_index=255)
    windows = sample_input(CROSS_ENTROPY, (4, num_classes + 8), device=device).unfold(1, 9, 1)
    assert windows.shape == (4, num_classes, 9) and windows.stride()[1:] == (1, 1)
    check_parity(CROSS_ENTROPY, windows, target[:, :, 0].contiguous(), reduction=reduction, ignore_index=255)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_unreduced_losses_have_the_strides_of_torchs(loss, dtype, device):
    """Whoever calls view() on them finds the axes in the order in which torch has them."""
    input, target = sample(loss, (2, 3, 4, 5), dtype, device)
    for input_layout in (contiguous, class_axis_last, transposed, cut_from_wider_rows):
        for target_layout in (contiguous, class_axis_last, transposed, cut_from_wider_rows):
            laid_out = input_layout(input), target_layout(target)
            check_parity(loss, *laid_out, reduction="none")
            assert loss.ours(*laid_out, reduction="none").stride() == loss.torchs(*laid_out, reduction="none").stride()


def every_second(indices):
    with_gaps = torch.full((2 * len(indices),), OUT_OF_RANGE).to(indices)
    with_gaps[::2] = indices
    return with_gaps[::2]


def a_column(indices):
    table = torch.full((len(indices), 2), OUT_OF_RANGE).to(indices)
    table[:, 1] = indices
    return table[:, 1]


def behind_another(indices):
    return torch.cat([torch.full((1,), OUT_OF_RANGE).to(indices), indices])[1:]


OUT_OF_RANGE = 7  # must never be read: of the five classes there is no such one


@pytest.mark.parametrize("index_dtype", [torch.int64, torch.uint8, torch.int32], ids=str)
@pytest.mark.parametrize("layout", [every_second, a_column, behind_another])
@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_layout_of_class_indices(loss, layout, index_dtype, device):
    target = layout(torch.tensor([0, 3, 1, 4, 2, 2], device=device, dtype=index_dtype))
    check_parity(loss, sample_input(loss, (6, 5), device=device), target)
    check_parity(loss, sample_input(loss, (6, 5), device=device), target, reduction="none")


@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_layout_of_spatial_class_indices(loss, device):
    input, target = sample(loss, (2, 5, 6, 7), device=device)
    for laid_out in (transposed(target), target[:1].expand(2, 6, 7), every_second_element(target)):
        check_parity(loss, input, laid_out)
        check_parity(loss, input, laid_out, reduction="none")


@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_layout_of_class_weights(loss, device):
    input, target = sample(loss, (6, 5), device=device)
    weight = 0.5 + torch.rand(5, device=device)
    for laid_out in (every_second_element(weight), offset_by_one_element(weight), weight[:1].expand(5)):
        check_parity(loss, input, target, weight=laid_out)
    if loss is not NLL_LOSS:
        check_parity(loss, input, target, weight=every_second_element(weight), label_smoothing=0.1)


def test_gradient_of_a_view_stays_out_of_the_rest_of_its_base(device):
    """logits[:, :5] of a padded vocabulary of 8: the padding gets a gradient of exactly 0."""
    base = torch.randn(6, 8, device=device, requires_grad=True)
    target = torch.randint(5, (6,), device=device)
    (gradient,) = torch.autograd.grad(CROSS_ENTROPY.ours(base[:, :5], target), base)
    expected = run(CROSS_ENTROPY.torchs, base.detach()[:, :5].clone(), target).gradient
    assert (gradient[:, 5:] == 0).all()
    torch.testing.assert_close(gradient[:, :5], expected, rtol=0, atol=4 * torch.finfo(torch.float32).eps)
