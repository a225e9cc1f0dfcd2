"""Training of a segmentation network on real and synthetic crops, one for each share of synthetic ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from morphogen.core.devices import resolve_device
from morphogen.core.errors import ConfigError
from morphogen.core.files import writable_folder
from morphogen.core.seeds import seed_for
from morphogen.core.writing.locks import locks_folder
from morphogen.layout.config import SegmentConfig
from morphogen.layout.sampling.crops import SegmentationCrops
from morphogen.layout.segmenter.model import Segmenter, segmentation_loss
from morphogen.layout.sources.sheets import Sheet
from morphogen.metrics.segmentation import confusion, mean_iou
from morphogen.training import Draws, TrainResult, fit


class SegmentTask:
    """What :func:`morphogen.training.fit` needs."""

    whole_batches = True  # the Dice loss has its sums over the batch

    def __init__(
        self,
        segmenter: Segmenter,
        dataset: Dataset,
        config: SegmentConfig,
        identity: dict[str, Any],
        validation: Sequence[Sheet] = (),
    ) -> None:
        self.segmenter, self.dataset, self.config, self.identity = segmenter, dataset, config, identity
        self.validation = list(validation)
        self.model: nn.Module = segmenter.network

    def loss(self, model: Any, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """Cross-entropy and Dice of the batch."""
        logits = model(self.segmenter.pixels(batch["image"]))
        labels = batch["labels"].to(logits.device)
        return segmentation_loss(logits, labels, self.config.ce, self.config.dice, self.config.overlap)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Pooled mean IoU of the foreground classes on the tissue crops of the validation sheets."""
        if not self.validation:
            return {}
        total: Any = 0
        for sheet in self.validation:
            for top, left in sheet.tissue(self.segmenter.crop):
                image, labels = self._crop(sheet, int(top), int(left))
                found = self.segmenter(torch.from_numpy(image[None]))[0].numpy()
                total = total + confusion(labels, found, self.segmenter.planes)
        return {"iou": mean_iou(total)}

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """Image | labels | found, one crop per row, as ``segmented.png``."""
        from PIL import Image

        items = [self.dataset[index] for index in range(4)]
        images = torch.stack([item["image"] for item in items])
        maps = torch.stack([item["labels"] for item in items]).to(torch.uint8), self.segmenter(images)
        grey = [
            (each * (255 // (self.segmenter.planes - 1)))[..., None].expand(-1, -1, -1, 3) for each in maps
        ]
        Image.fromarray(torch.cat([images, *grey], dim=2).flatten(0, 1).numpy()).save(
            folder / "segmented.png"
        )

    def _crop(self, sheet: Sheet, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
        side = self.segmenter.crop
        return np.ascontiguousarray(sheet.image(top, left, side)), sheet.labels(top, left, side)


@dataclass(frozen=True)
class TrainedSegmenter:
    """A finished training."""

    model: Segmenter
    folder: Path
    run: TrainResult


@locks_folder()
def train_segmenter(
    real: Sequence[Sheet],
    classes: Sequence[str],
    config: SegmentConfig,
    out: Path | str,
    *,
    synthetic: Sequence[Sheet] = (),
    validation: Sequence[Sheet] = (),
    device: str | torch.device = "auto",
    precision: str = "fp32",
) -> TrainedSegmenter:
    """Train on annotated sheets and, in a share ``config.synthetic_ratio``, synthetic ones; ``out/model`` is the
    segmenter with its averaged weights. The steps are the same whatever the share. A run in ``out`` goes on.
    ``validation`` sheets are scored every ``training.validate_every`` steps."""
    out = writable_folder(out)
    where = resolve_device(device)
    data = config.data
    ratio = config.synthetic_ratio if synthetic else 0.0
    facts = {
        "real": sorted({sheet.patient for sheet in real}),
        "synthetic": len(synthetic),
        "synthetic_ratio": ratio,
        "steps": config.training.steps,
        "seed": config.training.seed,
    }
    model = Segmenter.fresh(
        config.network,
        tuple(classes),
        crop=data.crop,
        mpp=data.mpp,
        seed=seed_for(config.training.seed, "segmenter"),
        facts=facts,
    ).to(where)
    if data.crop % model.multiple:
        raise ConfigError(
            f"a crop of {data.crop} px does not fit this network",
            where="data.crop",
            fix=f"Use a multiple of {model.multiple}",
        )
    if 2 * config.overlap >= data.crop:
        raise ConfigError(f"an overlap of {config.overlap} px leaves nothing of a crop", where="overlap")
    dataset = SegmentationCrops(
        real, synthetic, data, len(classes), ratio=ratio, stain_augment=config.stain_augment
    )
    settings = config.to_dict()
    identity = {key: settings[key] for key in ("network", "data", "ce", "dice", "overlap", "stain_augment")}
    identity |= {"synthetic_ratio": ratio, "classes": list(classes)}
    identity |= {"real": [s.identity() for s in real], "synthetic": [s.identity() for s in synthetic]}
    config.save(out / "config.yaml")
    task = SegmentTask(model, dataset, config, identity, validation)
    run = fit(task, config.training, out, device=where, precision=precision)
    model.network.load_state_dict(run.ema_state)
    model.network.eval()
    model.facts = {**model.facts, "step": run.step, "metrics": run.metrics}
    model.save_pretrained(out / "model")
    return TrainedSegmenter(model, out / "model", run)


@locks_folder()
def sweep(
    real: Sequence[Sheet],
    synthetic: Sequence[Sheet],
    classes: Sequence[str],
    config: SegmentConfig,
    out: Path | str,
    **options: Any,
) -> dict[float, TrainedSegmenter]:
    """One segmenter for every share of ``config.ratios``, in ``out/ratio-…``, all with the same steps."""
    return {
        ratio: train_segmenter(
            real,
            classes,
            config.replace(synthetic_ratio=ratio, ratios=()),
            Path(out) / f"ratio-{ratio:g}",
            synthetic=synthetic if ratio else (),
            **options,
        )
        for ratio in config.ratios or (config.synthetic_ratio,)
    }
