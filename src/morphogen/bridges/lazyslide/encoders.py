"""Our encoders for ``zs.tl.feature_extraction``: features from LazySlide as our models were trained on."""

from __future__ import annotations

from typing import Any, ClassVar

from lazyslide_models import ImageModel
from torch import Tensor

from morphogen.bridges.lazyslide.base import Bridged, pixels
from morphogen.slides import get_encoder


class EncoderFeatures(Bridged, ImageModel):
    """One of our encoders as an ``ImageModel``. It takes uint8 tiles and prepares them itself.

    Parameters
    ----------
    model: name, as ``--encoder`` takes it.
    model_path: its weights on disk, where it needs any.
    token: taken because LazySlide gives it; ours need none.
    """

    encoder_name: ClassVar[str | None] = None

    def __init__(self, model: Any = None, *, model_path: str | None = None, token: str | None = None) -> None:
        self.pipeline = get_encoder(model or self.encoder_name or "texture", model_path, device="cpu")
        self.model = self.pipeline.module

    def to(self, device: Any) -> EncoderFeatures:
        from morphogen.core.devices import resolve_device

        self.pipeline.device = resolve_device(device)
        if self.pipeline.module is not None:
            self.pipeline.module.to(self.pipeline.device)
        return self

    def try_compile(self, **compile_kws: Any) -> None:
        """Compile the network where there is one."""
        if self.pipeline.module is not None:
            self.pipeline.module.compile(**compile_kws)

    def encode_image(self, image: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Tiles (B, 3, H, W) → (B, D) float32."""
        return self.pipeline(pixels(image, self.__class__.__name__))
