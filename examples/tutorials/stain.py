# %% [markdown]
# # Virtual staining, from Python and from LazySlide
#
# A small model of simulated tissue comes with the package, so nothing has to be trained here. The picture is
# simulated too: its real immunostain is known, and can be put beside the prediction.

# %%
import matplotlib.pyplot as plt

import morphogen as mg
from morphogen.demo import TissueSimulator, write_slide
from morphogen.demo.workspace import stain_model
from morphogen.stain.config import ApplyConfig

SIDE = 256
SAMPLES = 4
tissue = TissueSimulator(4).render(0, 0, SIDE, SIDE)
model = mg.stain.StainTransfer.from_pretrained(stain_model(), device="cpu")
print(model.stains, model.mpp, "µm/px")

# %% [markdown]
# Several samples of one picture are several immunostains that would fit the H&E. Their mean is the expected colour,
# their spread says where the model is not sure.

# %%
config = ApplyConfig(samples=SAMPLES, mpp=0.5)
stained = mg.stain.stain_image(model, tissue.he, config)
pictures = {"H&E": tissue.he, "real": tissue.ihc, "one sample": stained.sample, "mean": stained.mean}
figure, axes = plt.subplots(1, 5, figsize=(15, 3.2), layout="constrained")
for axis, (name, image) in zip(axes, pictures.items()):
    axis.imshow(image)
    axis.set(title=name, xticks=[], yticks=[])
shown = axes[4].imshow(stained.uncertainty, cmap="magma")
axes[4].set(title="SD of DAB density", xticks=[], yticks=[])
figure.colorbar(shown, ax=axes[4])

# %% [markdown]
# The same model in LazySlide: `register` gives it a name, and `zs.tl.virtual_stain` runs it on a slide's tiles.

# %%
import lazyslide as zs

from morphogen.bridges.lazyslide import register

print(register(stain_model(), name="er"))
write_slide("slide.tif", 2 * SIDE, SIDE, simulator=TissueSimulator(4))
wsi = mg.slides.open_slide("slide.tif").wsi
zs.pp.tile_tissues(wsi, 128, stride_px=96, mpp=0.5, edge=True, background_filter=False, tissue_key=None)
zs.tl.virtual_stain(wsi, "er", device="cpu", pbar=False)
image = wsi.images["er_prediction_IHC"].transpose("y", "x", "c").to_numpy().clip(0, 1)
figure, axes = plt.subplots(1, 2, figsize=(12, 3.2), layout="constrained")
for axis, (name, picture) in zip(
    axes, {"slide": mg.slides.open_slide("slide.tif").thumbnail(1024), "zs.tl.virtual_stain": image}.items()
):
    axis.imshow(picture)
    axis.set(title=name, xticks=[], yticks=[])
