"""Folders of images: what is written, what is kept, what is left out, and the same bytes after a kill."""

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError, OutputError
from morphogen.core.files import Manifest
from morphogen.slides.images import list_images
from morphogen.tasks import Layer, WindowConfig, folders, translate_images

from .conftest import Noisy

LAYERS = [
    Layer("", lambda band: band.picture()),
    Layer("grey", lambda band: (band.values(3) * 100).astype(np.uint16), channels=1),
]
WINDOWS = WindowConfig(batch=2)


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_every_layer_of_every_image_is_written(copier, folder, tmp_path):
    seen = []
    result = translate_images(
        copier, list_images(folder), tmp_path / "out", LAYERS, {"model": "a"}, windows=WINDOWS,
        look=lambda name, image: seen.append((name, image.shape)), kind="copies", notes={"unit": 0.01},
    )  # fmt: skip
    assert result.made == [f"i{k}" for k in range(5)] == [name for name, _ in seen] and not result.failed
    for name in result.made:
        source = np.array(Image.open(folder / f"{name}.png"))
        np.testing.assert_array_equal(np.array(Image.open(result.out / f"{name}.png")), source)
        grey = np.array(Image.open(result.out / "grey" / f"{name}.png"))
        assert grey.dtype == np.uint16
        np.testing.assert_allclose(grey / 100, source.mean(axis=2), atol=0.011)
    manifest = Manifest.read(result.out)
    assert manifest["kind"] == "copies" and manifest["unit"] == 0.01 and manifest["run"] == {"model": "a"}


def test_a_killed_run_goes_on_to_the_same_bytes(folder, tmp_path, monkeypatch):
    def run(out):
        return translate_images(
            Noisy(), list_images(folder), out, [LAYERS[0]], {"model": "noisy"}, windows=WINDOWS
        )

    whole = run(tmp_path / "whole").out
    real, count = folders.save_png, [0]

    def dies(path, pixels):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        real(path, pixels)

    monkeypatch.setattr(folders, "save_png", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part")
    monkeypatch.setattr(folders, "save_png", real)
    assert Manifest.read(tmp_path / "part") is None
    again = run(tmp_path / "part")
    assert again.kept == ["i0", "i1", "i2"] and again.made == ["i3", "i4"]
    assert contents(again.out) == contents(whole)


def test_a_bad_image_is_left_out_and_named(copier, folder, tmp_path, caplog):
    (folder / "i1.png").write_bytes((folder / "i1.png").read_bytes()[:200])
    (folder / "i3.png").write_bytes(b"")
    result = translate_images(
        copier, list_images(folder), tmp_path / "out", LAYERS, {"model": "a"}, windows=WINDOWS
    )
    assert result.made == ["i0", "i2", "i4"] and sorted(result.failed) == ["i1", "i3"]
    assert "2 of 5 images are left out" in caplog.text and "i3.png: is empty" in result.failed["i3"]
    assert sorted(Manifest.read(result.out)["failed"]) == ["i1", "i3"]
    with pytest.raises(InputError, match="i3.png: is empty"):
        translate_images(
            copier, {"i3": folder / "i3.png"}, tmp_path / "o2", LAYERS, {"model": "a"}, windows=WINDOWS
        )


def test_a_name_that_cannot_be_written_is_one_of_many(copier, folder, tmp_path):
    (folder / "i1.png").rename(folder / "-i1.png")
    result = translate_images(
        copier, list_images(folder), tmp_path / "out", LAYERS, {"model": "a"}, windows=WINDOWS
    )
    assert result.made == ["i0", "i2", "i3", "i4"]
    assert "'-i1' cannot name a file: it begins with a dot or a dash" in result.failed["-i1"]


def test_other_jobs_and_the_input_folder_are_refused(copier, folder, tmp_path):
    files = list_images(folder)
    translate_images(copier, files, tmp_path / "out", LAYERS, {"model": "a"}, windows=WINDOWS)
    with pytest.raises(OutputError, match=r"images of another run \(model was a, now b\)"):
        translate_images(copier, files, tmp_path / "out", LAYERS, {"model": "b"}, windows=WINDOWS)
    with pytest.raises(OutputError, match="the output folder is the input folder"):
        translate_images(copier, files, folder, LAYERS, {"model": "a"}, windows=WINDOWS)
