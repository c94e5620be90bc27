"""torch.func's transforms run on the kernels: a batch axis becomes rows, derivatives are the operators' own."""

import pytest
import torch
from losses import CLASS_LOSSES, CROSS_ENTROPY, LOSSES, REDUCTIONS, sample, sample_class_probabilities
from torch import func

import fused_losses
from fused_losses import _ops

FEW_ROUNDINGS = 32 * torch.finfo(torch.float64).eps


def assert_same(ours, torchs):
    torch.testing.assert_close(ours, torchs, rtol=FEW_ROUNDINGS, atol=FEW_ROUNDINGS)


@pytest.fixture(autouse=True)
def only_kernels(request):
    """Every call of a test here takes a kernel, unless the test says otherwise."""
    fused_losses.routes(reset=True)
    yield
    if request.node.get_closest_marker("may_take_torch") is None:
        taken = {route for by_route in fused_losses.routes().values() for route in by_route}
        assert taken and not any(route.startswith("torch") for route in taken), taken


def stack_of(loss, count, shape, dtype=torch.float64, device="cpu"):
    samples = [sample(loss, shape, dtype, device) for _ in range(count)]
    return torch.stack([x for x, _ in samples]), torch.stack([t for _, t in samples])


SHAPES = [(5,), (4, 5), (2, 5, 3), (2, 5, 3, 2)]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_vmap_is_a_call_a_sample(loss, shape, reduction, device):
    inputs, targets = stack_of(loss, 3, shape, device=device)
    if loss.by_class and targets.dim() > 1:
        targets[1].view(-1)[0] = 2
    options = dict(reduction=reduction, **(dict(ignore_index=2) if loss.by_class else {}))
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64, device=device)
    if loss.by_class or shape[-1] == 5:
        options["weight"] = weight

    def value_and_gradient(x, t):
        value = loss.ours(x, t, **options)
        return value, func.grad(lambda y: (loss.ours(y, t, **options) * 0.7).sum())(x)

    def one_by_one(x, t):
        leaf = x.clone().requires_grad_()
        value = loss.torchs(leaf, t, **options)
        (value * 0.7).sum().backward()
        return value.detach(), leaf.grad

    expected = [torch.stack(parts) for parts in zip(*map(one_by_one, inputs, targets), strict=True)]
    assert_same(list(func.vmap(value_and_gradient)(inputs, targets)), expected)
    assert_same(list(func.vmap(value_and_gradient, chunk_size=2)(inputs, targets)), expected)
    in_dims = (inputs.dim() - 1, 0)
    assert_same(list(func.vmap(value_and_gradient, in_dims=in_dims)(inputs.movedim(0, -1), targets)), expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_of_probabilities_and_smoothing(reduction, label_smoothing, device):
    logits = torch.randn(3, 4, 5, dtype=torch.float64, device=device)
    target = torch.stack([sample_class_probabilities((4, 5), torch.float64, device) for _ in range(3)])
    options = dict(reduction=reduction, label_smoothing=label_smoothing)
    weight = torch.linspace(0.5, 2, 5, dtype=torch.float64, device=device)
    ours = func.vmap(lambda x, t: CROSS_ENTROPY.ours(x, t, weight, **options))(logits, target)
    torchs = [CROSS_ENTROPY.torchs(x, t, weight, **options) for x, t in zip(logits, target, strict=True)]
    assert_same(ours, torch.stack(torchs))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_vmap_over_weights(loss, reduction, device):
    """Of which one call holds one for the class losses: they are called one by one."""
    input, target = sample(loss, (4, 5), torch.float64, device)
    weights = torch.rand(3, 5, dtype=torch.float64, device=device)
    call = lambda f, w: f(input, target, weight=w, reduction=reduction)  # noqa: E731
    assert_same(func.vmap(lambda w: call(loss.ours, w))(weights), torch.stack([call(loss.torchs, w) for w in weights]))
    ours = func.vmap(lambda w: func.grad(lambda x: loss.ours(x, target, weight=w, reduction=reduction).sum())(input))
    torchs = [
        func.grad(lambda x, w=w: loss.torchs(x, target, weight=w, reduction=reduction).sum())(input) for w in weights
    ]
    assert_same(ours(weights), torch.stack(torchs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_vmap_of_16_bits_rounds_once(loss, reduction, dtype, device):
    inputs, targets = stack_of(loss, 3, (6, 5), dtype, device)
    ours = func.vmap(lambda x, t: loss.ours(x, t, reduction=reduction))(inputs, targets)
    singles = [loss.ours(x, t, reduction=reduction) for x, t in zip(inputs, targets, strict=True)]
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, torch.stack(singles), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_an_ensemble(loss):
    models = [torch.nn.Linear(7, 5, dtype=torch.float64) for _ in range(3)]
    parameters, buffers = func.stack_module_state(models)
    features, target = torch.randn(6, 7, dtype=torch.float64), sample(loss, (6, 5), torch.float64)[1]

    def loss_of(function, parameters, buffers):
        output = func.functional_call(models[0], (parameters, buffers), (features,))
        return function(output.sigmoid() if loss.name == "binary_cross_entropy" else output, target)

    ours = func.vmap(func.grad_and_value(lambda p, b: loss_of(loss.ours, p, b)))(parameters, buffers)
    torchs = func.vmap(func.grad_and_value(lambda p, b: loss_of(loss.torchs, p, b)))(parameters, buffers)
    assert_same(ours, torchs)


NESTED = {
    "jacrev of grad": lambda f, x: func.jacrev(func.grad(f))(x),
    "grad of grad": lambda f, x: func.grad(lambda y: func.grad(f)(y).square().sum())(x),
    "three grads": lambda f, x: func.grad(
        lambda z: func.grad(lambda y: func.grad(f)(y).square().sum())(z).square().sum()
    )(x),
    "vmap of jacrev": lambda f, x: func.vmap(func.jacrev(f))(torch.stack([x, x.flip(0)])),
    "jacrev of vmap": lambda f, x: func.jacrev(func.vmap(f))(torch.stack([x, x.flip(0)])),
    "vmap of vmap": lambda f, x: func.vmap(func.vmap(f))(torch.stack([torch.stack([x, x.flip(0)])] * 2)),
    "vmap of grad of vmap": lambda f, x: func.vmap(
        func.grad(lambda y: func.vmap(f)(torch.stack([y, y.flip(0)])).sum())
    )(torch.stack([x, x.flip(0)])),
}


@pytest.mark.parametrize("nesting", NESTED)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_nested(loss, nesting, device):
    input, target = sample(loss, (3, 4), torch.float64, device)
    transform = NESTED[nesting]
    assert_same(*(transform(lambda x, f=f: f(x, target), input) for f in (loss.ours, loss.torchs)))


@pytest.mark.may_take_torch
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss.name != "nll_loss"], ids=repr)
def test_a_target_that_a_level_below_differentiates(loss, device):
    """No flag of the wrapped target shows it there; the gradient must still reach it."""
    input, _ = sample(loss, (3, 4), torch.float64, device)
    target = sample_class_probabilities((3, 4), torch.float64, device)

    def outer(function):
        def of_target(t):
            def of_input(x):
                return function(x, t * 1 + 0 * x.detach())

            value, gradient = func.vjp(of_input, input)[0], func.grad(of_input)(input)
            return value + (gradient * torch.arange(12.0, dtype=torch.float64, device=device).view(3, 4)).sum()

        return func.grad(of_target)(target)

    ours, torchs = outer(loss.ours), outer(loss.torchs)
    assert (torchs != 0).any()
    assert_same(ours, torchs)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_vmap_over_the_backward_of_an_eager_loss(loss, device):
    """As jacobian(vectorize=True) and user code batch a backward."""
    input, target = sample(loss, (6, 5), torch.float64, device)
    gradients = []
    for function in (loss.ours, loss.torchs):
        leaf = input.clone().requires_grad_()
        losses = function(leaf, target, reduction="none")
        batch = torch.randn(4, *losses.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        pull_back = lambda v, y=losses, x=leaf: torch.autograd.grad(y, x, v, retain_graph=True)[0]  # noqa: E731
        gradients.append(func.vmap(pull_back)(batch.to(device)))
    assert_same(*gradients)


@pytest.mark.may_take_torch
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_linearize(loss, device):
    input, target = sample(loss, (6, 5), torch.float64, device)
    results = []
    for function in (loss.ours, loss.torchs):
        value, push_forward = func.linearize(lambda x, f=function: f(x, target), input)
        results.append((value, push_forward(input.flip(0))))
    assert_same(*results)


@pytest.mark.parametrize("loss", CLASS_LOSSES, ids=repr)
def test_a_target_out_of_range_in_one_sample_raises(loss):
    inputs, targets = stack_of(loss, 3, (6, 5))
    targets[1, 2] = 5
    with pytest.raises(IndexError, match="out of bounds"):
        func.vmap(loss.ours)(inputs, targets)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_operators_themselves_under_vmap(loss):
    """torch.ops.fused_losses.* have the same rules."""
    inputs, targets = stack_of(loss, 3, (6, 5))
    options = {
        "cross_entropy": (None, 1, -100, 0.0, False),
        "nll_loss": (None, 1, -100, False),
        "binary_cross_entropy": (None, 1),
        "binary_cross_entropy_with_logits": (None, None, 1),
    }[loss.name]
    operator = getattr(_ops, loss.name)
    expected = func.vmap(loss.ours)(inputs, targets)
    assert_same(func.vmap(lambda x, t: operator(x, t, *options))(inputs, targets), expected)
