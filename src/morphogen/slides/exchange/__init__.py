"""Tile features from and to TRIDENT, CLAM and HEST files.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.slides.exchange.transfer import (
        FORMATS,
        export_features,
        export_slides,
        import_features,
        import_slides,
    )

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "transfer": [
            "FORMATS",
            "export_features",
            "export_slides",
            "import_features",
            "import_slides",
        ]
    },
)
