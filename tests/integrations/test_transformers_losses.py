"""The loss functions of transformers, every option of theirs: the numbers and gradients of the stock ones."""

import itertools
from types import SimpleNamespace

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.loss import loss_utils
from transformers.trainer_pt_utils import LabelSmoother

import fused_losses
from benchmarks.cpu_device import CpuDevice
from fused_losses.integrations import transformers as bridge
from fused_losses.integrations import transformers_losses as ours

CLASSES = 37
stock_smoother = LabelSmoother.__call__


def labels_with_ignored(*shape, ignore_index=-100):
    labels = torch.randint(CLASSES, shape)
    labels[torch.rand(shape) < 0.3] = ignore_index
    return labels


def assert_same(ours_of, stock_of, *logits):
    """Loss and gradients. In 16 bits the stock ones are of rounded numbers: ours are within a unit of float64's, or
    as near as these."""

    def results_of(loss_of, *logits):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in logits]
        loss = loss_of(*leaves)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    stock = results_of(stock_of, *logits)
    exact = results_of(stock_of, *(leaf.double() for leaf in logits))
    for our_result, stock_result, exact_result in zip(results_of(ours_of, *logits), stock, exact, strict=True):
        assert our_result.dtype == stock_result.dtype
        if our_result.dtype.itemsize == 2:
            unit = torch.finfo(our_result.dtype).eps * exact_result.abs().max().item()
            allowed = max(unit, (stock_result - exact_result).abs().max().item())
            torch.testing.assert_close(our_result.double(), exact_result.double(), rtol=0, atol=allowed)
        else:
            torch.testing.assert_close(our_result, stock_result)


TOKENS = [
    pytest.param(dtype, items, ignore, id=f"{str(dtype)[6:]}-{items}-{ignore}")
    for dtype, items, ignore in itertools.product(
        [torch.float32, torch.bfloat16, torch.float16, torch.float64],
        [None, 11, "tensor"],
        [-100, 3],
    )
]


def options_of(items, ignore_index):
    items = torch.tensor(13) if items == "tensor" else items
    return dict(num_items_in_batch=items, ignore_index=ignore_index, return_dict=True)


@pytest.mark.parametrize("dtype, items, ignore_index", TOKENS)
@pytest.mark.parametrize("shifted", [False, True])
def test_causal_language_models(dtype, items, ignore_index, shifted):
    logits, labels = torch.randn(2, 9, CLASSES).to(dtype), labels_with_ignored(2, 9, ignore_index=ignore_index)
    options = dict(vocab_size=CLASSES, **options_of(items, ignore_index))
    if shifted:
        options["shift_labels"] = labels_with_ignored(2, 9, ignore_index=ignore_index)
    assert_same(
        lambda x: ours.causal_lm_loss(x, labels, **options),
        lambda x: loss_utils.ForCausalLMLoss(x, labels, **options),
        logits,
    )


