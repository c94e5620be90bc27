"""Worked examples as tutorials on cross-entropy print them: inputs, targets, options and the printed result.

A printed number is kept as its text, so that the number of printed digits, and with it the tolerance, is not lost.
"""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class PublishedValue:
    title: str
    loss: str  # the name in torch.nn.functional
    input: torch.Tensor
    target: torch.Tensor
    loss_value: list  # of printed numbers, one per element of the result
    options: dict = field(default_factory=dict)
    gradient: list | None = None
    input_precision: float = 0.0  # what the printed digits of the inputs leave open in the result


def log(*values):
    return torch.tensor(values).log()


TRUE_MIX = torch.tensor([0.40, 0.10, 0.25, 0.25])
FOUR_ROWS = [[-5, 10, 1.2, 3, -4], [5, -4, 0.1, 1, 0.1], [1, 3, 2.5, -0.1, 2.5], [-7, 2.5, 0.1, 3.1, 0.2]]
FOUR_ROWS = torch.tensor(FOUR_ROWS)
THREE_ROWS = [
    [-0.7514, 1.2616, -0.4232, 1.3868, 1.2298],
    [1.5341, -0.4240, 0.0112, -0.5188, 0.1129],
    [-2.6143, 0.1532, 0.0868, -0.8231, 0.7698],
]
THREE_ROWS = torch.tensor(THREE_ROWS)
FOUR_LOGITS = torch.tensor([-0.1, 2.0, 3.0, 0.5], dtype=torch.float64)
FOUR_LABELS = torch.tensor([0, 1, 1, 0], dtype=torch.float64)
POINTS = [
    [8.52810469, 9.4817864, 1],
    [5.80031442, 8.73511598, 1],
    [6.95747597, 3.04544424, 1],
    [4.90017684, 3.821197, 1],
    [2.69728558, 3.28808714, 1],
    [2.7935623, 5.90854701, 1],
]
LINE = [-0.3, -0.35, 2.5]
POINT_LOGITS = torch.tensor(POINTS, dtype=torch.float64) @ torch.tensor(LINE, dtype=torch.float64)
POINT_LOGITS_PRINTED = ["-3.37705665", "-2.29738492", "-0.65314827", "-0.307472", "0.53998383", "-0.40606014"]
POINT_LABELS = torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.float64)

