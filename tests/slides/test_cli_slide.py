"""``morphogen slide`` from the outside: what it prints, where results go, how it ends."""

from __future__ import annotations

import json

import pytest

from morphogen.cli.main import main
from morphogen.core.errors import WeightsError
from morphogen.core.running.spread import Spread
from morphogen.slides import batch, store
from morphogen.slides.store import table_names


@pytest.fixture
def run(capsys):
    """``run("slide", …) -> (exit status, stdout, stderr)``."""

    def call(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_info_of_all_three(run, real):
    code, out, _ = run("slide", "info", real["cmu"].parent)
    assert code == 0
    assert "2220 × 2967 px (1.11 × 1.48 mm)" in out and "0.499 (file: openslide.mpp-x)" in out
    assert "unknown; give it with --mpp; the file says 1000 µm/px, which cannot be right" in out
    code, out, _ = run("slide", "info", real["cyto"], "--mpp", "0.25", "--json")
    info = json.loads(out)
    assert info["mpp"] == 0.25 and info["mpp_source"] == "given" and len(info["levels"]) == 6


def test_tile_encode_export_import(run, synthetic, tmp_path):
    out = tmp_path / "out"
    code, text, _ = run(
        "slide", "tile", synthetic, "--out", out, "--tile-px", 128, "--tile-mpp", 1, "--min-tissue", 0.4
    )
    assert code == 0 and "done" in text and str(out) in text
    code, text, _ = run("slide", "encode", synthetic, "--out", out, "--device", "cpu", "--json")
    first = json.loads(text)[0]
    assert code == 0 and first["status"] == "done" and first["tiles"] > 5 and first["width"] > 128
    code, text, _ = run("slide", "encode", synthetic, "--out", out, "--device", "cpu")
    assert code == 0 and "kept" in text
    code, text, _ = run(
        "slide", "export", synthetic, "--format", "trident", "--to", tmp_path / "t", "--out", out
    )
    assert (
        code == 0
        and (tmp_path / "t" / "10x_128px_0px_overlap" / "features_texture" / "synthetic.h5").is_file()
    )
    code, text, _ = run(
        "slide", "import", synthetic, "--format", "trident", "--from", tmp_path / "t", "--out", tmp_path / "b"
    )
    assert code == 0 and table_names(tmp_path / "b" / "synthetic.zarr") == ["texture_tiles"]
    code, _, err = run("slide", "tile", synthetic, "--out", out, "--tile-px", 256)
    assert code == 2 and "made with other settings" in err and "--overwrite" in err


def test_blank_slide_is_said_and_succeeds(run, blank, tmp_path):
    code, out, _ = run("slide", "encode", blank, "--out", tmp_path, "--device", "cpu")
    assert code == 0 and "blank.tif: no tissue was found, so there are no tiles" in out


def test_some_of_several_failed(run, synthetic, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.tif").write_bytes(synthetic.read_bytes())
    (tmp_path / "in" / "bad.svs").write_text("no slide\n" * 30)
    code, out, _ = run("slide", "tile", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    assert code == 3 and "1 of 2 slides failed:" in out and "bad.svs: is a text file" in out
    assert (tmp_path / "out" / "good.zarr").is_dir()


def test_the_list_of_encoders(run):
    code, out, _ = run("slide", "encoders")
    assert code == 0 and "texture" in out and "ready" in out and "uni2" in out and "(gated)" in out
    rows = json.loads(run("slide", "encoders", "--json")[1])
    assert {"name", "width", "licence", "gated", "offline", "mpp"} <= set(rows[0])


# --- bad input: one clear line and exit status 2 ----------------------------------------------------------


def _bad(run, *arguments) -> str:
    code, _, err = run(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("morphogen:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def test_bad_input(run, real, synthetic, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    text = tmp_path / "text.svs"
    text.write_text("hello\n" * 100)
    cut = tmp_path / "cut.svs"
    cut.write_bytes(real["cmu"].read_bytes()[: int(real["cmu"].stat().st_size * 0.3)])
    (tmp_path / "file").write_text("")
    out = ("--out", tmp_path / "out")
    assert "there is no such file" in _bad(run, "slide", "encode", tmp_path / "none.svs")
    assert "is a text file, not a slide" in _bad(run, "slide", "encode", text)
    assert "is cut short" in _bad(run, "slide", "tile", cut)
    line = _bad(run, "slide", "encode", real["tcga"], *out)
    assert "does not say how many µm a pixel is. Give it, for example --mpp 0.5" in line
    line = _bad(run, "slide", "encode", synthetic, *out, "--encoder", "fikon")
    assert "unknown encoder 'fikon'. Did you mean 'phikon'?" in line
    line = _bad(run, "slide", "encode", synthetic, *out, "--encoder", "uni2")
    assert (
        "https://huggingface.co/MahmoodLab/UNI2-h" in line
        and "--weights FOLDER" in line
        and "HF_TOKEN" in line
    )
    assert "is in the way of the folder" in _bad(
        run, "slide", "encode", synthetic, "--out", tmp_path / "file"
    )
    assert "tile_px" in _bad(run, "slide", "tile", synthetic, *out, "--tile-px", 2)
    assert "not plausible" in _bad(run, "slide", "info", synthetic, "--mpp", 300)
    assert "no slides in this folder" in _bad(run, "slide", "tile", tmp_path / "..")
    assert "--formt" in _bad(run, "slide", "export", synthetic, "--formt", "clam", "--to", tmp_path)


def test_a_full_disk(run, synthetic, tmp_path, monkeypatch):
    import spatialdata

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spatialdata.SpatialData, "write", full)
    line = _bad(run, "slide", "tile", synthetic, "--out", tmp_path)
    assert "the disk is full; nothing was left half-written" in line
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder(run, synthetic, tmp_path, monkeypatch):
    def refuse(probe):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("morphogen.core.files._anew", refuse)  # as root every folder can be written
    assert "no permission to write here" in _bad(run, "slide", "tile", synthetic, "--out", tmp_path)


def test_settings_reach_the_work(run, synthetic, tmp_path, monkeypatch):
    """Every option of ``encode`` arrives in the job."""
    seen = {}

    def fake(jobs, **options):
        seen.update(options, jobs=jobs)
        return []

    monkeypatch.setattr(batch, "run_jobs", fake)
    code, *_ = run(
        "slide", "encode", synthetic, "--encoder", "uni2", "--weights", tmp_path, "--tile-px", 256, "--overlap", 8,
        "--min-tissue", 0.2, "--tissue", "otsu", "--mpp", 0.3, "--out", tmp_path, "--overwrite", "--workers", 3,
        "--scheduler", "tcp://x:1", "--batch-size", 5, "--readers", 4, "--device", "cpu", "--precision", "bf16",
        "--compile", "--trust-remote-code",
    )  # fmt: skip
    assert code == 0
    assert seen["encode"].to_dict() == {
        "encoder": "uni2", "weights": str(tmp_path), "device": "cpu", "precision": "bf16", "compile": True,
        "batch_size": 5, "readers": 4, "trust_remote_code": True,
    }  # fmt: skip
    assert seen["tiles"].to_dict() == {
        "tile_px": 256, "tile_mpp": 0.5, "overlap": 8, "min_tissue": 0.2, "tissue": "otsu"
    }  # fmt: skip
    assert seen["jobs"][0].mpp == 0.3 and seen["spread"] == Spread(workers=3, scheduler="tcp://x:1")
    assert seen["out"] == tmp_path and seen["overwrite"] is True


def test_errors_of_workers_keep_their_text():
    import pickle

    error = WeightsError("gated", where="encoder 'x'", fix="Ask")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert store.element_name("a b/c") == "a_b_c"
