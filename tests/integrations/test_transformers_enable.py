"""enable() and disable(): whose losses change, what they compute in a model, and that nothing is left behind."""

import copy
import pickle

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from tiny_models import VOCABULARY, batch, llama
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.trainer_pt_utils import LabelSmoother

import fused_losses
from fused_losses import integrations
from fused_losses.integrations import transformers as bridge

STOCK = dict(LOSS_MAPPING)
REPLACED = {
    *("ForCausalLM", "ForMaskedLM", "ForQuestionAnswering", "ForSequenceClassification", "ForImageClassification"),
    *("ForTokenClassification", "ForSemanticSegmentation", "ForConditionalGeneration"),
}


@pytest.fixture(autouse=True)
def disabled():
    yield
    bridge.disable()
    assert LOSS_MAPPING == STOCK


def routes_of(call):
    before = copy.deepcopy(fused_losses.routes())
    call()
    taken = {}
    for loss, ways in fused_losses.routes().items():
        for way, number in ways.items():
            if number != (so_far := before.get(loss, {}).get(way, 0)):
                taken.setdefault(loss, {})[way] = number - so_far
    return taken


def test_the_table_and_back():
    smoother = LabelSmoother.__call__
    bridge.enable()
    bridge.enable()
    assert {key for key, loss in LOSS_MAPPING.items() if loss is not STOCK[key]} >= REPLACED
    assert LabelSmoother.__call__ is not smoother
    assert bridge.is_enabled()
    assert [i.enabled for i in integrations.status() if i.name == "transformers"] == [True]
    bridge.disable()
    assert LOSS_MAPPING == STOCK
    assert LabelSmoother.__call__ is smoother
    assert not bridge.is_enabled()


def test_somebody_elses_loss_in_the_table_stays(monkeypatch):
    monkeypatch.setitem(LOSS_MAPPING, "ForCausalLM", print)
    bridge.enable()
    assert LOSS_MAPPING["ForCausalLM"] is print
    bridge.disable()
    assert LOSS_MAPPING["ForCausalLM"] is print


def test_one_model_and_back():
    model, other = llama(), llama()
    bridge.enable(model)
    assert bridge.is_enabled(model) and not bridge.is_enabled(other) and not bridge.is_enabled()
    ways = routes_of(lambda: model(**batch()))
    assert ways == {"cross_entropy": {"kernel": 1}}
    assert routes_of(lambda: other(**batch())) == {}
    bridge.disable(model)
    assert model.loss_function is ForCausalLMLoss and "_loss_function" not in vars(model)
    assert routes_of(lambda: model(**batch())) == {}


def test_a_model_that_had_the_stock_loss_by_itself_has_it_again():
    model = llama()
    model.loss_type = "ForMaskedLM"
    model.loss_function = ForCausalLMLoss
    bridge.enable(model)
    bridge.disable(model)
    assert model.loss_function is ForCausalLMLoss


def test_a_loss_of_ones_own_is_refused():
    model = llama()
    model.loss_function = print
    with pytest.raises(TypeError, match=r"print, the loss of LlamaForCausalLM"):
        bridge.enable(model)
    with pytest.raises(TypeError, match=r"PreTrainedModel, got torch.nn.modules.linear.Linear"):
        bridge.enable(torch.nn.Linear(2, 2))
    bridge.disable(model)
    assert model.loss_function is print


def test_an_enabled_model_can_be_copied_and_pickled():
    model = llama()
    bridge.enable(model)
    assert bridge.is_enabled(copy.deepcopy(model))
    assert bridge.is_enabled(pickle.loads(pickle.dumps(model)))


def small(config_class, **sizes):
    return config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )


def masked_lm():
    return transformers.RobertaForMaskedLM(small(transformers.RobertaConfig)), batch()


def modern_masked_lm():
    config = transformers.ModernBertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    return transformers.ModernBertForMaskedLM(config), batch()


def tokens():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_labels=5, pad_token_id=None, classifier_dropout=0.0,
    )  # fmt: skip
    inputs = batch()
    return transformers.LlamaForTokenClassification(config), {**inputs, "labels": inputs["labels"] % 5}


def sequences():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_labels=5, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForSequenceClassification(config), {**batch(), "labels": torch.tensor([0, 4, 2])}


def images():
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    inputs = {"pixel_values": torch.randn(3, 3, 8, 8), "labels": torch.tensor([0, 4, 2])}
    return transformers.ViTForImageClassification(config), inputs


def answers():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
    )  # fmt: skip
    inputs = {"input_ids": batch()["input_ids"], "start_positions": torch.tensor([0, 3, 2])}
    return transformers.LlamaForQuestionAnswering(config), {**inputs, "end_positions": torch.tensor([4, 3, 10])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [llama, modern_masked_lm, tokens, sequences, images, answers])
def test_models_of_every_kind(make, dtype):
    made = make()
    model, inputs = made if isinstance(made, tuple) else (made, batch())
    model = model.to(dtype).train()
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}

    def loss_and_gradients():
        torch.manual_seed(0)
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    stock = loss_and_gradients()
    bridge.enable()
    results = []
    ways = routes_of(lambda: results.append(loss_and_gradients()))
    assert sum(n for way in ways.values() for n in way.values()) >= 1
    assert all(way.startswith("kernel") for ways_of_loss in ways.values() for way in ways_of_loss)
    if dtype == torch.float32:
        torch.testing.assert_close(results[0], stock)
    else:
        torch.testing.assert_close(results[0][0], stock[0])
        unit = torch.finfo(dtype).eps * max(gradient.abs().max().item() for gradient in stock[1])
        torch.testing.assert_close(results[0][1], stock[1], rtol=0.1, atol=4 * unit)


def test_under_autocast():
    model, inputs = llama(), batch()

    def loss_and_gradients():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters()]

    stock = loss_and_gradients()
    bridge.enable()
    fused = loss_and_gradients()
    torch.testing.assert_close(fused[0], stock[0])
    for ours, theirs in zip(fused[1], stock[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.01 * theirs.abs().max().item())


def test_a_compiled_model_in_one_graph():
    model, inputs = llama(), batch()
    stock = model(**inputs).loss
    bridge.enable()
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).loss
    torch.testing.assert_close(loss, stock)
