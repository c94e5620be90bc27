"""The site, built by `make docs`. It imports the package's Python alone: no compiler, and torch's CPU build will do."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "fused_losses"
copyright = "the fused_losses contributors"
version = release = (ROOT / "fused_losses" / "_version.py").read_text().split('"')[1]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"fused_losses {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"sidebar_hide_name": False}

# The native module and the frameworks, which need not be there. Loading the native module is what tells torch of the
# operators: without it there is none to describe.
frameworks = ["lightning", "pytorch_lightning", "torchvision", "transformers", "trl"]
autodoc_mock_imports = ["fused_losses._C", "fused_losses._ops", *frameworks]
timm = ModuleType("timm")
losses = ("BinaryCrossEntropy", "LabelSmoothingCrossEntropy", "SoftTargetCrossEntropy")
# Not mocked: their methods are looked at.
timm.loss = SimpleNamespace(**{loss: type(loss, (torch.nn.Module,), {"__module__": "timm.loss"}) for loss in losses})
sys.modules["timm"] = timm
for registration in ("register_fake", "register_autograd", "register_vmap"):
    setattr(torch.library, registration, lambda *arguments, **options: None)

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape"]
suppress_warnings = ["config.cache"]


def name_section_of_apply(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """The arguments of `Function.apply` are a section like those of a function."""
    lines[:] = ["Args:" if line.startswith("Args of :meth:`apply`") else line for line in lines]


def without_signature(app: object, what: str, name: str, obj: object, *others: object) -> tuple[str, None] | None:
    """A `Function` is not called: its `apply` is, by position."""
    return ("", None) if isinstance(obj, type) and issubclass(obj, torch.autograd.Function) else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", name_section_of_apply, priority=100)  # before napoleon's
    app.connect("autodoc-process-signature", without_signature)
