"""The tutorials: their pages show the scripts as they are, and every cell runs (slow tier, at tiny sizes)."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples" / "tutorials").glob("*.py"))

TINY = {
    "stain": {"SIDE": 128, "SAMPLES": 2},
    "genes": {"SIDE_UM": 600, "GENES": 8, "STEPS": 2},
    "tissue": {"SIDE": 128, "STEPS": 2},
    "layout": {"SIDE": 96, "STEPS": 2},
}


@pytest.fixture(scope="module")
def tutorials():
    spec = importlib.util.spec_from_file_location("tutorials", ROOT / "docs" / "scripts" / "tutorials.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tutorials"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    yield module
    del sys.modules["tutorials"]


def test_there_is_one_for_every_task():
    assert {script.stem for script in SCRIPTS} == set(TINY)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_page_shows_the_script(script, tutorials):
    page = (ROOT / "docs" / "tutorials" / f"{script.stem}.md").read_text()
    shown = re.findall(r"```python\n(.*?)\n```", page, re.DOTALL)
    assert shown == [cell.text for cell in tutorials.cells_of(script) if cell.code]
    for cell in tutorials.cells_of(script):
        assert cell.text in page
    for picture in re.findall(r"\]\(\.\./(images/tutorials/[^)]+)\)", page):
        assert (ROOT / "docs" / picture).is_file()
    constants = set(re.findall(r"^([A-Z_]+) = ", script.read_text(), re.MULTILINE))
    assert set(TINY[script.stem]) <= constants


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_cell_runs(script, tutorials, tmp_path):
    from lazyslide_models import MODEL_REGISTRY

    before = set(MODEL_REGISTRY)
    results = tutorials.run(script, tmp_path, TINY[script.stem])
    for key in set(MODEL_REGISTRY) - before:
        del MODEL_REGISTRY[key]
    figures = [figure for _, made in results for figure in made]
    assert figures and all(len(figure) > 5000 for figure in figures)
    text, pictures = tutorials.page(script, results)
    assert len(pictures) == len(figures) and all(name in text for name in pictures)
