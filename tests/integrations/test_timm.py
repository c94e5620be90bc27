"""timm's losses over their options: enabled, converted, and timm's again."""

import itertools

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="timm is not installed")

from timm import loss as timm_loss

import fused_losses
from fused_losses.integrations import timm as bridge

ROWS, CLASSES = 6, 11


@pytest.fixture(autouse=True)
def disabled():
    yield
    bridge.disable()


def soft_targets():
    return torch.rand(ROWS, CLASSES).softmax(-1)


BINARY = [
    dict(zip(("smoothing", "target_threshold", "sum_classes", "smooth_dense", "reduction"), values, strict=True))
    for values in itertools.product([0.0, 0.1], [None, 0.2], [False, True], [False, True], ["mean", "sum", "none"])
]
CASES = [
    *(
        pytest.param(lambda s=s: timm_loss.LabelSmoothingCrossEntropy(s), False, id=f"smoothing {s}")
        for s in (0.1, 0.0, 0.7)
    ),
    pytest.param(timm_loss.SoftTargetCrossEntropy, True, id="soft"),
    *(
        pytest.param(lambda o=o: timm_loss.BinaryCrossEntropy(**o), soft, id=f"binary {i} {soft}")
        for i, o in enumerate(BINARY)
        for soft in (False, True)
    ),
    pytest.param(lambda: timm_loss.BinaryCrossEntropy(weight=torch.rand(CLASSES)), True, id="weight"),
    pytest.param(lambda: timm_loss.BinaryCrossEntropy(pos_weight=torch.rand(CLASSES)), False, id="pos_weight"),
    pytest.param(lambda: timm_loss.BinaryCrossEntropy(pos_weight=2.5), False, id="scalar pos_weight"),
    *(
        pytest.param(lambda a=a, s=s: timm_loss.JsdCrossEntropy(3, a, s), False, id=f"jsd {a} {s}")
        for a in (12, 1)
        for s in (0.1, 0, None)
    ),
]


def result(loss, logits, target):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def number_of_kernel_calls():
    return sum(n for ways in fused_losses.routes().values() for way, n in ways.items() if way.startswith("kernel"))


@pytest.mark.parametrize("by", ["enable", "convert"])
@pytest.mark.parametrize("make, soft", CASES)
def test_the_numbers_and_gradients_are_timms(make, soft, by):
    loss = make()
    logits, target = torch.randn(ROWS, CLASSES), soft_targets() if soft else torch.randint(CLASSES, (ROWS,))
    stock = result(loss, logits, target)
    before = number_of_kernel_calls()
    if by == "convert":
        assert fused_losses.convert(loss) is loss
    else:
        bridge.enable()
    if by == "enable" and isinstance(getattr(loss, "cross_entropy_loss", None), nn.CrossEntropyLoss):
        assert torch.equal(result(loss, logits, target)[0], stock[0])  # torch's module is for patch() and convert()
        return
    torch.testing.assert_close(result(loss, logits, target), stock)
    assert number_of_kernel_calls() == before + 1
    bridge.disable()
    fused_losses.revert(loss)
    assert torch.equal(result(loss, logits, target)[0], stock[0])
    assert number_of_kernel_calls() == before + 1


@pytest.mark.parametrize("soft", [False, True])
def test_autocast_and_16_bits(soft):
    loss = timm_loss.SoftTargetCrossEntropy() if soft else timm_loss.LabelSmoothingCrossEntropy()
    target = soft_targets() if soft else torch.randint(CLASSES, (ROWS,))
    logits = torch.randn(ROWS, CLASSES).bfloat16()
    fused = fused_losses.convert(timm_loss.SoftTargetCrossEntropy() if soft else timm_loss.LabelSmoothingCrossEntropy())
    exact = loss(logits.double(), target.double() if soft else target)
    with torch.autocast("cpu", torch.bfloat16):
        ours, stock = fused(logits, target), loss(logits, target)
    assert ours.dtype == torch.float32  # as torch's cross-entropy; timm's own may stay in 16 bits
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    assert abs(stock.double() - exact) >= abs(ours.double() - exact)
    ours, stock = fused(logits, target), loss(logits, target)
    assert ours.dtype == stock.dtype
    torch.testing.assert_close(ours, stock, rtol=0.02, atol=0)


