"""A causal model that trains without its logits: five architectures and more, against the stock path."""

import copy
import math
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch._dynamo import compiled_autograd
from torch.utils.checkpoint import checkpoint

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from tiny_models import CAUSAL_MODELS, batch, gemma2, gpt2, llama

import fused_losses
from benchmarks.cpu_device import CpuDevice
from fused_losses.integrations import transformers as bridge
from fused_losses.integrations.deferred_logits import DeferredLogits, DeferringLinear, float32_cross_entropy


def loss_and_gradients(model, inputs, **options):
    model.zero_grad()
    output = model(**inputs, **options)
    output.loss.backward()
    return output.loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=CAUSAL_MODELS, ids=lambda make: make.__name__)
def stock_and_fused(request):
    stock = request.param().train()
    fused = copy.deepcopy(stock)
    bridge.fused_linear_head(fused)
    return stock, fused


@pytest.mark.parametrize("items", [None, 17], ids=["mean", "items"])
def test_loss_and_gradients_are_the_stock_ones(stock_and_fused, items):
    stock, fused = stock_and_fused
    inputs, options = batch(), {} if items is None else {"num_items_in_batch": torch.tensor(items)}
    torch.testing.assert_close(
        loss_and_gradients(fused, inputs, **options), loss_and_gradients(stock, inputs, **options)
    )


def test_the_logits_are_not_made_in_training_and_as_before_in_evaluation(stock_and_fused):
    stock, fused = stock_and_fused
    inputs = batch()
    logits = fused(**inputs).logits
    assert isinstance(logits, DeferredLogits) and not logits.are_made
    assert logits.shape == stock(**inputs).logits.shape and logits.dtype == torch.float32
    fused.eval(), stock.eval()
    logits = fused(**inputs).logits
    assert not isinstance(logits, DeferredLogits)
    assert torch.equal(logits, stock(**inputs).logits)
    torch.testing.assert_close(fused(**inputs).loss, stock(**inputs).loss)


def test_optimizer_steps(stock_and_fused):
    losses = []
    torch.manual_seed(1)
    batches = [batch() for _ in range(4)]
    for model in stock_and_fused:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for inputs in batches:
            losses.append(loss_and_gradients(model, inputs)[0])
            optimizer.step()
    torch.testing.assert_close(losses[4:], losses[:4])
    assert losses[3] != losses[0]
    stock, fused = (dict(model.named_parameters()) for model in stock_and_fused)
    torch.testing.assert_close(fused, stock, rtol=1e-5, atol=1e-4)


def test_the_loss_takes_the_fused_kernel(stock_and_fused):
    _, fused = stock_and_fused
    before = fused_losses.routes().get("linear_cross_entropy", {}).get("kernel", 0)
    fused(**batch())
    assert fused_losses.routes()["linear_cross_entropy"]["kernel"] == before + 1


