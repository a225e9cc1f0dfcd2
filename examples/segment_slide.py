"""Segment a slide with a trained network: ``python segment_slide.py MODEL SLIDE OUT``.

MODEL is a folder written by ``morphogen layout segmenter``. OUT gets a mask pyramid and polygons for QuPath.
"""

import sys

from morphogen.layout import Segmenter, segment_slide
from morphogen.slides import open_slide

model = Segmenter.from_pretrained(sys.argv[1], device="auto")
with open_slide(sys.argv[2]) as slide:
    result = segment_slide(model, slide, sys.argv[3])
for name, share in result.shares.items():
    print(f"{name}: {share:.1%}")
print(f"{result.count} polygons: {result.polygons}, opens in QuPath")
