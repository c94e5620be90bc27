"""Drawn problems: loss and gradient are as exact as torch's, and infinite and NaN in the same places."""

import torch
from drawn_problems import Problem, binary_problems, class_problems
from hypothesis import given
from losses import BINARY_CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS, CROSS_ENTROPY, NLL_LOSS
from parity import assert_not_less_exact, check_parity, in_float32, in_float32_by_name, run
from reference import evaluate


@given(class_problems(CROSS_ENTROPY))
def test_cross_entropy(problem: Problem):
    check_parity(problem.loss, problem.input, problem.target, problem.grad_output, **problem.options)


@given(class_problems(NLL_LOSS))
def test_nll_loss(problem: Problem):
    check_parity(problem.loss, problem.input, problem.target, problem.grad_output, **problem.options)


@given(binary_problems(BINARY_CROSS_ENTROPY))
def test_binary_cross_entropy(problem: Problem):
    check_parity(problem.loss, problem.input, problem.target, problem.grad_output, **problem.options)


@given(binary_problems(BINARY_CROSS_ENTROPY_WITH_LOGITS))
def test_binary_cross_entropy_with_logits(problem: Problem):
    """Torch's loss is NaN at infinite logits, ours is the true value: there the reference says what is infinite."""
    arguments = problem.input, problem.target, problem.grad_output
    ours = run(problem.loss.ours, *arguments, **problem.options)
    reference = evaluate(problem.loss.name, *arguments, **problem.options)
    if problem.input.dtype != torch.float64:
        arguments, options = in_float32(*arguments), in_float32_by_name(problem.options)
    else:
        options = problem.options
    torchs = run(problem.loss.torchs, *arguments, **options)
    torchs_or_true = torch.where(torchs.loss.isnan(), reference.loss.to(torchs.loss.dtype), torchs.loss)
    assert_not_less_exact(ours.loss, torchs_or_true, reference.loss, reference.loss_terms, what="loss")
    assert_not_less_exact(ours.gradient, torchs.gradient, reference.gradient, reference.gradient_terms, what="gradient")
