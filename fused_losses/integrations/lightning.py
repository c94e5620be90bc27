"""Lightning: a callback that puts the fused losses in place for a run, puts torch's back, and reports."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from .. import patching, route_log

__all__ = ["FusedLosses", "is_enabled"]

_at_work: set[int] = set()  # ids of callbacks between setup and teardown


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
        self._patched = patching.patched()
        self._before: dict[str, dict[str, int]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if id(self) in _at_work:
            return
        _at_work.add(id(self))
        self._before = route_log.routes()
        if self._converts:
            patching.convert(pl_module)
        if self._patches:
            self._patched = patching.patched()
            self._patched.__enter__()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if id(self) not in _at_work:
            return
        _at_work.remove(id(self))
        if self._patches:
            self._patched.__exit__(None, None, None)
        if self._converts:
            patching.revert(pl_module)
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


def is_enabled() -> bool:
    """Whether a run with the callback is under way."""
    return bool(_at_work)
