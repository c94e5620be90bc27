"""A training step of a small Llama: the stock loss, the fused one, and the fused linear head; time and peak memory.

python -m benchmarks.integrations [--layers 4 --width 256 --vocabulary 32000 --tokens 1024 ...]

Medians of interleaved steps (forward, backward, no optimizer) and multiples of the stock step; MB: the most that a step
holds beyond the weights, without the pool of gradient memory. Needs transformers.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import fused_losses
from benchmarks.cpu_device import CpuDevice
from fused_losses.integrations import transformers as integration


def models(layers: int, width: int, vocabulary: int) -> dict[str, Any]:
    """Three with the same weights."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
    )
    stock = transformers.LlamaForCausalLM(config).train()
    enabled, headless = copy.deepcopy(stock), copy.deepcopy(stock)
    integration.enable(enabled)
    integration.fused_linear_head(headless)
    return {"stock": stock, "enable()": enabled, "fused_linear_head()": headless}


def step(model: Any, tokens: torch.Tensor, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
    model.zero_grad()
    with autocast():
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", action="append", choices=["float32", "bfloat16 autocast"])
    options = parser.parse_args(arguments)
    of_each = models(options.layers, options.width, options.vocabulary)
    tokens = torch.randint(options.vocabulary, (1, options.tokens))
    title = f"a step of {options.tokens} tokens, {torch.get_num_threads()} threads: ms (a multiple of stock), MB"
    table = Table("", *of_each, title=title)
    autocasts: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "float32": nullcontext,
        "bfloat16 autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    }
    device = CpuDevice()
    for name in options.precision or autocasts:
        autocast = autocasts[name]
        calls = {key: partial(step, model, tokens, autocast) for key, model in of_each.items()}
        megabytes, seconds = {}, {key: list[float]() for key in calls}
        with fused_losses.limited_gradient_pool(0):
            for key, call in calls.items():
                call()
                megabytes[key] = (device.peak_bytes(call) or 0) / 1e6
        for _ in range(options.rounds):
            for key, call in calls.items():
                seconds[key].append(device.seconds([call]))
        base = statistics.median(seconds["stock"])
        cells = [
            f"{statistics.median(seconds[key]) * 1e3:.0f} ({statistics.median(seconds[key]) / base:.2f}), "
            f"{megabytes[key]:.0f}"
            for key in calls
        ]
        table.add_row(name, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
