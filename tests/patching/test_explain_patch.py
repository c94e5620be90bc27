"""Names that patch() does not reach: found in every place that a module can hold them, replaced and put back."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

import fused_losses
from fused_losses.held_functions import holders_of

CROSS_ENTROPY, NLL_LOSS = F.cross_entropy, F.nll_loss
SOURCE = """
import functools
import torch
from torch import nn
from torch.nn.functional import cross_entropy, nll_loss as nll

TABLE = {"ce": cross_entropy, "other": print}
LIST = [print, nll]
partial = functools.partial(cross_entropy, reduction="sum")

def by_default(x, y, loss=cross_entropy, *, other=nll):
    return loss(x, y)

class Trainer:
    loss = cross_entropy
    static = staticmethod(nll)
    @classmethod
    def of_class(cls, x, y, loss=nll):
        return loss(x, y)
    def step(self, x, y, loss=cross_entropy):
        return loss(x, y)

class Inheriting(nn.CrossEntropyLoss):
    pass

class Overriding(nn.NLLLoss):
    def forward(self, input, target):
        return 2 * torch.nn.functional.nll_loss(input, target)
"""
PLACES = {
    "cross_entropy": CROSS_ENTROPY,
    "nll": NLL_LOSS,
    "TABLE['ce']": CROSS_ENTROPY,
    "LIST[1]": NLL_LOSS,
    "partial.func": CROSS_ENTROPY,
    "by_default(loss=)": CROSS_ENTROPY,
    "by_default(other=)": NLL_LOSS,
    "Trainer.loss": CROSS_ENTROPY,
    "Trainer.static": NLL_LOSS,
    "Trainer.of_class(loss=)": NLL_LOSS,
    "Trainer.step(loss=)": CROSS_ENTROPY,
}


@pytest.fixture
def client(monkeypatch):
    """A package that is loaded, with the module in question below it."""
    module = types.ModuleType("client_package.losses")
    monkeypatch.setitem(sys.modules, "client_package", types.ModuleType("client_package"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(SOURCE, vars(module))
    return module


def test_torchs_modules_and_ours_are_not_in_the_report():
    """Torch's hold its functions by right: by their homes, and in torch.distributions under names of their own."""
    assert torch.distributions.bernoulli.binary_cross_entropy_with_logits is F.binary_cross_entropy_with_logits
    report = fused_losses.explain_patch()
    found = {*report.modules, *(subclass.__module__ for subclass in report.subclasses)}
    assert not [name for name in found if name.partition(".")[0] in ("torch", "fused_losses")]


def places_in(report, module):
    return {holder.place: holder.function for holder in report.holders if holder.module == module.__name__}


def test_every_place_is_found(client):
    report = fused_losses.explain_patch()
    places = places_in(report, client)
    assert places == PLACES
    assert client.__name__ in report.modules
    lines = str(report).splitlines()
    assert "client_package.losses: nll is torch's nll_loss: patch(also=['client_package.losses']) replaces it" in lines
    (inheriting,) = (line for line in lines if line.startswith("client_package.losses.Inheriting"))
    assert "is that of torch.nn.CrossEntropyLoss: patch() reaches it" in inheriting
    (overriding,) = (line for line in lines if line.startswith("client_package.losses.Overriding"))
    assert "a forward of its own" in overriding


def test_the_report_is_the_same_under_the_patch(client):
    with fused_losses.patched():
        assert places_in(fused_losses.explain_patch(), client) == PLACES


@pytest.mark.parametrize("name", [None, "client_package", "client_package.losses"])
def test_they_are_replaced_on_request_and_put_back(client, name):
    fused_losses.patch(also=[client if name is None else name])
    assert places_in(fused_losses.explain_patch(), client) == {}
    ours, our_nll = fused_losses.functional.cross_entropy, fused_losses.functional.nll_loss
    assert client.cross_entropy is client.TABLE["ce"] is client.partial.func is client.Trainer.loss is ours
    assert client.nll is client.LIST[1] is client.Trainer.static is our_nll
    assert client.by_default.__defaults__ == client.Trainer.step.__defaults__ == (ours,)
    assert client.by_default.__kwdefaults__ == {"other": our_nll}
    logits, target = torch.randn(3, 5), torch.tensor([1, 0, 4])
    torch.testing.assert_close(client.by_default(logits, target), CROSS_ENTROPY(logits, target))
    torch.testing.assert_close(client.partial(logits, target), CROSS_ENTROPY(logits, target, reduction="sum"))
    fused_losses.unpatch()
    assert places_in(fused_losses.explain_patch(), client) == PLACES
    assert client.by_default.__kwdefaults__ == {"other": NLL_LOSS}
    assert client.partial.keywords == {"reduction": "sum"}


def test_what_the_client_changed_meanwhile_stays(client):
    fused_losses.patch(also=[client])
    client.cross_entropy = client.TABLE["ce"] = print
    client.LIST.clear()
    fused_losses.unpatch()
    assert client.cross_entropy is client.TABLE["ce"] is print
    assert client.nll is NLL_LOSS and client.LIST == []


def test_twice_is_once(client):
    fused_losses.patch(also=[client])
    fused_losses.patch(also="client_package")  # one of them needs no list
    fused_losses.unpatch()
    assert places_in(fused_losses.explain_patch(), client) == PLACES


def test_a_module_that_is_not_loaded_is_an_error_and_nothing_is_patched():
    with pytest.raises(ValueError, match="no module 'not_loaded'"):
        fused_losses.patch(also=["not_loaded"])
    assert not fused_losses.is_patched()


def test_other_modules_stay_as_they_are(client, monkeypatch):
    other = types.ModuleType("client_packages")  # no module below client_package
    other.loss = CROSS_ENTROPY
    monkeypatch.setitem(sys.modules, other.__name__, other)
    fused_losses.patch(also="client_package")  # one of them needs no list
    assert other.loss is CROSS_ENTROPY


def test_nothing_to_report_is_said():
    assert "reaches every loss" in str(fused_losses.explain_patch().__class__((), ()))


def test_nothing_is_evaluated_in_search():
    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            raise AssertionError(name)

    assert list(holders_of([CROSS_ENTROPY], [Lazy("lazy")])) == []
