"""Encoding: the features are right, a killed run goes on to the same bytes, one bad slide does not stop the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from morphogen.core.errors import ConfigError, InputError, OutputError, SlideError, WeightsError
from morphogen.slides import (
    EncoderSpec,
    batch,
    encode,
    encode_slide,
    get_encoder,
    open_slide,
    read_boxes,
    tile_slide,
)
from morphogen.slides.batch import Job, collect, run_jobs
from morphogen.slides.config import EncodeConfig, TileConfig
from morphogen.slides.encode import features_key
from morphogen.slides.store import read_table, table_names
from morphogen.slides.tiles import read_tiles

SPEC = EncoderSpec(name="tiny", kind="module", input_px=32, mpp=1.0, mean=(0, 0, 0), std=(1, 1, 1))
KEY = "tiny_tiles"


class Tiny(torch.nn.Module):
    """Mean colour of each quarter of the tile: 12 numbers. Counts what it sees and may stop there."""

    def __init__(self, stop_after: int | None = None):
        super().__init__()
        self.seen, self.stop_after = 0, stop_after
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(x)
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) * self.gain


def tiny(stop_after: int | None = None):
    return get_encoder(Tiny(stop_after), spec=SPEC, device="cpu")


@pytest.fixture
def small_chunks(monkeypatch):
    """64 tiles a chunk instead of thousands."""
    monkeypatch.setattr(encode, "_CHUNK_BYTES", 1)


# --- one slide -------------------------------------------------------------------------------------------


def test_features_are_the_encoder_on_the_tiles(synthetic, tmp_path):
    slide = open_slide(synthetic, out=tmp_path)
    outcome = encode_slide(slide, tiny(), EncodeConfig(batch_size=7))
    assert (outcome.status, outcome.width) == ("done", 12) and outcome.tiles > 30
    assert set(outcome.stages) == {"tile", "read", "encode", "store"}
    tiles, table = read_tiles(slide), read_table(slide, KEY)
    assert tiles.tile_px == 32 and tiles.mpp == 1.0  # the encoder's own size, as none was asked for
    wanted = tiny()(read_boxes(slide, tiles.boxes, 32)).numpy()
    assert np.allclose(table.X, wanted, atol=1e-6)
    assert np.array_equal(table.obsm["spatial"], tiles.centres)
    assert np.array_equal(table.obs["tile_id"], np.arange(len(tiles)))
    notes = table.uns["morphogen"]
    assert notes["encoder"] == "tiny" and "torch" in json.loads(notes["versions"])


def test_wsidata_and_scanpy_find_the_features(synthetic, tmp_path):
    import scanpy
    from wsidata import open_wsi

    encode_slide(open_slide(synthetic, out=tmp_path), tiny())
    wsi = open_wsi(synthetic, store=str(tmp_path))
    table = wsi.fetch.features_anndata("tiny")
    assert table.shape[1] == 12 and table.shape[0] == len(wsi.shapes["tiles"])
    scanpy.pp.pca(wsi.tables[KEY], n_comps=3)


def test_a_finished_slide_is_kept_and_a_change_is_told(synthetic, tmp_path):
    slide = open_slide(synthetic, out=tmp_path)
    encode_slide(slide, tiny())
    first = read_table(slide, KEY).X
    again = tiny()
    outcome = encode_slide(open_slide(synthetic, out=tmp_path), again)
    assert outcome.status == "kept" and outcome.width == 12 and again.module.seen == 0
    other = tiny()
    with torch.no_grad():
        other.module.gain += 1
    with pytest.raises(
        OutputError, match=r"holds 'tiny_tiles' of another run \(other encoder\).*--overwrite"
    ):
        encode_slide(slide, other)
    assert encode_slide(slide, other, overwrite=True).status == "done"
    assert np.allclose(read_table(slide, KEY).X, 2 * first, atol=1e-6)


def test_two_encoders_share_a_store(synthetic, tmp_path):
    slide = open_slide(synthetic, out=tmp_path)
    encode_slide(slide, tiny())
    encode_slide(slide, get_encoder("texture", device="cpu"))
    assert table_names(slide.store) == ["texture_tiles", "tiny_tiles"]
    assert len(read_table(slide, "texture_tiles")) == len(read_table(slide, KEY))
    assert any(
        "haem" in n or "/" in n for n in read_table(slide, "texture_tiles").var_names
    )  # named features
    with pytest.raises(
        InputError, match=r"has no features 'textur_tiles'; it holds .*Did you mean 'texture_tiles'"
    ):
        read_table(slide, "textur_tiles")


def test_tiles_of_another_scale_are_used_and_said(synthetic, tmp_path):
    slide = open_slide(synthetic, out=tmp_path)
    tile_slide(slide, TileConfig(tile_px=64, tile_mpp=2.0))
    outcome = encode_slide(slide, tiny())
    assert outcome.status == "done" and outcome.message == "tiles of 2 µm/px; 'tiny' is meant for 1"


def test_names_that_a_store_does_not_allow():
    assert features_key("timm:resnet18") == "timm_resnet18_tiles"
    assert features_key("transformers:/a/b/phikon/") == "phikon_tiles"
    assert features_key("conch_v1.5") == "conch_v1.5_tiles"


def test_a_blank_slide_is_said_and_not_an_error(blank, tmp_path):
    outcome = encode_slide(open_slide(blank, out=tmp_path), tiny())
    assert (outcome.status, outcome.tiles) == ("blank", 0) and "no tissue" in outcome.message
    assert encode_slide(open_slide(blank, out=tmp_path), tiny()).status == "blank"


# --- interruption ----------------------------------------------------------------------------------------


def test_an_interrupted_slide_goes_on_to_the_same_bytes(synthetic, tmp_path, small_chunks):
    config, tiles = EncodeConfig(batch_size=16), TileConfig(tile_px=32, tile_mpp=1.0, overlap=16)
    whole = open_slide(synthetic, out=tmp_path / "whole")
    count = encode_slide(whole, tiny(), config, tiles).tiles
    assert count > 200
    cut, first = open_slide(synthetic, out=tmp_path / "cut"), tiny(stop_after=150)
    with pytest.raises(KeyboardInterrupt):
        encode_slide(cut, first, config, tiles)
    assert table_names(cut.store) == []  # nothing half-written can be read
    second = tiny()
    outcome = encode_slide(open_slide(synthetic, out=tmp_path / "cut"), second, config, tiles)
    assert outcome.status == "done" and second.module.seen == count - 128  # two chunks of 64 were kept
    assert np.array_equal(read_table(cut, KEY).X, read_table(whole, KEY).X)
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["synthetic.zarr"]


def test_new_tiles_replace_old_ones_only_with_their_features(synthetic, tmp_path, small_chunks):
    config, slide = EncodeConfig(batch_size=16), open_slide(synthetic, out=tmp_path)
    encode_slide(slide, tiny(), config, TileConfig(tile_px=32, tile_mpp=2.0))
    before, old = read_table(slide, KEY).X.copy(), len(read_tiles(slide))
    wanted = TileConfig(tile_px=32, tile_mpp=1.0)
    with pytest.raises(KeyboardInterrupt):
        encode_slide(slide, tiny(stop_after=80), config, wanted, overwrite=True)
    again = open_slide(synthetic, out=tmp_path)
    assert np.array_equal(read_table(again, KEY).X, before) and len(read_tiles(again)) == old
    done = encode_slide(again, tiny(), config, wanted, overwrite=True)
    assert done.tiles > old and len(read_tiles(again)) == len(read_table(again, KEY)) == done.tiles


def test_damaged_parts_are_made_again(synthetic, tmp_path, small_chunks):
    config, tiles = EncodeConfig(batch_size=16), TileConfig(tile_px=32, tile_mpp=1.0, overlap=16)
    slide = open_slide(synthetic, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        encode_slide(slide, tiny(stop_after=200), config, tiles)
    parts = tmp_path / f"synthetic.{KEY}.parts"
    (parts / "00000.npy").write_bytes((parts / "00000.npy").read_bytes()[:200])  # cut short
    np.save(parts / "00001.npy", np.zeros((3, 12), np.float32))  # of another number of tiles
    again = tiny()
    outcome = encode_slide(slide, again, config)
    assert again.module.seen == outcome.tiles - 64  # only the third chunk could be kept
    wanted = tiny()(read_boxes(slide, read_tiles(slide).boxes, 32)).numpy()
    assert np.allclose(read_table(slide, KEY).X, wanted, atol=1e-6)


def test_parts_of_other_tiles_are_not_used(synthetic, tmp_path, small_chunks):
    config = EncodeConfig(batch_size=16)
    slide = open_slide(synthetic, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        encode_slide(slide, tiny(stop_after=200), config, TileConfig(tile_px=32, tile_mpp=1.0, overlap=16))
    count = len(tile_slide(slide, TileConfig(tile_px=32, tile_mpp=1.0), overwrite=True)[0])
    last = tiny()
    outcome = encode_slide(slide, last, config)
    assert last.module.seen == outcome.tiles == count  # started from nothing
    wanted = tiny()(read_boxes(slide, read_tiles(slide).boxes, 32)).numpy()
    assert np.allclose(read_table(slide, KEY).X, wanted, atol=1e-6)


SCRIPT = """
import sys, time, torch
from pathlib import Path
from morphogen.slides import EncoderSpec, batch, get_encoder
from morphogen.slides.config import EncodeConfig, TileConfig

