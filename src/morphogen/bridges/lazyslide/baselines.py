"""Models of lazyslide-models beside ours: genes of prepared sections, pictures of H&E images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anndata as ad
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.bridges.lazyslide.loading import Foreign, load_foreign, model_class, parsed
from morphogen.core.devices import resolve_device
from morphogen.core.errors import ConfigError, InputError
from morphogen.expression.config import PrepareConfig
from morphogen.expression.data import facts
from morphogen.expression.scoring.outside import Outside
from morphogen.expression.sections.prepare import encoder_of, slide_fields
from morphogen.slides import get_encoder
from morphogen.slides.colour import deconvolve, reconstruct
from morphogen.slides.formats.spatial import open_image
from morphogen.stain.data import Pair
from morphogen.tasks.bands import make_images
from morphogen.tasks.config import WindowConfig

TECHNOLOGY = {"ST": "Spatial Transcriptomics", "Visium": "Visium", "Visium HD": "Visium HD"}
DENSEST = 1.0  # optical density at which a marker map's 1 is drawn
_TILE = 128  # side of a tile of models that give one value per tile


# --- genes ------------------------------------------------------------------------------------------------


def gene_baselines(
    texts: Iterable[str], genes: Sequence[str], *, weights: str | None = None, device: str = "auto"
) -> list[Outside]:
    """What ``expression evaluate --baseline lazyslide:NAME`` names, for a panel of genes.

    weights: of the encoder whose features a model reads, where the sections were prepared with another one.
    """
    return [GeneBaseline(each, genes, weights=weights, device=device) for each in parsed(texts)]


class GeneBaseline:
    """A model of lazyslide-models that gives genes, from features or from tiles, on prepared sections.

    Features are those of the section where it was prepared with the encoder that the model reads; else the fields of
    its image are encoded again.
    """

    def __init__(
        self, model: Foreign, genes: Sequence[str], *, weights: str | None = None, device: str = "auto"
    ) -> None:
        from lazyslide_models import FeaturePredictionModelProtocol, TilePredictionModelProtocol

        cls = model_class(model.name)
        features = hasattr(cls, "features_model_name")
        if not features and not hasattr(cls, "columns"):
            raise ConfigError(
                f"'{model.name}' predicts no genes: it is a model for {_task(cls)}", where="--baseline"
            )
        self.name, self.weights, self.device = model.label, weights, str(resolve_device(device))
        options: dict[str, Any] = {"genes": list(genes)}
        if model.part:
            if model.name != "stpath":
                raise ConfigError(f"'{model.name}' has no parts to name", where=model.label)
            options["organ_type"] = model.part
        self.model = load_foreign(model, **options)
        expected = FeaturePredictionModelProtocol if features else TilePredictionModelProtocol
        assert isinstance(self.model, expected)
        self.model.to(self.device)
        self._encoder: Any = None

    def __call__(self, section: ad.AnnData) -> dict[str, np.ndarray]:
        """Gene → (N,) values of the model's own units at the spots of a prepared section."""
        if hasattr(self.model, "features_model_name"):
            out = self._from_features(section)
        else:
            parts = [self._from_fields(fields) for fields in self._fields(section)]
            out = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {str(name): np.asarray(values, np.float32).reshape(-1) for name, values in out.items()}

    def _from_features(self, section: ad.AnnData) -> dict[str, np.ndarray]:
        values = self._features(section)
        coords = np.asarray(section.obsm["spatial"], np.float32)
        if getattr(self.model, "tech_id", None) is not None:
            from lazyslide_models.feature_prediction.stpath._constants import TECH_VOC

            self.model.tech_id = TECH_VOC.index(TECHNOLOGY.get(facts(section).technology, "<pad>"))
        try:
            if getattr(self.model, "needs_coords", False):
                return self.model.predict(values, coords)
            return self.model.predict(values)
        except ValueError as error:  # too many spots for one call, features of another width
            line = " ".join(str(error).split())[:180]
            raise InputError(
                f"{self.name} cannot predict it ({line})", where=facts(section).section
            ) from None

    def _features(self, section: ad.AnnData) -> np.ndarray:
        name = str(self.model.features_model_name)
        if encoder_of(section)["name"] == name:
            return np.asarray(section.obsm["embedding"], np.float32)
        if self._encoder is None:
            self._encoder = get_encoder(name, self.weights, device=self.device)
        return np.concatenate([self._encoder(fields).cpu().numpy() for fields in self._fields(section)])

    def _fields(self, section: ad.AnnData) -> Iterable[np.ndarray]:
        f = facts(section)
        if not f.image:
            raise InputError(
                f"{self.name} looks at fields of the image, which this section does not name",
                where=f.section,
                fix="Prepare it from a folder with images",
            )
        return slide_fields(section, open_image(f.image, mpp=f.mpp), PrepareConfig())

    def _from_fields(self, fields: np.ndarray) -> dict[str, np.ndarray]:
        return _by_tile(self.model, fields, self.device)


def _by_tile(model: Any, images: np.ndarray, device: str) -> dict[str, np.ndarray]:
    transform = model.get_transform()
    batch = torch.stack([torch.as_tensor(transform(image)) for image in images])
    with torch.inference_mode():
        return {name: np.asarray(values) for name, values in model.predict(batch.to(device)).items()}


# --- stains -----------------------------------------------------------------------------------------------


