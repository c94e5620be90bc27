"""torchvision's focal loss over its options, and in the detection models that import it by name."""

import itertools

import pytest
import torch

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

from torchvision.models.detection import fcos, retinanet

from fused_losses.integrations import torchvision as bridge


def calls_by_name(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torchvision.ops.sigmoid_focal_loss(logits, targets)


STOCK = (torchvision.ops.sigmoid_focal_loss,)  # in a tuple: enable() finds what is a global


@pytest.fixture(autouse=True)
def disabled():
    yield
    if bridge.is_enabled():  # it looks into every module
        bridge.disable()
    assert torchvision.ops.sigmoid_focal_loss is retinanet.sigmoid_focal_loss is fcos.sigmoid_focal_loss is STOCK[0]


@pytest.mark.parametrize(
    "alpha, gamma, reduction", list(itertools.product([0.25, 0.9, -1], [2, 0.0, 1.5], ["none", "mean", "sum"]))
)
def test_numbers_and_gradients(alpha, gamma, reduction):
    logits, targets = torch.randn(7, 9), torch.rand(7, 9).round()
    results = []
    for function in (bridge.sigmoid_focal_loss, STOCK[0]):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf, targets, alpha=alpha, gamma=gamma, reduction=reduction)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaf)))
    torch.testing.assert_close(*results)


def test_the_errors_are_torchvisions():
    for options in (dict(alpha=2), dict(reduction="max")):
        messages = []
        for function in (bridge.sigmoid_focal_loss, STOCK[0]):
            with pytest.raises(ValueError, match="Invalid") as raised:
                function(torch.zeros(2), torch.zeros(2), **options)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


@pytest.mark.filterwarnings("ignore")
def test_torchscript_compiles_torchvisions():
    bridge.enable()
    logits, targets = torch.randn(7, 9), torch.rand(7, 9).round()
    for function in (torchvision.ops.sigmoid_focal_loss, calls_by_name):
        torch.testing.assert_close(torch.jit.script(function)(logits, targets), STOCK[0](logits, targets))


def test_the_loss_of_a_detection_model():
    head = retinanet.RetinaNetClassificationHead(8, 2, 5, norm_layer=None)
    outputs = {"cls_logits": torch.randn(1, 20, 5)}
    targets, matched = [{"labels": torch.tensor([1, 3])}], [torch.randint(-1, 2, (20,))]
    stock = head.compute_loss(targets, outputs, matched)
    bridge.enable()
    bridge.enable()
    assert bridge.is_enabled() and retinanet.sigmoid_focal_loss is fcos.sigmoid_focal_loss is bridge.sigmoid_focal_loss
    torch.testing.assert_close(head.compute_loss(targets, outputs, matched), stock)
