"""Whether tensors that were saved through hooks have been modified since.

Note [Versions under hooks]
Of what passes through saved-tensor hooks torch compares no versions. Its own cross-entropy saves a result of its own,
so that nobody can modify it; ours saves the logits, or what they are made of. Where a hook hands out the memory that
was saved (a checkpoint that computed it again, ``save_on_cpu`` of a tensor that is on the CPU), its version must still
be the one of the saving. That is kept under the statistics that are saved beside it, which no other loss has: of one
tensor several losses may know several versions. A hook that hands out other memory of either, which has versions of its
own, is left alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..routing import is_compiling

__all__ = ["check_versions", "remember_versions", "saves_through_hooks"]

_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks


class _Saved(NamedTuple):
    storage: StorageWeakRef
    version: int


# By the statistics' storage. While a weak reference to a storage is there no other one has its address.
_versions: dict[int, tuple[StorageWeakRef, list[_Saved]]] = {}
_most = 256  # until those are left out whose statistics are gone


def saves_through_hooks() -> bool:
    """Whether saved tensors are packed by hooks (checkpointing, offloading): then as little as possible is saved."""
    return _top_hooks(True) is not None


def remember_versions(statistics: Tensor, *tensors: Tensor | None) -> None:
    """To be called as they are saved."""
    global _most
    if not saves_through_hooks() or _is_traced(statistics):
        return
    if len(_versions) >= _most:
        for key, (reference, _) in list(_versions.items()):
            if reference.expired():  # type: ignore[no-untyped-call]
                _versions.pop(key, None)
        _most = max(256, 2 * len(_versions))
    of_loss = [_Saved(_weak(tensor), tensor._version) for tensor in tensors if tensor is not None]
    _versions[_key(statistics)] = (_weak(statistics), of_loss)


def check_versions(statistics: Tensor, *tensors: Tensor | None) -> None:
    """To be called as they are unpacked.

    Raises:
        RuntimeError: as torch, where one was modified in place.
    """
    if not _versions or _is_traced(statistics):
        return
    _, of_loss = _versions.get(_key(statistics), (None, ()))
    for tensor, saved in zip((tensor for tensor in tensors if tensor is not None), of_loss, strict=False):
        if saved.storage.cdata == _key(tensor) and tensor._version > saved.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: what "
                f"a loss was computed from is at version {tensor._version}; expected version {saved.version} instead"
            )


def _is_traced(tensor: Tensor) -> bool:
    """A graph knows no versions, a transform's wrapper no storage."""
    return is_compiling() or is_functorch_wrapped_tensor(tensor)


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _weak(tensor: Tensor) -> Any:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
