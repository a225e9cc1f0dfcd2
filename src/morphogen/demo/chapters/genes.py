"""Gene maps with uncertainty on a patient the model has not seen, beside what was measured and beside the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from morphogen.demo.workspace import Workspace, shown
from morphogen.report import Report

TITLE = "Spatial gene expression, with uncertainty"
COMMANDS = """
morphogen expression prepare hest --out sections
morphogen expression train sections --test SIM4 --genes 100 --out genes
morphogen expression predict sections/SIM4.h5ad --model genes/model --out SIM4.h5ad --samples 20
morphogen expression evaluate sections --model genes/model --test SIM4 --out scores
"""
TEST = "SIM4"
METHODS = {
    "spatial": "Morphogen (spatial recipe)",
    "tuned ridge": "tuned ridge",
    "ridge + Gaussian residual": "ridge + Gaussian residual",
    "kNN": "nearest neighbours",
    "coordinates only": "coordinates only",
    "training mean": "training mean",
}


def learn(folder: Path, sections_folder: Path, out: Path, genes: int, device: str) -> tuple[Any, Any, Any]:
    from morphogen.expression import (
        ExpressionConfig,
        load_sections,
        prepare_sections,
        split_sections,
        train_model,
    )

    prepare_sections(folder, sections_folder, device=device)
    sections = load_sections(sections_folder)
    split = split_sections(sections, test=[TEST])  # by patient, or it refuses
    training = [s for s in sections if s.uns["morphogen"]["section"]["section"] in split.train]
    config = ExpressionConfig.load(overrides={"recipe": "spatial", "panel.size": genes})
    model = train_model(training, config, out, split=split, device=device)
    return model, sections, split


def test(model: Any, sections: Any, out: Path, device: str) -> tuple[Any, Any]:
    from morphogen.expression import evaluate_models

    section = sections[-1]
    result = model(section, samples=20, device=device)  # an AnnData that scanpy and squidpy plot as it is
    evaluation = evaluate_models({"spatial": model}, sections, test=[TEST], device=device)
    evaluation.save(out)
    return result, evaluation


def run(work: Workspace, report: Report) -> None:
    """Simulate four patients, train on three, map the fourth."""
    from morphogen.demo.writers.hest import write_hest

    side = 1200.0 if work.quick else 2200.0
    folder = write_hest(
        work.place("data", "hest"),
        patients=4,
        width_um=side,
        height_um=0.8 * side,
        seed=work.seed,
        n_genes=300,
    )
    genes = work.size(100, 40)
    place = work.place("genes", "model").parent
    model, sections, split = learn(folder, place / "sections", place / "run", genes, work.device)
    result, evaluation = test(model, sections, place / "scores", work.device)
    report.text(
        "Four simulated patients, each with its own stain and its own baseline expression; a model is trained on "
        f"three ({sum(s.n_obs for s in sections[:-1])} spots, {genes} genes chosen on those three) and maps "
        f"the fourth: **{split.label}**, {result.n_obs} spots. What was *measured* is noisy counts; because the tissue "
        "is simulated, the expected expression behind them is known too."
    )
    chosen = _varied_genes(model, result, folder)
    for gene in chosen:
        report.figure(_maps(gene, model, result, folder), f"{gene}: {_caption(gene, model, result, folder)}")
    frame = evaluation.frame()
    report.table(
        _table(frame),
        "The held-out patient: Morphogen beside the baselines, on the same embeddings. Correlations are means over "
        "genes; the measured counts are noisy, so 1 is out of reach.",
        best={"macro PCC": "max", "CRPS": "min", "energy score": "min"},
    )
    report.code(shown(learn) + "\n\n" + shown(test), "python", "The Python that made this")
    report.code(COMMANDS, "bash", "The same from the command line")
    ours = frame[frame.method == "spatial"].iloc[0]
    work.headlines["correlation of gene maps, unseen patient"] = f"{ours.pcc:.2f}"
    work.headlines["truths within the 90 % interval"] = f"{100 * ours.coverage90:.0f} %"


def _expected(result: Any, folder: Path) -> Any:
    import anndata

    return anndata.read_h5ad(folder / "truth" / f"{TEST}.h5ad")[result.obs_names]


def _log_truth(gene: str, model: Any, result: Any, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Measured and expected log1p expression of a gene over the spots."""
    measured = (
        np.asarray(result[:, gene].X.toarray()).ravel() if hasattr(result.X, "toarray") else result[:, gene].X
    )
    expected = _expected(result, folder)[:, gene].X
    expected = np.asarray(expected.toarray() if hasattr(expected, "toarray") else expected).ravel()
    return np.log1p(np.asarray(measured).ravel()), np.log1p(expected)


def _varied_genes(model: Any, result: Any, folder: Path, count: int = 2) -> list[str]:
    """Panel genes that vary most in the PREDICTION, one a programme: chosen without looking at the test counts."""
    mean = np.asarray(result.layers["pred_mean"])
    order = np.argsort(-mean.std(axis=0))
    chosen: list[int] = []
    for i in order:
        if all(abs(np.corrcoef(mean[:, i], mean[:, j])[0, 1]) < 0.6 for j in chosen):
            chosen.append(int(i))
        if len(chosen) == count:
            break
    return [str(result.var_names[i]) for i in chosen]


def _caption(gene: str, model: Any, result: Any, folder: Path) -> str:
    measured, expected = _log_truth(gene, model, result, folder)
    predicted = np.asarray(result[:, gene].layers["pred_mean"]).ravel()
    return (
        f"correlation of the prediction with what was measured {np.corrcoef(predicted, measured)[0, 1]:.2f}, with the "
        f"expected expression {np.corrcoef(predicted, expected)[0, 1]:.2f}; the measurement itself has "
        f"{np.corrcoef(measured, expected)[0, 1]:.2f}."
    )


def _maps(gene: str, model: Any, result: Any, folder: Path) -> Any:
    from morphogen.report.maps import spatial_map
    from morphogen.report.style import subplots

    measured, expected = _log_truth(gene, model, result, folder)
    predicted = np.asarray(result[:, gene].layers["pred_mean"]).ravel()
    spread = np.asarray(result[:, gene].layers["pred_std"]).ravel()
    xy = np.asarray(result.obsm["spatial"])
    figure, axes = subplots(1, 4, width=3.6, height=2.9)
    panels = [
        (measured, "measured", "viridis"),
        (predicted, "predicted mean", "viridis"),
        (expected, "truth (expected)", "viridis"),
        (spread, "predicted SD", "magma"),
    ]
    for ax, (values, title, colours) in zip(np.ravel(axes), panels, strict=True):
        spatial_map(xy, values, ax=ax, title=f"{gene}: {title}", cmap=colours)
    return figure


def _table(frame: Any) -> Any:
    columns = {
        "pcc": "macro PCC",
        "crps": "CRPS",
        "energy": "energy score",
        "coverage90": "90 % coverage",
        "variance_ratio": "variance ratio",
    }
    known = [name for name in frame.method if name in METHODS] or list(frame.method)
    part = frame[frame.method.isin(known)].set_index("method")[list(columns)].rename(columns=columns)
    return part.sort_values("macro PCC", ascending=False)
