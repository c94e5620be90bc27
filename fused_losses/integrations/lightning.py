"""Lightning: a callback that puts the fused losses in place for a run, puts torch's back, and reports."""

from __future__ import annotations

from contextlib import ExitStack
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from .. import patching, route_log

__all__ = ["FusedLosses", "is_enabled"]

_at_work: WeakKeyDictionary[Callback, ExitStack] = WeakKeyDictionary()  # from setup to teardown: what undoes it


class FusedLosses(Callback):  # type: ignore[misc]
    """``Trainer(callbacks=[FusedLosses()])``: for the length of a run the losses are the fused ones.

    The module's loss modules are converted and torch's functions patched when a run is set up; both are undone when it
    ends, with an exception too. Which ways the calls of the run took is said once, on the first process.

    Args:
        convert: convert the module's losses.
        patch: replace the functions of :mod:`torch.nn.functional` meanwhile.
        report: say at the end which ways the calls took.
    """

    def __init__(self, *, convert: bool = True, patch: bool = True, report: bool = True) -> None:
        self._converts, self._patches, self._reports = convert, patch, report
        self._before: dict[str, dict[str, int]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self in _at_work:
            return
        self._before = route_log.routes()
        with ExitStack() as undo:
            if self._converts:
                undo.callback(_revert, _converted(pl_module))
            if self._patches:
                undo.enter_context(patching.patched())
            _at_work[self] = undo.pop_all()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        undo = _at_work.pop(self, None)
        if undo is None:
            return
        undo.close()
        if self._reports:
            rank_zero_info(f"fused_losses: {self.report()}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "exception")

    def report(self) -> str:
        """Which ways the calls took since the last run was set up."""
        ways = []
        for loss, counts in route_log.routes().items():
            for way, count in counts.items():
                number = count - self._before.get(loss, {}).get(way, 0)
                if number:
                    ways.append(f"{loss} {number} x {way}")
        return "; ".join(ways) or "no loss was computed"


def _converted(module: LightningModule) -> list[nn.Module]:
    """Which of its modules this turned into ours: not those that were before."""
    types = {child: type(child) for child in module.modules()}
    patching.convert(module)
    return [child for child, before in types.items() if type(child) is not before]


def _revert(converted: list[nn.Module]) -> None:
    for module in converted:
        patching.revert(module)


def is_enabled() -> bool:
    """Whether a run with the callback is under way."""
    return bool(_at_work)