class Slow(torch.nn.Module):
    def forward(self, x):
        time.sleep(0.05)
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)

spec = EncoderSpec(name="tiny", kind="module", input_px=32, mpp=1.0, mean=(0, 0, 0), std=(1, 1, 1))
batch._encoder = lambda config: get_encoder(Slow(), spec=spec, device="cpu")
batch.run_jobs(batch.collect([sys.argv[1]]), out=Path(sys.argv[2]), encode=EncodeConfig(batch_size=4), workers=1)
"""


def test_killed_in_the_middle_of_a_folder(tmp_path, make_slide, make_tissue, monkeypatch):
    """SIGKILL while the second slide is at work: the first is kept, nothing half-written is read, the rest is done."""
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    for i in range(3):
        make_slide(folder / f"s{i}.tif", make_tissue(500, 600, seed=i))
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), str(out)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "s1.zarr").exists() and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert table_names(out / "s0.zarr") == [KEY] and table_names(out / "s1.zarr") == []
    before = {p: p.stat().st_mtime_ns for p in (out / "s0.zarr").rglob("*") if p.is_file()}
    monkeypatch.setattr(batch, "_encoder", lambda config: get_encoder(Plain(), spec=SPEC, device="cpu"))
    outcomes = run_jobs(collect([folder]), out=out, encode=EncodeConfig(batch_size=4), workers=1)
    assert [o.status for o in outcomes] == ["kept", "done", "done"]
    assert before == {p: p.stat().st_mtime_ns for p in (out / "s0.zarr").rglob("*") if p.is_file()}
    for i in range(3):
        slide = open_slide(folder / f"s{i}.tif", out=out)
        wanted = Plain()(
            torch.from_numpy(read_boxes(slide, read_tiles(slide).boxes, 32)).permute(0, 3, 1, 2) / 255
        )
        assert np.allclose(read_table(slide, KEY).X, wanted.numpy(), atol=1e-6)


class Plain(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


# --- many slides -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, make_slide, make_tissue) -> Path:
    """Two good slides, a text file called .svs, and a slide without µm/px."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for i, name in enumerate(("a", "b")):
        make_slide(folder / f"{name}.tif", make_tissue(500, 600, seed=i))
    make_slide(folder / "nompp.tif", make_tissue(500, 600), mpp=None)
    (folder / "text.svs").write_text("not a slide\n" * 50)
    (folder / "notes.md").write_text("not even named like one")
    return folder


