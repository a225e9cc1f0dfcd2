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


def test_the_tissue_model_it_comes_with_draws_what_it_is_told(tmp_path):
    """Tiles of the lower part of the slide, unseen: what is drawn from their embeddings is nearer to them
    than to those of other tiles."""
    import numpy as np

    from morphogen.demo.chapters.tissue import TRAINED_ROWS
    from morphogen.demo.workspace import Workspace, real_slide, tissue_model
    from morphogen.metrics.faithfulness import faithfulness
    from morphogen.slides import get_encoder
    from morphogen.tissue import DataConfig, TissueDiffusion, read_tiles

    model = TissueDiffusion.from_pretrained(tissue_model())
    assert {p.dtype.itemsize for p in model.network.parameters()} == {
        4
    }  # kept in half, used in single precision
    data = DataConfig(tile_px=64, tile_mpp=1.0, stride=128, hold_out=0.0)
    tiles = read_tiles(real_slide(Workspace(tmp_path)), data, cache=tmp_path / "features")
    below = np.flatnonzero(tiles.places[:, 1] > TRAINED_ROWS * tiles.places[:, 1].max())[:12]
    wanted = tiles.take(below).features["patch"]
    drawn = model(wanted, "fast", seed=0).images
    found = np.asarray(get_encoder("texture")(drawn))
    assert faithfulness(wanted, found, np.random.default_rng(0)).gain > 0.2
