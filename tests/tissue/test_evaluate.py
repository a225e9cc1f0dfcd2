"""Scores, reports, twins and the command line of the room."""

from __future__ import annotations

import csv
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from morphogen.cli.main import main
from morphogen.core.errors import DependencyError, InputError
from morphogen.metrics.faithfulness import embedding_similarity, faithfulness, memorisation
from morphogen.slides.pyramid import write_pyramid
from morphogen.tissue import EvaluateConfig, evaluate_twin, scoring
from morphogen.tissue.canvases.sources import grid_of_picks, region_boxes
from morphogen.tissue.evaluate import judges
from morphogen.tissue.reading.samples import import_sample_file, transposed_grid
from morphogen.tissue.scoring import crops

from .conftest import coloured_tiles


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(each) for each in arguments])
    return ended.value.code


def rng():
    return np.random.default_rng(0)


def test_a_judge_that_is_not_installed_is_left_out_unless_it_was_asked_for(monkeypatch, caplog):
    """A plain install has no `lite0`, and its demonstration runs all the same."""
    own = SimpleNamespace(spec=SimpleNamespace(name="texture"))
    monkeypatch.setattr("morphogen.tissue.evaluate.model_encoder", lambda model: own)
    monkeypatch.setattr("morphogen.slides.encoders.lite0.find_spec", lambda name: None)
    assert judges(None, EvaluateConfig()) == {"texture": own}
    assert "morphogen[lite0]" in caplog.text
    with pytest.raises(DependencyError):
        judges(None, EvaluateConfig(encoders=("model", "lite0")))


def test_faithfulness_of_perfect_and_of_foreign_images():
    real = rng().normal(3, 1, (200, 8))  # a common offset, as encoders have it
    same = faithfulness(real, real + 1e-3 * rng().normal(size=real.shape), rng())
    assert same.top1 == 1 and same.top5 == 1 and same.matched > 0.99 and abs(same.shuffled) < 0.05
    other = faithfulness(real, np.random.default_rng(1).normal(3, 1, (200, 8)), rng())
    assert other.top1 < 0.05 and abs(other.gain) < 0.05 and other.top5 == pytest.approx(0.05, abs=0.05)
    assert embedding_similarity(real, np.roll(real, 1, 0)) > 0.8  # the plain cosine sees the offset alone
    constant = faithfulness(real, np.repeat(real[:1], 200, 0), rng())
    assert constant.top1 <= 0.02  # ties count against
    assert np.isnan(faithfulness(real[:150], real[:150], rng(), group=100).values).sum() == 50
    with pytest.raises(InputError, match="no pairs"):
        faithfulness(real, real[:10], rng())


def test_memorisation_finds_copies():
    training, held = rng().normal(size=(300, 6)), np.random.default_rng(1).normal(size=(100, 6))
    copies = memorisation(training, held, training[:80] + 0.01)
    assert copies.nearer == 1 and copies.c_t < -8 and (copies.nearest == np.arange(80)).all()
    honest = memorisation(training, held, np.random.default_rng(2).normal(size=(100, 6)))
    assert abs(honest.c_t) < 3 and honest.nearer < 0.15


def test_set_scores_hold_the_floor_beside():
    real = rng().normal(size=(120, 5))
    same = scoring.set_scores(real, real)
    assert same["frechet"] == pytest.approx(same["frechet_floor"]) and same["n"] == 60
    far = scoring.set_scores(real, real + 3)
    assert far["frechet_ratio"] > 20 and far["precision"] < 0.1 < far["precision_floor"]
    with pytest.raises(InputError, match="24 or more tiles"):
        scoring.set_scores(real[:10], real[:10])


def region_image(path, rows=4, columns=6, px=32):
    """An image whose cells of 32 px have colours of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = rng()
    colours = generator.integers(60, 200, (rows, columns, 3))
    image = colours.repeat(px, 0).repeat(px, 1) + generator.normal(0, 8, (rows * px, columns * px, 3))
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained for a moment on images through the command line."""
    folder = tmp_path_factory.mktemp("tissue")
    for name in "abc":
        region_image(folder / "data" / f"{name}.png")
    status = run(
        *("tissue", "train", folder / "data", "--out", folder / "run", "--size", "tiny", "--steps", 3),
        *("--mpp", 1, "--tile-mpp", 1, "--tile", 32, "--hold-out", "b", "--device", "cpu"),
    )
    assert status == 0
    return folder