def test_whoever_reads_the_logits_has_them_made_and_can_differentiate_them(stock_and_fused):
    stock, fused = stock_and_fused
    inputs = {"input_ids": batch()["input_ids"]}
    weights = torch.randn(3, 11, 97)
    results = []
    for model in (fused, stock):
        logits = model(**inputs).logits
        with torch.no_grad():
            best = logits.argmax(-1)
        loss = (logits[..., :-1, :] * weights[:, 1:]).sum() + torch.logsumexp(logits, -1).mean()
        results.append((best, loss.detach(), torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(*results)


class Cubes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output * 3 * ctx.saved_tensors[0] ** 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss", [
    lambda output: output.loss,
    lambda output: Cubes.apply(output.logits).mean(),
], ids=["loss", "Function"])  # fmt: skip
def test_compiled_autograd(loss):
    model, inputs, gradients = llama().train(), batch(), []
    for fuse in (False, True):
        if fuse:
            bridge.fused_linear_head(model)
        model.zero_grad()
        value = loss(model(**inputs))
        with compiled_autograd._enable(torch.compile(backend="aot_eager")) if fuse else nullcontext():
            value.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_logits_read_in_inference_mode_are_still_differentiated():
    model, inputs, gradients = llama().train(), batch(), []
    for fuse in (False, True):
        if fuse:
            bridge.fused_linear_head(model)
        model.zero_grad()
        output = model(**inputs)
        with torch.inference_mode():
            output.logits.argmax(-1)
        (output.loss + output.logits.logsumexp(-1).square().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def masked(logits):
    logits[..., 90:] = -1.0


def hooked(logits):
    logits.register_hook(lambda gradient: gradient * 0.5)


@pytest.mark.parametrize("change", [masked, hooked], ids=lambda change: change.__name__)
def test_logits_that_were_changed_and_then_taken_without_torch_function(change):
    """A copy has what happened to them in its graph; of themselves it would be lost, so that is an error."""
    model, inputs, gradients = llama().train(), {"input_ids": batch()["input_ids"]}, []
    for fuse in (False, True):
        if fuse:
            bridge.fused_linear_head(model)
        model.zero_grad()
        logits = model(**inputs).logits
        change(logits)
        Cubes.apply(logits.clone()).mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)
    with pytest.raises(RuntimeError, match=r"logits\.clone\(\)"):
        Cubes.apply(logits).mean().backward()


def test_who_asks_for_a_gradient_of_the_logits_after_their_loss_is_told():
    model = llama().train()
    bridge.fused_linear_head(model)
    output = model(**batch())
    for ask in (lambda: output.logits.register_hook(print), lambda: output.logits.retain_grad()):
        with pytest.raises(RuntimeError, match="without these logits"):
            ask()
    logits = model(input_ids=batch()["input_ids"]).logits
    logits.retain_grad()
    logits.logsumexp(-1).mean().backward()
    assert logits.grad is not None


def test_float_of_float32_logits_is_no_copy():
    model = llama().train()
    bridge.fused_linear_head(model)
    logits = model(input_ids=batch()["input_ids"]).logits
    assert logits.float() is logits and logits.to(torch.float32) is logits


@pytest.mark.parametrize("function", [
    Cubes.apply,
    lambda logits: checkpoint(torch.exp, logits, use_reentrant=True),
    lambda logits: checkpoint(lambda x: x.exp().square(), logits, use_reentrant=False),
], ids=["Function", "reentrant checkpoint", "checkpoint"])  # fmt: skip
@pytest.mark.parametrize("are_made", [False, True])
def test_logits_that_are_taken_without_torch_function_are_differentiated_too(function, are_made):
    model, inputs = gemma2().double().train(), {"input_ids": batch()["input_ids"]}
    gradients = []
    for fuse in (False, True):
        if fuse:
            bridge.fused_linear_head(model)
        model.zero_grad()
        logits = model(**inputs).logits
        others = logits.square().sum() if are_made else 0
        ((function(logits) + logits).sum() + others).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("scaled", [
    lambda logits: logits / math.inf,
    lambda logits: logits * math.nan,
    lambda logits: (logits * 1e-200) * 1e-200,
    lambda logits: (logits / 1e-320) / 10,
])  # fmt: skip
def test_logits_times_what_is_no_scale(scaled):
    weight, target = torch.randn(5, 3), torch.tensor([1, 4])
    layer = torch.nn.Linear(3, 5, bias=False)
    layer.weight.data = weight
    results = []
    for kind in (torch.nn.Linear, DeferringLinear):
        layer.__class__ = kind
        results.append(float32_cross_entropy(scaled(layer(torch.ones(2, 3))), target, reduction="mean"))
    torch.testing.assert_close(*results, equal_nan=True)


def test_logits_that_are_read_after_the_weight_has_changed_raise():
    model, inputs = llama(), batch()
    bridge.fused_linear_head(model)
    read, unread = model(**inputs), model(**inputs)
    logits = read.logits + 0
    unread.loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    assert torch.equal(read.logits + 0, logits)
    for late in (lambda: unread.logits + 0, lambda: bridge.trainer_loss(unread, inputs["labels"])):
        with pytest.raises(RuntimeError, match="changed in place since"):
            late()


