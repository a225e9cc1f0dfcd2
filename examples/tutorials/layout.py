# %% [markdown]
# # Labelled images, and a network that learns from them
#
# Simulated patients from several laboratories, of which one is annotated. A segmentation network learns from it, and
# labels an image of a patient that it never saw.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

import morphogen as mg
from morphogen.demo import write_segmentation

SIDE = 128
STEPS = 150
CLASSES = ("tumour", "lymphoid")
write_segmentation("tissue", 8, SIDE, patients=4, mpp=2.0, laboratories=True)
data = mg.layout.DataConfig(crop=64, classes=CLASSES, annotated=("P01",), test=("P04",))
found = mg.layout.read_sources(["tissue"], data)
print(found.classes.names, len(found.annotated), "annotated,", len(found.unannotated), "not")

# %%
config = mg.layout.SegmentConfig(data=data)
loop = config.training.replace(steps=STEPS, batch_size=8)
trained = mg.layout.train_segmenter(
    found.annotated, found.classes.names, config.replace(training=loop), "segmenter", device="cpu"
)

# %% [markdown]
# H&E, its real labels, and what the network says of it.

# %%
sheet = found.test[0]
he, labels = sheet.image(0, 0, SIDE), sheet.labels(0, 0, SIDE)
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
axes[0].imshow(he)
for axis, image in zip(axes[1:], (labels, trained.model(torch.from_numpy(he[None]))[0])):
    axis.imshow(image, vmin=0, vmax=len(CLASSES), cmap="viridis", interpolation="nearest")
for axis, name in zip(axes, ("a patient never seen", "its labels", "predicted")):
    axis.set(title=name, xticks=[], yticks=[])

# %% [markdown]
# The same network for QuPath: a mask and polygons of any image or slide.

# %%
Image.fromarray(he).save("he.png")
made = mg.layout.segment_images(trained.model, [Path("he.png")], "masks")
print(made)
