"""The simulated plane: one plane however it is cut, masks that match the picture, stains of known size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import ConfigError, InputError
from morphogen.demo import STYLES, TARGETS, Cell, DabNoise, Outline, Region, TissueSimulator
from morphogen.demo.simulator import simulator as simulator_module

LAYERS = ("he", "ihc", "dab_od", "dab_od_mean", "dab_od_sd", "instances", "classes", "regions")


def _stain(image: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Amount of the first of two stains (least squares in optical density)."""
    density = -np.log10(np.clip(image.astype(float), 1, 255) / 243.0)
    return (density @ np.linalg.pinv(vectors))[..., 0]


@pytest.mark.parametrize("style", [*STYLES, "mixed"])
def test_a_window_is_the_crop_of_a_larger_one(style: str) -> None:
    outline = Outline(200, 180) if style == "mixed" else None
    sim = TissueSimulator(3, patient="A", style=style, target="her2", outline=outline, mpp=0.4661)
    whole = sim.render(-70, -40, 360, 330)
    for x, y, width, height in ((0, 0, 128, 128), (101, 53, 97, 200), (333, 307, 27, 23), (5, 200, 1, 3)):
        part = sim.render(-70 + x, -40 + y, width, height)
        for name in LAYERS:
            expected = getattr(whole, name)[y : y + height, x : x + width]
            assert np.array_equal(getattr(part, name), expected), name


def test_large_windows_are_rendered_in_blocks_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = TissueSimulator(5, style="glandular")
    whole = sim.render(17, 29, 230, 190)
    monkeypatch.setattr(simulator_module, "BLOCK", 100)
    blocks = sim.render(17, 29, 230, 190)
    for name in LAYERS:
        assert np.array_equal(getattr(whole, name), getattr(blocks, name)), name
    assert whole.cells.equals(blocks.cells)


def test_the_plane_is_a_function_of_seed_patient_and_section_alone() -> None:
    first = TissueSimulator(7, patient="A").render(0, 0, 96, 96)
    again = TissueSimulator(7, patient="A").render(0, 0, 96, 96)
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in LAYERS)
    for other in (
        TissueSimulator(8, patient="A"),
        TissueSimulator(7, patient="B"),
        TissueSimulator(7, patient="A", section=1),
    ):
        assert not np.array_equal(first.he, other.render(0, 0, 96, 96).he)


def test_the_immunostain_changes_nothing_else() -> None:
    er = TissueSimulator(7, target="er").render(0, 0, 96, 96)
    her2 = TissueSimulator(7, target="her2", noise=DabNoise(0.1, 0.0)).render(0, 0, 96, 96)
    assert np.array_equal(er.he, her2.he) and np.array_equal(er.instances, her2.instances)
    assert not np.array_equal(er.dab_od_mean, her2.dab_od_mean)
    assert TissueSimulator(7).render(0, 0, 32, 32, ihc=False).ihc.size == 0


def test_cells_do_not_depend_on_the_pixel_size() -> None:
    sim = TissueSimulator(2, style="nests")
    coarse, fine = sim.render(0, 0, 100, 100), sim.at_mpp(0.25).render(0, 0, 200, 200)
    assert len(coarse.cells) > 10
    assert coarse.cells.equals(fine.cells)
    # Half of the pixels in each direction show the same regions.
    assert (coarse.regions == fine.regions[::2, ::2]).mean() > 0.97


@pytest.mark.parametrize("style", ["nests", "glandular", "desmoplastic", "stroma", "lymphoid"])
def test_nuclei_are_dark_where_the_mask_says(style: str) -> None:
    sim = TissueSimulator(1, style=style)
    tissue = sim.render(0, 0, 300, 300)
    vectors = np.stack([sim.patient.haematoxylin, sim.patient.eosin])
    haematoxylin = _stain(tissue.he, vectors)
    inside = tissue.instances > 0
    assert inside.mean() > 0.02
    assert haematoxylin[inside].mean() > 2.5 * haematoxylin[~inside].mean()
    # Nearly every single nucleus is darker than the tissue around nuclei.
    around = np.median(haematoxylin[~inside])
    ids, counts = np.unique(tissue.instances[inside], return_counts=True)
    darker = [haematoxylin[tissue.instances == k].mean() > around for k in ids[counts > 30]]
    assert np.mean(darker) > 0.98


