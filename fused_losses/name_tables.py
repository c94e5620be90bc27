"""Tables that torch makes of its own functions, once and by name: what stands under a name then is torch's for good.

A table that is made while ours stand in :mod:`torch.nn.functional` would know ours and no longer torch's. Dynamo would
put ours into its graphs whole, as it does with torch's, and not look into them; :func:`torch.overrides.resolve_name`
would have no name for what a handler receives. So before the first replacement the cheap tables are made, and Dynamo,
whose import takes two seconds and is made when something is compiled, is told whose function a name means.
"""

from __future__ import annotations

from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import torch.overrides

from .import_hooks import when_imported
from .torch_losses import original_of

__all__ = ["keep_torchs_functions_known"]

_DYNAMOS_RULES = "torch._dynamo.trace_rules"


@cache
def keep_torchs_functions_known() -> None:
    """To be called before functions are replaced in :mod:`torch.nn.functional`; again does nothing."""
    torch.overrides.get_testing_overrides()  # both remember their results
    torch.overrides.get_overridable_functions()
    when_imported(_DYNAMOS_RULES, _resolve_to_originals)


def _resolve_to_originals(rules: ModuleType) -> None:
    load_object = getattr(rules, "load_object", None)  # what a name of Dynamo's list stands for
    if load_object is None:
        return

    def load_original(name: str) -> Any:
        value = load_object(name)
        return original_of(value) if isinstance(value, FunctionType) else value

    rules.load_object = load_original  # type: ignore[attr-defined]
