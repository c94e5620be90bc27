"""Losses of other packages that patch() reaches as they are, with the numbers that they had."""

import pytest
import torch

import fused_losses


def kernel_calls():
    return sum(n for ways in fused_losses.routes().values() for way, n in ways.items() if way.startswith("kernel"))


def assert_reached(loss_of, *leaves):
    """The same value and gradients, through a kernel under the patch and not without."""
    results = []
    before = kernel_calls()
    for patched in (False, True):
        copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        if patched:
            assert kernel_calls() == before
            with fused_losses.patched():
                loss = loss_of(*copies)
        else:
            loss = loss_of(*copies)
        results.append([loss.detach(), *torch.autograd.grad(loss, copies)])
    assert kernel_calls() > before
    torch.testing.assert_close(results[1], results[0])


def test_skorch():
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    net = skorch.NeuralNetClassifier(torch.nn.Linear(4, 3), criterion=torch.nn.CrossEntropyLoss, verbose=0).initialize()
    assert_reached(lambda logits: net.get_loss(logits, torch.tensor([0, 2, 1])), torch.randn(3, 3))


def test_segmentation_models_pytorch():
    losses = pytest.importorskip("segmentation_models_pytorch.losses", reason="smp is not installed")
    target = torch.randint(2, (2, 1, 8, 8)).float()
    assert_reached(lambda logits: losses.SoftBCEWithLogitsLoss()(logits, target), torch.randn(2, 1, 8, 8))


def test_its_soft_cross_entropy_is_another_loss_and_left_alone():
    losses = pytest.importorskip("segmentation_models_pytorch.losses", reason="smp is not installed")
    loss, logits = losses.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=2), torch.randn(2, 5, 8, 8)
    target = torch.randint(5, (2, 8, 8))
    assert type(fused_losses.convert(loss)) is losses.SoftCrossEntropyLoss
    other = torch.nn.functional.cross_entropy(logits, target, ignore_index=2, label_smoothing=0.1)
    assert abs(loss(logits, target) - other) > 0.1  # it divides by every pixel


def test_sentence_transformers():
    losses = pytest.importorskip("sentence_transformers.losses", reason="sentence-transformers is not installed")

    class Encoder(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, features):
            return {"sentence_embedding": features}

    loss, labels = losses.SoftmaxLoss(Encoder(), 8, 3), torch.tensor([0, 2, 1, 1])
    assert_reached(lambda a, b: loss([a, b], labels), *torch.randn(2, 4, 8))


def test_torchmetrics_computes_perplexity_without_torchs_losses():
    text = pytest.importorskip("torchmetrics.text", reason="torchmetrics is not installed")
    logits, target = torch.randn(2, 5, 11), torch.randint(11, (2, 5))
    perplexity = text.Perplexity()(logits, target)
    loss = fused_losses.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    torch.testing.assert_close(loss.exp(), perplexity)


def test_torchvision_detection():
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    from torchvision.models.detection.roi_heads import fastrcnn_loss

    labels, targets = [torch.tensor([1, 0, 2])], [torch.randn(3, 4)]
    assert_reached(lambda logits: fastrcnn_loss(logits, torch.zeros(3, 12), labels, targets)[0], torch.randn(3, 3))
