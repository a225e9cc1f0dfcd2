"""The texture encoder: invariance, independence of the batch, closed forms of its statistics, tokens, bad
input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.feature import graycoprops

from morphogen.core.errors import ConfigError, InputError
from morphogen.slides.colour import deconvolve, reconstruct
from morphogen.slides.encoders.texture.encoder import SPEC, TOKEN_WIDTH, WIDTH, TextureEncoder
from morphogen.slides.encoders.texture.planes import (
    block_means,
    counts,
    gradient,
    largest_near,
    planes,
    smooth,
)
from morphogen.slides.encoders.texture.statistics import amounts, bands, cooccurrence, local_patterns, shares


def tissue(n: int, side: int = 224, seed: int = 0) -> torch.Tensor:
    """Round nuclei on a pink, noisy ground with a white hole: uint8 (n, side, side, 3)."""
    rng = np.random.default_rng(seed)
    stain = np.zeros((n, 3, side, side))
    stain[:, 0] = 0.06 + 0.04 * ndimage.gaussian_filter(rng.standard_normal((n, side, side)), (0, 2, 2)) * 5
    stain[:, 1] = 0.25 + 0.1 * ndimage.gaussian_filter(rng.standard_normal((n, side, side)), (0, 5, 1)) * 5
    rows, columns = np.mgrid[:side, :side]
    for image in stain:
        for _ in range(max(2, side * side // 900)):
            y, x, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(4, 9)
            image[0] += rng.uniform(0.2, 0.5) * ((rows - y) ** 2 + (columns - x) ** 2 < r * r)
        image[:, : side // 5, : side // 4] = 0
    rgb = reconstruct(stain.clip(0), "hed", dtype="uint8")
    noise = torch.as_tensor(rng.integers(-4, 5, rgb.shape))
    return (rgb.long() + noise).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    return tissue(5)


def orientations(x: torch.Tensor):
    for turn in range(4):
        for flip in (False, True):
            y = torch.rot90(x, turn, (1, 2))
            yield (y.flip(2) if flip else y).contiguous()


def test_width_and_names_are_those_of_the_specification(tiles) -> None:
    encoder, grid = TextureEncoder(), TextureEncoder((7, 7))
    assert encoder(tiles).shape == (5, WIDTH) and encoder.spec == SPEC and WIDTH >= 128
    assert len(set(encoder.names)) == len(encoder.names) == WIDTH
    assert grid(tiles).shape == (5, 50, TOKEN_WIDTH) and grid.spec.width == TOKEN_WIDTH
    assert len(set(grid.names)) == len(grid.names) == TOKEN_WIDTH


@pytest.mark.parametrize("side", [224, 256, 97])
def test_rotating_and_mirroring_changes_nothing(side) -> None:
    images = tissue(2, side)
    encoder = TextureEncoder()
    expected = encoder(images)
    assert float((encoder(images) - encoder(images.flip(0)).flip(0)).abs().max()) == 0
    for turned in orientations(images):
        torch.testing.assert_close(encoder(turned), expected, atol=2e-5, rtol=2e-5)
    # a shear, which is not one of the eight, does change them
    sheared = torch.stack([row.roll(int(i) // 2, 0) for i, row in enumerate(images[0])])[None]
    assert float((encoder(sheared) - expected[:1]).abs().max()) > 0.01


def test_planes_turn_with_the_tile_to_the_bit(tiles) -> None:
    expected = planes(tiles).amounts
    for turned, back in zip(orientations(tiles), _back(), strict=True):
        for level, plane in enumerate(planes(turned).amounts):
            assert torch.equal(back(plane), expected[level])


def _back():
    for turn in range(4):
        for flip in (False, True):
            yield lambda x, turn=turn, flip=flip: torch.rot90(x.flip(3) if flip else x, -turn, (2, 3))


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("grid", [None, (7, 7)])
def test_batches_of_any_size_give_the_same_bits(grid, threads) -> None:
    images = tissue(9, 224)
    encoder = TextureEncoder(grid)
    expected = encoder(images)
    for size in (1, 2, 5):
        parts = torch.cat([encoder(images[i : i + size]) for i in range(0, 9, size)])
        assert torch.equal(parts, expected)


def test_arrays_and_tensors_agree(tiles) -> None:
    assert torch.equal(TextureEncoder()(tiles.numpy()), TextureEncoder()(tiles))


@pytest.mark.parametrize("value", [0, 255, 128])
@pytest.mark.parametrize("grid", [None, (14, 14)])
def test_flat_tiles_are_finite_and_without_texture(value, grid) -> None:
    encoder = TextureEncoder(grid)
    out = encoder(torch.full((2, 224, 224, 3), value, dtype=torch.uint8))
    assert bool(torch.isfinite(out).all())
    flat = dict(zip(encoder.names, out[0, 0] if grid else out[0], strict=True))
    for name, number in flat.items():
        if name.startswith(("band/rms", "edge/mean", "edge/rms", "entropy/", "nuclei/small/number")):
            assert abs(float(number)) < 1e-6, name


def test_stain_amounts_agree_with_deconvolution_and_numpy(tiles) -> None:
    names, values = amounts(planes(tiles))
    table = dict(zip(names, values.T, strict=True))
    plane = block_means(deconvolve(tiles, "hed", clamp=False), (112, 112)).flatten(2).numpy()
    for c, channel in enumerate(("haematoxylin", "eosin", "dab")):
        x = plane[:, c]
        for kind, expected, tolerance in (
            ("mean", x.mean(1), 3e-3),
            ("sd", x.std(1), 3e-3),
            ("q05", np.quantile(x, 0.05, axis=1), 6e-3),
            ("q50", np.quantile(x, 0.50, axis=1), 6e-3),
            ("q95", np.quantile(x, 0.95, axis=1), 6e-3),
        ):
            np.testing.assert_allclose(
                table[f"amount/{channel}/{kind}"], expected, atol=tolerance, err_msg=kind
            )


def test_local_patterns_count_brighter_neighbours_on_uniform_rings() -> None:
    image = np.random.default_rng(0).integers(0, 50, (40, 30)) * 5  # no difference of 1 or 2 greys
    ours = local_patterns(torch.as_tensor(image, dtype=torch.int16)[None])[0]
    y, x = np.mgrid[1:39, 1:29]
    ring = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    bits = np.stack([image[y + i, x + j] >= image[y, x] + 3 for i, j in ring]).astype(int)
    ones, changes = bits.sum(0), (bits != np.roll(bits, 1, 0)).sum(0)
    np.testing.assert_array_equal(ours, np.where(changes <= 2, ones, 9))
    assert set(np.unique(ours)) == set(range(10))


def test_bands_are_a_level_less_its_smoothed_self(tiles) -> None:
    p = planes(tiles)
    names, values = bands(p)
    table = dict(zip(names, values.T, strict=True))
    for level, channel, index in ((0, "haematoxylin", 0), (1, "eosin", 1), (4, "density", 3)):
        plane = p.amounts[level][:, index].numpy()
        kernel = np.outer([1, 2, 1], [1, 2, 1])[None] / 16
        detail = plane - ndimage.convolve(plane, kernel, mode="nearest")
        rms = np.sqrt((detail**2).mean((1, 2)))
        np.testing.assert_allclose(table[f"band/rms/{channel}/{level}"], rms, rtol=1e-4)
        flatness = np.abs(detail).mean((1, 2)) / rms
        np.testing.assert_allclose(table[f"band/flatness/{channel}/{level}"], flatness, rtol=1e-4)
    fine, coarse = table["band/rms/density/2"], table["band/rms/density/3"]
    torch.testing.assert_close(table["band/ratio/density/2"], fine / (fine + coarse))


def test_shares_are_counted_pixels(tiles) -> None:
    names, values = shares(planes(tiles))
    density = planes(tiles).amounts[1][:, 3].numpy()
    np.testing.assert_allclose(
        values[:, names.index("share/density>0.10/1")], (density > 0.1).mean((1, 2)), rtol=1e-6
    )


def test_cooccurrence_statistics_equal_scikit_image(tiles) -> None:
    p = planes(tiles[:1])
    names, values = cooccurrence(p)
    table = dict(zip(names, values[0].tolist(), strict=True))
    grey = (p.amounts[1][0, 0] * (8 / 0.6)).floor().clamp(0, 7).to(torch.uint8).numpy()
    counted = sum(_pairs(grey, di, dj) for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1)))
    matrix = (counted / counted.sum())[..., None, None]
    for kind, prop in (
        ("contrast", "contrast"),
        ("correlation", "correlation"),
        ("homogeneity", "homogeneity"),
    ):
        expected = graycoprops(matrix, prop)[0, 0]
        np.testing.assert_allclose(table[f"cooccurrence/haematoxylin/2px/{kind}"], expected, rtol=1e-4)
    np.testing.assert_allclose(
        table["cooccurrence/haematoxylin/2px/energy"], graycoprops(matrix, "energy")[0, 0], rtol=1e-4
    )


def _pairs(grey: np.ndarray, di: int, dj: int) -> np.ndarray:
    h, w = grey.shape
    a = grey[: h - di, max(0, -dj) : w - max(0, dj)]
    b = grey[di:, max(0, dj) : w + min(0, dj)]
    matrix = np.zeros((8, 8))
    np.add.at(matrix, (a.ravel(), b.ravel()), 1)
    return matrix + matrix.T


def test_plane_operations_equal_scipy() -> None:
    x = torch.rand(2, 3, 33, 20, generator=torch.Generator().manual_seed(0))
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    for spacing in (1, 2):
        spaced = np.zeros(4 * spacing + 1)
        spaced[::spacing] = kernel
        expected = ndimage.convolve1d(
            ndimage.convolve1d(x, spaced, -1, mode="nearest"), spaced, -2, mode="nearest"
        )
        np.testing.assert_allclose(smooth(x, spacing), expected, atol=1e-6)
    for radius in (1, 2, 4):
        expected = ndimage.maximum_filter(
            x.numpy(), (1, 1, 2 * radius + 1, 2 * radius + 1), mode="constant", cval=-9
        )
        np.testing.assert_array_equal(largest_near(x, radius), expected)
    ramp = torch.arange(20.0).expand(1, 1, 33, 20)
    gx, gy = gradient(ramp)
    assert torch.allclose(gx[..., 1:-1], torch.ones(1)) and torch.count_nonzero(gy) == 0
    index = torch.randint(0, 7, (3, 50), generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(counts(index, 7), [np.bincount(row, minlength=7) for row in index])


def _discs(centres, side: int = 224, radius: float = 8.0) -> torch.Tensor:
    stain = np.zeros((1, 3, side, side))
    rows, columns = np.mgrid[:side, :side]
    stain[:, 1] = 0.15
    for y, x in centres:
        stain[0, 0] = np.maximum(stain[0, 0], 0.5 * ((rows - y) ** 2 + (columns - x) ** 2 < radius**2))
    return reconstruct(stain, "hed", dtype="uint8").permute(0, 2, 3, 1)


@pytest.mark.parametrize("spacing", [28, 37, 56])
def test_blob_density_is_the_number_of_nuclei_per_area(spacing) -> None:
    centres = [(y, x) for y in range(spacing // 2, 224, spacing) for x in range(spacing // 2, 224, spacing)]
    encoder = TextureEncoder()
    table = dict(zip(encoder.names, encoder(_discs(centres))[0].tolist(), strict=True))
    assert table["nuclei/large/number"] == pytest.approx(len(centres) * 1000 / 112**2, rel=0.05)
    assert table["nuclei/inside/haematoxylin"] > table["nuclei/around/haematoxylin"] + 0.3


def test_stripes_are_coherent_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    rows = np.mgrid[:224, :224][0]
    stripes = np.repeat((180 + 40 * np.sin(rows / 5))[None, ..., None], 3, -1).astype(np.uint8)
    noise = np.repeat(rng.integers(140, 220, (1, 224, 224, 1)), 3, -1).astype(np.uint8)
    encoder = TextureEncoder()
    table = dict(zip(encoder.names, encoder(np.concatenate([stripes, noise])).T.tolist(), strict=True))
    for kind in ("coherence-weighted", "coherence-tile"):
        striped, noisy = table[f"edge/{kind}/density/1"]
        assert striped > 0.98 and noisy < 0.4


def test_tokens_follow_the_tile_when_it_turns(tiles) -> None:
    encoder = TextureEncoder((7, 7))
    width = TOKEN_WIDTH - 12  # the rest says where the cell is
    expected = encoder(tiles)
    turned = encoder(torch.rot90(tiles, 1, (1, 2)).contiguous())
    moved = torch.rot90(expected[:, 1:].unflatten(1, (7, 7)), 1, (1, 2)).flatten(1, 2)
    torch.testing.assert_close(turned[:, 1:, :width], moved[:, :, :width], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(turned[:, 0], expected[:, 0], atol=2e-5, rtol=2e-5)
    assert torch.equal(turned[:, :, width:], expected[:, :, width:])
    assert torch.count_nonzero(expected[:, 0, width:]) == 0


def test_a_cell_sees_only_its_part_of_the_tile(tiles) -> None:
    changed = tiles.clone()
    changed[:, 160:, 160:] = 255
    encoder = TextureEncoder((7, 7))
    difference = (encoder(changed) - encoder(tiles))[:, 1:].abs().amax((0, 2)).reshape(7, 7)
    assert float(difference[:4, :4].max()) == 0 and float(difference[5:, 5:].min()) > 0.1


@pytest.mark.parametrize("side", [32, 45, 300])
def test_other_sizes_work(side) -> None:
    for encoder in (TextureEncoder(), TextureEncoder((14, 14))):
        assert bool(torch.isfinite(encoder(tissue(2, side))).all())


def test_no_images_give_no_rows() -> None:
    empty = torch.zeros(0, 224, 224, 3, dtype=torch.uint8)
    assert TextureEncoder()(empty).shape == (0, WIDTH)
    assert TextureEncoder((2, 3))(empty).shape == (0, 7, TOKEN_WIDTH)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: TextureEncoder()(np.zeros((1, 64, 64, 3), np.float32)), InputError, "uint8"),
        (lambda: TextureEncoder()(np.zeros((1, 3, 64, 64), np.uint8)), InputError, "N, H, W, 3"),
        (lambda: TextureEncoder()(np.zeros((1, 20, 64, 3), np.uint8)), InputError, "32 px"),
        (lambda: TextureEncoder((0, 4)), ConfigError, "grid"),
    ],
)
def test_bad_input_is_named(call, error, words) -> None:
    with pytest.raises(error, match=words):
        call()


@pytest.mark.gpu
def test_gpu_gives_the_same(tiles) -> None:
    for encoder in (TextureEncoder(), TextureEncoder((7, 7))):
        torch.testing.assert_close(encoder(tiles.cuda()).cpu(), encoder(tiles), atol=2e-4, rtol=2e-4)


def test_the_differentiable_numbers_are_the_encoders_own(tiles_with_texture):
    images = tiles_with_texture
    smooth = images.permute(0, 3, 1, 2).float().requires_grad_()
    ours, exact = TextureEncoder().differentiable(smooth), TextureEncoder()(images)
    assert torch.allclose(ours, exact, atol=2e-3, rtol=2e-3)
    names = TextureEncoder().names
    for j in range(0, len(names), 7):
        (slope,) = torch.autograd.grad(ours[:, j].sum(), smooth, retain_graph=True)
        assert torch.isfinite(slope).all(), names[j]


@pytest.mark.parametrize(
    "name",
    ["amount/eosin/mean", "share/density>0.10/1", "pattern/0/4", "nuclei/area", "entropy/density/mean"],
)
def test_going_down_a_gradient_brings_the_number_down(tiles_with_texture, name):
    j = TextureEncoder().names.index(name)
    images = tiles_with_texture.permute(0, 3, 1, 2).float().requires_grad_()
    before = TextureEncoder().differentiable(images)[:, j]
    (slope,) = torch.autograd.grad(before.sum(), images)
    step = 6.0 * slope / slope.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    moved = (images - step).detach().round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    assert TextureEncoder()(moved)[:, j].mean() < before.mean()


@pytest.fixture(scope="module")
def tiles_with_texture() -> torch.Tensor:
    return tissue(2, 64)
