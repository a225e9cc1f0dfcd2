"""Every command and every Python line of the README works, from one folder, in its order, at small sizes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from morphogen.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

# What makes a command of the README small enough for a test; everything else is as printed.
SMALLER = {
    "tissue train": "--size tiny --steps 2 --tile 64 --training.batch_size 2",
    "tissue canvas": "--steps 2",
    "tissue evaluate": "--steps 2 --tiles 24 --encoders model",
    "expression train": "--genes 12 --training.steps 3 --training.batch_size 16",
    "expression predict": "--samples 2",
    "expression evaluate": "--samples 4",
    "stain train": "--steps 2 --crop 64 --training.batch_size 2 --training.warmup_steps 0 "
    "--model.widths [16,16] --model.attention [1]",
    "stain predict": "--steps 1 --windows.batch 16",
    "layout train": "--size tiny --steps 2 --crop 64 --training.batch_size 4",
    "layout synthesize": "--count 3",
    "layout evaluate": "--steps 1 --crop 64 --training.batch_size 2 --network.widths [8,16]",
    "layout segmenter": "--steps 1 --crop 64 --training.batch_size 2 --network.widths [8,16]",
}


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.strip().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The user's folder that the README speaks of: a slide, a folder of slides, sections, pairs."""
    from morphogen.demo import TissueSimulator, write_hest, write_mist, write_segmentation, write_slide

    place = tmp_path_factory.mktemp("readme")
    slide = ROOT / "src" / "morphogen" / "demo" / "assets" / "cmu-1-small-region.svs"
    (place / "slides").mkdir()
    # Small enough to stain in a test; what a file is, is read from its content.
    write_slide(place / "slide.tif", 320, 256, simulator=TissueSimulator(1))
    (place / "slide.tif").rename(place / "slide.svs")
    shutil.copy(slide, place / "slides" / "a.svs")
    write_hest(place / "hest", patients=3, width_um=700, height_um=600, n_genes=140, truth=False)
    write_mist(place / "pairs", 2, 2, size=96, truth=False)
    write_segmentation(place / "annotated", 8, 96, patients=8, mpp=2.0)
    return place


def run(line: str) -> int:
    tokens = shlex.split(line)
    assert tokens[0] == "morphogen"
    smaller = SMALLER.get(" ".join(tokens[1:3]), "")
    with pytest.raises(SystemExit) as stop:
        main([*tokens[1:], *shlex.split(smaller)])
    return stop.value.code or 0


def test_the_readme(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    lines = commands(ROOT / "README.md")
    assert len(lines) >= 12
    for line in lines:
        status = run(line)
        assert status == 0, f"{line}\n{capfd.readouterr().err[-2000:]}"
    for made in ("map.h5ad", "map.geojson", "scores/report.html", "stain-scores/report.html", "trident"):
        assert (folder / made).exists(), made
    shutil.rmtree(
        "stained-slide"
    )  # made with the test's few steps; another run's results are not overwritten
    import matplotlib

    matplotlib.use("Agg")
    for text in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        exec(compile(text, "README.md", "exec"), {})
    assert list((folder / "stained-slide").glob("slide_*.ome.tif"))


def test_make_targets_of_the_readme_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(named) <= set(targets) and {"demo", "test"} <= set(named)


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
