"""Malformed input of every kind, from seeds: one sentence, the right exit status, nothing written elsewhere."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import harness, mutations
from .specimens import TINY_LAYOUT, TINY_STAIN


@dataclass(frozen=True)
class Kind:
    """What is spoiled, how, and the command that meets it. ``{out}`` is the output, the rest relative paths."""

    need: tuple[str, ...]
    target: str
    spoil: str
    command: str
    cases: int


SLIDE = "slide encode {target} --out {out} --workers 1 --tissue all --tile-px 64 --tile-mpp 0.5"
CHANNELS = "stain evaluate channels/target channels/pairs.csv --split train --out {out} --panels 1 --tile 16"
WHOLE = "stain evaluate channels/slides/made channels/slides/slides.csv --out {out} --panels 0 --tile 16 --field 64"
KINDS = {
    "png": Kind(("images",), "images/a.png", "bytes", "slide info {target}", 25),
    "jpeg": Kind(("images",), "images/b.jpg", "bytes", "slide info {target}", 20),
    "tiff": Kind(("images",), "images/c.tif", "bytes", "slide info {target}", 25),
    "pyramid info": Kind(("slides",), "slides/pyramid.tif", "bytes", "slide info {target}", 30),
    "pyramid encode": Kind(("slides",), "slides/pyramid.tif", "bytes", SLIDE, 30),
    "ome encode": Kind(("slides",), "slides/ome.ome.tif", "bytes", SLIDE, 20),
    "slide list": Kind(("slides",), "slides/list.csv", "table", "slide info {target}", 30),
    "slide name": Kind(("slides",), "slides/ome.ome.tif", "name", "slide info slides", 15),
    "one of a folder": Kind(
        ("images", "stain"),
        "images/b.jpg",
        "bytes",
        "stain apply stain images --out {out} --steps 1",
        25,
    ),
    "stain image": Kind(
        ("images", "stain"),
        "images/a.png",
        "bytes",
        "stain apply stain {target} --out {out} --steps 1",
        20,
    ),
    "image name": Kind(
        ("images", "stain"),
        "images/a.png",
        "name",
        "stain apply stain images --out {out} --steps 1",
        15,
    ),
    "stain model json": Kind(
        ("images", "stain"),
        "stain/morphogen.json",
        "json",
        "stain apply stain images --out {out} --steps 1",
        40,
    ),
    "stain model unet json": Kind(
        ("images", "stain"),
        "stain/unet/config.json",
        "json",
        "stain apply stain images --out {out} --steps 1",
        25,
    ),
    "stain model weights": Kind(
        ("images", "stain"),
        "stain/unet/diffusion_pytorch_model.safetensors",
        "bytes",
        "stain apply stain images --out {out} --steps 1",
        15,
    ),
    "stain yaml": Kind(
        ("images", "stain", "checkpoints"),
        "checkpoints/config.yaml",
        "yaml",
        "stain apply stain images --out {out} --steps 1 --config {target}",
        20,
    ),
    "pair table": Kind(
        ("pairs",),
        "pairs/pairs.csv",
        "table",
        "stain register {target} --out {out}/maps.csv --motion shift --max-shift 8",
        25,
    ),
    "channels": Kind(("channels",), "channels/target/p0.ome.tif", "bytes", CHANNELS, 15),
    "channel table": Kind(("channels",), "channels/pairs.csv", "table", CHANNELS, 15),
    "channel target": Kind(("channels",), "channels/target.yaml", "yaml", CHANNELS, 10),
    "nuclei of pairs": Kind(("channels",), "channels/nuclei.png", "bytes", CHANNELS, 10),
    "channel slide": Kind(("channels",), "channels/slides/real.ome.tif", "bytes", WHOLE, 10),
    "made slide": Kind(("channels",), "channels/slides/made/s0_ER.ome.tif", "bytes", WHOLE, 10),
    "slide table": Kind(("channels",), "channels/slides/slides.csv", "table", WHOLE, 10),
    "panels": Kind(
        ("channels",),
        "channels/panels/train/p0.png",
        "bytes",
        f"stain train channels/panels --out {{out}} {TINY_STAIN}",
        5,
    ),
    "patients": Kind(
        ("pairs",),
        "pairs/patients.csv",
        "table",
        "stain register pairs --out {out}/maps.csv --motion shift --max-shift 8",
        10,
    ),
    "prepared": Kind(
        ("sections", "genes"),
        "sections/prepared/S1.h5ad",
        "h5",
        "expression predict {target} --model genes/model --out {out}/map.h5ad --samples 1",
        50,
    ),
    "prepared bytes": Kind(
        ("sections", "genes"),
        "sections/prepared/S1.h5ad",
        "bytes",
        "expression predict {target} --model genes/model --out {out}/map.h5ad --samples 1",
        15,
    ),
    "train": Kind(
        ("sections",),
        "sections/prepared/S1.h5ad",
        "h5",
        "expression train sections/prepared --recipe stem --training.steps 1 --panel.size 6 --network.width 16 "
        "--network.depth 1 --network.heads 2 --out {out}",
        25,
    ),
    "raw counts": Kind(
        ("sections",),
        "sections/raw/S1.tsv",
        "table",
        "expression prepare sections/raw --out {out} --data.mpp 3.33",
        20,
    ),
    "raw spots": Kind(
        ("sections",),
        "sections/raw/S1_selection.tsv",
        "table",
        "expression prepare sections/raw --out {out} --data.mpp 3.33",
        20,
    ),
    "visium": Kind(
        ("sections",),
        "sections/visium/V1.h5ad",
        "h5",
        "expression prepare sections/visium --out {out} --data.mpp 3.33 --data.images sections/visium",
        30,
    ),
    "gene model json": Kind(
        ("sections", "genes"),
        "genes/model/morphogen.json",
        "json",
        "expression predict sections/prepared/S1.h5ad --model genes/model --out {out}/map.h5ad --samples 1",
        40,
    ),
    "view genes": Kind(("looks",), "looks/genes.h5ad", "h5", "view {target} --export {out}", 30),
    "view outlines": Kind(("looks",), "looks/cells.geojson", "json", "view {target} --export {out}", 30),
    "zarr metadata": Kind(
        ("looks",), "looks/small.ome.zarr/zarr.json", "json", "slide info looks/small.ome.zarr", 30
    ),
    "zarr array": Kind(
        ("looks",), "looks/small.ome.zarr/0/zarr.json", "json", "view looks/small.ome.zarr --export {out}", 30
    ),
    "zarr chunk": Kind(
        ("looks",), "looks/small.ome.zarr/0/c/0/0/0", "bytes", "view looks/small.ome.zarr --export {out}", 20
    ),
    "safetensors": Kind(
        ("checkpoints",), "checkpoints/weights.safetensors", "bytes", "checkpoint info {target}", 20
    ),
    "torch file": Kind(("checkpoints",), "checkpoints/weights.pt", "bytes", "checkpoint info {target}", 20),
}
LAYOUT = "layout segmenter labelled --out {out} --network.widths [8,16] " + TINY_LAYOUT
APPLY = "layout segment labelled/images/i0.png --model segmenter/model --out {out} --device cpu"
MAKE = "layout synthesize labelled --model layout/model --count 1 --out {out} --device cpu"
KINDS |= {
    "layout mask": Kind(("labelled",), "labelled/masks/i0.png", "bytes", LAYOUT, 6),
    "layout image": Kind(("labelled",), "labelled/images/i1.png", "bytes", LAYOUT, 5),
    "layout mask name": Kind(("labelled",), "labelled/masks/i0.png", "name", LAYOUT, 4),
    "layout labels": Kind(("labelled",), "labelled/labels.json", "json", LAYOUT, 8),
    "layout patients": Kind(("labelled",), "labelled/patients.csv", "table", LAYOUT, 8),
    "layout polygons": Kind(
        ("polygons",),
        "polygons/S1.geojson",
        "json",
        "layout segmenter polygons --out {out} --network.widths [8,16] --crop 32 --steps 1 "
        "--training.batch_size 2 --training.save_every 1 --device cpu",
        12,
    ),
    "synthetic manifest": Kind(
        ("labelled", "synthetic"),
        "synthetic/manifest.csv",
        "table",
        f"{LAYOUT} --synthetic synthetic",
        8,
    ),
    "layout model json": Kind(("labelled", "layout"), "layout/model/morphogen.json", "json", MAKE, 12),
    "segmenter json": Kind(("labelled", "segmenter"), "segmenter/model/morphogen.json", "json", APPLY, 10),
    "segmenter weights": Kind(
        ("labelled", "segmenter"), "segmenter/model/network.safetensors", "bytes", APPLY, 6
    ),
}
_SPOTS = "expression prepare spatial/visium.zarr --out {out}"
_COUNTED = "expression prepare spatial/xenium.zarr --out {out} --data.units nuclei"
_CELLS = (
    "expression predict spatial/he.png --model genes/model --mpp 1 --samples 0 --out {out}/cells.h5ad "
    "--cells {target} --store {out}/cells.zarr"
)
_BACK = (
    "expression predict sections/prepared/S1.h5ad --model genes/model --out {out}/map.h5ad --samples 0 "
    "--store {out}/back.zarr"
)
_STAINED = "stain apply stain looks/small.ome.zarr --out {out} --steps 1 --format zarr"
KINDS |= {
    "zarr input": Kind(("looks", "stain"), "looks/small.ome.zarr/zarr.json", "json", _STAINED, 8),
    "zarr input array": Kind(("looks", "stain"), "looks/small.ome.zarr/0/zarr.json", "json", _STAINED, 8),
    "zarr input chunk": Kind(("looks", "stain"), "looks/small.ome.zarr/0/c/0/0/0", "bytes", _STAINED, 6),
    "store root": Kind(("spatial",), "spatial/visium.zarr/zarr.json", "json", _SPOTS, 8),
    "store table": Kind(("spatial",), "spatial/visium.zarr/tables/table/zarr.json", "json", _SPOTS, 8),
    "store counts": Kind(("spatial",), "spatial/visium.zarr/tables/table/X/data/c/0", "bytes", _SPOTS, 5),
    "store columns": Kind(
        ("spatial",), "spatial/visium.zarr/tables/table/obs/spot/zarr.json", "json", _SPOTS, 8
    ),
    "store indices": Kind(
        ("spatial",), "spatial/visium.zarr/tables/table/X/indices/zarr.json", "json", _SPOTS, 8
    ),
    "store circles": Kind(
        ("spatial",), "spatial/visium.zarr/shapes/spots/shapes.parquet", "bytes", _SPOTS, 6
    ),
    "store places": Kind(("spatial",), "spatial/visium.zarr/shapes/spots/zarr.json", "json", _SPOTS, 12),
    "store image": Kind(("spatial",), "spatial/visium.zarr/images/full/zarr.json", "json", _SPOTS, 12),
    "store pixels": Kind(("spatial",), "spatial/visium.zarr/images/full/s0/c/0/0/0", "bytes", _SPOTS, 5),
    "transcripts": Kind(
        ("spatial",),
        "spatial/xenium.zarr/points/transcripts/points.parquet/part.0.parquet",
        "bytes",
        _COUNTED,
        8,
    ),
    "transcript places": Kind(
        ("spatial",), "spatial/xenium.zarr/points/transcripts/zarr.json", "json", _COUNTED, 10
    ),
    "cell shapes": Kind(
        ("spatial",), "spatial/xenium.zarr/shapes/nuclei/shapes.parquet", "bytes", _COUNTED, 6
    ),
    "cell outlines": Kind(("spatial", "genes"), "spatial/nuclei.geojson", "json", _CELLS, 12),
    "cell mask": Kind(("spatial", "genes"), "spatial/nuclei.png", "bytes", _CELLS, 10),
}

_DRAW = "tissue patches images/a.png --model tissue/model --out {out} --steps 1 --mpp 1 --device cpu"
#: Of what other verbs wrote first.
WRITTEN = {
    "tissue model json": Kind(("images", "tissue"), "tissue/model/morphogen.json", "json", _DRAW, 20),
    "tissue components": Kind(
        ("images", "tissue"), "tissue/model/first_stage/components.safetensors", "bytes", _DRAW, 10
    ),
    "tissue image": Kind(
        ("images", "tissue"),
        "images/a.png",
        "bytes",
        "tissue patches images --model tissue/model --out {out} --steps 1 --mpp 1 --most 4 --device cpu",
        15,
    ),
    "tissue grid": Kind(
        ("drawn", "tissue"),
        "drawn/grid.npz",
        "bytes",
        "tissue canvas --grid {target} --model tissue/model --out {out} --steps 1 --device cpu",
        20,
    ),
}


def attempt(kind: Kind, seed: int, originals: Path, root: Path) -> list[str]:
    """One malformed input through its command; what is wrong with the answer."""
    rng = random.Random(f"{kind.target} {kind.spoil} {seed}")
    work = root / "work"
    shutil.rmtree(root, ignore_errors=True)
    for need in kind.need:
        shutil.copytree(originals / need, work / need)
    out = work / "out"
    how = getattr(mutations, f"spoil_{kind.spoil}")(work / kind.target, rng)
    outcome = harness.run(words_of(kind), work, out)
    wrong = harness.faults(outcome)
    if (work / "code-was-run").exists():
        wrong.append("code of the file was run")
    last = (outcome.err.strip().splitlines() or [""])[-1][:160]
    return [f"seed {seed}, {how}: {fault} | {last}" for fault in wrong]


def test_there_are_enough_cases():
    assert sum(kind.cases for kind in KINDS.values()) >= 500


def words_of(kind: Kind) -> list[str]:
    return [word.format(target=kind.target, out="out") for word in kind.command.split()]


@pytest.mark.slow
def test_every_command_takes_what_is_well_formed(written, tmp_path):
    """Else a kind would test nothing but the first thing that its command refuses."""
    kinds = {" ".join(words_of(kind)): kind for kind in (*KINDS.values(), *WRITTEN.values())}
    wrong = []
    for words, kind in kinds.items():
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        for need in kind.need:
            shutil.copytree(written / need, tmp_path / "work" / need)
        outcome = harness.run(words.split(), tmp_path / "work", tmp_path / "work" / "out")
        if outcome.status != 0 or harness.faults(outcome):
            wrong.append(f"{words}: {outcome.status} {outcome.err.strip()[-300:]} {harness.faults(outcome)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KINDS))
def test_malformed_input_is_answered_in_one_sentence(name, request, tmp_path):
    kind = KINDS[name]
    made = {"labelled", "polygons", "layout", "segmenter", "synthetic"} & set(kind.need)
    originals = request.getfixturevalue("written" if made else "originals")
    wrong = [
        fault for seed in range(kind.cases) for fault in attempt(kind, seed, originals, tmp_path / "case")
    ]
    assert not wrong, f"{len(wrong)} faults of {kind.cases} cases:\n" + "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_malformed_results_are_answered_in_one_sentence(name, written, tmp_path):
    kind = WRITTEN[name]
    wrong = [fault for seed in range(kind.cases) for fault in attempt(kind, seed, written, tmp_path / "case")]
    assert not wrong, f"{len(wrong)} faults of {kind.cases} cases:\n" + "\n".join(wrong)
