"""What the pages, llms.txt and the notebook point at is there; the pictures show what their sources say."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import fused_losses

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TEXTS = sorted([*ROOT.glob("*.md"), ROOT / "llms.txt", *DOCS.glob("**/*.md")])
IDS = [str(text.relative_to(ROOT)) for text in TEXTS]

# A page that is another file, or the list of all pages.
WITHOUT_TEXT = {"index.md", "contributing.md", "changelog.md"}
WRITTEN_BY_A_RUN = {"benchmarks/results/cuda-full.json", "fused_losses/_cuda<major>…so"}


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_links_lead_somewhere(text: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text.read_text()):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (text.parent / path).resolve() if path else text
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_files_that_are_named_exist(text: Path) -> None:
    named = re.findall(r"`((?:benchmarks|csrc|docs|examples|fused_losses|tests)/[^`\s]*)`", text.read_text())
    for path in set(named) - WRITTEN_BY_A_RUN:
        assert list(ROOT.glob(re.sub(r"<\w+>", "*", path.rstrip("/")))), path


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_commands_that_are_named_exist(text: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^    |`)make ([a-z-]+)", text.read_text(), flags=re.MULTILINE)) <= targets
    for module in re.findall(r"python -m ((?:benchmarks|examples|fused_losses)[\w.]*)", text.read_text()):
        assert importlib.util.find_spec(module.rstrip(".")), module


def test_llms_txt_has_every_page() -> None:
    text = (ROOT / "llms.txt").read_text()
    assert re.match(r"# fused_losses\n\n> ", text)
    pages = {f"docs/{page.name}" for page in DOCS.glob("*.md")} - {f"docs/{name}" for name in WITHOUT_TEXT}
    assert pages <= set(re.findall(r"\]\(([^)]+)\)", text))


def test_the_api_reference_has_every_public_name() -> None:
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    modules = re.findall(r"automodule:: (\S+)", text)
    single = re.findall(r"auto(?:class|function):: (\S+)", text)
    for name in set(fused_losses.__all__) - {"__version__", "autograd", "functional"}:
        thing = getattr(fused_losses, name)
        assert thing.__module__ in modules or {f"fused_losses.{name}", f"{thing.__module__}.{name}"} & set(single), name
    assert {"fused_losses.autograd", "fused_losses.functional", "fused_losses.distributed"} <= set(modules)


def test_the_pictures_of_kernels_have_the_sizes_of_the_sources() -> None:
    drawn = runpy.run_path(str(DOCS / "kernel_pictures.py"))["PICTURES"]
    assert len(drawn) == 3
    for name, draw in drawn.items():
        again = "python docs/kernel_pictures.py draws it again"
        assert draw().drawing() == (DOCS / "images" / name).read_text(), again


def test_the_overview_shows_the_figures_of_the_run() -> None:
    pytest.importorskip("matplotlib", reason="the plots need the extra `bench`")
    from benchmarks import overview

    texts = re.findall(r"<text[^>]*>([^<]*)</text>", overview.PICTURE.read_text())
    for value in overview.PANELS.values():
        for contender in overview.CONTENDERS:
            labels = [value(cell, contender)[1] for cell in overview.cells()]
            assert set(labels) <= set(texts)
    assert texts.count("fused_losses") == 1


@pytest.mark.parametrize("folder", ["docs/images", "benchmarks/results"])
def test_pictures_are_for_light_and_dark(folder: str) -> None:
    for picture in (ROOT / folder).glob("*.svg"):
        assert "prefers-color-scheme: dark" in picture.read_text(), picture.name


def code_cells() -> list[dict[str, Any]]:
    notebook = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_prints_what_it_shows() -> None:
    names: dict[str, Any] = {}
    for cell in code_cells():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        if "differs-by-machine" not in cell["metadata"].get("tags", []):
            shown = "".join(line for output in cell["outputs"] for line in output["text"])
            assert printed.getvalue() == shown, cell["id"]
    assert not fused_losses.is_patched()
