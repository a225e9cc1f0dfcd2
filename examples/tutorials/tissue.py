# %% [markdown]
# # Tissue from embeddings
#
# A small model learns to draw tiles from their embeddings. The encoder is `texture`, which needs no weights. A few
# minutes of training on a CPU show stain and layout; nuclei want hours, or a GPU.

# %%
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import morphogen as mg
from morphogen.demo import TissueSimulator

SIDE = 512
TILE = 32
STEPS = 1500
image = TissueSimulator(1, mpp=1.0).render(0, 0, SIDE, SIDE, ihc=False).he
Image.fromarray(image).save("he.png")
data = mg.tissue.DataConfig(tile_px=TILE, tile_mpp=1.0, mpp=1.0, encoder="texture", hold_out=0.0)
config = mg.tissue.TrainConfig(size="tiny", data=data)
loop = config.training.replace(steps=STEPS, batch_size=16)
model = mg.tissue.train_model(["he.png"], config.replace(training=loop), "tissue", device="cpu").model
print(model.config.embeddings, model.tile_px, "px at", model.mpp, "µm/px")

# %% [markdown]
# New tiles in place of real ones: each has the embedding of the tile beside it and not one of its pixels.

# %%
corners = [(int(x), int(y)) for x in np.linspace(0, SIDE - TILE, 4) for y in np.linspace(0, SIDE - TILE, 2)]
tiles = np.stack([image[y : y + TILE, x : x + TILE] for x, y in corners])
features = mg.slides.get_encoder("texture", device="cpu")(tiles).numpy()
drawn = model(features, "fast", seed=1).images.numpy()
figure, axes = plt.subplots(2, len(tiles), figsize=(12, 3.2), layout="constrained")
for axis, tile in zip(axes.flat, [*tiles, *drawn]):
    axis.imshow(tile)
    axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("real")
axes[1, 0].set_ylabel("drawn")
