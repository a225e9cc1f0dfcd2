"""The tissue simulator: images whose truth is known.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.demo.simulator.simulator import (
        BLOCK,
        Tissue,
        TissueSimulator,
    )

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "simulator": [
            "BLOCK",
            "Tissue",
            "TissueSimulator",
        ]
    },
)