def test_masks_agree_with_the_table_of_cells() -> None:
    sim = TissueSimulator(2, style="glandular")
    tissue = sim.render(0, 0, 320, 320)
    cells = tissue.cells.set_index("id")
    assert cells.index.is_unique and (cells.index > 0).all()
    assert np.array_equal(tissue.classes > 0, tissue.instances > 0)
    aside = []
    for identity, cell in cells.iterrows():
        rows, cols = np.nonzero(tissue.instances == identity)
        x, y = cell["x"] / 0.5, cell["y"] / 0.5
        if len(rows) < 40 or not (12 < x < 308 and 12 < y < 308):
            continue
        assert set(tissue.classes[rows, cols]) == {int(cell["type"])}
        aside.append(np.hypot(cols.mean() + 0.5 - x, rows.mean() + 0.5 - y))
        assert len(rows) * 0.25 < 1.5 * np.pi * cell["major"] * cell["minor"]
    assert len(aside) > 80
    # Some nuclei are covered in part, which moves the centre of what is left; most are not.
    assert np.median(aside) < 1 and np.quantile(aside, 0.9) < 5
    assert {Cell.EPITHELIAL, Cell.TUMOUR, Cell.FIBROBLAST} <= set(tissue.classes.ravel())
    epithelial = tissue.regions[tissue.classes == Cell.EPITHELIAL]
    assert np.isin(epithelial, (Region.EPITHELIUM, Region.LUMEN)).mean() > 0.9


def test_regions_look_like_what_they_are() -> None:
    sim = TissueSimulator(1, style="glandular", outline=Outline(400, 400))
    tissue = sim.render(0, 0, 800, 800, ihc=False)
    brightness = tissue.he.astype(float).mean(axis=-1)
    glass, lumen, stroma = (tissue.regions == each for each in (Region.GLASS, Region.LUMEN, Region.STROMA))
    assert glass[0, 0] and glass[-1, -1] and not tissue.instances[glass].any()
    assert brightness[glass].mean() > 235
    assert brightness[glass].mean() > brightness[lumen].mean() > brightness[stroma].mean()


@pytest.mark.parametrize("target", ["er", "pr", "ki67"])
def test_nuclear_stain_follows_the_visible_traits(target: str) -> None:
    tissue = TissueSimulator(4, style="nests", target=target).render(0, 0, 320, 320)
    cells = tissue.cells.set_index("id")
    traits = cells[["trait_0", "trait_1", "trait_2"]].to_numpy()
    rule = TARGETS[target]
    expected = rule.peak / (1 + np.exp(-(rule.offset + traits @ np.array(rule.slopes))))
    tumour = (cells["type"] == Cell.TUMOUR).to_numpy()
    assert np.allclose(cells["dab_level"][tumour], expected[tumour])
    assert np.ptp(expected[tumour]) > 0.3
    painted = {k: tissue.dab_od_mean[tissue.instances == k].mean() for k in cells.index[tumour]}
    painted = np.array([painted[k] for k in cells.index[tumour]])
    good = np.isfinite(painted)
    assert np.corrcoef(painted[good], expected[tumour][good])[0, 1] > 0.97
    assert tissue.dab_od_mean[tissue.instances == 0].max() < 0.06


def test_traits_behind_the_stain_can_be_seen() -> None:
    # ER goes with pale vesicular nuclei: two numbers per nucleus from the H&E alone tell most of its level.
    sim = TissueSimulator(4, style="nests", target="er")
    vectors = np.stack([sim.patient.haematoxylin, sim.patient.eosin])
    seen, level = [], []
    for x in (0, 2000, 4000):
        tissue = sim.render(x, 0, 300, 300)
        haematoxylin = _stain(tissue.he, vectors)
        cells = tissue.cells[tissue.cells["type"] == Cell.TUMOUR]
        for identity, value in zip(cells["id"], cells["dab_level"]):
            inside = tissue.instances == identity
            if inside.sum() > 100:
                seen.append((1.0, haematoxylin[inside].mean(), haematoxylin[inside].std()))
                level.append(value)
    assert len(level) > 80
    told = np.array(seen) @ np.linalg.lstsq(np.array(seen), np.array(level), rcond=None)[0]
    assert np.corrcoef(told, level)[0, 1] > 0.6


def test_membranous_stain_lies_between_nuclei() -> None:
    sim = TissueSimulator(4, style="nests", target="her2")
    tissue = sim.render(0, 0, 400, 400)
    tumour = tissue.regions == Region.TUMOUR
    nuclei = tissue.instances > 0
    strong = tissue.dab_od_mean > 0.5 * tissue.dab_od_mean.max()
    assert strong.sum() > 500
    assert (strong & tumour & ~nuclei).sum() > 0.95 * strong.sum()
    assert tissue.dab_od_mean[tissue.regions == Region.STROMA].mean() < 0.05


