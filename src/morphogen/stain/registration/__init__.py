"""Registration of H&E and IHC of serial sections.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.stain.registration.shift import (
        MOTIONS,
        Registered,
        Shift,
        estimate_shift,
        joined,
        register_pair,
        register_pairs,
    )

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "shift": [
            "MOTIONS",
            "Registered",
            "Shift",
            "estimate_shift",
            "joined",
            "register_pair",
            "register_pairs",
        ]
    },
)