@pytest.mark.parametrize("through", ["here", "scheduler"])
def test_bad_slides_are_listed_and_the_others_done(folder, tmp_path, through):
    from distributed import LocalCluster

    jobs, options = collect([folder]), {"out": tmp_path / "out", "encode": EncodeConfig(device="cpu")}
    if through == "here":
        outcomes = run_jobs(jobs, workers=1, **options)
    else:
        with LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster:
            outcomes = run_jobs(jobs, scheduler=cluster.scheduler_address, **options)
    assert [(Path(o.slide).name, o.status) for o in outcomes] == [
        ("a.tif", "done"), ("b.tif", "done"), ("nompp.tif", "failed"), ("text.svs", "failed"),
    ]  # fmt: skip
    assert "--mpp" in outcomes[2].message and "is a text file" in outcomes[3].message
    assert all("\n" not in o.message for o in outcomes)
    assert table_names(tmp_path / "out" / "a.zarr") == ["texture_tiles"]


@pytest.mark.slow
def test_worker_processes_do_the_same(folder, tmp_path):
    options = {"encode": EncodeConfig(device="cpu")}
    run_jobs(collect([folder]), out=tmp_path / "one", workers=1, **options)
    outcomes = run_jobs(collect([folder]), out=tmp_path / "two", workers=2, **options)
    assert [o.status for o in outcomes] == ["done", "done", "failed", "failed"]
    for name in ("a", "b"):
        slides = [open_slide(folder / f"{name}.tif", out=tmp_path / out) for out in ("one", "two")]
        x, y = (read_table(slide, "texture_tiles").X for slide in slides)
        assert np.array_equal(x, y)


