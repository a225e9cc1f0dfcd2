"""Settings of tiling and encoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from morphogen.core.config import Config


class TileConfig(Config):
    """How a slide is cut into tiles."""

    tile_px: int = Field(224, ge=8, le=8192, description="Side of a tile in pixels at `tile_mpp`.")
    tile_mpp: float = Field(0.5, gt=0.01, le=100, description="µm per pixel of the tiles.")
    overlap: int = Field(0, ge=0, description="Pixels (at `tile_mpp`) that neighbouring tiles share.")
    min_tissue: float = Field(
        0.5, ge=0, le=1, description="Least share of a tile that must be tissue for it to be kept."
    )
    tissue: Literal["entropy", "otsu", "all"] = Field(
        "entropy",
        description="How tissue is found: LazySlide's entropy (H&E, IHC, tinted background) or colour threshold "
        "(H&E, rejects pen marks), or `all`: the whole slide is taken (smears, images that are all tissue).",
    )


class EncodeConfig(Config):
    """Which encoder turns tiles into features, and how it runs."""

    encoder: str = Field("texture", description="Name of the encoder; `morphogen slide encoders` lists them.")
    weights: str | None = Field(
        None, description="Folder or file of its weights; the hub's cache when absent."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="Precision of the network.")
    compile: bool = Field(False, description="Compile the network with torch.compile.")
    batch_size: int = Field(64, ge=1, description="Tiles through the encoder at once.")
    readers: int = Field(4, ge=1, le=64, description="Threads that decode tiles of one slide.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the weights.")


class EncodeRun(Config):
    """A run of `morphogen slide encode`: an encoder, and tiles of its own size where it makes some."""

    ALIASES: ClassVar[Mapping[str, str]] = {
        **{name: f"encode.{name}" for name in EncodeConfig.model_fields},
        **{name: f"tiles.{name}" for name in TileConfig.model_fields},
    }

    encode: EncodeConfig = Field(default_factory=EncodeConfig, description="Encoder.")
    tiles: TileConfig | None = Field(
        None, description="Tiles that are asked for. null = those of the store, else of the encoder's size."
    )

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where tiles are asked for: their size in px and µm/px is the encoder's, unless it is said."""
        tiles, encode = given.get("tiles"), given.get("encode")
        if not isinstance(tiles, Mapping):
            return {}
        from morphogen.slides.encoders.registry import encoder_spec

        name = encode.get("encoder", "texture") if isinstance(encode, Mapping) else "texture"
        spec = encoder_spec(str(name))
        return {"tiles": {"tile_px": spec.input_px, "tile_mpp": spec.mpp}}