def test_noise_in_the_stain_has_the_size_stated() -> None:
    noise = DabNoise(cell=0.30, pixel=0.12)
    sim = TissueSimulator(6, style="lymphoid", target="ki67", noise=noise)
    tissue = sim.render(0, 0, 640, 640)
    logs = np.log(tissue.dab_od.astype(float) / tissue.dab_od_mean)
    outside = tissue.instances == 0
    stained = tissue.dab_od_mean > 0
    background = logs[outside & stained]
    # Log-normal with mean 1: log has mean −σ²/2 and standard deviation σ.
    assert background.std() == pytest.approx(noise.pixel, rel=0.02)
    assert background.mean() == pytest.approx(-0.5 * noise.pixel**2, abs=0.001)
    ids, index = np.unique(tissue.instances[~outside], return_inverse=True)
    sizes = np.bincount(index)
    cell_mean = np.bincount(index, weights=logs[~outside]) / sizes
    within = logs[~outside] - cell_mean[index]
    assert np.sqrt((within**2).sum() / (len(within) - len(ids))) == pytest.approx(noise.pixel, rel=0.02)
    large = cell_mean[sizes > 50]
    assert len(large) > 800
    tolerance = 4 / np.sqrt(2 * len(large))
    assert large.std() == pytest.approx(noise.cell, rel=tolerance)
    assert large.mean() == pytest.approx(
        -0.5 * (noise.cell**2 + noise.pixel**2), abs=4 * noise.cell / len(large) ** 0.5
    )
    # The standard deviation given is that of the draw, and the mean is its mean.
    expected = tissue.dab_od_mean * np.sqrt(np.expm1(np.where(outside, 0, noise.cell**2) + noise.pixel**2))
    assert np.allclose(tissue.dab_od_sd, expected, rtol=1e-4)


def test_the_stained_image_shows_the_optical_density() -> None:
    sim = TissueSimulator(4, style="nests", target="er")
    tissue = sim.render(0, 0, 300, 300)
    vectors = np.stack([sim.patient.dab, sim.patient.counterstain])
    amount = _stain(tissue.ihc, vectors)
    assert np.corrcoef(amount.ravel(), tissue.dab_od.ravel())[0, 1] > 0.95
    nuclei = tissue.instances > 0
    assert amount[nuclei].mean() == pytest.approx(tissue.dab_od[nuclei].mean(), rel=0.15)


def test_patients_differ_in_stain_and_share_the_rules() -> None:
    sims = [TissueSimulator(0, patient=f"P{k}", style="desmoplastic") for k in range(6)]
    tones = np.array([sim.render(0, 0, 128, 128, ihc=False).he.reshape(-1, 3).mean(axis=0) for sim in sims])
    assert tones.std(axis=0).max() > 4
    angles = [sims[0].patient.haematoxylin @ sim.patient.haematoxylin for sim in sims[1:]]
    assert all(0.97 < cosine < 1 for cosine in angles)
    assert all(sim.genes is sims[0].genes for sim in sims)
    assert len({sim.patient.library for sim in sims}) == len(sims)


def test_the_mixed_style_holds_every_region() -> None:
    sim = TissueSimulator(0, style="mixed")
    seen: set[int] = set()
    for k in range(14):
        seen |= set(sim.render(3000 * k, 1500 * k, 128, 128, ihc=False).regions.ravel().tolist())
    assert seen >= {Region.STROMA, Region.TUMOUR, Region.LYMPHOID, Region.ADIPOSE, Region.VESSEL}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TissueSimulator(style="glandlar"), "glandular"),
        (lambda: TissueSimulator(target="her3"), "her2"),
        (lambda: TissueSimulator(mpp=0), "µm per pixel"),
        (lambda: TissueSimulator(n_genes=5), "genes"),
        (lambda: TissueSimulator().render(0, 0, 0, 5), "holds nothing"),
        (lambda: TissueSimulator().spots(np.array([[1.0, np.nan]])), "finite"),
        (lambda: TissueSimulator().spots(np.zeros(4)), "x, y pairs"),
    ],
)
def test_bad_requests_say_what_is_wrong(make, message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        make()


def test_colours_are_those_of_real_scans(shared: Path) -> None:
    """Direction in optical density and amount of stain of nuclei and of the rest, beside annotated real images."""

    def statistics(image: np.ndarray, nuclei: np.ndarray) -> list[np.ndarray]:
        density = -np.log10(np.clip(image.astype(float), 1, 255) / 245.0)
        return [np.median(density[where], axis=0) for where in (nuclei, ~nuclei)]

    real = []
    for path in sorted((shared / "data" / "seg" / "monuseg").glob("*_img.jpg")):
        mask = np.asarray(Image.open(path.with_name(path.name.replace("_img.jpg", "_mask.png")))) > 0
        real.append(statistics(np.asarray(Image.open(path).convert("RGB")), mask))
    ours = []
    for k, style in enumerate(("nests", "glandular", "desmoplastic", "lymphoid")):
        tissue = TissueSimulator(1, patient=f"P{k}", style=style).render(0, 0, 300, 300, ihc=False)
        ours.append(statistics(tissue.he, tissue.instances > 0))
    for part in range(2):
        scans, drawn = (np.array([each[part] for each in group]) for group in (real, ours))
        lengths = [np.linalg.norm(group, axis=1) for group in (scans, drawn)]
        assert lengths[0].min() * 0.7 < np.median(lengths[1]) < lengths[0].max() * 1.3
        centre = (scans / lengths[0][:, None]).mean(axis=0)
        cosine = (drawn / lengths[1][:, None]) @ centre / np.linalg.norm(centre)
        # Degrees from the mean colour of real images; they themselves lie up to this far from it.
        assert np.degrees(np.arccos(cosine)).max() < 12, part
