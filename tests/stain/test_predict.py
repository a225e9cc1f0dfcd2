"""Folders of images: files of the same names, resumed to the same bytes, never mixed with another run's."""

import json

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import ConfigError, InputError, OutputError
from morphogen.core.files import Manifest
from morphogen.stain import StainTransfer
from morphogen.stain.config import ApplyConfig, SamplerConfig, WindowConfig
from morphogen.stain.outputs import read_uncertainty
from morphogen.stain.predict import stain_folder, stain_image

from .conftest import he_like

QUICK = ApplyConfig(sampler=SamplerConfig(steps=2), samples=2, windows=WindowConfig(batch=2))


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "he"
    inside.mkdir()
    for k, size in enumerate([(64, 64), (64, 64), (64, 64), (90, 120)]):
        image = he_like(np.random.default_rng(k), 120)[: size[0], : size[1]]
        Image.fromarray(image).save(inside / f"i{k}.png")
    return inside


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def test_folder_in_folder_out(tiny, folder, tmp_path):
    out = stain_folder(tiny, folder, tmp_path / "out", QUICK, keep_samples=True)
    names = {str(path) for path in contents(out)}
    expected = {f"i{k}.png" for k in range(4)}
    assert names == expected | {
        f"{kind}/{name}" for kind in ("mean", "uncertainty", "samples/00", "samples/01") for name in expected
    }
    assert Image.open(out / "i3.png").size == (120, 90)
    np.testing.assert_array_equal(
        np.array(Image.open(out / "i1.png")), np.array(Image.open(out / "samples/00/i1.png"))
    )
    assert read_uncertainty(out / "uncertainty" / "i0.png").mean() > 0
    manifest = Manifest.read(out)
    assert manifest["kind"] == "stained images" and manifest["run"]["apply"]["sampler"]["steps"] == 2


def test_an_image_alone_is_the_image_in_the_folder(tiny, folder, tmp_path):
    out = stain_folder(tiny, folder, tmp_path / "out", QUICK)
    for name in ("i2", "i3"):
        alone = stain_image(tiny, np.array(Image.open(folder / f"{name}.png")), QUICK, name=name)
        there = np.array(Image.open(out / f"{name}.png"))
        assert int(np.abs(alone.sample.astype(int) - there).max()) <= 1


def test_killed_run_resumes_to_the_same_bytes(tiny, folder, tmp_path, monkeypatch):
    import morphogen.tasks.folders as predict

    whole = contents(stain_folder(tiny, folder, tmp_path / "whole", QUICK))
    real, count = predict.save_png, [0]

    def dies(path, pixels):
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        real(path, pixels)

    monkeypatch.setattr(predict, "save_png", dies)
    with pytest.raises(KeyboardInterrupt):
        stain_folder(tiny, folder, tmp_path / "part", QUICK)
    monkeypatch.setattr(predict, "save_png", real)
    assert Manifest.read(tmp_path / "part") is None
    assert 0 < len(contents(tmp_path / "part")) < len(whole)
    assert contents(stain_folder(tiny, folder, tmp_path / "part", QUICK)) == whole


def test_another_runs_folder_is_refused(tiny, folder, tmp_path):
    stain_folder(tiny, folder, tmp_path / "out", QUICK)
    with pytest.raises(OutputError, match=r"images of another run \(apply.seed was 0, now 1\)"):
        stain_folder(tiny, folder, tmp_path / "out", QUICK.replace(seed=1))
    with pytest.raises(OutputError, match="output folder is the input folder"):
        stain_folder(tiny, folder, folder, QUICK)


def test_saved_model_gives_the_same_images(tiny, folder, tmp_path):
    again = StainTransfer.from_pretrained(tiny.save_pretrained(tmp_path / "model"))
    assert again.identity == tiny.identity and again.crop == 64
    image = np.array(Image.open(folder / "i0.png"))
    first, second = (stain_image(model, image, QUICK).sample for model in (tiny, again))
    np.testing.assert_array_equal(first, second)
    assert json.loads((tmp_path / "model" / "morphogen.json").read_text())["kind"] == "stain"


def test_bad_images_are_named_and_the_others_stained(tiny, folder, tmp_path, caplog):
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(folder / "i1.png")
    (folder / "i2.png").write_bytes(b"not an image")
    out = stain_folder(tiny, folder, tmp_path / "out", QUICK)
    assert sorted(path.name for path in out.glob("*.png")) == ["i0.png", "i3.png"]
    failed = Manifest.read(out)["failed"]
    assert "i1.png: the image is grey, not RGB" in failed["i1"] and "i2.png: is not an image" in failed["i2"]
    assert "2 of 4 images are left out" in caplog.text
    with pytest.raises(InputError, match="i2.png: is not an image"):
        stain_folder(tiny, folder / "i2.png", tmp_path / "out2", QUICK)
    for name in ("i0", "i3"):
        (folder / f"{name}.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of the 4 images can be read; the first: .*i0.png: is empty"):
        stain_folder(tiny, folder, tmp_path / "out4", QUICK)
    with pytest.raises(ConfigError, match="no stain 'HER2'"):
        stain_folder(tiny, folder, tmp_path / "out3", QUICK.replace(stain="HER2"))
    with pytest.raises(ConfigError, match="unknown solver 'fastt'. Did you mean 'fast'"):
        SamplerConfig.named("fastt")
    with pytest.raises(ConfigError, match="unknown eta 'cosin'. Did you mean 'cosine'"):
        stain_image(
            tiny,
            np.zeros((64, 64, 3), np.uint8),
            QUICK.replace(sampler=SamplerConfig(solver="ddim", eta="cosin")),
        )


