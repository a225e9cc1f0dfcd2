"""Gene expression behind LazySlide's models: from features (``zs.tl.feature_prediction``) or from tiles."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import torch
from lazyslide_models import FeaturePredictionModel, TilePredictionModel
from scipy import sparse

from morphogen.bridges.lazyslide.base import Bridged, pixels
from morphogen.core.errors import ConfigError, InputError
from morphogen.expression import ExpressionModel, PredictConfig
from morphogen.expression.data import SectionFacts, pitch_in_pixels, set_facts
from morphogen.expression.sections.neighbours import nearest_spots
from morphogen.slides import get_encoder

FIELD_UM = 112.0


class _Genes(Bridged):
    """What the two faces of a gene model share.

    Parameters
    ----------
    model: folder, hub id or :class:`~morphogen.expression.ExpressionModel`.
    spread: also give ``GENE sd``, the spread of ``samples`` samples, for every gene.
    samples, seed: how many samples stand behind the spread, and the seed of their noise.
    """

    pipeline: ExpressionModel
    columns: tuple[str, ...] | None

    def __init__(self, model: Any = None, *, spread: bool = False, samples: int = 20, seed: int = 0) -> None:
        place = self._place(model)
        self.pipeline = (
            place if isinstance(place, ExpressionModel) else ExpressionModel.from_pretrained(place)
        )
        self.model = self.pipeline.head
        self.genes = tuple(self.pipeline.panel.genes)
        self.config = PredictConfig(samples=samples if spread else 0, seed=seed)
        self.spread = spread
        self.columns = self.genes + tuple(f"{gene} sd" for gene in self.genes if spread)

    @property
    def tiling(self) -> dict[str, float]:
        """Arguments of ``zs.pp.tile_tissues`` for tiles as the model was trained on: their side in pixels, their µm/px
        and the distance of their centres in pixels."""
        known = self.pipeline.prepared
        side = int(known.get("field_px", 224))
        mpp = float(known.get("field_um") or FIELD_UM) / side
        pitch = float(known.get("pitch_um") or 0.0) or side * mpp
        return {"tile_px": side, "mpp": mpp, "stride_px": round(pitch / mpp)}

    def _predicted(self, features: np.ndarray, coords: np.ndarray, near: np.ndarray) -> dict[str, np.ndarray]:
        section = ad.AnnData(shape=(len(features), 0))
        section.obs_names = [f"tile{i}" for i in range(len(features))]
        section.obsm["spatial"], section.obsm["embedding"] = coords, features
        section.obsm["neighbours"] = near
        set_facts(section, SectionFacts(section="slide", pitch_px=pitch_in_pixels(coords, None, "")))
        trained = self.pipeline.encoder
        section.uns["morphogen"]["prepare"] = {
            "encoder": {"name": trained["name"]},
            # The caller names the features' encoder; of its weights a matrix does not tell.
            "encoder_identity": trained.get("identity", ""),
            "field": trained.get("field", ""),
            "field_px": int(trained.get("field_px", 224)),
            "near": int(self.pipeline.prepared.get("near", 9)),
        }
        result = self.pipeline(section, self.config, device=str(self.pipeline.device))
        columns = [np.asarray(result.layers["pred_mean"], np.float32)]
        if self.spread:
            columns.append(np.asarray(result.layers["pred_std"], np.float32))
        return dict(zip(self.columns or (), np.concatenate(columns, axis=1).T, strict=True))


class GeneFeatures(_Genes, FeaturePredictionModel):
    """A gene model as a ``FeaturePredictionModel``: from the features of all tiles of a slide and where they lie.

    Tiles should be as the sections were that it was trained on: see :attr:`tiling`. Values are the expected log counts
    of a spot.
    """

    needs_coords = True
    whole_slide = True  # neighbourhoods

    def __init__(self, model: Any = None, *, spread: bool = False, samples: int = 20, seed: int = 0) -> None:
        super().__init__(model, spread=spread, samples=samples, seed=seed)
        self.features_model_name = str(self.pipeline.encoder["name"])

    def predict(self, features: Any, coords: Any = None) -> dict[str, np.ndarray]:
        """(N, D) features and (N, 2) corners of the tiles in level-0 pixels → gene → (N,) float32."""
        if sparse.issparse(features):
            features = features.toarray()
        if isinstance(features, torch.Tensor):
            features = features.detach().cpu().numpy()
        values = np.asarray(features, dtype=np.float32)
        if coords is None or np.shape(coords) != (len(values), 2):
            raise InputError(
                f"{len(values)} rows of features need as many x and y, not {np.shape(coords)}",
                where=self.__class__.__name__,
                fix="Give coords (N, 2): this model sees a tile's neighbours",
            )
        places = np.asarray(coords, dtype=np.float64)
        return self._predicted(values, places, nearest_spots(places, self._wide))

    @property
    def _wide(self) -> int:
        known = self.pipeline.prepared
        return max(int(known.get("near", 9)), int(known.get("region", 49)))


class GeneTiles(_Genes, TilePredictionModel):
    """A gene model that sees one field alone (recipe ``stem``) as a ``TilePredictionModel``: tiles in, genes out.

    Raises :class:`ConfigError` for recipes that look at a spot's neighbours, which a tile by itself does not have.

    Parameters
    ----------
    weights: of the encoder on disk, where it needs any.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        weights: str | None = None,
        spread: bool = False,
        samples: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(model, spread=spread, samples=samples, seed=seed)
        if not sees_one_field(self.pipeline.config.recipe):
            raise ConfigError(
                f"the recipe '{self.pipeline.config.recipe}' looks at the neighbours of a spot, a tile has none",
                where=self.__class__.__name__,
                fix="Use GeneFeatures with zs.tl.feature_prediction",
            )
        self.encoder = get_encoder(self.pipeline.encoder["name"], weights, device=self.pipeline.device)
        identity = self.pipeline.encoder.get("identity")
        if identity and self.encoder.identity() != identity:
            raise InputError(
                f"the weights of '{self.pipeline.encoder['name']}' are not those the model was trained on",
                where=self.__class__.__name__,
            )

    def get_transform(self) -> Any:
        """uint8 (3, px, px): a tile of the field, resampled to the pixels of the training fields."""
        from torchvision.transforms.v2 import Compose, Resize, ToImage

        side = int(self.tiling["tile_px"])
        return Compose([ToImage(), Resize((side, side), antialias=True)])

    def to(self, device: Any) -> GeneTiles:
        super().to(device)
        if self.encoder.device != self.pipeline.device:
            if self.encoder.module is not None:
                self.encoder.module.to(self.pipeline.device)
            self.encoder.device = self.pipeline.device
        return self

    def predict(self, image: Any) -> dict[str, np.ndarray]:
        """Tiles (B, 3, H, W) → gene → (B,) float32."""
        features = self.encoder(pixels(image, self.__class__.__name__)).cpu().numpy()
        count = len(features)
        places = np.stack([np.arange(count), np.zeros(count)], axis=1) * 1e6  # nobody's neighbour
        alone = np.arange(count, dtype=np.int32)[:, None]
        wide = max(int(self.pipeline.prepared.get("near", 9)), 1)
        near = np.concatenate([alone, np.full((count, wide - 1), -1, np.int32)], axis=1)
        return self._predicted(features, places, near)


def sees_one_field(recipe: str) -> bool:
    """Whether a recipe predicts a spot from its own field alone."""
    return recipe == "stem"
