"""Drop-in fused classification losses for PyTorch.

The modules and functions have the names, arguments, defaults, numbers and errors of :mod:`torch.nn` and
:mod:`torch.nn.functional`; they are computed in one pass over the input and write nothing of its size but the gradient.

:mod:`fused_losses.distributed` and :mod:`fused_losses.integrations` are imported when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING

from . import autograd, functional
from ._cuda import is_cuda_available
from ._version import __version__
from .explaining import explain
from .explaining_patch import explain_patch
from .gradient_pool import gradient_pool_limit, limited_gradient_pool, set_gradient_pool_limit
from .linear_modules import LinearCrossEntropyLoss
from .modules import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, NLLLoss
from .patching import convert, is_patched, patch, patched, revert, unpatch
from .route_log import routes

if TYPE_CHECKING:
    from . import distributed as distributed
    from . import integrations as integrations
else:
    # Hidden from type checkers, for which a module with __getattr__ has every name.
    def __getattr__(name: str) -> object:
        if name in ("distributed", "integrations"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), "distributed", "integrations"})


__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "NLLLoss",
    "__version__",
    "autograd",
    "convert",
    "explain",
    "explain_patch",
    "functional",
    "gradient_pool_limit",
    "is_cuda_available",
    "is_patched",
    "limited_gradient_pool",
    "patch",
    "patched",
    "revert",
    "routes",
    "set_gradient_pool_limit",
    "unpatch",
]