def test_images_that_are_no_he_are_warned_about(tiny, folder, tmp_path, caplog):
    Image.fromarray(he_like(np.random.default_rng(9), 64, pink=False)).save(folder / "i1.png")
    stain_folder(tiny, folder, tmp_path / "out", QUICK)
    assert "1 of 4 images do not look like H&E" in caplog.text and ": i1." in caplog.text


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "dpmpp_2m_sde", "mean"])
def test_every_solver_runs_with_every_prediction(solver, tmp_path):
    from morphogen.stain.fitting.build import build_model

    from .conftest import TINY

    image = he_like(np.random.default_rng(0))
    for prediction in ("v", "x0", "epsilon"):
        model = build_model(TINY.replace(prediction=prediction), crop=64)
        spacing = "model" if prediction == "epsilon" else "trailing"
        sampler = SamplerConfig(solver=solver, steps=3, spacing=spacing, inversion_steps=2)
        samples = 1 if solver == "mean" else 2
        out = stain_image(model, image, ApplyConfig(sampler=sampler, samples=samples))
        assert out.samples.shape == (samples, 64, 64, 3)


def test_a_folder_of_an_earlier_version_goes_on(tiny, folder, tmp_path):
    """Its record does not name settings that came later; with their defaults nothing is made again."""
    import json

    out = stain_folder(tiny, folder, tmp_path / "out", QUICK)
    record = json.loads((out / "run.json").read_text())
    for name in ("steps_offset", "variance", "guidance_scale", "guidance_interval", "guidance_rescale"):
        del record["apply"]["sampler"][name]
    (out / "run.json").write_text(json.dumps(record))
    (out / "i0.png").write_bytes(b"kept")
    stain_folder(tiny, folder, out, QUICK)
    assert (out / "i0.png").read_bytes() == b"kept"
    with pytest.raises(OutputError, match="apply.sampler.steps was 2, now 3"):
        other = QUICK.replace(sampler=QUICK.sampler.replace(steps=3))
        stain_folder(tiny, folder, out, other)


def test_bf16_is_far_below_what_a_seed_changes():
    """The packaged model: why networks run in it on GPUs by default."""
    from morphogen.demo.workspace import stain_model

    model = StainTransfer.from_pretrained(stain_model())
    image = he_like(np.random.default_rng(0), 128)
    exact, reduced, other = (
        stain_image(model, image, ApplyConfig(seed=seed), precision=precision).sample.astype(float)
        for seed, precision in ((0, "fp32"), (0, "bf16"), (1, "fp32"))
    )
    assert 0 < np.abs(reduced - exact).mean() < 0.05 * np.abs(other - exact).mean()


def test_the_calls_ahead_are_told_before_an_image_of_many_windows(copying, tiny, monkeypatch):
    config = ApplyConfig(sampler=SamplerConfig(steps=5), windows=WindowConfig(batch=4))
    image = he_like(np.random.default_rng(0), 200)
    stain_image(copying, image, config)
    told = []
    monkeypatch.setattr(StainTransfer, "expect", lambda self, calls: told.append(calls))
    stain_image(tiny, image, config)
    assert told == [copying.expected] and told[0] % 5 == 0 and told[0] >= 5 * 16 / 4


def test_results_of_before_a_setting_are_not_refused(tiny, tmp_path):
    """A folder whose record knows fewer settings is of the same job where they have their defaults."""
    source = tmp_path / "he"
    source.mkdir()
    Image.fromarray(he_like(np.random.default_rng(0), 64)).save(source / "a.png")
    config = ApplyConfig(sampler=SamplerConfig(solver="mean", steps=1))
    out = stain_folder(tiny, source, tmp_path / "out", config)
    record = json.loads((out / "run.json").read_text())
    for name in ("mean_weight", "sample_spread", "effect_spread"):
        assert record["apply"].pop(name) == 1.0  # without it in NEWER the folder is refused
    (out / "run.json").write_text(json.dumps(record))
    before = (out / "a.png").stat().st_mtime_ns
    assert stain_folder(tiny, source, out, config) == out and (out / "a.png").stat().st_mtime_ns == before
    record["apply"].pop("seed")
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(OutputError):
        stain_folder(tiny, source, out, config)


def test_settings_that_a_model_cannot_follow_are_refused(tiny):
    """Before an image is read: what would change nothing, and an uncertainty of 0 that means nothing."""
    image, one = np.zeros((64, 64, 3), np.uint8), SamplerConfig(solver="mean", steps=1)
    for name in ("mean_weight", "sample_spread", "effect_spread"):
        with pytest.raises(ConfigError, match=f"{name}: this is no model of"):
            stain_image(tiny, image, QUICK.replace(**{name: 0.5}))
    with pytest.raises(ConfigError, match="samples: solver 'mean' has one answer"):
        stain_image(tiny, image, ApplyConfig(sampler=one, samples=2))
    tiny.config = tiny.config.replace(regression=True)
    with pytest.raises(ConfigError, match="samples: a regression has one answer"):
        stain_image(tiny, image, ApplyConfig(samples=2))
