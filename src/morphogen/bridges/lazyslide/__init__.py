"""LazySlide, both ways: our models in ``zs.tl`` and ``zs.seg``, the models of lazyslide-models in our tables.

``register("er/model")`` gives LazySlide a model by name; ``bridged("er/model")`` is the same model as an object, for
every function of LazySlide that takes one. Names are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.bridges.lazyslide.encoders import EncoderFeatures
    from morphogen.bridges.lazyslide.genes import GeneFeatures, GeneTiles
    from morphogen.bridges.lazyslide.images import ClassMap, ClassShares, StainDensity, StainImages
    from morphogen.bridges.lazyslide.registry import bridged, register
    from morphogen.bridges.lazyslide.tissue import TissueImages

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "encoders": ["EncoderFeatures"],
        "genes": ["GeneFeatures", "GeneTiles"],
        "images": ["ClassMap", "ClassShares", "StainDensity", "StainImages"],
        "registry": ["bridged", "register"],
        "tissue": ["TissueImages"],
    },
)