def test_the_command_line_trains_and_keeps_what_was_held_out(trained, capsys):
    assert json.loads((trained / "run" / "split.json").read_text()) == {
        "train": ["a", "c"],
        "held_out": ["b"],
    }
    facts = json.loads((trained / "run" / "model" / "morphogen.json").read_text())
    assert facts["config"]["encoder"] == "texture" and facts["training"]["tiles"] == 48
    assert facts["preprocessing"] == {"tile_px": 32, "mpp": 1.0}
    assert run("tissue", "train", trained / "data", "--out", trained / "x", "--size", "smal") == 2
    assert run("tissue", "train", trained / "gone", "--out", trained / "x", "--mpp", 1) == 2
    assert "gone" in capsys.readouterr().err


def test_a_twin_is_drawn_and_judged(trained, capsys):
    model = trained / "run" / "model"
    out = trained / "twin"
    common = ("--model", model, "--mpp", 1, "--device", "cpu")
    status = run(
        *("tissue", "canvas", "--like", trained / "data" / "b.png", "--region", "0,0,128,96", "--out", out),
        *("--solver", "fast", "--steps", 3, *common, "--json"),
    )
    assert status == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["width"], made["height"]) == (128, 96) and (out / "grid.npz").is_file()
    status = run(
        *("tissue", "evaluate", trained / "data" / "b.png", "--canvas", out, "--region", "0,0,128,96"),
        *("--out", trained / "judged", "--encoders", "model", *common),
    )
    assert status == 0
    found = json.loads((trained / "judged" / "twin.json").read_text())
    assert found["cells"] == 12 and 0 <= found["texture"]["cell_top1"] <= 1 and "score" in found["seams"]
    capsys.readouterr()
    assert run("tissue", "canvas", "--out", out, *common) == 2
    assert "drawn from one source" in capsys.readouterr().err
    bad = ("--like", trained / "data" / "b.png", "--region", "0,0,900,96")
    assert run("tissue", "canvas", "--out", trained / "y", *bad, *common) == 2
    assert "not within the slide" in capsys.readouterr().err