def test_gradients_by_torch_func():
    model, inputs = llama().train(), batch()
    results = []
    for fuse in (False, True):
        if fuse:
            bridge.fused_linear_head(model)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        results.append(torch.func.grad(lambda p: torch.func.functional_call(model, p, (), inputs).loss)(parameters))
    torch.testing.assert_close(results[1], results[0])


def test_shift_labels_and_part_of_the_logits():
    stock = llama()
    fused = copy.deepcopy(stock)
    bridge.fused_linear_head(fused)
    inputs = batch()
    labels = torch.randint(97, (3, 4))
    for options in ({"shift_labels": torch.randint(97, (3, 11))}, {"logits_to_keep": 4, "labels": labels}):
        torch.testing.assert_close(
            loss_and_gradients(fused, {**inputs, **options}), loss_and_gradients(stock, {**inputs, **options})
        )


def test_results_as_a_tuple():
    model, inputs = llama(), batch()
    bridge.fused_linear_head(model)
    loss, logits, *_ = model(**inputs, return_dict=False)
    torch.testing.assert_close(loss, model(**inputs).loss)
    assert isinstance(logits, DeferredLogits)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_gradient_checkpointing(make):
    stock = make().train()
    fused = copy.deepcopy(stock)
    bridge.fused_linear_head(fused)
    fused.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    inputs = batch()
    torch.testing.assert_close(loss_and_gradients(fused, inputs), loss_and_gradients(stock, inputs))


@pytest.mark.parametrize("make", [llama, gemma2, gpt2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(make, dtype):
    """The chunks' logits are float32, so the fused loss is the nearer to a float64 model's."""
    model, inputs = make(), batch()
    exact = copy.deepcopy(model).double()(**inputs).loss
    losses = []
    for fuse in (False, True):
        if fuse:
            bridge.fused_linear_head(model)
        with torch.autocast("cpu", dtype):
            output = model(**inputs)
        assert output.logits.dtype == dtype
        output.loss.backward()
        assert output.loss.dtype == torch.float32
        losses.append(output.loss.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=0)
    assert abs(losses[1] - exact) < 4e-3 * exact


def test_a_loss_outside_of_autocast_is_that_of_the_layer_inside():
    """As Trainer's compute_loss_func: the layer's weight is float32, its input bfloat16."""
    model, inputs = llama(), batch()
    bridge.fused_linear_head(model)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model(**inputs).loss
        outputs = model(inputs["input_ids"])
    loss = bridge.trainer_loss(outputs, inputs["labels"])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, inside)
    made = outputs.logits[0]
    assert made.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_type_has_a_float32_loss(dtype):
    stock, inputs = llama().to(dtype), batch()
    fused = copy.deepcopy(stock)
    bridge.fused_linear_head(fused)
    (our_loss, ours), (stock_loss, theirs) = (loss_and_gradients(model, inputs) for model in (fused, stock))
    assert our_loss.dtype == stock_loss.dtype == torch.float32
    torch.testing.assert_close(our_loss, stock_loss, rtol=1e-3, atol=0)
    for name, gradient in theirs.items():
        unit = torch.finfo(dtype).eps * 4 if dtype != torch.float64 else 1e-6
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=unit * gradient.abs().max().item())


def test_compiled_models_make_their_logits():
    model, inputs = llama(), batch()
    expected = model(**inputs).loss
    bridge.fused_linear_head(model)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).loss, expected)


def test_undone_copied_and_pickled():
    model, inputs = llama(), batch()
    state = list(model.state_dict())
    bridge.fused_linear_head(model)
    bridge.fused_linear_head(model)
    assert list(model.state_dict()) == state
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(same(**inputs).logits, DeferredLogits)
    bridge.unfused_linear_head(model)
    assert type(model.lm_head) is torch.nn.Linear
    assert bridge.is_enabled(model)
    bridge.disable(model)
    assert "_loss_function" not in vars(model)


