"""Names, defaults and positions of the arguments are torch's, the deprecated size_average and reduce included."""

import inspect
import warnings

import pytest
import torch
from losses import BINARY_CROSS_ENTROPY_WITH_LOGITS, CROSS_ENTROPY, LOSSES, sample

import fused_losses

# What each pair of old arguments means, as torch documents it.
REDUCTION_OF = {
    (None, True): "mean",
    (None, False): "none",
    (True, None): "mean",
    (True, True): "mean",
    (True, False): "none",
    (False, None): "sum",
    (False, True): "sum",
    (False, False): "none",
}


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


# Beyond torch, by keyword alone, so that no call written for torch can meet it.
INPLACE_GRADIENT = ("inplace_gradient", inspect.Parameter.KEYWORD_ONLY, False)


ROW_TERMS = [
    (name, inspect.Parameter.KEYWORD_ONLY, default)
    for name, default in (("logit_scale", 1.0), ("softcap", None), ("lse_square_scale", 0.0), ("focal_gamma", 0.0))
]
TOKEN_WEIGHT = ("token_weight", inspect.Parameter.KEYWORD_ONLY, None)


def additions(loss):
    if loss is CROSS_ENTROPY:
        return [INPLACE_GRADIENT, *ROW_TERMS]
    return [INPLACE_GRADIENT] if loss is BINARY_CROSS_ENTROPY_WITH_LOGITS else []


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_signature(loss):
    of_the_call = [TOKEN_WEIGHT] if loss is CROSS_ENTROPY else []
    assert parameters(loss.ours) == parameters(loss.torchs) + additions(loss) + of_the_call
    assert parameters(loss.our_module) == parameters(loss.torch_module) + additions(loss)
    assert loss.ours.__name__ == loss.torchs.__name__
    assert loss.ours.__doc__


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_functions_of_the_autograd_package_are_autograd_functions(loss):
    assert issubclass(loss.our_function, torch.autograd.Function)
    assert loss.our_function.__name__ in dir(fused_losses.autograd)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_graph_names_the_function(loss):
    input, target = sample(loss, (6, 5))
    value = loss.ours(input.requires_grad_(), target)
    assert loss.our_function.__name__ in type(value.grad_fn).__name__


def test_all_arguments_by_position():
    logits, target = sample(CROSS_ENTROPY, (6, 5))
    weight = torch.linspace(0.5, 2, 5)
    by_position = CROSS_ENTROPY.ours(logits, target, weight, None, 2, None, "sum", 0.1)
    by_name = CROSS_ENTROPY.ours(
        input=logits, target=target, weight=weight, ignore_index=2, reduction="sum", label_smoothing=0.1
    )
    assert torch.equal(by_position, by_name)
    loss = BINARY_CROSS_ENTROPY_WITH_LOGITS
    logits, labels = sample(loss, (6, 5))
    by_position = loss.ours(logits, labels, weight, None, None, "sum", 2 * weight)
    assert torch.equal(by_position, loss.ours(logits, labels, weight=weight, reduction="sum", pos_weight=2 * weight))


@pytest.mark.parametrize(("size_average", "reduce"), REDUCTION_OF, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_old_reduction_arguments(loss, size_average, reduce):
    input, target = sample(loss, (6, 5))
    old = {"size_average": size_average, "reduce": reduce}
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        ours = loss.ours(input, target, **old)
    assert torch.equal(ours, loss.ours(input, target, reduction=REDUCTION_OF[size_average, reduce]))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_old_reduction_arguments_win_over_the_new_one(loss):
    input, target = sample(loss, (6, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = loss.ours(input, target, size_average=False, reduction="none")
    assert torch.equal(ours, loss.ours(input, target, reduction="sum"))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_usual_call_warns_of_nothing(loss):
    input, target = sample(loss, (6, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss.ours(input.requires_grad_(), target).backward()


def test_elementwise_mean_still_means_mean_and_warns():
    """Torch keeps this spelling of "mean" alive, with a warning."""
    for loss in LOSSES:
        input, target = sample(loss, (6, 5))
        with pytest.warns(UserWarning, match="'elementwise_mean' is deprecated"):
            ours = loss.ours(input, target, reduction="elementwise_mean")
        torch.testing.assert_close(ours, loss.ours(input, target, reduction="mean"))
