"""Breast cancer: is a tumour malignant? Binary cross-entropy on logits; the rarer class weighs more (`pos_weight`).

The loss is a part of the model here, written by somebody else, so nothing in it is edited: `convert` exchanges every
loss that a module contains.

    +    model = fused_losses.convert(model)
"""

from copy import deepcopy

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import fused_losses
from examples.command_line import main
from examples.program import Program


class Screening(nn.Module):
    """Thirty measurements of cell nuclei to one logit, and the loss it is trained with."""

    def __init__(self, pos_weight: Tensor) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(30, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(start_dim=0))
        self.criterion = nn.BCEWithLogitsLoss(pos_weight=pos_weight)

    def forward(self, measurements: Tensor) -> Tensor:
        logits: Tensor = self.layers(measurements)
        return logits


def program(quick: bool) -> Program:
    measurements, benign = load_breast_cancer(return_X_y=True)
    train, test, train_malignant, test_malignant = train_test_split(
        measurements, 1 - benign, test_size=0.25, random_state=0
    )
    scaler = StandardScaler().fit(train)
    inputs, test_inputs = (torch.from_numpy(scaler.transform(part)).float() for part in (train, test))
    target, test_target = (torch.from_numpy(part).float() for part in (train_malignant, test_malignant))

    torch.manual_seed(0)
    model = Screening(pos_weight=(1 - target).sum() / target.sum())
    fused_model = fused_losses.convert(deepcopy(model))
    return Program(
        name="breast_cancer",
        title="Breast cancer, yes or no: BCEWithLogitsLoss with pos_weight",
        model=model,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        batches=[(inputs, target)] * (30 if quick else 300),
        torch_loss=model.criterion,
        fused_loss=fused_model.criterion,
        score_name="held-out accuracy",
        score=lambda model: ((model(test_inputs) > 0) == test_target.bool()).float().mean().item(),
    )


if __name__ == "__main__":
    main(program)
