"""A language model whose vocabulary is spread over processes: each has some words of the output layer, none has logits.

torchrun --standalone --nproc-per-node 2 -m examples.vocab_parallel

Beside it every process trains the whole model with torch's loss, from the same weights on the same batches, and at the
end the two curves are compared. `make demo-distributed` runs this.
"""

import argparse
import copy
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from examples.language_model import as_batch
from examples.library_text import PAD, library_text
from fused_losses.distributed import VocabParallelLinearCrossEntropyLoss

WIDTH = 48
FEW_STEPS_APART = 1e-4  # what float32 sums in another order come to, of a loss of about 8


class Reader(nn.Module):
    """Words (N, T) to what is known before the next word, (N, T, width)."""

    def __init__(self, num_words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, WIDTH, padding_idx=PAD)
        self.memory = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, words: Tensor) -> Tensor:
        states: Tensor = self.memory(self.embedding(words))[0]
        return states


def train(num_steps: int) -> tuple[list[float], list[float]]:
    """The losses with the vocabulary spread, and in one process with torch's cross-entropy."""
    text = library_text(8000, shortest=8, longest=33)
    torch.manual_seed(0)  # the same on every rank
    reader, words_of_layer = Reader(text.num_words), torch.randn(text.num_words, WIDTH) / 7
    order = torch.randperm(len(text.paragraphs)).tolist()
    batches = [as_batch([text.paragraphs[i] for i in order[8 * step : 8 * step + 8]]) for step in range(num_steps)]

    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    mine = torch.tensor_split(torch.arange(text.num_words), num_ranks)[rank]
    curves: list[list[float]] = []
    criterion = VocabParallelLinearCrossEntropyLoss(ignore_index=PAD)
    for is_spread in (True, False):
        model = copy.deepcopy(reader)
        layer = nn.Parameter(words_of_layer[mine] if is_spread else words_of_layer.clone())
        optimizer = torch.optim.SGD([*model.parameters(), layer], lr=1.0)
        curve = []
        for words, next_words in batches:
            optimizer.zero_grad()
            states = model(words)
            if is_spread:
                loss = criterion(states, layer, next_words)
            else:
                loss = F.cross_entropy((states @ layer.t()).flatten(0, 1), next_words.flatten(), ignore_index=PAD)
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    return curves[0], curves[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    try:
        spread, whole = train(options.steps)
        furthest = max(abs(a - b) for a, b in zip(spread, whole, strict=True))
        if int(os.environ["RANK"]) == 0:
            for step in range(0, options.steps, max(1, options.steps // 6)):
                print(f"step {step:3}: {spread[step]:.5f} over {dist.get_world_size()} ranks, {whole[step]:.5f} in one")
            print(f"furthest apart: {furthest:.1e}")
        if not furthest < FEW_STEPS_APART:
            raise SystemExit(f"the curves part by {furthest}")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