@pytest.mark.parametrize("dtype, items, ignore_index", TOKENS)
def test_masked_language_models_and_tokens(dtype, items, ignore_index):
    logits, labels = torch.randn(2, 9, CLASSES).to(dtype), labels_with_ignored(2, 9, ignore_index=ignore_index)
    options = options_of(items, ignore_index)
    config = SimpleNamespace(num_labels=CLASSES)
    for our_loss, stock_loss, classes in (
        (ours.masked_lm_loss, loss_utils.ForMaskedLMLoss, CLASSES),
        (ours.token_classification_loss, loss_utils.ForTokenClassification, config),
    ):
        assert_same(
            lambda x, loss=our_loss, c=classes: loss(x, labels, c, **options),
            lambda x, loss=stock_loss, c=classes: loss(x, labels, c, **options),
            logits,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("items", [None, 7])
@pytest.mark.parametrize(
    "problem_type, num_labels, labels",
    [
        (None, 1, torch.tensor([0.3, -1.2, 0.7, 2.1, -0.4, 0.0])),
        ("regression", 4, torch.arange(24.0).cos().reshape(6, 4)),
        (None, 4, torch.tensor([1, 0, 3, 3, 1, 2])),
        (None, 4, torch.tensor([1, 0, 3, 3, 1, 2], dtype=torch.int32)),
        (None, 4, torch.arange(24.0).cos().square().reshape(6, 4)),
        ("multi_label_classification", 4, torch.arange(24.0).cos().square().round().reshape(6, 4)),
    ],
    ids=["one", "regression", "classes", "int32", "soft", "multi-label"],
)
def test_sequences_and_images(dtype, items, problem_type, num_labels, labels):
    def loss_by(function):
        def loss(x):
            config = SimpleNamespace(num_labels=num_labels, problem_type=problem_type)
            given = labels.to(dtype) if labels.is_floating_point() else labels
            result = function(given, x, config, num_items_in_batch=items)
            types.append(config.problem_type)
            return result

        return loss

    types = []
    if labels.dtype == torch.int32:  # torch takes none: the stock loss raises
        loss = loss_by(ours.sequence_classification_loss)(torch.zeros(6, num_labels))
        torch.testing.assert_close(loss, torch.tensor(4.0).log() * (1 if items is None else 6 / items))
        assert types == ["single_label_classification"]
        return
    assert_same(
        loss_by(ours.sequence_classification_loss),
        loss_by(loss_utils.ForSequenceClassificationLoss),
        torch.randn(6, num_labels).to(dtype),
    )
    assert types[0] == types[1]


def test_an_invalid_problem_raises():
    for loss in (ours.sequence_classification_loss, loss_utils.ForSequenceClassificationLoss):
        with pytest.raises(RuntimeError, match="Invalid problem type"):
            loss(torch.zeros(2), torch.zeros(2, 2), SimpleNamespace(num_labels=2, problem_type="other"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("items", [None, 3])
def test_question_answering(dtype, column, items):
    starts, ends = torch.tensor([0, 3, 99, -2]), torch.tensor([4, 8, 9, 2])  # 9: beyond the text
    if column:
        starts, ends = starts.unsqueeze(1), ends.unsqueeze(1)
    assert_same(
        lambda s, e: ours.question_answering_loss(s, e, starts, ends, num_items_in_batch=items),
        lambda s, e: loss_utils.ForQuestionAnsweringLoss(s, e, starts, ends, num_items_in_batch=items),
        *torch.randn(2, 4, 9).to(dtype),
    )
    assert ours.question_answering_loss(torch.zeros(4, 9), torch.zeros(4, 9), None, ends) is None


@pytest.mark.parametrize("items", [None, 50])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_semantic_segmentation(items, auxiliary):
    labels = torch.randint(5, (2, 12, 12))
    labels[:, :3] = 255

    def loss_by(function):
        def loss(x, extra):
            options = dict(auxiliary_logits=extra, auxiliary_loss_weight=0.3) if auxiliary else {}
            return function(x, labels, num_items_in_batch=items, **options) + 0 * extra.sum()

        return loss

    both = torch.randn(2, 2, 5, 6, 6)
    assert_same(loss_by(ours.semantic_segmentation_loss), loss_by(loss_utils.ForSemanticSegmentationLoss), *both)


@pytest.mark.parametrize("epsilon", [0.1, 0.0, 0.9])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("items", [None, 11, "tensor"])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("as_dict", [False, True])
def test_the_label_smoother_of_trainer(epsilon, shift, items, column, as_dict):
    smoother = LabelSmoother(epsilon)
    labels = labels_with_ignored(2, 9)
    items = torch.tensor(13) if items == "tensor" else items

    def loss_by(call):
        def loss(x):
            given = labels.unsqueeze(-1) if column and not shift else labels
            return call(smoother, {"logits": x} if as_dict else (x,), given, shift, num_items_in_batch=items)

        return loss

    assert_same(loss_by(bridge._smoothed_loss), loss_by(stock_smoother), torch.randn(2, 9, CLASSES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_label_smoothing_of_16_bit_logits_is_no_less_exact(dtype):
    """The stock one adds up losses in 16 bits."""
    logits, labels = torch.randn(4, 50, CLASSES).to(dtype), labels_with_ignored(4, 50)
    exact = stock_smoother(LabelSmoother(), (logits.double(),), labels)
    stock = stock_smoother(LabelSmoother(), (logits,), labels)
    loss = ours.label_smoothing_loss(logits, labels, epsilon=0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    assert abs(loss.double() - exact) <= abs(stock.double() - exact)


def test_all_labels_ignored_is_not_a_number_as_with_the_stock_losses():
    logits, labels = torch.randn(2, 3, CLASSES), torch.full((2, 3), -100)
    assert loss_utils.ForCausalLMLoss(logits, labels, CLASSES).isnan()
    assert ours.causal_lm_loss(logits, labels, CLASSES).isnan()
    assert stock_smoother(LabelSmoother(), (logits,), labels).isnan()
    assert ours.label_smoothing_loss(logits, labels, epsilon=0.1).isnan()


def test_a_label_that_is_no_class_raises():
    labels = torch.full((1, 4), CLASSES)
    with pytest.raises(IndexError):
        ours.causal_lm_loss(torch.randn(1, 4, CLASSES), labels, CLASSES)
    with pytest.raises(IndexError):
        ours.label_smoothing_loss(torch.randn(1, 4, CLASSES), -labels, epsilon=0.1)


def test_16_bit_logits_are_not_copied():
    """Peak memory: the gradient, of the logits' own type, and little else."""
    logits, labels = torch.randn(1, 256, 4096).bfloat16().requires_grad_(), torch.randint(4096, (1, 256))

    def multiples_of_the_logits(loss_of):
        def step():
            return torch.autograd.grad(loss_of(logits, labels, 4096), logits)

        with fused_losses.limited_gradient_pool(0):
            step()
            return CpuDevice().peak_bytes(step) / (logits.numel() * 2)

    assert multiples_of_the_logits(ours.causal_lm_loss) < 1.1
    assert multiples_of_the_logits(loss_utils.ForCausalLMLoss) > 4
