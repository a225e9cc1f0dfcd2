"""Encoders: images in, features or tokens out, one contract for every source.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.slides.encoders.hub import missing_weights
    from morphogen.slides.encoders.registry import (
        PREFIXES,
        TEXTURE,
        Encoder,
        EncoderStatus,
        encoder_spec,
        get_encoder,
        list_encoders,
        texture_spec,
    )

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "hub": ["missing_weights"],
        "registry": [
            "Encoder",
            "EncoderStatus",
            "PREFIXES",
            "TEXTURE",
            "encoder_spec",
            "get_encoder",
            "list_encoders",
            "texture_spec",
        ],
    },
)
