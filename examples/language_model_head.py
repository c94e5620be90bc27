"""The language model of language_model.py without its logits: the loss takes the states and the output layer's weight.

Of each position whose next word is padding nothing is computed. What changes:

    -    F.cross_entropy(F.linear(states, weight, bias), next_words, ignore_index=PAD)
    +    fused_losses.functional.linear_cross_entropy(states, weight, next_words, linear_bias=bias, ignore_index=PAD)

The output layer is a part of both losses here, so that their times and memory compare.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

import fused_losses
from examples.command_line import main
from examples.language_model import LEARNING_RATE, WIDTH, NextWord, text_batches
from examples.library_text import PAD
from examples.program import Program


class NextWordStates(NextWord):
    """Words (N, T) to the states (N, T, width) that the output layer makes logits of, and that layer's parameters."""

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        states, _ = self.memory(self.embedding(words))
        return states, self.output.weight, self.output.bias


def loss_of_logits(layer: tuple[Tensor, Tensor, Tensor], next_words: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(*layer).flatten(0, 1), next_words.flatten(), ignore_index=PAD)


def loss_without_logits(layer: tuple[Tensor, Tensor, Tensor], next_words: Tensor) -> Tensor:
    states, weight, bias = layer
    return fused_losses.functional.linear_cross_entropy(states, weight, next_words, linear_bias=bias, ignore_index=PAD)


def program(quick: bool) -> Program:
    num_words, (*batches, (test_words, test_next_words)) = text_batches(quick)
    return Program(
        name="language_model_head",
        title=f"Language model, {num_words:,} words: the output layer and its loss without logits",
        model=NextWordStates(num_words, width=WIDTH),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=LEARNING_RATE),
        batches=batches,
        torch_loss=loss_of_logits,
        fused_loss=loss_without_logits,
        score_name="held-out perplexity",
        score=lambda model: loss_without_logits(model(test_words), test_next_words).exp().item(),
    )


if __name__ == "__main__":
    main(program)
