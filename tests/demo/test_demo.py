"""The demonstration: a chapter runs from an empty folder, and its report is one self-contained page."""

from __future__ import annotations

import re
import sys

import pytest

from morphogen.cli.main import main
from morphogen.core.errors import ConfigError
from morphogen.core.files import Manifest
from morphogen.demo.chapters import CHAPTERS
from morphogen.demo.run import run_demo
from morphogen.demo.workspace import shown


def test_one_chapter_through_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--only", "slides", "--quick", "--out", str(tmp_path / "report")])
    assert stop.value.code == 0
    page = (tmp_path / "report" / "index.html").read_text()
    assert "A real slide, tiled and embedded" in page and "encode_slide" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]+"', page), (
        "the page must need nothing beside itself"
    )
    facts = Manifest.read(tmp_path / "report")
    assert facts["chapters"] == ["slides"] and facts["headlines"]
    assert str(tmp_path / "report" / "index.html") in capsys.readouterr().out


@pytest.mark.slow
def test_every_chapter_runs(tmp_path):
    page = run_demo(tmp_path / "report", quick=True, device="cpu")
    text = re.sub(r"<[^>]+>", "", page.read_text())  # code is coloured
    assert page.stat().st_size < 25e6
    assert len(Manifest.read(tmp_path / "report")["headlines"]) >= len(CHAPTERS)
    assert all(
        word in text
        for word in ("with the expected expression", "virtual ER stain", "morphogen expression train")
    )


def test_an_unknown_chapter_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'staining'"):
        run_demo(tmp_path, chapters=["stainin"])


def test_shown_code_is_the_code_that_runs():
    def example(a: int) -> int:
        """Not shown."""
        b = a + 1  # shown
        return b

    assert shown(example) == "b = a + 1  # shown"
    assert "shown" in sys.modules[shown.__module__].__dict__


def test_the_stain_model_it_comes_with_loads():
    from importlib.resources import as_file, files

    from morphogen.stain import StainTransfer

    with as_file(files("morphogen.demo") / "assets" / "stain-er") as folder:
        model = StainTransfer.from_pretrained(folder, device="cpu")
    assert model.stains == ("IHC",)