def test_what_concerns_all_slides_is_raised_at_once(folder, tmp_path, monkeypatch):
    jobs = collect([folder])
    with pytest.raises(ConfigError, match="Did you mean 'uni2'"):
        run_jobs(jobs, out=tmp_path / "o", encode=EncodeConfig(encoder="uni22"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    batch._encoder.cache_clear()
    with pytest.raises(WeightsError, match="gated"):
        run_jobs(jobs, out=tmp_path / "o", encode=EncodeConfig(encoder="uni2"), workers=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file of this name"):
        run_jobs(jobs, out=tmp_path / "file", encode=EncodeConfig())
    other = tmp_path / "other" / "a.tif"  # of the same name, in another folder
    other.parent.mkdir()
    other.write_bytes((folder / "a.tif").read_bytes())
    with pytest.raises(SlideError, match="would share its store with"):
        run_jobs(collect([folder, other]), out=tmp_path / "o")
    with pytest.raises(InputError, match="no dask scheduler answers"):
        monkeypatch.setattr("distributed.Client", _no_client)
        run_jobs(jobs, scheduler="tcp://127.0.0.1:9", encode=EncodeConfig())


def _no_client(*_, **__):
    raise OSError("timed out")


def test_a_full_disk_stops_the_batch(folder, tmp_path, monkeypatch):
    """Features cannot be written: one clear error, no half-written file, and it goes on when there is space."""
    jobs, out = collect([folder / "a.tif", folder / "b.tif"]), tmp_path / "out"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(encode.np, "save", full)
        with pytest.raises(OutputError, match="the disk is full; nothing was left half-written"):
            run_jobs(jobs, out=out, encode=EncodeConfig(device="cpu"), workers=1)
    assert table_names(out / "a.zarr") == [] and not (out / "b.zarr").exists()
    assert not list(out.rglob("*.npy"))
    assert [o.status for o in run_jobs(jobs, out=out, encode=EncodeConfig(device="cpu"), workers=1)] == [
        "done"
    ] * 2


def test_slides_are_collected_from_files_folders_and_lists(folder, tmp_path):
    (folder / "sub").mkdir()
    (folder / "sub" / "c.tif").write_bytes(b"")
    assert [Path(j.path).name for j in collect([folder])] == ["a.tif", "b.tif", "nompp.tif", "text.svs"]
    assert len(collect([folder], recursive=True)) == 5
    assert len(collect([folder, folder / "a.tif"])) == 4  # each once
    table = tmp_path / "list.csv"
    table.write_text("﻿Slide,mpp\nslides/a.tif,0.25\nslides/b.tif,\n", encoding="utf-8")
    assert collect([table], mpp=0.5) == [Job(str(folder / "a.tif"), 0.25), Job(str(folder / "b.tif"), 0.5)]
    lines = tmp_path / "list.txt"
    lines.write_text("# mine\nslides/a.tif\n\nslides/b.tif\n")
    assert len(collect([lines])) == 2
    table.write_text("slide_id,mpp\na.tif,0.25\nb,0.5\n")  # CLAM's, beside the slides
    beside = folder / "clam.csv"
    beside.write_bytes(table.read_bytes())
    assert collect([beside]) == [Job(str(folder / "a.tif"), 0.25), Job(str(folder / "b.tif"), 0.5)]
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"/b: several slides have this name: b\.png, b\.tif"):
        collect([beside])
    table.write_text("path,mpp\n")
    with pytest.raises(InputError, match=r"list\.csv: the list names no slides"):
        collect([table])
    table.write_text("name,mpp\nx,1\n")
    with pytest.raises(InputError, match="no column is called path or slide"):
        collect([table])
    table.write_text("path,mpp\nx,half\n")
    with pytest.raises(InputError, match=r"line 2, column 'mpp': 'half' is not a number"):
        collect([table])
    with pytest.raises(InputError, match="no slides in this folder"):
        collect([tmp_path])


def test_the_three_real_slides(real, tmp_path):
    """Tile and encode with ``texture``, through the batch; µm/px given where the file has none."""
    tiles = TileConfig(tile_px=224, tile_mpp=1.0, min_tissue=0.3)
    jobs = [Job(str(real["cmu"])), Job(str(real["tcga"]), mpp=0.25)]
    outcomes = run_jobs(jobs, out=tmp_path, tiles=tiles, encode=EncodeConfig(device="cpu"), workers=1)
    smear = tiles.replace(tissue="all")  # cells far apart: no tissue in the sense of the detection
    jobs.append(Job(str(real["cyto"]), mpp=0.25))
    outcomes += run_jobs(jobs[2:], out=tmp_path, tiles=smear, encode=EncodeConfig(device="cpu"))
    assert [o.status for o in outcomes] == ["done"] * 3, outcomes
    for job, outcome in zip(jobs, outcomes, strict=True):
        table = read_table(open_slide(job.path, out=tmp_path), "texture_tiles")
        assert table.shape == (outcome.tiles, outcome.width) and np.isfinite(table.X).all()
