"""transformers' Trainer: label smoothing, compute_loss_func, accumulation; the weights of a stock run, with and without
the fused losses."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate, which Trainer needs, is not installed")

from tiny_models import batch, llama

from fused_losses.integrations import transformers as bridge
from fused_losses.integrations.deferred_logits import DeferredLogits


@pytest.fixture(autouse=True)
def disabled():
    yield
    bridge.disable()


def trained(model, tmp_path, compute_loss_func=None, **options):
    """Three steps of two batches each; the weights and the logged losses."""
    torch.manual_seed(5)
    data = [{key: value[0] for key, value in batch().items()} for _ in range(12)]
    arguments = transformers.TrainingArguments(
        output_dir=tmp_path, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, max_steps=3,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.1, optim="sgd",
        disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=data, compute_loss_func=compute_loss_func)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fuse", ["enable", "head"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing_factor": 0.1}], ids=["plain", "smoothed"])
def test_a_run(tmp_path, options, fuse):
    stock, fused = llama(), None
    fused = copy.deepcopy(stock)
    expected = trained(stock, tmp_path, **options)
    bridge.enable()
    if fuse == "head":
        bridge.fused_linear_head(fused)
    losses, weights = trained(fused, tmp_path, **options)
    assert losses == pytest.approx(expected[0], rel=1e-4)
    torch.testing.assert_close(weights, expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_loss_function_that_is_given_to_trainer(tmp_path):
    stock, made = llama(), []
    fused = copy.deepcopy(stock)
    expected = trained(stock, tmp_path)
    bridge.fused_linear_head(fused)

    def loss(outputs, labels, num_items_in_batch=None):
        value = bridge.trainer_loss(outputs, labels, num_items_in_batch)
        made.append(not isinstance(outputs.logits, DeferredLogits) or outputs.logits.are_made)
        return value

    losses, weights = trained(fused, tmp_path, compute_loss_func=loss)
    assert made and not any(made)
    assert losses == pytest.approx(expected[0], rel=1e-4)
    torch.testing.assert_close(weights, expected[1], rtol=1e-4, atol=1e-5)
