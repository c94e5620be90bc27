"""Wine: which of three growers? The model returns log-probabilities, so the loss is the negative log-likelihood, with
a weight for each class, since the growers are not equally frequent.

    -    criterion = nn.NLLLoss(weight=class_weight)
    +    criterion = fused_losses.NLLLoss(weight=class_weight)
"""

import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

import fused_losses
from examples.command_line import main
from examples.program import Program


def program(quick: bool) -> Program:
    analyses, growers = load_wine(return_X_y=True)
    train, test, train_growers, test_growers = train_test_split(analyses, growers, test_size=0.4, random_state=0)
    scaler = StandardScaler().fit(train)
    inputs, test_inputs = (torch.from_numpy(scaler.transform(part)).float() for part in (train, test))
    target, test_target = (torch.from_numpy(part) for part in (train_growers, test_growers))
    class_weight = len(target) / (3 * target.bincount().float())

    torch.manual_seed(0)
    return Program(
        name="wine",
        title="Wine, three growers: NLLLoss with weight",
        model=nn.Sequential(nn.Linear(13, 16), nn.Tanh(), nn.Linear(16, 3), nn.LogSoftmax(dim=1)),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        batches=[(inputs, target)] * (30 if quick else 200),
        torch_loss=nn.NLLLoss(weight=class_weight),
        fused_loss=fused_losses.NLLLoss(weight=class_weight),
        score_name="held-out accuracy",
        score=lambda model: (model(test_inputs).argmax(1) == test_target).float().mean().item(),
    )


if __name__ == "__main__":
    main(program)
