"""Calls that torch refuses, as data: a description, the loss, and how to make the arguments."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from losses import BINARY_CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS, CROSS_ENTROPY, NLL_LOSS, Loss


@dataclass(frozen=True)
class BadCall:
    description: str
    loss: Loss
    arguments: Callable  # () -> (positional arguments, keyword arguments)


def bad(description, loss, *make_arguments, **make_options):
    """Each argument is a function that makes it, or a plain value."""

    def make(value):
        return value() if callable(value) else value

    return BadCall(
        description,
        loss,
        lambda: (
            [make(value) for value in make_arguments],
            {name: make(value) for name, value in make_options.items()},
        ),
    )


def logits(*shape, dtype=torch.float32):
    return lambda: torch.randn(shape).to(dtype)


def probabilities(*shape, dtype=torch.float32):
    return lambda: torch.rand(shape).to(dtype)


def indices(*values, dtype=torch.int64):
    return lambda: torch.tensor(values, dtype=dtype)


def index_grid(*shape):
    return lambda: torch.zeros(shape, dtype=torch.int64)


BAD_SHAPES_OF_CLASSES = [
    bad(f"{description}, {loss}", loss, input, target)
    for loss in (CROSS_ENTROPY, NLL_LOSS)
    for description, input, target in [
        ("fewer targets than rows", logits(4, 5), index_grid(3)),
        ("more targets than rows", logits(4, 5), index_grid(5)),
        ("a scalar target for rows", logits(4, 5), index_grid()),
        ("a target per element", logits(4, 5), index_grid(4, 5)),
        ("targets for an input without batch axis", logits(5), index_grid(5)),
        ("an input without axes", logits(), index_grid()),
        ("an input without axes, one target", logits(), index_grid(1)),
        ("an inner axis of another size", logits(2, 5, 3), index_grid(2, 4)),
        ("an inner axis missing", logits(2, 5, 3), index_grid(2)),
        ("one inner axis too many", logits(2, 5, 3), index_grid(2, 3, 1)),
        ("images of another size", logits(2, 5, 3, 4), index_grid(2, 4, 3)),
        ("images with another batch size", logits(2, 5, 3, 4), index_grid(3, 3, 4)),
        ("volumes of another size", logits(2, 5, 3, 4, 2), index_grid(2, 3, 4, 3)),
    ]
]

BAD_CLASS_WEIGHTS = [
    bad(f"{description}, {loss}", loss, input, target, weight=weight)
    for loss in (CROSS_ENTROPY, NLL_LOSS)
    for description, input, target, weight in [
        ("fewer weights than classes", logits(4, 5), index_grid(4), logits(4)),
        ("more weights than classes", logits(4, 5), index_grid(4), logits(6)),
        ("weights with two axes", logits(4, 5), index_grid(4), logits(1, 5)),
        ("a scalar weight", logits(4, 5), index_grid(4), logits()),
        ("weights for images, too few", logits(2, 5, 3, 4), index_grid(2, 3, 4), logits(3)),
        ("float64 weights for float32 logits", logits(4, 5), index_grid(4), logits(5, dtype=torch.float64)),
        ("float32 weights for bfloat16 logits", logits(4, 5, dtype=torch.bfloat16), index_grid(4), logits(5)),
        ("float32 weights for float16 images", logits(2, 5, 3, 4, dtype=torch.float16), index_grid(2, 3, 4), logits(5)),
        ("integer weights", logits(4, 5), index_grid(4), indices(1, 2, 3, 4, 5)),
    ]
]

BAD_CLASS_DTYPES = [
    bad(f"{description}, {loss}", loss, input, target)
    for loss in (CROSS_ENTROPY, NLL_LOSS)
    for description, input, target in [
        ("integer logits", lambda: torch.ones(4, 5, dtype=torch.int64), index_grid(4)),
        ("boolean logits", lambda: torch.ones(4, 5, dtype=torch.bool), index_grid(4)),
        ("complex logits", logits(4, 5, dtype=torch.complex64), index_grid(4)),
        ("int16 targets", logits(4, 5), indices(0, 1, 2, 3, dtype=torch.int16)),
        ("int8 targets", logits(4, 5), indices(0, 1, 2, 3, dtype=torch.int8)),
        ("boolean targets", logits(4, 5), indices(0, 1, 1, 0, dtype=torch.bool)),
        ("float targets of index shape", logits(4, 5), logits(4)),
        ("complex targets", logits(4, 5), logits(4, 5, dtype=torch.complex64)),
    ]
]

BAD_OPTIONS = [
    bad(f"{description}, {loss}", loss, input, target, **options)
    for loss, input, target in [
        (CROSS_ENTROPY, logits(4, 5), index_grid(4)),
        (NLL_LOSS, logits(4, 5), index_grid(4)),
        (BINARY_CROSS_ENTROPY, probabilities(4, 5), probabilities(4, 5)),
        (BINARY_CROSS_ENTROPY_WITH_LOGITS, logits(4, 5), probabilities(4, 5)),
    ]
    for description, options in [
        ("an unknown reduction", {"reduction": "median"}),
        ("a reduction that is no string", {"reduction": 1}),
        ("a reduction of None", {"reduction": None}),
        ("a reduction that is a list", {"reduction": []}),
        ("an unknown option", {"smoothing": 0.1}),
        ("a weight that is a list", {"weight": [1.0, 1.0, 1.0, 1.0, 1.0]}),
        ("a weight that is a number", {"weight": 2.0}),
    ]
]

BAD_CROSS_ENTROPY_OPTIONS = [
    bad("label smoothing above 1", CROSS_ENTROPY, logits(4, 5), index_grid(4), label_smoothing=1.1),
    bad("label smoothing that is text", CROSS_ENTROPY, logits(4, 5), index_grid(4), label_smoothing="0.1"),
    bad("ignore_index that is a float", CROSS_ENTROPY, logits(4, 5), index_grid(4), ignore_index=1.5),
    bad("ignore_index beyond 64 bits", CROSS_ENTROPY, logits(4, 5), index_grid(4), ignore_index=2**63),
    bad("label smoothing beyond a float", CROSS_ENTROPY, logits(4, 5), index_grid(4), label_smoothing=10**400),
    bad("ignore_index of None", CROSS_ENTROPY, logits(4, 5), index_grid(4), ignore_index=None),
    bad("probabilities and an ignore_index", CROSS_ENTROPY, logits(4, 5), logits(4, 5), ignore_index=2),
    bad("probabilities of another shape", CROSS_ENTROPY, logits(4, 5), logits(4, 6)),
    bad("smoothed probabilities above 1", CROSS_ENTROPY, logits(4, 5), logits(4, 5), label_smoothing=1.5),
    bad("probabilities with too few weights", CROSS_ENTROPY, logits(4, 5), logits(4, 5), weight=logits(4)),
]

BAD_ARGUMENT_TYPES = [
    bad("no target", CROSS_ENTROPY, logits(4, 5)),
    bad("no target, nll_loss", NLL_LOSS, logits(4, 5)),
    bad("no target, binary_cross_entropy", BINARY_CROSS_ENTROPY, probabilities(4, 5)),
    bad("no target, with logits", BINARY_CROSS_ENTROPY_WITH_LOGITS, logits(4, 5)),
    bad("a target of None", CROSS_ENTROPY, logits(4, 5), None),
    bad("logits that are a list", CROSS_ENTROPY, [[1.0, 2.0]], index_grid(1)),
    bad("a target that is a list", CROSS_ENTROPY, logits(4, 5), [0, 1, 2, 3]),
    bad("a target that is a number", NLL_LOSS, logits(4, 5), 1),
    bad("input given twice", CROSS_ENTROPY, logits(4, 5), index_grid(4), input=logits(4, 5)),
]

BAD_BINARY = [
    bad(f"{description}, {loss}", loss, input, target, **options)
    for loss in (BINARY_CROSS_ENTROPY, BINARY_CROSS_ENTROPY_WITH_LOGITS)
    for description, input, target, options in [
        ("a target of another shape", probabilities(4, 5), probabilities(4, 6), {}),
        ("a target that would broadcast", probabilities(4, 5), probabilities(5), {}),
        ("a target of the transposed shape", probabilities(4, 5), probabilities(5, 4), {}),
        ("a target with an axis more", probabilities(4, 5), probabilities(1, 4, 5), {}),
        ("a weight that does not broadcast", probabilities(4, 5), probabilities(4, 5), {"weight": logits(4)}),
        ("a weight that enlarges the result", probabilities(4, 5), probabilities(4, 5), {"weight": logits(3, 4, 5)}),
        ("a weight that enlarges an axis", probabilities(4, 1), probabilities(4, 1), {"weight": logits(4, 5)}),
        ("integer targets", probabilities(4, 5), index_grid(4, 5), {}),
        ("boolean targets", probabilities(4, 5), lambda: torch.ones(4, 5, dtype=torch.bool), {}),
        ("complex input", logits(4, 5, dtype=torch.complex64), probabilities(4, 5), {}),
    ]
] + [
    bad("integer input", BINARY_CROSS_ENTROPY, index_grid(4, 5), index_grid(4, 5)),
    bad("float64 targets", BINARY_CROSS_ENTROPY, probabilities(4, 5), probabilities(4, 5, dtype=torch.float64)),
    bad("float32 targets of bfloat16", BINARY_CROSS_ENTROPY, probabilities(4, dtype=torch.bfloat16), probabilities(4)),
    bad(
        "a pos_weight that does not broadcast",
        BINARY_CROSS_ENTROPY_WITH_LOGITS,
        logits(4, 5),
        probabilities(4, 5),
        pos_weight=logits(4),
    ),
    bad(
        "a pos_weight that enlarges the result",
        BINARY_CROSS_ENTROPY_WITH_LOGITS,
        logits(4, 5),
        probabilities(4, 5),
        pos_weight=logits(3, 4, 5),
    ),
    bad(
        "a pos_weight for binary_cross_entropy",
        BINARY_CROSS_ENTROPY,
        probabilities(4, 5),
        probabilities(4, 5),
        pos_weight=logits(5),
    ),
]

BAD_CALLS = [
    *BAD_SHAPES_OF_CLASSES,
    *BAD_CLASS_WEIGHTS,
    *BAD_CLASS_DTYPES,
    *BAD_OPTIONS,
    *BAD_CROSS_ENTROPY_OPTIONS,
    *BAD_ARGUMENT_TYPES,
    *BAD_BINARY,
]
