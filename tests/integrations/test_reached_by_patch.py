"""Losses of other packages that patch() reaches as they are, with the numbers that they had."""

from contextlib import nullcontext

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


def monai_losses():
    return pytest.importorskip("monai.losses", reason="monai is not installed")


def test_monai_beside_dice():
    losses = monai_losses()
    logits, classes = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 1, 8, 8))
    several = losses.DiceCELoss(to_onehot_y=True, softmax=True, weight=torch.rand(3), label_smoothing=0.1)
    assert_reached(lambda x: several(x, classes), logits)
    one = losses.DiceCELoss(sigmoid=True)
    assert_reached(lambda x: one(x, (classes > 0).float()), logits[:, :1])
    fused_losses.convert(several)
    assert type(several.cross_entropy) is fused_losses.CrossEntropyLoss
    assert type(several.binary_cross_entropy) is fused_losses.BCEWithLogitsLoss


def test_monai_of_neighbours_and_discriminators():
    losses = monai_losses()
    logits, classes = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    neighbours, discriminator = losses.NACLLoss(3, dim=2), losses.PatchAdversarialLoss(criterion="bce")
    assert_reached(lambda x: neighbours(x, classes), logits)
    assert_reached(lambda x: discriminator(x, target_is_real=True, for_discriminator=True), logits)


def test_monai_of_nuclei():
    loss = pytest.importorskip("monai.apps.pathology.losses", reason="monai is not installed").HoVerNetLoss()

    def one_hot(num_classes):
        return torch.eye(num_classes)[torch.randint(num_classes, (2, 8, 8))].permute(0, 3, 1, 2)

    names = ("nucleus_prediction", "horizontal_vertical", "type_prediction")
    target = dict(zip(names, (one_hot(2), torch.randn(2, 2, 8, 8), one_hot(5)), strict=True))
    maps = [torch.randn_like(target[name]) for name in names]
    assert_reached(lambda *maps: loss(dict(zip(names, maps, strict=True)), target), *maps)


def test_torch_geometric_of_edges():
    geometric = pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
    nn = pytest.importorskip("torch_geometric.nn")
    edges, labels = torch.randint(6, (2, 2, 5)), torch.tensor([1, 0, 1])
    ranking, signed, attention = nn.LightGCN(6, 4, 1), nn.SignedGCN(4, 4, 1), nn.SuperGATConv(4, 4, heads=2)
    assert_reached(lambda ranks: ranking.link_pred_loss(ranks, labels), torch.randn(3))

    def of_signed(nodes):
        geometric.seed_everything(0)  # it draws edges that there are not
        return signed.nll_loss(nodes, *edges)

    def of_attention(nodes):
        geometric.seed_everything(0)
        attention(nodes, edges[0])
        return attention.get_attention_loss()

    assert_reached(of_signed, torch.randn(6, 4))
    assert_reached(of_attention, torch.randn(6, 4))


@pytest.mark.parametrize("name", ["ComplEx", "RotatE"])
def test_torch_geometric_of_a_knowledge_graph(name):
    nn = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")
    model = getattr(nn, name)(num_nodes=6, num_relations=2, hidden_channels=4)
    heads, relations, tails = torch.randint(6, (5,)), torch.randint(2, (5,)), torch.randint(6, (5,))
    del model.node_emb.weight

    def loss_of(nodes):
        torch.manual_seed(0)
        model.node_emb.weight = nodes
        return model.loss(heads, relations, tails)

    assert_reached(loss_of, torch.randn(6, 4))


@pytest.mark.parametrize("mode", ["multiclass_classification", "binary_classification"])
@pytest.mark.parametrize("return_type", ["raw", "probs"])
def test_torch_geometric_of_an_explanation(mode, return_type):
    """It fetches torch's function anew for each step, and trains a mask by it."""
    explain = pytest.importorskip("torch_geometric.explain", reason="torch_geometric is not installed")
    from torch_geometric.nn import GCNConv

    class Model(GCNConv):
        def forward(self, nodes, edges):
            logits = super().forward(nodes, edges)
            if return_type == "raw":
                return logits
            return logits.softmax(-1) if mode == "multiclass_classification" else logits.sigmoid()

    model, nodes, edges = Model(4, 3 if mode == "multiclass_classification" else 1), torch.randn(6, 4), ring(6)
    masks, before = [], kernel_calls()
    for patch in (nullcontext, fused_losses.patched):
        assert kernel_calls() == before
        torch.manual_seed(0)
        explainer = explain.Explainer(
            model, explain.GNNExplainer(epochs=3), explanation_type="model", node_mask_type="attributes",
            model_config=dict(mode=mode, task_level="node", return_type=return_type),
        )  # fmt: skip
        with patch():
            masks.append(explainer(nodes, edges).node_mask)
    assert kernel_calls() >= before + 3
    torch.testing.assert_close(masks[1], masks[0])


def ring(num_nodes):
    nodes = torch.arange(num_nodes)
    return torch.stack([nodes, nodes.roll(1)])


@pytest.mark.parametrize("alpha, gamma, reduction", [(0.25, 2.0, "mean"), (0.9, 1.5, "sum"), (0.4, 0.0, "none")])
def test_kornia_computes_its_binary_focal_loss_without_torchs_losses(alpha, gamma, reduction):
    kornia = pytest.importorskip("kornia.losses", reason="kornia is not installed")
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(2, (2, 3, 8, 8)).float()
    options = dict(alpha=alpha, gamma=gamma, reduction=reduction)
    results = []
    for function in (kornia.binary_focal_loss_with_logits, fused_losses.functional.sigmoid_focal_loss):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf, target, **options)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaf)))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("module", ["kornia.losses", "monai.losses", "skorch", "torch_geometric.nn", "torchmetrics"])
def test_no_module_of_it_holds_torchs_function_under_a_name_of_its_own(module):
    pytest.importorskip(module, reason=f"{module} is not installed")
    package = module.partition(".")[0]
    assert not [holder for holder in fused_losses.explain_patch().modules if holder.partition(".")[0] == package]
