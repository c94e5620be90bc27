"""A language model with a vocabulary of 32,000 words, where the loss costs more than the model: logits for every word
of the vocabulary at every position, and padding that the loss ignores.

The loss is a call of `torch.nn.functional.cross_entropy`, such as stands in the middle of many a library's training
code. Nothing is edited; the training is wrapped:

    +    with fused_losses.patched():
             train(...)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import fused_losses
from examples.command_line import main
from examples.library_text import PAD, library_text
from examples.program import Batch, Program

VOCABULARY_SIZE = 32_000
WIDTH = 64
LEARNING_RATE = 5e-3


class NextWord(nn.Module):
    """Words (N, T) to logits (N, T, num_words) of the word that follows each."""

    def __init__(self, num_words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, width, padding_idx=PAD)
        self.memory = nn.GRU(width, width, batch_first=True)
        self.output = nn.Linear(width, num_words)

    def forward(self, words: Tensor) -> Tensor:
        states, _ = self.memory(self.embedding(words))
        logits: Tensor = self.output(states)
        return logits


def next_word_loss(logits: Tensor, next_words: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), next_words.flatten(), ignore_index=PAD)


def as_batch(paragraphs: list[list[int]]) -> Batch:
    words = pad_sequence([torch.tensor(paragraph) for paragraph in paragraphs], batch_first=True, padding_value=PAD)
    return words[:, :-1], words[:, 1:]


def text_batches(quick: bool) -> tuple[int, list[Batch]]:
    """The number of words, and batches of paragraphs in a random order, the last of them for the test."""
    text = library_text(VOCABULARY_SIZE, shortest=8, longest=33)
    torch.manual_seed(0)
    order = torch.randperm(len(text.paragraphs)).tolist()
    num_paragraphs, num_steps = (4, 3) if quick else (24, 30)
    return text.num_words, [
        as_batch([text.paragraphs[index] for index in order[step * num_paragraphs : (step + 1) * num_paragraphs]])
        for step in range(num_steps + 1)
    ]


def program(quick: bool) -> Program:
    num_words, (*batches, (test_words, test_next_words)) = text_batches(quick)
    return Program(
        name="language_model",
        title=f"Language model, {num_words:,} words: F.cross_entropy with ignore_index",
        model=NextWord(num_words, width=WIDTH),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=LEARNING_RATE),
        batches=batches,
        torch_loss=next_word_loss,
        fused_loss=next_word_loss,
        fused_context=fused_losses.patched,
        score_name="held-out perplexity",
        score=lambda model: next_word_loss(model(test_words), test_next_words).exp().item(),
    )


if __name__ == "__main__":
    main(program)
