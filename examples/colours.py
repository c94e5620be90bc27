"""Colours for grey photographs: each pixel is classified into one of 32 colours, as in "Colorful Image Colorization"
(Zhang, Isola and Efros, 2016), with that paper's greater weight for rare colours. The logits are (N, C, H, W), a layout
that the fused loss takes as it is.

    -    criterion = nn.CrossEntropyLoss(weight=class_weight)
    +    criterion = fused_losses.CrossEntropyLoss(weight=class_weight)
"""

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import fused_losses
from examples.command_line import main
from examples.program import Batch, Program

NUM_COLOURS = 32


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 16, kernel_size=3, padding=1),
        nn.GELU(),
        nn.Conv2d(16, NUM_COLOURS, kernel_size=1),
    )


def grey_and_colour() -> tuple[Tensor, Tensor]:
    """Two photographs as brightness (2, 1, H, W) from 0 to 1, and the index (2, H, W) of each pixel's colour."""
    rgb = np.stack(load_sample_images().images).astype(np.float32) / 255
    grey = rgb.mean(-1)
    # Colour without brightness: red against green, yellow against blue.
    opponent = np.stack([rgb[..., 0] - rgb[..., 1], (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]], -1)
    pixels = opponent.reshape(-1, 2)
    palette = KMeans(NUM_COLOURS, n_init=1, random_state=0).fit(pixels[::50])
    return torch.from_numpy(grey)[:, None], torch.from_numpy(palette.predict(pixels).reshape(grey.shape)).long()


def crops(grey: Tensor, colour: Tensor, count: int, size: int) -> Batch:
    """Squares cut at random places, (count, 1, size, size) and (count, size, size)."""
    places = [
        (
            int(torch.randint(2, ())),
            int(torch.randint(grey.shape[2] - size, ())),
            int(torch.randint(grey.shape[3] - size, ())),
        )
        for _ in range(count)
    ]
    squares = [(photo, slice(top, top + size), slice(left, left + size)) for photo, top, left in places]
    return (
        torch.stack([grey[photo, :, rows, columns] for photo, rows, columns in squares]),
        torch.stack([colour[photo, rows, columns] for photo, rows, columns in squares]),
    )


def program(quick: bool) -> Program:
    grey, colour = grey_and_colour()
    # A colour's weight is the inverse of its frequency mixed half and half with the uniform one, as in the paper.
    frequency = colour.flatten().bincount(minlength=NUM_COLOURS) / colour.numel()
    class_weight = 1 / (0.5 * frequency + 0.5 / NUM_COLOURS)
    class_weight /= (frequency * class_weight).sum()

    torch.manual_seed(0)
    batches = [crops(grey, colour, count=16 if quick else 64, size=32) for _ in range(10 if quick else 50)]
    test_grey, test_colour = crops(grey, colour, count=64, size=32)
    return Program(
        name="colours",
        title=f"A colour for every grey pixel, {NUM_COLOURS} classes: CrossEntropyLoss with weight",
        model=network(),
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        batches=batches,
        torch_loss=nn.CrossEntropyLoss(weight=class_weight),
        fused_loss=fused_losses.CrossEntropyLoss(weight=class_weight),
        score_name="accuracy on other crops",
        score=lambda model: (model(test_grey).argmax(1) == test_colour).float().mean().item(),
    )


if __name__ == "__main__":
    main(program)
