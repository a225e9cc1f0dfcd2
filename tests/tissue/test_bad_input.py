"""Wrong inputs on the command line: one sentence that says where and what, exit status 2, nothing half drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from morphogen.cli.main import main
from morphogen.tissue import EmbeddingGrid, ModelConfig, new_model


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A model of ``texture`` embeddings, an image, and files that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("bad")
    config = ModelConfig.of("tiny", embeddings={"patch": 280}, encoder="texture")
    new_model(config, tile_px=32, mpp=1.0).save_pretrained(folder / "model")
    noise = np.random.default_rng(0).integers(120, 220, (64, 96, 3)).astype(np.uint8)
    Image.fromarray(noise).save(folder / "slide.png")
    cells = np.ones((2, 2, 280), np.float32)
    EmbeddingGrid(cells).save(folder / "good.npz")
    EmbeddingGrid(cells[..., :7]).save(folder / "narrow.npz")
    holed = cells.copy()
    holed[1, 0, 5] = np.nan
    np.savez(folder / "nan.npz", patch=holed)
    np.save(folder / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    (folder / "picks.csv").write_text("row,column,tile\n0,0,nowhere\n")
    return folder


LIKE = ("--like", "slide.png", "--mpp", "1")
CASES = {
    "grid of another width": (("--grid", "narrow.npz"), "have 7 columns, this model was trained on 280"),
    "grid with NaN": (("--grid", "nan.npz"), "row 1, column 0"),
    "pickled grid": (("--grid", "pickled.npy"), "is not a grid of embeddings: it holds a pickle"),
    "no such tile": (("--grid", "picks.csv", "--tiles", "slide.png", "--mpp", "1"), "no tile 'nowhere'"),
    "region outside": ((*LIKE, "--region", "40,0,64,64"), "not within the slide of 96 × 64 px"),
    "region below a cell": ((*LIKE, "--region", "0,0,16,16"), "smaller than a cell, which is 32 px"),
    "no region": ((*LIKE, "--region", "here"), "'here' is not x,y,width,height"),
    "another encoder": ((*LIKE, "--encoder", "lite0"), "embeddings of 'texture', not of 'lite0'"),
    "canvas beyond its grid": (("--grid", "good.npz", "--width", "100"), "needs 4 cells of 32 px"),
    "no pixels": (("--grid", "good.npz", "--width", "2"), "smaller than 4 px"),
    "nothing wide": (("--grid", "good.npz", "--width", "0"), "a canvas of 0 px is smaller than 4 px"),
    "two sources": ((*LIKE, "--grid", "good.npz"), "drawn from one source, here are 2"),
}


def run(room, *arguments) -> int:
    given = [str(room / part) if (room / part).exists() else part for part in arguments]
    with pytest.raises(SystemExit) as ended:
        main(given)
    return ended.value.code


@pytest.mark.parametrize("case", CASES)
def test_a_canvas_that_cannot_be_drawn(room, tmp_path, capsys, case):
    arguments, says = CASES[case]
    out = tmp_path / "out"
    status = run(
        room, "tissue", "canvas", *arguments, "--model", "model", "--solver", "fast", "--out", str(out)
    )
    said = " ".join(capsys.readouterr().err.split())
    assert status == 2 and says in said, said
    assert "Traceback" not in said
    left = {each.name for each in out.iterdir()} if out.exists() else set()
    assert left <= {"features"}  # the right grid can be drawn there next


def test_a_canvas_smaller_than_a_window_is_drawn(room, tmp_path):
    small = ("--width", "20", "--height", "12")
    arguments = ("tissue", "canvas", "--grid", "good.npz", "--model", "model", "--solver", "fast", *small)
    assert run(room, *arguments, "--codec", "deflate", "--out", str(tmp_path / "small")) == 0
    import tifffile

    assert tifffile.imread(tmp_path / "small" / "canvas.ome.tif").shape == (12, 20, 3)


def test_tiles_of_another_encoder_are_refused(room, tmp_path, capsys):
    arguments = ("tissue", "patches", "slide.png", "--model", "model", "--mpp", "1", "--encoder", "lite0")
    assert run(room, *arguments, "--out", str(tmp_path / "out")) == 2
    assert "embeddings of 'texture', not of 'lite0'" in " ".join(capsys.readouterr().err.split())


def test_a_table_of_another_encoder_is_refused(room, tmp_path, capsys):
    import anndata
    import pandas as pd

    table = anndata.AnnData(
        np.zeros((1, 280), np.float32),
        pd.DataFrame({"path": ["slide.png"]}, index=["a"]),
        uns={"encoder": "uni"},
    )
    table.write_h5ad(room / "other.h5ad")
    assert (
        run(room, "tissue", "patches", "other.h5ad", "--model", "model", "--out", str(tmp_path / "out")) == 2
    )
    assert "are of 'uni', the model was trained on those of 'texture'" in " ".join(
        capsys.readouterr().err.split()
    )


def test_one_bad_image_among_several_is_listed_and_the_rest_is_drawn(room, tmp_path, capsys):
    inputs = tmp_path / "in"
    inputs.mkdir()
    whole = (room / "slide.png").read_bytes()
    (inputs / "good.png").write_bytes(whole)
    (inputs / "cut.png").write_bytes(whole[: len(whole) // 2])
    line = ("--model", "model", "--mpp", "1", "--steps", "1", "--most", "2", "--out", str(tmp_path / "out"))
    assert run(room, "tissue", "patches", str(inputs), *line) == 3
    out, notes = capsys.readouterr()
    assert out.count("failed: ") == 1 and "cut.png" in out and "2 patches" in out
    assert "1 of 2 images cannot be read and are left out" in notes  # before the work, too
    (inputs / "good.png").unlink()
    assert run(room, "tissue", "patches", str(inputs), *line[:-1], str(tmp_path / "none")) == 2
    assert capsys.readouterr().err.count("cut.png") == 1
