"""Handwritten digits: a small network, cross-entropy with label smoothing. The change is one line:

-    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
+    criterion = fused_losses.CrossEntropyLoss(label_smoothing=0.1)
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import fused_losses
from examples.command_line import main
from examples.program import Program


def program(quick: bool) -> Program:
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = (
        torch.from_numpy(part) for part in train_test_split(images, labels, test_size=0.25, random_state=0)
    )
    train_images, test_images = train_images.float() / 16, test_images.float() / 16

    torch.manual_seed(0)
    order = [torch.split(torch.randperm(len(train_images)), 256) for _ in range(5 if quick else 40)]
    return Program(
        name="digits",
        title="Handwritten digits, 10 classes: CrossEntropyLoss with label smoothing",
        model=nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        batches=[(train_images[rows], train_labels[rows]) for epoch in order for rows in epoch],
        torch_loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        fused_loss=fused_losses.CrossEntropyLoss(label_smoothing=0.1),
        score_name="held-out accuracy",
        score=lambda model: (model(test_images).argmax(1) == test_labels).float().mean().item(),
    )


if __name__ == "__main__":
    main(program)
