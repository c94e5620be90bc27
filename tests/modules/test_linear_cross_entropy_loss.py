"""LinearCrossEntropyLoss is torch's in everything but how it computes, and stands alone under a torch without it."""

import copy
import io

import pytest
import torch
from torch import nn

import fused_losses
from fused_losses.linear_modules import _LinearCrossEntropyLoss


class LinearCrossEntropyLoss(_LinearCrossEntropyLoss):
    """What torch's computes, for a torch that has none."""

    def forward(self, input, target):
        logits = self.linear(input).unflatten(1, (self.num_classes, *self.out_features))
        ignored = {} if self.ignore_index is None else {"ignore_index": self.ignore_index}
        options = {"reduction": self.reduction, "label_smoothing": self.label_smoothing, **ignored}
        return nn.functional.cross_entropy(logits, target, self.weight, **options)


HAS_TORCHS = hasattr(nn, "LinearCrossEntropyLoss")
TorchsLoss = nn.LinearCrossEntropyLoss if HAS_TORCHS else LinearCrossEntropyLoss
OPTIONS = {
    "bias": True,
    "reduction": "sum",
    "weight": torch.linspace(0.5, 2, 5),
    "ignore_index": 3,
    "label_smoothing": 0.2,
}


def pair(**options):
    ours, torchs = fused_losses.LinearCrossEntropyLoss(6, 5, **options), TorchsLoss(6, 5, **options)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def outcome(module, input, target):
    loss = module(input, target)
    return [loss, *torch.autograd.grad(loss.sum(), list(module.parameters()))]


def test_is_a_subclass_with_torchs_name_and_repr():
    ours, torchs = pair(**OPTIONS)
    assert isinstance(ours, TorchsLoss) == HAS_TORCHS and type(ours).__name__ == "LinearCrossEntropyLoss"
    assert repr(ours) == repr(torchs)
    assert list(ours.state_dict()) == list(torchs.state_dict()) == ["weight", "linear.weight", "linear.bias"]


@pytest.mark.parametrize("options", [{}, *({name: value} for name, value in OPTIONS.items()), OPTIONS], ids=list)
def test_every_option_reaches_the_function(options):
    ours, torchs = pair(**options)
    input, target = torch.randn(8, 6), torch.tensor([3, 0, 1, 2, 4, 3, 0, 1])
    torch.testing.assert_close(outcome(ours, input, target), outcome(torchs, input, target))


@pytest.mark.parametrize("bias", [False, True])
def test_several_heads(bias):
    ours, torchs = pair(out_features=(2, 3), bias=bias)
    input, target = torch.randn(8, 6), torch.randint(5, (8, 2, 3))
    torch.testing.assert_close(outcome(ours, input, target), outcome(torchs, input, target))


def test_options_beyond_torchs():
    extras = {"logit_scale": 0.5, "softcap": 3.0, "lse_square_scale": 0.01}
    module = fused_losses.LinearCrossEntropyLoss(6, 5, **extras)
    input, target = torch.randn(8, 6), torch.randint(5, (8,))
    by_function = fused_losses.functional.linear_cross_entropy(input, module.linear.weight, target, **extras)
    assert torch.equal(module(input, target), by_function)
    assert "options=None, logit_scale=0.5, softcap=3.0, lse_square_scale=0.01" in repr(module)


def test_copies_compute_the_same():
    module, _ = pair(**OPTIONS)
    input, target = torch.randn(8, 6), torch.randint(5, (8,))
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for copied in (copy.deepcopy(module), torch.load(saved, weights_only=False)):
        assert torch.equal(copied(input, target), module(input, target))


def test_a_weight_may_be_an_embeddings():
    embedding, module = nn.Embedding(5, 6), fused_losses.LinearCrossEntropyLoss(6, 5)
    module.linear.weight = embedding.weight
    module(embedding(torch.tensor([1, 2])), torch.tensor([2, 3])).backward()
    expected = embedding.weight.detach().clone().requires_grad_()
    nn.functional.cross_entropy(expected[[1, 2]] @ expected.t(), torch.tensor([2, 3])).backward()
    torch.testing.assert_close(embedding.weight.grad, expected.grad)


def test_constructor_errors():
    with pytest.raises(RuntimeError, match="expected weight shape"):
        fused_losses.LinearCrossEntropyLoss(6, 5, weight=torch.ones(3))
    with pytest.raises(RuntimeError, match="expected label_smoothing to be in range"):
        fused_losses.LinearCrossEntropyLoss(6, 5, label_smoothing=2.0)


def test_a_torch_without_it_has_the_same_class_here():
    ours, torchs = _LinearCrossEntropyLoss(6, 5, **OPTIONS), TorchsLoss(6, 5, **OPTIONS)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert ours.extra_repr() == torchs.extra_repr()
