# %% [markdown]
# # Genes from H&E, into SpatialData and back
#
# Three simulated sections of three patients: two are trained on, the third is predicted. Its expression is known, so
# the prediction can be looked at beside it.

# %%
import matplotlib.pyplot as plt
import spatialdata as sd
import spatialdata_plot  # noqa: F401

import morphogen as mg
from morphogen.demo import write_hest

SIDE_UM = 900
GENES = 20
STEPS = 100
write_hest("hest", patients=3, width_um=SIDE_UM, height_um=SIDE_UM, mpp=1.0, n_genes=140, truth=False)
mg.expression.prepare_sections("hest", "sections")
sections = mg.expression.load_sections("sections", ["SIM1", "SIM2"])
config = mg.expression.ExpressionConfig(panel={"size": GENES}, training={"steps": STEPS})
model = mg.expression.train_model(sections, config, "genes", device="cpu")
print(model)

# %% [markdown]
# The mean of the third patient's spots beside what was measured, and the spread of the samples, for the gene whose
# prediction varies most.

# %%
section = mg.expression.load_section("sections/SIM3.h5ad")
result = model(section, samples=20, device="cpu", out="map.h5ad")
gene = result.var_names[result.layers["pred_mean"].std(axis=0).argmax()]
x, y = result.obsm["spatial"].T
measured = section[:, gene].X.toarray().ravel()
figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for axis, (name, values) in zip(
    axes,
    {
        "measured counts": measured,
        "predicted mean": result[:, gene].layers["pred_mean"].ravel(),
        "predicted SD": result[:, gene].layers["pred_std"].ravel(),
    }.items(),
):
    dots = axis.scatter(x, -y, c=values, s=60)
    axis.set(title=f"{gene}: {name}", xticks=[], yticks=[], aspect="equal")
    figure.colorbar(dots, ax=axis)

# %% [markdown]
# The prediction as a table of a SpatialData store, with the spots and a reduced H&E. spatialdata-plot draws it as it
# is; with a store that the section was read from, the table would annotate that store's own shapes.

# %%
from morphogen.expression.stores.writing import write_predictions

store = write_predictions(result, "map.zarr")
data = sd.read_zarr(store)
data.pl.render_images("he").pl.render_shapes("prediction_spots", color=gene, table_name="prediction").pl.show(
    coordinate_systems="global"
)