def test_crops_of_a_region_are_as_near_to_it_as_its_floor(tiny, tmp_path):
    """A canvas that is the region itself: its crops are real ones, its seams the region's."""
    image = np.random.default_rng(0).integers(90, 220, (160, 192, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "slide.png")
    write_pyramid(tmp_path / "canvas.ome.tif", [image], 192, 160, mpp=1.0, codec="deflate")
    config = EvaluateConfig(encoders=("model",))
    found = evaluate_twin(
        tiny, tmp_path / "canvas.ome.tif", tmp_path / "slide.png", tmp_path / "out", mpp=1.0, config=config
    )
    assert found["cells"] == 30 and found["texture"]["cell_top1"] == 1
    assert found["texture"]["crop_frechet_ratio"] == pytest.approx(1, abs=1e-4)
    assert found["seams"] == found["seams_of_region"] and found["nuclear_area_r"] == pytest.approx(1)
    places = crops(image, 32, 30)
    assert places.shape == (30, 32, 32, 3) and np.array_equal(places, crops(image.copy(), 32, 30))


def test_bare_glass_takes_no_part_in_a_twins_scores(tiny, tmp_path):
    """Below tissue lies glass, which the twin has in another tint: what is said of the tissue stays."""
    tissue = np.random.default_rng(0).integers(90, 220, (160, 192, 3)).astype(np.uint8)
    config, found = EvaluateConfig(encoders=("model",)), []
    for glass, tint in ((0, 0), (160, 250), (160, 240)):
        image, twin = (
            np.concatenate([tissue, np.full((glass, 192, 3), value, np.uint8)]) for value in (245, tint)
        )
        folder = tmp_path / f"{glass}-{tint}"
        folder.mkdir()
        Image.fromarray(image).save(folder / "slide.png")
        write_pyramid(folder / "canvas.ome.tif", [twin], 192, len(twin), mpp=1.0, codec="deflate")
        found.append(
            evaluate_twin(
                *(tiny, folder / "canvas.ome.tif", folder / "slide.png", folder / "out"),
                mpp=1.0,
                config=config,
            )
        )
    assert [(each["cells"], each["bare"]) for each in found] == [(30, 0), (30, 30), (30, 30)]
    for each in found[1:]:
        assert each["texture"]["cell_top1"] == 1 and each["nuclear_area"] == found[0]["nuclear_area"]
    write_pyramid(folder / "canvas.ome.tif", [twin[160:]], 192, 160, mpp=1.0, codec="deflate")
    with pytest.raises(InputError, match="0 of 30 cells hold tissue"):
        evaluate_twin(
            *(tiny, folder / "canvas.ome.tif", folder / "slide.png", tmp_path / "none"),
            mpp=1.0,
            config=config,
            region=(0, 160, 192, 160),
        )


def test_held_out_tiles_are_drawn_again_and_scored(trained, capsys):
    out = trained / "scores"
    status = run(
        *(
            "tissue",
            "evaluate",
            trained / "data" / "b.png",
            "--model",
            trained / "run" / "model",
            "--out",
            out,
        ),
        *("--mpp", 1, "--encoders", "model", "--steps", 2, "--device", "cpu"),
        *("--training", trained / "data" / "a.png", trained / "data" / "c.png"),
    )
    assert status == 0 and "real to real" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    figures = metrics["methods"]["texture"]["figures"]
    assert {"frechet", "frechet_floor", "top1", "c_t", "coverage"} <= set(figures)
    assert metrics["methods"]["texture"]["intervals"]["gain"]["unit"] == "tile"
    page = (out / "report.html").read_text()
    assert "own vector nearest" in page and "real to real" in page
    with open(out / "patches" / "manifest.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and (out / "patches" / rows[0]["file"]).is_file()


def test_patches_go_on_where_they_stopped(trained, capsys):
    out = trained / "patches"
    arguments = (
        *("tissue", "patches", trained / "data" / "a.png", "--model", trained / "run" / "model"),
        *("--out", out, "--mpp", 1, "--steps", 2, "--samples", 2, "--most", 3, "--device", "cpu"),
    )
    assert run(*arguments) == 0
    files = sorted((out / "images").glob("*.png"))
    before = {path.name: path.read_bytes() for path in files}
    assert len(files) == 6 and len(set(before.values())) == 6
    files[2].unlink()
    assert run(*arguments) == 0
    assert {path.name: path.read_bytes() for path in (out / "images").glob("*.png")} == before
    assert run(*arguments, "--seed", 5) == 2
    assert "patches of another run" in capsys.readouterr().err


def test_grids_of_picks(tmp_path):
    table = coloured_tiles(4)
    (tmp_path / "g.csv").write_text("row,column,tile\n0,0,tile2\n0,1,tile0\n1,0,tile1\n1,1,tile2\n")
    grid = grid_of_picks(tmp_path / "g.csv", table)
    assert (grid.patch[0, 1] == table.features["patch"][0]).all() and (
        grid.patch[0, 0] == grid.patch[1, 1]
    ).all()
    for text, message in {
        "row,column,tile\n0,0,tile9\n": "there is no tile 'tile9'",
        "row,column,tile\n0,0,tile1\n0,0,tile2\n": "cell .0, 0. is named twice",
        "row,column,tile\n0,0,tile1\n1,1,tile2\n": "2 of 4 cells have no tile",
        "row,column,tile\n-1,0,tile1\n": "must be whole numbers",
        "row,column,tile\nx,0,tile1\n": "row",
        "row,tile\n0,tile1\n": "column",
    }.items():
        (tmp_path / "g.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            grid_of_picks(tmp_path / "g.csv", table)


def test_regions_are_cut_into_whole_cells(tmp_path):
    from morphogen.slides import open_slide

    slide = open_slide(region_image(tmp_path / "s.png"), mpp=0.5)
    boxes, shape = region_boxes(slide, (10, 4, 150, 70), 32, 0.5)
    assert (
        shape == (2, 4) and boxes[0].tolist() == [10, 4, 32, 32] and boxes[-1].tolist() == [106, 36, 32, 32]
    )
    assert region_boxes(slide, None, 32, 1.0)[1] == (2, 3)
    nearly = open_slide(tmp_path / "s.png", mpp=0.4985)  # 64 and 96 px hold two and three cells of 32.096 px
    boxes, shape = region_boxes(nearly, (0, 0, 96, 64), 32, 0.5)
    assert (
        shape == (2, 3)
        and boxes[:, 2:].max() == 32
        and (boxes[:, :2] + boxes[:, 2:]).max(0).tolist() == [96, 64]
    )
    assert region_boxes(nearly, (0, 0, 95, 64), 32, 0.5)[1] == (2, 2)
    with pytest.raises(InputError, match="smaller than a cell"):
        region_boxes(slide, (0, 0, 20, 20), 32, 0.5)


def test_samples_are_imported_with_the_grid_put_right(tmp_path, capsys):
    features = np.arange(16)[:, None].repeat(5, 1).astype(np.float32)
    image = np.zeros((128, 128, 3), np.uint8)
    for k in range(16):  # as published: tile k lies at row k mod 4, column k div 4
        image[32 * (k % 4) : 32 * (k % 4) + 32, 32 * (k // 4) : 32 * (k // 4) + 32] = 10 * k
    (tmp_path / "large.pkl").write_bytes(pickle.dumps([{"feat_20x": features, "img_20x_large": image}]))
    assert run("tissue", "import-samples", tmp_path / "large.pkl", "--out", tmp_path / "o") == 2
    assert "Add --trust" in capsys.readouterr().err
    assert run("tissue", "import-samples", tmp_path / "large.pkl", "--out", tmp_path / "o", "--trust") == 0
    with np.load(tmp_path / "o" / "grids" / "00000.npz") as file:
        grid = file["patch"]
    means = image.reshape(4, 32, 4, 32, 3).mean((1, 3, 4))
    assert (grid[:, :, 0] * 10 == means).all()
    assert (grid[2, 3] == features[4 * 3 + 2]).all()
    patches = [{"feat_20x": features[k], "image": image[:32, :32]} for k in range(3)]
    (tmp_path / "patches.pkl").write_bytes(pickle.dumps(patches))
    assert import_sample_file(tmp_path / "patches.pkl", tmp_path / "p", trust=True) == 3
    assert (tmp_path / "p" / "features.h5").is_file() and len(
        list((tmp_path / "p" / "images").iterdir())
    ) == 3
    with pytest.raises(InputError, match="not those of a square"):
        transposed_grid(features[:15])
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps([{"image": image}]))
    with pytest.raises(InputError, match="sample 0 has no array 'feat_20x'"):
        import_sample_file(tmp_path / "bad.pkl", tmp_path / "q", trust=True)


def test_columns_with_units_count_by_their_spread():
    generator = rng()
    real = generator.normal(0, 1, (60, 4)) * np.array([1000.0, 1, 1, 1])
    drawn = generator.normal(0, 1, (60, 4)) * np.array([1000.0, 1, 1, 1]) + np.array([0, 2.0, 0, 0])
    plain, by_spread = scoring.set_scores(real, drawn), scoring.set_scores(real, drawn, units=True)
    assert by_spread["frechet_raw"] == pytest.approx(plain["frechet"])
    assert by_spread["frechet_raw_ratio"] == pytest.approx(plain["frechet_ratio"])
    assert plain["frechet_ratio"] < 3 < by_spread["frechet_ratio"]  # a shift of 2 SD in one column
    scaled = scoring.set_scores(
        real * np.array([1, 50.0, 1, 1]), drawn * np.array([1, 50.0, 1, 1]), units=True
    )
    for name in ("frechet", "kernel", "precision", "coverage"):
        assert scaled[name] == pytest.approx(by_spread[name])