def test_what_is_refused():
    with pytest.raises(TypeError, match="PreTrainedModel"):
        bridge.fused_linear_head(torch.nn.Linear(2, 2))
    model = llama()

    class Adapter(torch.nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

    model.set_output_embeddings(Adapter(model.lm_head))
    with pytest.raises(TypeError, match=r"torch\.nn\.Linear, not .*Adapter"):
        bridge.fused_linear_head(model)
    model = llama()
    model.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="hooks"):
        bridge.fused_linear_head(model)
    model = llama()
    model.loss_type = "ForMaskedLM"
    with pytest.raises(TypeError, match="causal models; the loss of LlamaForCausalLM is ForMaskedLMLoss"):
        bridge.fused_linear_head(model)


def test_adapters_of_peft():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    inputs = batch()
    head = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(TypeError, match=r"PeftModel.*get_base_model"):
        bridge.fused_linear_head(head)
    with pytest.raises(TypeError, match=r"torch\.nn\.Linear, not peft"):
        bridge.fused_linear_head(head.get_base_model())

    stock = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    fused = copy.deepcopy(stock)
    bridge.fused_linear_head(fused.get_base_model())
    results = []
    for model in (fused, stock):
        output = model(**inputs)
        output.loss.backward()
        results.append([output.loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    torch.testing.assert_close(*results)


def test_the_memory_of_a_step():
    """Without the logits, their float32 copy and their gradient."""
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32000, **sizes))
    tokens = torch.randint(32000, (1, 512))

    def step():
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()

    peaks = []
    with fused_losses.limited_gradient_pool(0):
        for fuse in (False, True):
            if fuse:
                bridge.fused_linear_head(model)
            step()
            peaks.append(CpuDevice().peak_bytes(step))
    assert peaks[0] > 2 * 4 * 512 * 32000
    assert peaks[1] < 0.6 * peaks[0]


def older_model(name):
    """Its forward calls torch's own loss, not one of transformers' functions."""
    sizes = dict(vocab_size=97, d_model=16)
    layers = dict(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, dropout=0.0)
    encoder = dict(encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, is_decoder=True)
    xlnet = dict(n_layer=1, n_head=2, d_inner=16, dropout=0.0)
    makers = {
        "Bart": lambda: transformers.BartForCausalLM(transformers.BartConfig(**sizes, **layers, **encoder)),
        "TrOCR": lambda: transformers.TrOCRForCausalLM(transformers.TrOCRConfig(**sizes, **layers)),
        "XLNet": lambda: transformers.XLNetLMHeadModel(transformers.XLNetConfig(**sizes, **xlnet)),
    }
    return makers[name]().train()


@pytest.mark.parametrize("is_patched", [False, True])
@pytest.mark.parametrize("name", ["Bart", "TrOCR", "XLNet"])
def test_models_that_compute_their_loss_themselves(name, is_patched):
    stock = older_model(name)
    fused = copy.deepcopy(stock)
    bridge.fused_linear_head(fused)
    inputs = batch()
    expected = loss_and_gradients(stock, inputs)
    fused_losses.routes(reset=True)
    with fused_losses.patched() if is_patched else nullcontext():
        torch.testing.assert_close(loss_and_gradients(fused, inputs), expected)
    assert fused_losses.routes() == {"linear_cross_entropy": {"kernel": 1}}