def test_shapes_that_only_timm_knows_are_timms():
    soft, hard = timm_loss.SoftTargetCrossEntropy(), timm_loss.LabelSmoothingCrossEntropy()
    logits, target = torch.randn(2, 3, CLASSES), torch.rand(2, 3, CLASSES)
    broadcast, vector = torch.rand(1, 1, CLASSES), torch.rand(CLASSES)
    expected = [soft(logits, target), soft(logits, broadcast), soft(vector, vector)]
    bridge.enable()
    torch.testing.assert_close([soft(logits, target), soft(logits, broadcast), soft(vector, vector)], expected)
    with pytest.raises(RuntimeError):
        hard(logits, torch.zeros(2, 5, dtype=torch.int64))


def test_a_target_that_is_no_class_raises():
    bridge.enable()
    for target in (-100, CLASSES):
        with pytest.raises(IndexError):
            timm_loss.LabelSmoothingCrossEntropy()(torch.randn(2, CLASSES), torch.tensor([0, target]))


def test_a_subclass_keeps_its_forward_and_its_class():
    class Doubled(timm_loss.SoftTargetCrossEntropy):
        def forward(self, x, target):
            return 2 * super().forward(x, target)

    loss = fused_losses.convert(nn.Sequential(Doubled()))[0]
    assert type(loss) is Doubled
    logits, target = torch.randn(ROWS, CLASSES), soft_targets()
    expected = loss(logits, target)
    bridge.enable()
    torch.testing.assert_close(loss(logits, target), expected)


def test_enabled_twice_is_enabled_once():
    forward = timm_loss.SoftTargetCrossEntropy.forward
    bridge.enable()
    bridge.enable()
    assert bridge.is_enabled()
    bridge.disable()
    assert timm_loss.SoftTargetCrossEntropy.forward is forward and not bridge.is_enabled()


def test_a_step_of_a_model():
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=CLASSES).train()
    images, target = torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    state, results = {k: v.clone() for k, v in model.state_dict().items()}, []
    for fuse in (False, True):
        model.load_state_dict(state)
        loss = timm_loss.LabelSmoothingCrossEntropy()
        value = (fused_losses.convert(loss) if fuse else loss)(model(images), target)
        results.append([value, *torch.autograd.grad(value, list(model.parameters()))])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


def test_soft_targets_that_are_integers_under_autocast():
    loss, logits, target = timm_loss.SoftTargetCrossEntropy(), torch.randn(4, 5), torch.eye(4, 5).long()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            fused_losses.convert(timm_loss.SoftTargetCrossEntropy())(logits, target), loss(logits, target)
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("by", ["enable", "convert"])
@pytest.mark.parametrize("name, soft", [("LabelSmoothingCrossEntropy", False), ("SoftTargetCrossEntropy", True)])
def test_torchscript_compiles_timms(name, soft, by):
    loss, target = getattr(timm_loss, name)(), soft_targets() if soft else torch.randint(CLASSES, (ROWS,))
    logits = torch.randn(ROWS, CLASSES)
    model = nn.ModuleDict({"loss": loss})
    stock = loss(logits, target)
    if by == "convert":
        fused_losses.convert(model)
    else:
        bridge.enable()
    type_ = type(loss)
    torch.testing.assert_close(torch.jit.script(loss)(logits, target), stock)
    assert type(model["loss"]) is type_
    bridge.disable()
    fused_losses.revert(model)
    torch.testing.assert_close(torch.jit.script(loss)(logits, target), stock)
