"""Whether a tensor that was saved through hooks has been modified since.

Note [Versions under hooks]
Of what passes through saved-tensor hooks torch compares no versions. Its own cross-entropy saves a result of its own,
so that nobody can modify it; ours saves the logits. Where a hook hands out the memory that was saved (a checkpoint that
computed it again, ``save_on_cpu`` of a tensor that is on the CPU), their version must still be the one of the saving.
A hook that hands out other memory, which has versions of its own, is left alone.
"""

from __future__ import annotations

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["check_version", "remember_version"]

_MOST_TENSORS = 256  # that are remembered: those of one checkpoint, or of one step
_versions: dict[int, tuple[StorageWeakRef, int]] = {}  # while a reference is there no other storage has its address


def remember_version(tensor: Tensor) -> None:
    """To be called as it is saved, under hooks."""
    storage = tensor.untyped_storage()
    while len(_versions) >= _MOST_TENSORS:
        _versions.pop(next(iter(_versions)), None)
    _versions[storage._cdata] = (StorageWeakRef(storage), tensor._version)  # type: ignore[no-untyped-call]


def check_version(tensor: Tensor) -> None:
    """To be called as it is unpacked.

    Raises:
        RuntimeError: as torch, where it was modified in place.
    """
    remembered = _versions.get(tensor.untyped_storage()._cdata)
    if remembered is not None and tensor._version > remembered[1]:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: the "
            f"logits are at version {tensor._version}; expected version {remembered[1]} instead"
        )
