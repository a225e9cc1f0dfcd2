"""Paired metrics: published numbers, ties, bad input."""

import numpy as np
import pytest
import torch

from morphogen.core.errors import InputError, WeightsError
from morphogen.metrics.pairs import (
    imagenet_normalise,
    layer_averages,
    molecular_retrieval,
    perceptual_hash_value,
    psnr,
    resnet50_layers,
    ssim,
)


def test_ssim_and_psnr_equal_the_published_numbers(tensors):
    numbers = tensors("histdist_metrics")
    fake, real = numbers["img_fake"].numpy(), numbers["img_real"].numpy()
    np.testing.assert_allclose([psnr(r, f) for f, r in zip(fake, real)], numbers["psnr_per_image"], rtol=1e-6)
    np.testing.assert_allclose([ssim(r, f) for f, r in zip(fake, real)], numbers["ssim_per_image"], rtol=1e-6)


def test_equal_images_score_best():
    image = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    assert psnr(image, image) == float("inf")
    assert ssim(image, image) == pytest.approx(1.0)


def test_what_lies_outside_of_a_mask_is_not_compared():
    """A part that was not scanned scores as if it had been cut off."""
    rng = np.random.default_rng(1)
    real, made = rng.integers(0, 256, (2, 24, 40, 3), dtype=np.uint8)
    mask = np.zeros((24, 40), bool)
    mask[:, :30] = True
    for score in (psnr, ssim):
        assert score(real, made, mask) == pytest.approx(score(real[:, :30], made[:, :30]), rel=1e-6)
        assert score(real, made, np.ones_like(mask)) == pytest.approx(score(real, made), rel=1e-6)
        assert np.isnan(score(real, made, np.zeros_like(mask)))


def test_pairs_of_different_size_or_type_are_refused():
    a = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(InputError, match="two \\(H, W, 3\\) images of one size"):
        psnr(a, np.zeros((16, 18, 3), np.uint8))
    with pytest.raises(InputError, match="uint8 RGB, not uint16"):
        ssim(a, a.astype(np.uint16))


def _stand_in(numbers):
    def network(x):
        layers = []
        for k in range(4):
            weight, bias = numbers[f"phv_conv{k}.weight"], numbers[f"phv_conv{k}.bias"]
            x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, stride=2, padding=1))
            layers.append(x)
        return layers

    return network


def test_phv_equals_the_published_numbers(tensors):
    numbers = tensors("histdist_metrics")
    fake, real = (numbers[k].permute(0, 3, 1, 2) / 255 for k in ("img_fake", "img_real"))
    np.testing.assert_allclose(
        imagenet_normalise(fake[:1], as_signed=True), numbers["phv_normalised_fake0"], atol=1e-6
    )
    for side, images in (("fake", fake), ("real", real)):
        averages = layer_averages(images, _stand_in(numbers), reference=True)
        for k, found in enumerate(averages, start=1):
            np.testing.assert_allclose(found, numbers[f"phv_gap_{side}_layer_{k}"], atol=1e-5)
    found = perceptual_hash_value(real, fake, _stand_in(numbers), threshold=0.01, reference=True)
    np.testing.assert_array_equal(found, numbers["phv_per_image"])
    np.testing.assert_allclose(found.mean(axis=0), numbers["phv_mean"], rtol=0, atol=1e-15)


def test_phv_default_normalises_unit_range_images():
    white = torch.ones(1, 3, 8, 8)
    seen = []
    layer_averages(white, lambda x: seen.append(x) or [x])
    torch.testing.assert_close(
        seen[0][0, :, 0, 0], (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )


def test_phv_layers_come_from_resnet50_at_its_four_strides(tmp_path):
    import torchvision

    path = tmp_path / "resnet50.pth"
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), path)
    with torch.no_grad():
        layers = resnet50_layers(path)(torch.zeros(1, 3, 64, 64))
    assert [tuple(layer.shape) for layer in layers] == [
        (1, 256, 16, 16),
        (1, 512, 8, 8),
        (1, 1024, 4, 4),
        (1, 2048, 2, 2),
    ]
    path.write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="resnet50.pth: ResNet-50 weights cannot be read"):
        resnet50_layers(path)


def test_retrieval_equals_the_published_ranks(tensors):
    numbers = tensors("histdist_metrics")
    found = molecular_retrieval(numbers["mra_gt"], numbers["mra_pred"], ties="for")
    np.testing.assert_array_equal(found.ranks, numbers["mra_ranks"])
    assert found.top1 == float(numbers["mra_top1"])
    assert found.top3 == float(numbers["mra_top3"])
    assert (found.n, found.chance) == (40, 1 / 40)


def test_ties_count_against_the_model_by_default():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(10, 4))
    real[1] = 3 * real[0]  # the same direction: cannot be told apart
    ranks = molecular_retrieval(real, real).ranks
    assert list(ranks[:2]) == [1, 1] and not ranks[2:].any()
    constant = np.ones((10, 4))
    assert molecular_retrieval(constant, constant).top1 == 0.0
    assert molecular_retrieval(constant, constant, ties="for").top1 == 1.0


def test_retrieval_refuses_sets_that_do_not_pair():
    with pytest.raises(InputError, match="N generated and N real"):
        molecular_retrieval(np.ones((3, 4)), np.ones((4, 4)))
    with pytest.raises(InputError, match="'best' is not a way"):
        molecular_retrieval(np.ones((3, 4)), np.ones((3, 4)), ties="best")
