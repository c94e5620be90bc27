"""What is installed here, and what the integrations would do with it.

python -m fused_losses
"""

from __future__ import annotations

import torch

from . import _C, __version__, integrations, is_cuda_available


def main() -> None:
    cuda = "CUDA kernels" if is_cuda_available() else "no CUDA kernels"
    print(f"fused_losses {__version__}, torch {torch.__version__}, CPU kernels for {_C.cpu_capability()}, {cuda}")
    for integration in integrations.status():
        print(f"  {integration}")


if __name__ == "__main__":
    main()
