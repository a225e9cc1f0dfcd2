"""Stain a slide with a trained model: ``python stain_slide.py MODEL SLIDE OUT``.

MODEL is a folder written by ``morphogen stain train`` or the pipeline published with HistDiST.
"""

import sys

from morphogen.stain import StainTransfer, stain_slide

model = StainTransfer.from_pretrained(sys.argv[1], device="auto")
stained = stain_slide(model, sys.argv[2], sys.argv[3])
print(f"{stained.image}: {stained.windows} windows, opens in QuPath")
