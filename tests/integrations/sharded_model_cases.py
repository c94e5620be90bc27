"""Causal models without logits that fully_shard and DistributedDataParallel spread over two processes.

Each case runs on both ranks with numbers of its own, and raises. test_sharded_models.py starts the processes.
"""

from __future__ import annotations

import copy
import functools

import complete_torchvision  # noqa: F401
import torch
from ranks import run_cases
from tiny_models import batch, gemma2, gpt2, granite, llama, qwen2
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import fused_losses
from fused_losses.integrations import transformers as bridge
from fused_losses.integrations.deferred_logits import DeferredLogits

NUM_RANKS = 2
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def run(rank, num_ranks, directory):
    run_cases(rank, num_ranks, directory, CASES, lambda rank: (rank, init_device_mesh("cpu", (num_ranks,))))


# What the cases share


def sharded(model, mesh, *others, mp_policy=None, **options):
    """Its blocks, others or lists of others, and the rest."""
    if mp_policy is not None:
        options["mp_policy"] = mp_policy
    for module in [*(model.transformer.h if hasattr(model, "transformer") else model.model.layers), *others]:
        fully_shard(module, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def loss_within(model, inputs):
    return model(**inputs)


def loss_behind(model, inputs):
    """Where Trainer's compute_loss_func has it: when fully_shard's hooks have run."""
    output = model(input_ids=inputs["input_ids"])
    output["loss"] = bridge.trainer_loss(output, inputs["labels"])
    return output


def trained(rank, make, parallelize, output_of=loss_within, makes_logits=False, tolerance=1e-5):
    """Two steps, the second of two batches, with the stock model and with a head that makes no logits."""
    torch.manual_seed(0)
    stock = make().train()
    fused = copy.deepcopy(stock)
    bridge.fused_linear_head(fused)
    torch.manual_seed(rank + 1)
    batches = [batch() for _ in range(3)]
    results = []
    for model, loss_of in ((stock, loss_within), (fused, output_of)):
        parallel = parallelize(model)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.5)
        fused_losses.routes(reset=True)
        losses, gradients = [], []
        for index, inputs in enumerate(batches):
            output = loss_of(parallel, inputs)
            output.loss.backward()
            losses.append(output.loss.detach())
            if model is fused and not makes_logits:
                assert type(output.logits) is DeferredLogits and not output.logits.are_made
            if index != 1:
                gradients += [whole(parameter.grad).clone() for parameter in parallel.parameters()]
                optimizer.step()
                optimizer.zero_grad()
        results.append((losses, gradients))
    assert fused_losses.routes()["linear_cross_entropy"] == {"kernel": len(batches)}
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)


# fully_shard


@case
def blocks_and_the_rest(rank, mesh):
    trained(rank, llama, lambda model: sharded(model, mesh))


@case
def tied_heads(rank, mesh):
    for make in (qwen2, gemma2, gpt2):
        trained(rank, make, lambda model: sharded(model, mesh))


@case
def the_whole_at_once(rank, mesh):
    trained(rank, llama, lambda model: fully_shard(model, mesh=mesh))


@case
def freed_after_the_forward(rank, mesh):
    trained(rank, llama, lambda model: sharded(model, mesh, reshard_after_forward=True))


@case
def a_head_by_itself(rank, mesh):
    for make in (llama, granite):
        trained(rank, make, lambda model: sharded(model, mesh, model.lm_head))


@case
def a_head_beside_the_last_norm(rank, mesh):
    trained(rank, llama, lambda model: sharded(model, mesh, [model.model.norm, model.lm_head]))


@case
def a_loss_behind_the_model(rank, mesh):
    trained(rank, llama, lambda model: sharded(model, mesh), loss_behind)
    trained(rank, llama, lambda model: fully_shard(model, mesh=mesh), loss_behind)
    trained(rank, granite, lambda model: sharded(model, mesh, model.lm_head), loss_behind)


@case
def mixed_precision(rank, mesh):
    """The fused loss has float32 logits where the stock one rounds them to bfloat16."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    trained(rank, llama, lambda model: sharded(model, mesh, mp_policy=policy), tolerance=2e-2)


@case
def sharded_before(rank, mesh):
    """A head that is not sharded by itself may be fused later, and undone."""
    torch.manual_seed(0)
    model = sharded(llama().train(), mesh)
    inputs = batch()
    expected = model(**inputs).loss
    bridge.fused_linear_head(model)
    output = model(**inputs)
    assert type(output.logits) is DeferredLogits
    torch.testing.assert_close(output.loss, expected)
    bridge.disable(model)
    assert type(model(**inputs).logits) is torch.Tensor


@case
def logits_that_are_read(rank, mesh):
    """As long as the weight is there; their gradients are those of the stock model."""
    torch.manual_seed(0)
    stock = llama().train()
    fused = copy.deepcopy(stock)
    bridge.fused_linear_head(fused)
    inputs = {"input_ids": batch()["input_ids"]}
    results = []
    for model in (stock, fused):
        model = sharded(model, mesh, model.lm_head)
        logits = model(**inputs).logits
        logits.logsumexp(-1).sum().backward()
        results.append([logits.detach() + 0, *(whole(parameter.grad) for parameter in model.parameters())])
    torch.testing.assert_close(results[1], results[0])


def message_of(error, function, *arguments):
    try:
        function(*arguments)
    except error as raised:
        return str(raised)
    raise AssertionError("nothing was raised")


@case
def errors(rank, mesh):
    model = llama().train()
    bridge.fused_linear_head(model)
    model, inputs = sharded(model, mesh, model.lm_head), batch()
    assert "before" in message_of(TypeError, bridge.disable, model)
    bridge.fused_linear_head(model)
    model.lm_head.set_reshard_after_forward(True)
    output = model(**inputs)
    output.loss.backward()
    assert "FSDP freed it" in message_of(RuntimeError, lambda: output.logits + 0)

    model = llama().train()
    bridge.fused_linear_head(model)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    assert "FSDP freed it" in message_of(RuntimeError, loss_behind, model, inputs)

    model = llama().train()
    fully_shard(model.lm_head, mesh=mesh)
    assert "before fully_shard" in message_of(TypeError, bridge.fused_linear_head, model)


# DistributedDataParallel


@case
def data_parallel(rank, mesh):
    trained(rank, llama, DistributedDataParallel)


@case
def data_parallel_that_looks_for_parameters_without_gradients(rank, mesh):
    """It follows the history of all outputs, so the logits are made beside the loss."""
    for options in ({"find_unused_parameters": True}, {"static_graph": True}):
        trained(rank, llama, functools.partial(DistributedDataParallel, **options), makes_logits=True)


@case
def data_parallel_that_looks_for_them_in_logits_alone(rank, mesh):
    stock = llama().train()
    fused = copy.deepcopy(stock)
    bridge.fused_linear_head(fused)
    inputs, gradients = batch(), []
    for model in (stock, fused):
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
        loss_behind(parallel, inputs).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)
