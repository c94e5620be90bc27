"""The grid: which loss, shape, dtype and options are timed, and why each is there.

Plain data without torch, so that ``--list`` and ``--help`` answer at once; `inputs.py` makes the tensors.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

Loss = Literal["cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"]
Dtype = Literal["float32", "bfloat16", "float16"]
Layout = Literal["contiguous", "channels_last"]
# What the logits are: random; random with a third masked, off the targets; or confident of the target.
Values = Literal["random", "masked-100", "masked-1e4", "masked-inf", "confident"]
# What the loss is multiplied by before its backward, as a training step does: nothing, the same each time (gradient
# accumulation), or another number each time (the number of tokens of a batch).
Scale = Literal["none", "constant", "changing"]

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")

# Large enough that memory traffic, not the cost of a call, is what a loss is made of.
LARGE_NUMEL = 8_000_000
# The logits, their gradient, the floor's memory, copies of the logits for those who overwrite them, and what torch
# eager takes beside its gradient come to eight times the logits.
LOGITS_SIZES_ON_GPU = 10
# A shrunk cell of --quick: every code path runs, in about a millisecond.
QUICK_NUMEL = 2**19


@dataclass(frozen=True)
class Case:
    """One cell of the grid: a loss called on one kind of input."""

    loss: Loss
    shape: tuple[int, ...]
    dtype: Dtype = "float32"
    layout: Layout = "contiguous"
    probability_target: bool = False
    class_weight: bool = False
    pos_weight: bool = False
    label_smoothing: float = 0.0
    values: Values = "random"
    scale: Scale = "none"
    after_log_softmax: bool = False  # what is timed begins at the logits, as in a model that ends in a log_softmax

    @property
    def takes_log_probabilities(self) -> bool:
        """Whether what is timed begins behind the log_softmax."""
        return self.loss == "nll_loss" and not self.after_log_softmax

    @property
    def variant(self) -> str:
        """What sets the case apart from a plain call, empty for a plain call."""
        words = [
            "channels_last" if self.layout == "channels_last" else "",
            "probabilities" if self.probability_target else "",
            "class_weight" if self.class_weight else "",
            "pos_weight" if self.pos_weight else "",
            f"label_smoothing{self.label_smoothing:g}" if self.label_smoothing else "",
            self.values if self.values != "random" else "",
            "log_softmax" if self.after_log_softmax else "",
            f"{self.scale}_scale" if self.scale != "none" else "",
        ]
        return "-".join(word for word in words if word)

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        return "-".join(word for word in (self.loss, shape, self.variant, self.dtype) if word)

    @property
    def target_is_elementwise(self) -> bool:
        """Whether the target has the logits' shape, so that reading it costs as much as reading them."""
        return self.probability_target or self.loss.startswith("binary")

    @property
    def gradient_may_overwrite_logits(self) -> bool:
        """Whether writing the gradient over the logits is worth a contender of its own."""
        return self.loss == "cross_entropy" and not self.probability_target and math.prod(self.shape) >= LARGE_NUMEL

    @property
    def gpu_bytes(self) -> int:
        """About the memory that a GPU needs for the case, all contenders and inputs included."""
        return LOGITS_SIZES_ON_GPU * math.prod(self.shape) * (4 if self.dtype == "float32" else 2)

    def shrunk(self) -> "Case":
        """The same case with fewer rows, and nothing else changed."""
        rows, elements_per_row = self.shape[0], math.prod(self.shape[1:])
        return replace(self, shape=(max(1, min(rows, QUICK_NUMEL // elements_per_row)), *self.shape[1:]))


def _grid() -> Iterator[Case]:
    # The five regimes of cross-entropy: few classes (rows shorter than a vector of 16), ImageNet, and two language
    # model vocabularies (a row of 128256 float32 is 501 KiB: beyond the first-level cache, within the second).
    for shape in ((65536, 10), (8192, 1000), (4096, 32000), (1024, 128256)):
        yield Case("cross_entropy", shape)
        yield Case("cross_entropy", shape, "bfloat16")
    # Segmentation (21 classes of Pascal VOC): the class axis is strided, or innermost under channels_last.
    for layout in ("contiguous", "channels_last"):
        yield Case("cross_entropy", (8, 21, 256, 256), layout=layout)
        yield Case("cross_entropy", (8, 21, 256, 256), "bfloat16", layout=layout)
    yield Case("cross_entropy", (4096, 32000), "float16")

    yield Case("cross_entropy", (8192, 1000), class_weight=True)
    yield Case("cross_entropy", (8192, 1000), label_smoothing=0.1)
    yield Case("cross_entropy", (4096, 32000), class_weight=True, label_smoothing=0.1)
    yield Case("cross_entropy", (8192, 1000), probability_target=True)
    yield Case("cross_entropy", (8192, 1000), "bfloat16", probability_target=True)
    yield Case("cross_entropy", (6000, 1003), probability_target=True)  # rows that begin anywhere

    # A loss that is scaled before its backward: does a step pay for the gradient twice?
    scales: tuple[Scale, ...] = ("constant", "changing")
    for scale in scales:
        yield Case("cross_entropy", (4096, 32000), scale=scale)
        yield Case("cross_entropy", (4096, 32000), "bfloat16", scale=scale)
        yield Case("cross_entropy", (8192, 1000), scale=scale)
        yield Case("binary_cross_entropy_with_logits", (20_000_000,), scale=scale)

    # Masked logits, whose exponentials are subnormal numbers (-100) or zeros, and confident ones.
    not_random: tuple[Values, ...] = ("masked-100", "masked-1e4", "masked-inf", "confident")
    for values in not_random:
        yield Case("cross_entropy", (4096, 32000), values=values)
        yield Case("cross_entropy", (8192, 1000), values=values)
    for values in not_random[:2]:
        yield Case("binary_cross_entropy_with_logits", (20_000_000,), values=values)

    # Few classes, where kernels change from many rows per vector to many vectors per row (10 is above).
    for num_classes in (2, 3, 5, 21, 64):
        yield Case("cross_entropy", (65536, num_classes))

    yield Case("nll_loss", (8192, 1000))
    yield Case("nll_loss", (8, 21, 256, 256))
    for shape in ((8192, 1000), (4096, 32000)):
        yield Case("nll_loss", shape, after_log_softmax=True)

    yield Case("binary_cross_entropy", (1_000_000,))
    yield Case("binary_cross_entropy", (20_000_000,))

    # From the second-level cache to main memory.
    for numel in (10_000, 1_000_000, 20_000_000):
        yield Case("binary_cross_entropy_with_logits", (numel,))
    yield Case("binary_cross_entropy_with_logits", (20_000_000,), "bfloat16")
    # Multi-label detection (80 classes of COCO) with a weight per class.
    yield Case("binary_cross_entropy_with_logits", (16384, 80), pos_weight=True)
    yield Case("binary_cross_entropy_with_logits", (50000, 80), "bfloat16", pos_weight=True)

    # Too little work to matter: what is timed is the cost of a call.
    yield Case("cross_entropy", (32, 10))
    yield Case("binary_cross_entropy_with_logits", (320,))


GRID: tuple[Case, ...] = tuple(_grid())

# A GPU gets the same, and batches as a language model has them on one: GPT-2's odd number of classes, whose rows begin
# at no vector's boundary, Llama 3's, Llama 2's.
GPU_GRID: tuple[Case, ...] = (
    *GRID,
    *(Case("cross_entropy", shape, "bfloat16") for shape in ((8192, 50257), (4096, 128256), (32768, 32000))),
)

# Few enough that --quick ends within a minute although each compiles twice, and yet every kind of measurement: 16 bits
# and in-place, a strided class axis, a target to read.
QUICK_GRID: tuple[Case, ...] = (
    Case("cross_entropy", (4096, 32000), "bfloat16"),
    Case("cross_entropy", (8, 21, 256, 256)),
    Case("binary_cross_entropy_with_logits", (1_000_000,)),
)


def find(name: str) -> Case:
    """The case of either grid with this name."""
    for case in GPU_GRID:
        if case.name == name:
            return case
    raise KeyError(f"no benchmark case is called {name!r}; python -m benchmarks --list prints them")


def grid(device: str) -> tuple[Case, ...]:
    return GPU_GRID if device == "cuda" else GRID


def select(
    filters: Iterable[str] = (), dtypes: Iterable[str] = (), *, device: str = "cpu", quick: bool = False
) -> list[Case]:
    """Cases whose name has one of the substrings and whose dtype is listed; nothing given means all of them."""
    filters, dtypes = tuple(filters), tuple(dtypes)
    candidates = QUICK_GRID if quick and not filters else grid(device)
    return [
        case
        for case in candidates
        if (not filters or any(part in case.name for part in filters)) and (not dtypes or case.dtype in dtypes)
    ]
