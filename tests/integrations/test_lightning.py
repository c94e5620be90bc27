"""The callback: fused losses for a run of Lightning's Trainer, torch's before and after."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

import fused_losses
from fused_losses.integrations import lightning as bridge


class Classifier(lightning.LightningModule):
    def __init__(self, fails=False):
        super().__init__()
        self.layer, self.criterion, self.fails = nn.Linear(4, 3), nn.CrossEntropyLoss(), fails
        self.losses, self.seen = [], []

    def training_step(self, batch, _):
        if self.fails:
            raise ArithmeticError("planned")
        logits = self.layer(batch[0])
        loss = self.criterion(logits, batch[1]) + F.cross_entropy(logits, batch[1], label_smoothing=0.1)
        self.losses.append(loss.detach())
        self.seen.append((type(self.criterion), fused_losses.is_patched(), bridge.is_enabled()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(model, tmp_path, *callbacks):
    torch.manual_seed(3)
    data = torch.utils.data.TensorDataset(torch.randn(12, 4), torch.randint(3, (12,)))
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=4))
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("convert, patch, calls", [(True, True, 12), (True, False, 6), (False, True, 12)])
def test_a_run(tmp_path, convert, patch, calls):
    model = Classifier()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    stock = run(model, tmp_path).losses
    model = Classifier()
    model.load_state_dict(state)
    callback = bridge.FusedLosses(convert=convert, patch=patch)
    run(model, tmp_path, callback)
    torch.testing.assert_close(model.losses, stock)
    expected = fused_losses.CrossEntropyLoss if convert else nn.CrossEntropyLoss
    assert set(model.seen) == {(expected, patch, True)}
    assert callback.report() == f"cross_entropy {calls} x kernel"
    assert type(model.criterion) is nn.CrossEntropyLoss
    assert not fused_losses.is_patched() and not bridge.is_enabled()


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_fails_leaves_nothing_behind(tmp_path):
    model, callback = Classifier(fails=True), bridge.FusedLosses()
    with pytest.raises(ArithmeticError, match="planned"):
        run(model, tmp_path, callback)
    assert type(model.criterion) is nn.CrossEntropyLoss
    assert not fused_losses.is_patched() and not bridge.is_enabled()
    assert callback.report() == "no loss was computed"


@pytest.mark.filterwarnings("ignore")
def test_what_was_fused_before_a_run_is_fused_after_it(tmp_path):
    model = Classifier()
    model.criterion = fused_losses.CrossEntropyLoss(softcap=5.0)
    model.other = nn.ModuleList([fused_losses.NLLLoss(), nn.NLLLoss()])
    run(model, tmp_path, bridge.FusedLosses())
    types = [type(loss) for loss in (model.criterion, *model.other)]
    assert types == [fused_losses.CrossEntropyLoss, fused_losses.NLLLoss, nn.NLLLoss]


def test_a_callback_goes_to_spawned_processes_and_copies():
    for copied in (copy.deepcopy(bridge.FusedLosses(report=False)), pickle.loads(pickle.dumps(bridge.FusedLosses()))):
        model = Classifier()
        copied.setup(None, model, "fit")
        assert type(model.criterion) is fused_losses.CrossEntropyLoss and fused_losses.is_patched()
        copied.teardown(None, model, "fit")
        assert type(model.criterion) is nn.CrossEntropyLoss and not fused_losses.is_patched()