def stain_baselines(
    texts: Iterable[str], pairs: Sequence[Pair], *, device: str = "auto"
) -> dict[str, Callable[[Pair, np.ndarray], np.ndarray]]:
    """What ``stain evaluate --baseline lazyslide:NAME`` names: name in the table → picture of a pair's H&E.

    pairs: what is scored; their stains are those that the model must have, by name or by the part named.
    """
    if not pairs:
        raise ConfigError("a baseline needs the H&E", where="--baseline", fix="Give its folder: --he FOLDER")
    out: dict[str, Callable[[Pair, np.ndarray], np.ndarray]] = {}
    for each in parsed(texts):
        out[each.label] = StainBaseline(each, [pair.stain for pair in pairs], device=device)
    return out


class StainBaseline:
    """A model of lazyslide-models that gives stains or markers, as pictures like the real stain.

    A virtual stain is the picture. A marker is drawn as DAB: its value in the model's own range is the optical density
    (1 = 1.0) over the haematoxylin that the H&E shows, without its eosin. Correlations do not depend on that scale, the
    error of the density does.
    """

    def __init__(self, model: Foreign, stains: Iterable[str], *, device: str = "auto") -> None:
        cls = model_class(model.name)
        if not any(hasattr(cls, name) for name in ("channel_names", "stains", "columns")):
            raise ConfigError(
                f"'{model.name}' makes no stains: it is a model for {_task(cls)}", where="--baseline"
            )
        self.label, self.part, self.device = model.label, model.part, str(resolve_device(device))
        declared = _channels(cls)
        if declared:  # before weights are loaded
            for stain in dict.fromkeys(stains):
                self._index(stain, declared)
        self.model = load_foreign(model)
        self.model.to(self.device)
        self.channels = _channels(self.model)
        self.side = _side(cls, self.model)

    def __call__(self, pair: Pair, he: np.ndarray) -> np.ndarray:
        """H&E (H, W, 3) uint8 → a picture of the same size."""
        made = _Windows(self, self._index(pair.stain, self.channels))
        band = next(make_images(made, [he], [pair.name], WindowConfig()))
        return band.picture()

    def _index(self, stain: str, channels: Sequence[str]) -> int:
        wanted = self.part or stain
        for index, channel in enumerate(channels):
            if _plain(channel) == _plain(wanted):
                return index
        shown = ", ".join(channels[:8]) + (" …" if len(channels) > 8 else "")
        raise ConfigError(
            f"{self.label} makes no '{wanted}', only {shown}",
            where="--baseline",
            fix="Name one: lazyslide:NAME:MARKER",
        )


class _Windows:
    """The windows of an image through such a model; a :class:`~morphogen.tasks.bands.Translator`."""

    mpp = None
    planes = 3

    def __init__(self, baseline: StainBaseline, channel: int) -> None:
        self.baseline, self.channel = baseline, channel
        self.multiple = self.factor = 32
        self.crop = baseline.side

    def noise(self, plan: Any, name: str) -> None:
        """None: nothing is drawn."""

    def make(
        self, images: np.ndarray, noise: Callable[[int], Tensor] | None, posterior_noise: Tensor | None
    ) -> Tensor:
        model, size = self.baseline.model, images.shape[1:3]
        if not hasattr(model, "output_range"):
            values = list(_by_tile(model, images, self.baseline.device).values())[self.channel]
            marker = torch.from_numpy(np.asarray(values, np.float32))[:, None, None, None].expand(
                -1, 1, *size
            )
            return drawn(images, marker)
        transform = model.get_transform()
        batch = torch.stack([torch.as_tensor(transform(image)) for image in images])
        with torch.inference_mode():
            out = model.predict(batch.to(self.baseline.device)).float().cpu()
        if out.shape[-2:] != size:  # a model of one input size
            out = F.interpolate(out, size=size, mode="bilinear", align_corners=False)
        low, high = model.output_range or (0.0, 1.0)
        out = (out - low) / (high - low)
        if hasattr(model, "stains"):
            return out[:, 3 * self.channel : 3 * self.channel + 3].clamp(0, 1) * 255
        return drawn(images, out[:, self.channel : self.channel + 1])


def drawn(he: np.ndarray, marker: Tensor) -> Tensor:
    """H&E (B, H, W, 3) uint8 and a marker (B, 1, H, W) in 0…1 → (B, 3, H, W) colours in 0…255."""
    amounts = deconvolve(np.array(he), "hed", layout="nhwc")
    amounts[:, 1] = 0
    amounts[:, 2] = marker[:, 0].to(amounts).clamp(min=0) * DENSEST
    return reconstruct(amounts, "hed", dtype="uint8").float()


def _channels(model: Any) -> tuple[str, ...]:
    for name in ("channel_names", "stains", "columns"):
        if value := getattr(model, name, None):
            return tuple(value)
    return ()


def _side(cls: Any, model: Any) -> int:
    """Side of a window: what the model is bound to, else 512 px, or a tile for models of one value per tile."""
    bound = getattr(cls, "input_constraint", None)
    if bound is not None and (bound.min or bound.max):
        return int(bound.min or bound.max)
    return 512 if hasattr(model, "output_range") else _TILE


def _plain(name: str) -> str:
    """``Ki67`` for ``Ki67_1:150`` and ``ki-67``: letters and digits alone, without a dilution."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"_1:\d+$", "", name).casefold())


def _task(cls: Any) -> str:
    tasks = cls.task if isinstance(cls.task, list) else [cls.task]
    return " and ".join(task.value.replace("_", " ") for task in tasks)