LOSSES_OF_ROWS = {
    "all": lambda x, y: torch.nn.functional.cross_entropy(x.view(-1, 5), y.view(-1)),
    "shifted": lambda x, y: torch.nn.CrossEntropyLoss()(x[..., :-1, :].contiguous().view(-1, 5), y[:, 1:].reshape(-1)),
    "of one sample": lambda x, y: torch.nn.functional.cross_entropy(x[1], y[1], ignore_index=3),
    "unreduced": lambda x, y: torch.nn.functional.cross_entropy(x.reshape(8, 5), y.flatten(), reduction="none").mean(),
    "smoothed": lambda x, y: torch.nn.functional.cross_entropy(x[:, 2:].reshape(-1, 5), y[:, 2:].reshape(-1),
                                                              torch.ones(5, dtype=x.dtype), label_smoothing=0.1),
    "scaled": lambda x, y: torch.nn.functional.cross_entropy((x / 0.7).view(-1, x.size(-1)), y.view(-1)),
    "of floats": lambda x, y: torch.nn.functional.cross_entropy(x.float().view((8, 5)), y.view(-1)),
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "is_autocast"), [
    (torch.float32, False), (torch.float64, False), (torch.bfloat16, False),
    (torch.float32, True), (torch.bfloat16, True),
])  # fmt: skip
@pytest.mark.parametrize("loss", LOSSES_OF_ROWS.values(), ids=LOSSES_OF_ROWS)
def test_torchs_loss_of_some_rows(loss, dtype, is_autocast):
    layer, input = torch.nn.Linear(3, 5).to(dtype), torch.randn(2, 4, 3).to(dtype)
    target = torch.randint(5, (2, 4))
    results = []
    for kind in (torch.nn.Linear, DeferringLinear):
        layer.__class__ = kind
        layer.zero_grad()
        fused_losses.routes(reset=True)
        with torch.autocast("cpu", enabled=is_autocast):
            value = loss(layer(input), target)
        value.backward()
        results.append((value.detach(), layer.weight.grad, layer.bias.grad))
    rounding = {"rtol": 0.02, "atol": 0.02} if is_autocast or dtype == torch.bfloat16 else {}
    torch.testing.assert_close(results[1], results[0], **rounding)
    assert fused_losses.routes() == {"linear_cross_entropy": {"kernel": 1}}


def test_what_is_no_loss_of_rows_reads_the_logits():
    layer, input, target = DeferringLinear(3, 5), torch.randn(2, 4, 3), torch.randint(5, (2, 4))
    cross_entropy = torch.nn.functional.cross_entropy
    for loss in (
        lambda x: cross_entropy(x.transpose(1, 2), target),
        lambda x: cross_entropy(x.view(-1, 5), torch.eye(5)[target.view(-1)]),
        lambda x: cross_entropy(x[..., :4].reshape(-1, 4), target.view(-1) % 4),
        lambda x: cross_entropy(x[target > 1], target[target > 1]),
        lambda x: cross_entropy(x.view(4, 10), target.view(-1)[:4]),
    ):
        torch.testing.assert_close(
            loss(layer(input)), loss(torch.nn.functional.linear(input, layer.weight, layer.bias))
        )


def test_rows_share_the_memory_of_the_logits():
    layer, input = DeferringLinear(3, 5), torch.randn(2, 4, 3)
    logits = layer(input)
    flat, part, half = logits.view(-1, 5), logits[:, :2], logits / 2
    with torch.no_grad():
        logits[0, 0] = 7.0
    assert (flat[0] == 7).all() and (part[0, 0] == 7).all()
    target = torch.zeros(8, dtype=torch.int64)
    of_tensor = torch.nn.functional.cross_entropy(logits.clone().view(-1, 5), target)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(flat, target), of_tensor)
    with torch.no_grad():
        flat[1] = 9.0
    assert (logits[0, 1] == 9).all() and (part[0, 1] == 9).all()
    torch.testing.assert_close(half[0, 0], (input[0, 0] @ layer.weight.T + layer.bias) / 2)


def test_the_loss_of_rows_is_that_of_logits_that_were_modified():
    layer, input, target = DeferringLinear(3, 5), torch.randn(2, 4, 3), torch.zeros(8, dtype=torch.int64)
    logits = layer(input)
    flat = logits.view(-1, 5)
    with torch.no_grad():
        logits[0, 0] = 7.0
    expected = logits.clone().view(-1, 5)
    loss = torch.nn.functional.cross_entropy(flat, target)
    torch.testing.assert_close(loss, (expected.logsumexp(1) - expected[:, 0]).mean())
    assert flat.are_made
