"""A gene map of any H&E slide, opened in scanpy: ``python gene_map.py MODEL SLIDE GENE [µm/px]``.

MODEL is a folder written by ``morphogen expression train`` (its ``model``), or a hub id.
"""

import sys

import scanpy as sc

from morphogen.expression import ExpressionModel, PredictConfig, slide_section

model = ExpressionModel.from_pretrained(sys.argv[1])
mpp = float(sys.argv[4]) if len(sys.argv) > 4 else None
section = slide_section(sys.argv[2], model, PredictConfig(), mpp=mpp)
adata = model(section, samples=20)
sc.pl.spatial(adata, color=sys.argv[3], layer="pred_mean", save="_mean.png", show=False)
sc.pl.spatial(adata, color=sys.argv[3], layer="pred_std", save="_sd.png", show=False)
