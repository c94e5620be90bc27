"""Where a tensor's values are. Under emulated CUDA kernels the tests let the host's tensors be a device's."""

from torch import Tensor

__all__ = ["is_on_host"]


def is_on_host(tensor: Tensor) -> bool:
    """Whether the host can look at the tensor's values without waiting for a device."""
    return tensor.is_cpu