PUBLISHED_VALUES = [
    PublishedValue(
        "probability target without a batch axis",
        "cross_entropy",
        torch.tensor([3.05, 3.13, 3.48]),
        torch.tensor([0.0, 0.0, 1.0]),
        ["0.8566"],
    ),
    PublishedValue(
        "cross-entropy of two label mixes",
        "cross_entropy",
        log(0.30, 0.15, 0.25, 0.30),
        TRUE_MIX,
        ["1.3189"],
    ),
    PublishedValue(
        "cross-entropy of two label mixes, a nearer prediction",
        "cross_entropy",
        log(0.30, 0.20, 0.20, 0.30),
        TRUE_MIX,
        ["1.3459"],
    ),
    PublishedValue("entropy of a label mix", "cross_entropy", log(0.40, 0.10, 0.25, 0.25), TRUE_MIX, ["1.29"]),
    PublishedValue("BCELoss of one element", "binary_cross_entropy", torch.tensor([0.75]), torch.ones(1), ["0.2877"]),
    PublishedValue(
        "BCELoss of a one-hot target",
        "binary_cross_entropy",
        torch.tensor([0.277, 0.299, 0.424]),
        torch.tensor([0.0, 0.0, 1.0]),
        ["0.5125"],
    ),
    PublishedValue(
        "BCEWithLogitsLoss of two elements",
        "binary_cross_entropy_with_logits",
        torch.tensor([1.8, 0.75]),
        torch.tensor([1.0, 0.0]),
        ["0.6449"],
    ),
    PublishedValue(
        "BCELoss of the rounded sigmoids of these",
        "binary_cross_entropy",
        torch.tensor([0.858, 0.679]),
        torch.tensor([1.0, 0.0]),
        ["0.6447"],
    ),
    PublishedValue("NLLLoss", "nll_loss", torch.tensor([[-0.6, -0.50, -0.30]]), torch.tensor([1]), ["0.5000"]),
    PublishedValue(
        "NLLLoss after LogSoftmax",
        "nll_loss",
        torch.tensor([[-0.8956, 1.1171, 1.3302]]).log_softmax(1),
        torch.tensor([1]),
        ["0.8634"],
    ),
    PublishedValue(
        "CrossEntropyLoss of one row",
        "cross_entropy",
        torch.tensor([[0.0, 1.0, 2.0, 3.0]]),
        torch.tensor([3]),
        ["0.4402"],
    ),
    PublishedValue(
        "equal logits and a probability target",
        "cross_entropy",
        torch.ones(3),
        torch.tensor([0.6004, 0.3339, 0.0657]),
        ["1.0986"],
        gradient=["-0.2670", "-0.0006", "0.2676"],
    ),
    PublishedValue(
        "a target that does not sum to 1",
        "cross_entropy",
        torch.ones(3),
        torch.tensor([0.0, 18.980, 7.7549e-14]),
        ["20.8519"],
        gradient=["6.3267", "-12.6535", "6.3267"],
        input_precision=0.0005 * 1.0986,  # 18.980 was rounded to 3 digits and is multiplied by log(3)
    ),
    PublishedValue(
        "BCEWithLogitsLoss with pos_weight",
        "binary_cross_entropy_with_logits",
        torch.full((2, 3), 1.0),
        torch.ones(2, 3),
        ["0.3133"],
        options={"pos_weight": torch.ones(3)},
    ),
    PublishedValue(
        "class weights",
        "cross_entropy",
        torch.tensor([[1.3, 2.0], [1.3, 2.0]]),
        torch.tensor([1, 1]),
        ["0.4032"],
        options={"weight": torch.tensor([1.3, 2.0])},
    ),
    PublishedValue(
        "logistic regression of six points",
        "binary_cross_entropy_with_logits",
        POINT_LOGITS,
        POINT_LABELS,
        ["0.46380153"],
    ),
    PublishedValue("nll_loss of one row", "nll_loss", log(0.1, 0.2, 0.2, 0.5), torch.tensor(1), ["1.6094"]),
    PublishedValue(
        "BCE-with-logits per element",
        "binary_cross_entropy_with_logits",
        FOUR_LOGITS,
        FOUR_LABELS,
        ["0.6444", "0.1269", "0.0486", "0.9741"],
        options={"reduction": "none"},
    ),
    PublishedValue("mean of these", "binary_cross_entropy_with_logits", FOUR_LOGITS, FOUR_LABELS, ["0.4485"]),
    PublishedValue(
        "BCELoss of the sigmoids, per element",
        "binary_cross_entropy",
        FOUR_LOGITS.sigmoid(),
        FOUR_LABELS,
        ["0.6444", "0.1269", "0.0486", "0.9741"],
        options={"reduction": "none"},
    ),
    PublishedValue("BCELoss of the sigmoids", "binary_cross_entropy", FOUR_LOGITS.sigmoid(), FOUR_LABELS, ["0.4485"]),
    PublishedValue(
        "BCELoss of good predictions",
        "binary_cross_entropy",
        torch.tensor([0.01, 0.9, 0.99, 0.1]),
        FOUR_LABELS.float(),
        ["0.0577"],
    ),
    PublishedValue(
        "four rows, per row",
        "cross_entropy",
        FOUR_ROWS,
        torch.tensor([0, 2, 3, 1]),
        ["15.0011", "4.9328", "3.9727", "1.1030"],
        options={"reduction": "none"},
    ),
    PublishedValue("four rows", "cross_entropy", FOUR_ROWS, torch.tensor([0, 2, 3, 1]), ["6.2524"]),
    PublishedValue(
        "four rows as log-probabilities, per row",
        "nll_loss",
        FOUR_ROWS.log_softmax(1),
        torch.tensor([0, 2, 3, 1]),
        ["15.0011", "4.9328", "3.9727", "1.1030"],
        options={"reduction": "none"},
    ),
    PublishedValue(
        "four rows as log-probabilities", "nll_loss", FOUR_ROWS.log_softmax(1), torch.tensor([0, 2, 3, 1]), ["6.2524"]
    ),
    PublishedValue(
        "three rows, per row",
        "cross_entropy",
        THREE_ROWS,
        torch.tensor([3, 0, 1]),
        ["1.1048", "0.5476", "1.4417"],
        options={"reduction": "none"},
    ),
    PublishedValue("three rows", "cross_entropy", THREE_ROWS, torch.tensor([3, 0, 1]), ["1.0314"]),
    PublishedValue(
        "three rows as log-probabilities, per row",
        "nll_loss",
        THREE_ROWS.log_softmax(1),
        torch.tensor([3, 0, 1]),
        ["1.1048", "0.5476", "1.4417"],
        options={"reduction": "none"},
    ),
    PublishedValue(
        "three rows as log-probabilities", "nll_loss", THREE_ROWS.log_softmax(1), torch.tensor([3, 0, 1]), ["1.0314"]
    ),
]
