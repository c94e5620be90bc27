"""Digits through a bottleneck of eight numbers and back: each pixel's grey is predicted as a probability, so the loss
is the binary cross-entropy on probabilities.

    -    criterion = nn.BCELoss()
    +    criterion = fused_losses.BCELoss()
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import fused_losses
from examples.command_line import main
from examples.program import Program


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 64),
        nn.GELU(),
        nn.Linear(64, 8),
        nn.Linear(8, 64),
        nn.GELU(),
        nn.Linear(64, 64),
        nn.Sigmoid(),
    )


def program(quick: bool) -> Program:
    images, _ = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float() / 16
    train_pixels, test_pixels = pixels[:1500], pixels[1500:]

    torch.manual_seed(0)
    return Program(
        name="autoencoder",
        title="Handwritten digits through a bottleneck: BCELoss on every pixel",
        model=network(),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
        batches=[(train_pixels, train_pixels)] * (30 if quick else 400),
        torch_loss=nn.BCELoss(),
        fused_loss=fused_losses.BCELoss(),
        score_name="held-out mean absolute error of a pixel",
        score=lambda model: (model(test_pixels) - test_pixels).abs().mean().item(),
    )


if __name__ == "__main__":
    main(program)
