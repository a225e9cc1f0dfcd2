"""Synthesis: quotas, what the manifest says, kill and resume to the same bytes, the filter, stray files."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from morphogen.core.errors import ConfigError, InputError, OutputError
from morphogen.core.files import Manifest
from morphogen.layout import predict
from morphogen.layout.config import SynthesisConfig
from morphogen.layout.model import LayoutSampler
from morphogen.layout.predict import synthesize
from morphogen.layout.sampling.augment import blurred, reach, warped
from morphogen.layout.sampling.focus import blur_of, refocused
from morphogen.layout.sampling.looks import Look, Restyling
from morphogen.layout.sources.arrays import in_memory
from morphogen.layout.sources.folders import image_folder
from morphogen.layout.synthesis.agreement import agreement, shown_iou
from morphogen.layout.synthesis.plan import Plan
from morphogen.tasks.streams.turns import turned

from .conftest import NAMES, painted

CONFIG = SynthesisConfig(count=10, batch=4, seed=5, layouts="affine")


def contents(folder):
    names = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".csv"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


def rows(folder):
    with open(folder / "manifest.csv") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(tmp_path_factory, trained, found, data):
    out = tmp_path_factory.mktemp("synthetic") / "set"
    return synthesize(
        trained.model, found.annotated, found.unannotated + found.annotated, CONFIG, out, data=data
    )


def test_a_labelled_data_set_with_its_manifest(made, found):
    assert (made.made, made.kept, made.threshold) == (10, 10, None)
    table = rows(made.folder)
    assert [row["image"] for row in table] == [f"images/syn_{k:05d}.png" for k in range(10)]
    counts = {name: sum(row["style_patient"] == name for row in table) for name in ("P1", "P2", "P3")}
    assert sorted(counts.values()) == [3, 3, 4]  # every patient the same number
    for row in table:
        slides = {source.split(":")[0].split("_")[0].upper() for source in row["style_sources"].split(";")}
        assert slides == {row["style_patient"]}  # the style is of the slide that is named
        assert row["layout"][:2] in ("p1", "p2") and len(row["matrix"].split()) == 6
    sheets, classes = image_folder(made.folder)
    assert classes.names == NAMES and len(sheets) == 10
    assert sheets[0].image(0, 0, 32).shape == (32, 32, 3)
    assert set(np.unique([sheet.classes for sheet in sheets])) <= {0, 1, 2}
    assert sheets[0].patient == table[0]["style_patient"]


def test_the_manifest_says_where_every_mask_is_from(made, found):
    """Cut out of the sheet that is named, turned and warped as it says, a layout is the mask again."""
    sheets = {sheet.name: sheet for sheet in found.annotated}
    turns = set()
    for row in rows(made.folder):
        matrix = np.array(row["matrix"].split(), np.float64).reshape(2, 3)
        side, beyond = 32, reach(matrix, 32)
        window = int(row["row"]) - beyond, int(row["column"]) - beyond, side + 2 * beyond
        labels = turned(sheets[row["layout"]].labels(*window), int(row["turn"]))
        mask = np.asarray(Image.open(made.folder / row["mask"]))
        assert (
            warped(labels, matrix, True, beyond) == mask
        ).mean() > 0.99  # six digits of the matrix are kept
        turns.add(row["turn"])
    assert len(turns) > 1


def test_layouts_are_new_ones(trained, found, data):
    affine = Plan(found.annotated, found.unannotated, data, CONFIG, 3)
    plain = Plan(found.annotated, found.unannotated, data, CONFIG.replace(layouts="annotated"), 3)
    assert affine[3].layout.matrix != plain[3].layout.matrix == (1, 0, 0, 0, 1, 0)
    again = affine[3]
    assert np.array_equal(affine[3].layout.labels, again.layout.labels)
    assert not np.array_equal(affine[3].layout.labels, affine[4].layout.labels)


def test_killed_it_goes_on_to_the_same_bytes(tmp_path, made, trained, found, data, monkeypatch):
    whole, styles = contents(made.folder), found.unannotated + found.annotated
    calls = []

    def dies(*arguments):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(1)
        return make(*arguments)

    make = predict._make
    monkeypatch.setattr(predict, "_make", dies)
    with pytest.raises(KeyboardInterrupt):
        synthesize(trained.model, found.annotated, styles, CONFIG, tmp_path / "set", data=data)
    assert len(list((tmp_path / "set" / "images").iterdir())) == 4
    (tmp_path / "set" / "images" / "syn_00003.png").unlink()  # a batch that is there in part is made again
    monkeypatch.setattr(predict, "_make", make)
    synthesize(trained.model, found.annotated, styles, CONFIG, tmp_path / "set", data=data)
    assert contents(tmp_path / "set") == whole
    monkeypatch.setattr(predict, "_make", dies)  # complete: nothing is made
    assert synthesize(trained.model, found.annotated, styles, CONFIG, tmp_path / "set", data=data).made == 10


def test_another_job_in_the_folder_is_refused(made, trained, found, data):
    with pytest.raises(OutputError, match=r"seed was 5, now 6"):
        synthesize(
            trained.model, found.annotated, found.unannotated + found.annotated, CONFIG.replace(seed=6),
            made.folder, data=data,
        )  # fmt: skip


def test_a_stray_file_is_not_read(tmp_path, made):
    import shutil

    folder = shutil.copytree(made.folder, tmp_path / "set")
    Image.new("RGB", (32, 32)).save(folder / "images" / "holiday.png")
    sheets, _ = image_folder(folder)
    assert len(sheets) == 10 and "holiday" not in {sheet.name for sheet in sheets}


def test_an_image_of_the_manifest_that_is_gone_is_missed_and_made_again(tmp_path, made, trained, found, data):
    import shutil

    folder = shutil.copytree(made.folder, tmp_path / "set")
    (folder / "images" / "syn_00003.png").unlink()
    with pytest.raises(InputError, match="names 1 images that are not there, the first syn_00003"):
        image_folder(folder)
    styles = found.unannotated + found.annotated
    synthesize(trained.model, found.annotated, styles, CONFIG, folder, data=data)
    assert contents(folder) == contents(made.folder)


def test_the_filter_leaves_out_what_the_segmenter_does_not_find(tmp_path, trained, found, data, segmenter):
    styles = found.unannotated
    config = CONFIG.replace(agreement=0.5)
    try:
        result = synthesize(
            trained.model, found.annotated, styles, config, tmp_path / "set", data=data, segmenter=segmenter,
            held_out=found.test,
        )  # fmt: skip
    except InputError as error:  # an untrained model's images may all be bad
        assert "finds the layout in no synthetic image" in str(error)
        return
    table = rows(result.folder)
    for row in table:
        assert (float(row["agreement"]) >= result.threshold - 5e-5) == (row["kept"] == "1")
    assert result.kept == sum(row["kept"] == "1" for row in table) == len(image_folder(result.folder)[0])
    assert set(result.flagged) == {p for p, share in result.shares.items() if share < config.flag_below}


def test_agreement_is_the_iou_of_the_classes_shown(segmenter, found):
    labels = np.zeros((4, 4), int)
    labels[0] = 2
    assert shown_iou(labels, labels, 3) == 1
    assert shown_iou(labels, np.zeros_like(labels), 3) == pytest.approx((12 / 16 + 0) / 2)
    sheet = found.test[0]
    real = agreement(segmenter, sheet.image(16, 16, 32)[None], sheet.labels(16, 16, 32)[None])
    noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert real[0] > agreement(segmenter, noise, sheet.labels(16, 16, 32)[None])[0]


def test_pairing_by_density_needs_a_segmenter_and_follows_it(found, data):
    config = CONFIG.replace(pairing="density")
    with pytest.raises(ConfigError, match="needs a segmenter"):
        Plan(found.annotated, found.unannotated, data, config, 3)
    shares = []
    for wanted in (0.0, 1.0):
        plan = Plan(
            found.annotated, found.unannotated, data, config, 3, share=lambda image, wanted=wanted: wanted
        )
        shares.append(np.mean([(plan[k].layout.labels > 0).mean() for k in range(6)]))
    assert shares[1] > shares[0] + 0.2


def test_layouts_do_not_depend_on_what_is_drawn_of_the_styles(found, data):
    one, two = (Plan(found.annotated, found.unannotated, data, CONFIG, 3, images=count) for count in (1, 2))
    for number in range(4):
        assert np.array_equal(one[number].begin, two[number].begin)
        assert one[number].layout.matrix == two[number].layout.matrix
        assert len(one[number].style) == 1 and len(two[number].style) == 2


def test_nothing_to_take_layouts_or_styles_from(found, data):
    for layouts, styles, word in (((), found.unannotated, "layouts"), (found.annotated, (), "unannotated")):
        with pytest.raises(InputError, match=f"there are no {word}"):
            Plan(layouts, styles, data, CONFIG, 3)


def test_a_folder_without_its_manifest_is_not_complete(tmp_path, made):
    assert Manifest.read(made.folder)["kind"] == "synthetic images"


def test_a_model_trained_without_styles_gets_none(tmp_path, trained, found, data, monkeypatch):
    """Black style images and no guidance, as in its training; the manifest names no source."""
    model = trained.model
    monkeypatch.setattr(model, "config", model.config.replace(sampling="none", style_images=1))
    seen = []
    original = type(model).__call__

    def watched(self, labels, styles, sampler, **options):
        seen.append((float(styles.float().abs().max()), styles.shape[1], sampler.guidance_scale))
        return original(self, labels, styles, sampler, **options)

    monkeypatch.setattr(type(model), "__call__", watched)
    made = synthesize(
        model, found.annotated, found.unannotated, CONFIG.replace(count=2), tmp_path / "set", data=data
    )
    assert seen == [(0.0, 1, 1.0)]
    assert {row["style_sources"] for row in rows(made.folder)} == {""}


def test_the_image_of_a_layout_moves_with_it(found, data):
    """Tumour is darker than glass in the drawn image, wherever the affine map puts it; the style's colours are laid on
    what sampling begins at."""
    plan = Plan(found.annotated, found.unannotated, data, CONFIG, 3)
    seen = 0
    for number in range(8):
        pair = plan[number]
        labels, image = pair.layout.labels, pair.layout.image.astype(int)
        assert image.shape == (32, 32, 3) and pair.begin.shape == image.shape
        if min((labels == 2).sum(), (labels == 0).sum()) > 40:
            assert image[labels == 2].mean() < image[labels == 0].mean() - 60
            seen += 1
    assert seen


def test_strength_is_how_much_of_the_image_sampling_begins_at_is_lost(trained, found, monkeypatch):
    model, sheet = trained.model, found.annotated[0]
    # Hardly trained, its v is about zero: what is not noise comes from the image.
    monkeypatch.setattr(model, "config", model.config.replace(prediction="v"))
    image = torch.from_numpy(np.ascontiguousarray(sheet.image(16, 16, 32))[None])
    labels, styles = sheet.labels(16, 16, 32)[None], image[None]
    fast = LayoutSampler.fast()
    away = []
    for strength in (0.1, 0.5, 1.0):
        made = model(labels, styles, fast.replace(strength=strength), begin=image)
        away.append(float((made.float() - image.float()).abs().mean()))
    assert away[0] < away[1] < away[2] and away[0] < 0.5 * away[2]
    alone = model(labels, styles, fast.replace(strength=0.3))  # no image: noise alone, whatever the strength
    assert torch.equal(alone, model(labels, styles, fast.replace(strength=1.0)))
    low = fast.replace(strength=0.05).times(model.schedule)
    assert len(low) == 5 and max(low) <= 0.05 * model.schedule.last
    times = fast.replace(strength=0.5).times(model.schedule)
    assert 0 < len(times) < fast.steps and max(times) <= 0.5 * model.schedule.last
    assert LayoutSampler.reference().strength == 1


def test_cyclediffusion_changes_the_style_alone(trained, found, monkeypatch):
    """However little the model has learned: with its own style an image comes back, with another it changes."""
    model = trained.model
    one, two = found.annotated[0], next(sheet for sheet in found.unannotated if sheet.patient == "P3")
    image = torch.from_numpy(np.ascontiguousarray(one.image(16, 16, 32))[None])
    labels, fast = one.labels(16, 16, 32)[None], LayoutSampler.fast().replace(strength=0.6)
    own, other = (
        model.styles(torch.from_numpy(np.ascontiguousarray(sheet.image(8, 8, 32)))[None, None])
        for sheet in (one, two)
    )
    other = own + 1000 * (other - own)  # hardly trained, it takes two patients for almost the same

    def away(style, sampler, **given):
        made = model(labels, style, sampler, begin=image, own=own, **given)
        return float((made.float() - image.float()).abs().mean())

    same = fast.replace(guidance_scale=1.0)
    assert away(own, same) < 0.6 < 2 < away(other, same)  # rounding
    assert away(own, same.replace(edit="sdedit")) > 5
    assert fast.keeps and not fast.replace(strength=1.0).keeps and not fast.replace(edit="sdedit").keeps


@pytest.mark.parametrize("strength", [0.2, 0.6])
def test_cyclediffusion_takes_three_evaluations_a_step(trained, found, monkeypatch, strength):
    """Both halves of guidance in one batch, and the image that is kept."""
    model, sheet = trained.model, found.annotated[0]
    image = torch.from_numpy(np.ascontiguousarray(sheet.image(16, 16, 32))[None])
    style, sampler = model.styles(image[None]), LayoutSampler.fast().replace(strength=strength)
    network, batches = model.denoiser(), []

    def counted(x, t, /, **condition):
        batches.append(len(x))
        return network(x, t, **condition)

    monkeypatch.setattr(type(model), "denoiser", lambda self, precision: counted)
    model(sheet.labels(16, 16, 32)[None], style, sampler, begin=image, own=style)
    assert len(batches) == sampler.evaluations(model.schedule) and sum(batches) <= 26


def test_glass_has_no_stain_and_stays_as_it_is(found):
    glass = np.full((32, 32, 3), 244, np.uint8)
    white = in_memory("glass", "P9", glass, np.zeros((32, 32), np.uint8))
    restyling = Restyling([white, *found.annotated], 32)
    target = Look.of_patient([sheet for sheet in found.unannotated if sheet.patient == "P3"], 32)
    assert target is not None
    assert np.array_equal(restyling(glass, white, target), glass)
    image = found.annotated[0].image(0, 0, 32)
    assert np.array_equal(restyling(image, found.annotated[0], None), image)
    assert not np.array_equal(restyling(image, found.annotated[0], target), image)


def tissue_like(seed: int, side: int = 96) -> np.ndarray:
    """Dots of all sizes: a power that falls with frequency, as that of tissue does."""
    noise = np.random.default_rng(seed).normal(0, 1, (side, side, 1))
    field = sum(np.stack([blurred_(noise, s)], 0)[0] for s in (0.6, 1.2, 2.4))
    return np.clip(150 + 60 * field / field.std() * np.array([0.5, 1.0, 0.6]), 0, 255).astype(np.uint8)


def blurred_(field: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(field, (sigma, sigma, 0))
    return smooth / smooth.std()


def test_the_variance_of_a_blur_is_read_from_images():
    """Against that of the same images before; of other images, within what tissue varies by."""
    sharp = np.stack([tissue_like(seed) for seed in range(4)])
    for sigma in (0.5, 0.8, 1.1):
        soft = np.stack([blurred(image, sigma) for image in sharp])
        assert blur_of(soft) - blur_of(sharp) == pytest.approx(sigma**2, abs=0.08)
        other = np.stack([blurred(tissue_like(seed), sigma) for seed in range(4, 8)])
        assert blur_of(other) - blur_of(sharp) == pytest.approx(sigma**2, abs=0.15)
    assert np.isnan(blur_of(np.full((2, 32, 32, 3), 200, np.uint8)))


def test_focus_is_taken_away_and_given_back():
    sharp = tissue_like(1)
    soft = blurred(sharp, 0.9)
    assert np.abs(refocused(sharp, 0.81).astype(int) - soft).mean() < 0.6
    again = refocused(soft, -0.81)
    away = [np.abs(image.astype(int) - sharp).mean() for image in (soft, again)]
    assert away[1] < 0.7 * away[0]
    assert blur_of(again[None]) < blur_of(soft[None]) - 0.25
    for nothing in (0.0, float("nan")):
        assert np.array_equal(refocused(sharp, nothing), sharp)


def test_an_image_takes_the_stains_and_the_focus_of_a_style():
    labels = np.zeros((96, 96), np.uint8)
    sharp = in_memory("sharp", "P1", tissue_like(1), labels)
    soft = in_memory("soft", "P2", blurred(tissue_like(2), 1.0), labels)
    both = [sharp, soft]
    with_focus, colours = Restyling(both, 32), Restyling(both, 32, focus=False)
    for source, target, left in ((sharp, soft, 0.2), (soft, sharp, 0.8)):  # to sharpen has its limits
        look = Look.of_patient([target], 32)
        before = blur_of(source.pixels[None])
        made = with_focus(source.pixels, source, look)
        assert abs(blur_of(made[None]) - look.blur) < left * abs(before - look.blur)
        assert abs(blur_of(colours(source.pixels, source, look)[None]) - before) < 0.2
    look = Look.of_patient([soft], 32)
    warped = Restyling(both, 32, warped=True)(sharp.pixels, sharp, look)
    assert blur_of(warped[None]) < blur_of(with_focus(sharp.pixels, sharp, look)[None]) - 0.1


def test_an_image_without_nuclei_is_not_stained_darker():
    """The look of the source is the patient's: what one image lacks is not made up for."""
    labels = np.zeros((64, 64), np.uint8)
    nuclei, stroma = painted(1, 0)[0], np.full((64, 64, 3), (210, 150, 190), np.uint8)
    sheets = [in_memory("a", "P1", nuclei, labels), in_memory("b", "P1", stroma, labels)]
    look = Look.of_patient(sheets, 32)
    made = [Restyling(sources, 32, focus=False)(stroma, sheets[1], look) for sources in (sheets, sheets[1:])]
    assert np.abs(made[0].astype(int) - stroma).mean() < 6
    assert made[1].mean() < stroma.mean() - 12


def test_bf16_is_far_below_what_a_seed_changes(trained, found):
    """Why networks run in it on GPUs by default."""
    sheet, side = found.annotated[0], trained.model.crop
    labels = torch.from_numpy(sheet.labels(8, 8, side).astype(np.int64))[None].expand(4, -1, -1)
    style = torch.from_numpy(sheet.image(8, 8, side).copy())[None, None].expand(4, 2, -1, -1, -1)
    exact, reduced, other = (
        trained.model(labels, style, LayoutSampler.fast(), seed=seed, precision=precision).float()
        for seed, precision in ((0, "fp32"), (0, "bf16"), (1, "fp32"))
    )
    assert float((reduced - exact).abs().mean()) < 0.1 * float((other - exact).abs().mean())
