"""Draw a synthetic twin of a region: ``python tissue_twin.py MODEL SLIDE X,Y,WIDTH,HEIGHT OUT [MPP]``.

MODEL is a folder written by ``morphogen tissue train``, trained on an encoder that it names.
"""

import sys

from morphogen.slides import get_encoder
from morphogen.tissue import TissueDiffusion, draw_canvas, grid_of_region

model = TissueDiffusion.from_pretrained(sys.argv[1], device="auto")
x, y, width, height = (float(part) for part in sys.argv[3].split(","))
mpp = float(sys.argv[5]) if len(sys.argv) > 5 else None
encoder = get_encoder(model.config.encoder, device=model.device)
grid = grid_of_region(model, sys.argv[2], encoder, region=(x, y, width, height), mpp=mpp)
twin = draw_canvas(model, grid, sys.argv[4])
print(f"{twin.image}: {twin.width} × {twin.height} px, {twin.cost:.0f} network megapixels per megapixel")
