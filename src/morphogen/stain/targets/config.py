"""What the target of a stain model is, stated by the data and kept with the model."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from morphogen.core.config import Config
from morphogen.core.errors import ConfigError
from morphogen.core.names import path_name

_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_COLOURS = ("#ffffff", "#00ff00", "#ff0000", "#0000ff", "#ffff00", "#ff00ff", "#00ffff", "#ff8000", "#80ff80")


class TargetConfig(Config):
    """The target images: brightfield pictures in colour, or named channels of measured intensity.

    ``target.yaml`` beside the pairs states it for all who train on them or score them.

    >>> TargetConfig(channels=("SHG",)).width
    1
    """

    channels: tuple[str, ...] = Field(
        (),
        max_length=64,
        description="Names of the target's channels, as many as its files have. None = a picture in colour.",
    )
    dtype: Literal["uint8", "uint16", "float32"] | None = Field(
        None, description="Type of the channels' samples. null = that of the first file."
    )
    transform: Literal["linear", "sqrt", "asinh"] = Field(
        "sqrt",
        description="How intensities are spread before a network sees them. sqrt makes the noise of counted light "
        "even; asinh is linear below a twentieth of full and logarithmic above.",
    )
    full: tuple[float, ...] | None = Field(
        None,
        description="Intensity of each channel that is drawn at full. null = its 99.9th percentile over the training "
        "images.",
    )
    threshold: tuple[float, ...] | None = Field(
        None,
        description="Intensity of each channel from which a pixel is positive. null = Otsu's of the training "
        "images; of a picture in colour an optical density, null = what is set when it is scored.",
    )
    colours: tuple[str, ...] = Field((), description="Colour of each channel in viewers, #rrggbb.")
    vector: tuple[float, float, float] | None = Field(
        None,
        description="Pictures in colour: what is scored is the amount of the dye with this optical density in red, "
        "green and blue, beside haematoxylin. null = DAB.",
    )

    @field_validator("channels")
    @classmethod
    def _names(cls, channels: tuple[str, ...]) -> tuple[str, ...]:
        for name in channels:
            path_name(name, "channel", suffix=".png", error=ConfigError)
        if len(set(channels)) != len(channels):
            raise ValueError("each may be named once")
        return channels

    @model_validator(mode="after")
    def _fitting(self) -> TargetConfig:
        lists: dict[str, Any] = {"full": self.full, "colours": self.colours or None}
        if self.channels:
            lists["threshold"] = self.threshold
        for name, values in lists.items():
            if values is not None and len(values) != len(self.channels):
                raise ValueError(
                    f"{name} has {len(values)} values, but there are {len(self.channels)} channels"
                )
        if self.threshold is not None and not self.channels and len(self.threshold) != 1:
            raise ValueError("a picture in colour has one threshold")
        if any(not value > 0 for value in self.full or ()):
            raise ValueError("full must be above 0")
        if any(_HEX.fullmatch(colour) is None for colour in self.colours):
            raise ValueError(f"colours are {list(self.colours)}, but each is written #rrggbb")
        if self.channels and self.vector is not None:
            raise ValueError("an optical-density vector is of pictures in colour, not of channels")
        return self

    @property
    def colour(self) -> bool:
        """Whether the target is a picture in colour."""
        return not self.channels

    @property
    def width(self) -> int:
        """Channels of an image."""
        return len(self.channels) or 3

    @property
    def most(self) -> float | None:
        """Largest intensity that a file can hold; ``None`` for floats."""
        return {"uint8": 255.0, "uint16": 65535.0}.get(self.dtype or "uint8")

    @property
    def kept(self) -> Literal["uint8", "uint16"]:
        """Type of the images that are written."""
        return "uint8" if self.dtype == "uint8" else "uint16"

    @property
    def step(self) -> float:
        """Intensity per level of the images that are written: 1, or of float targets a 32768th of the largest full."""
        return 1.0 if self.dtype != "float32" else max(self.full or (1.0,)) / 32768

    @property
    def shown(self) -> tuple[str, ...]:
        """Colour of each channel in viewers: those given, or one after the other of a list; one channel is white."""
        return self.colours or tuple(
            _COLOURS[(k + (self.width > 1)) % len(_COLOURS)] for k in range(len(self.channels))
        )
