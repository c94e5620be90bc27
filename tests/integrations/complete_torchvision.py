"""What torchvision misses beside a torch that it was not built for. To be imported before it is."""

import importlib.util
from pathlib import Path

import torch


def complete_torchvision():
    """PyPI's wheel is built for a CUDA torch: beside a CPU one its library does not load, and its Python part, which is
    all that these tests use, misses two operators."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or torch.version.cuda is not None:
        return
    try:
        torch.ops.load_library(next(Path(spec.origin).parent.glob("_C*.so")))
    except (OSError, StopIteration):
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


complete_torchvision()
