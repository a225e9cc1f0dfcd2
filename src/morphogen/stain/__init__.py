"""Virtual staining, H&E → IHC (HistDiST): patches, folders and whole slides.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.stain.data import Pair, find_pairs, pair_folders
    from morphogen.stain.evaluate import evaluate_folder
    from morphogen.stain.fitting.build import build_model
    from morphogen.stain.model import StainOutput, StainTransfer
    from morphogen.stain.outputs import Stained
    from morphogen.stain.pairs.crops import PairDataset
    from morphogen.stain.predict import StainedSlide, stain_folder, stain_image, stain_slide, stain_sources
    from morphogen.stain.train import Trained, train_model

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "data": ["Pair", "find_pairs", "pair_folders"],
        "evaluate": ["evaluate_folder"],
        "fitting.build": ["build_model"],
        "model": ["StainOutput", "StainTransfer"],
        "outputs": ["Stained"],
        "pairs.crops": ["PairDataset"],
        "predict": ["StainedSlide", "stain_folder", "stain_image", "stain_slide", "stain_sources"],
        "train": ["Trained", "train_model"],
    },
)
