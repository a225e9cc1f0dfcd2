"""Small tissue of three classes whose patients differ in colour, and one tiny trained model for all tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphogen.layout.config import DataConfig, SegmentConfig, TrainConfig
from morphogen.layout.data import read_sources

NAMES = ("background", "stroma", "tumour")


def painted(patient: int, number: int, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """An image (side, side, 3) and its labels: a disc of tumour in stroma on glass, in the patient's colours."""
    random = np.random.default_rng(100 * patient + number)
    rows, columns = np.mgrid[:side, :side]
    centre = random.uniform(0.3, 0.7, 2) * side
    away = np.hypot(rows - centre[0], columns - centre[1])
    labels = np.where(away < 0.18 * side, 2, np.where(away < 0.45 * side, 1, 0)).astype(np.uint8)
    tint = np.array([[245, 243, 246], [225 - 15 * patient, 150, 190], [120, 70 + 20 * patient, 150]])
    image = tint[labels] + random.normal(0, 6, (side, side, 1))
    return np.clip(image, 0, 255).astype(np.uint8), labels


def write_folder(root: Path, patients=(1, 2, 3, 4), images: int = 2, side: int = 64) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows = ["name,patient"]
    for patient in patients:
        for number in range(images):
            image, labels = painted(patient, number, side)
            Image.fromarray(image).save(root / "images" / f"p{patient}_{number}.png")
            Image.fromarray(labels).save(root / "masks" / f"p{patient}_{number}.png")
            rows.append(f"p{patient}_{number},P{patient}")
    (root / "patients.csv").write_text("\n".join(rows) + "\n")
    (root / "labels.json").write_text(json.dumps({str(k): name for k, name in enumerate(NAMES)}))
    return root


@pytest.fixture(scope="session")
def tissue(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tissue"))


@pytest.fixture(scope="session")
def data() -> DataConfig:
    return DataConfig(crop=32, annotated=("P1", "P2"), test=("P4",), sampling="mp", style_images=2)


@pytest.fixture(scope="session")
def found(tissue, data):
    return read_sources([tissue], data)


def small_training(steps: int, data: DataConfig) -> TrainConfig:
    config = TrainConfig(size="tiny", data=data)
    loop = config.training.replace(
        steps=steps, batch_size=4, save_every=max(steps, 1), lr=1e-3, ema_decay=0.9
    )
    return config.replace(training=loop)


def small_segmenter(steps: int, data: DataConfig, **changes) -> SegmentConfig:
    config = SegmentConfig(data=data, **changes)
    loop = config.training.replace(
        steps=steps, batch_size=4, save_every=max(steps, 1), lr=1e-2, ema_decay=0.9
    )
    return config.replace(training=loop, network=config.network.replace(widths=(8, 16, 24)))


@pytest.fixture(scope="session")
def trained(tmp_path_factory, found, data):
    from morphogen.layout.train import train_model

    return train_model(found, small_training(4, data), tmp_path_factory.mktemp("layout"), device="cpu")


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory, found, data):
    from morphogen.layout.segmenter.train import train_segmenter

    out = tmp_path_factory.mktemp("segmenter")
    config = small_segmenter(80, data)
    return train_segmenter(found.annotated, found.classes.names, config, out, device="cpu").model
