"""`morphogen checkpoint`: look into published checkpoints and import them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from morphogen.cli.common import AsJson, print_json, result, say

app = App(name="checkpoint", help="Look into published checkpoints and import them.")


@app.command
def info(path: Path, *, json: AsJson = False) -> None:
    """Say what a file or folder is: kind, sizes, parameters, what it lacks, and what to do with it.

    Nothing in the file is imported or run, whatever it is.

    Parameters
    ----------
    path
        A .pt, .ckpt or .safetensors file, a diffusers folder, or a model folder.
    """
    from dataclasses import asdict

    from morphogen.checkpoints import describe, identify

    found = identify(path)
    if json:
        print_json(asdict(found) | {"importable": found.importable})
    else:
        say(*describe(found))


@app.command(name="import")
def import_(
    path: Path,
    *,
    out: Annotated[Path, Parameter(help="Model folder to write.")],
    genes: Annotated[Path | None, Parameter(help="Gene list, one per line in the order of training.")] = None,
    encoder: Annotated[str | None, Parameter(help="Image encoder its embeddings come from, by name.")] = None,
    heads: Annotated[int | None, Parameter(help="Attention heads, where the file cannot say.")] = None,
    json: AsJson = False,
) -> None:
    """Convert a published checkpoint into a model folder (morphogen.json and safetensors).

    Parameters
    ----------
    path
        A Stem, HisDiff or latent diffusion checkpoint, a first stage, or a HistDiST pipeline folder.
    """
    from morphogen.checkpoints import identify
    from morphogen.checkpoints.importing import check_import, import_first_stage, import_latent_diffusion

    found = identify(path)
    names, chosen = check_import(found, genes, encoder, heads)
    use = ""
    if found.kind in ("stem", "hisdiff"):
        from morphogen.expression.model import ExpressionModel

        model = ExpressionModel.from_published(path, found.kind, names, heads=heads)
        model.encoder["name"] = chosen
        model.save_pretrained(out)
        use = f"morphogen expression predict SECTION --model {out} --out RESULT.h5ad"
    elif found.kind == "histdist":
        from morphogen.stain.model import StainTransfer

        StainTransfer.from_pretrained(path, encoder=chosen).save_pretrained(out)
        use = f"morphogen stain predict IMAGE --model {out} --out STAINED"
    elif found.kind == "ldm":
        import_latent_diffusion(path, out, chosen, heads)
    else:
        import_first_stage(path, out)
    result(
        json,
        {"kind": found.kind, "parameters": found.parameters, "out": out, "use": use},
        f"{found.title}: {found.parameters:,} parameters",
        f"Written to {out}",
        *([f"Use it: {use}"] if use else []),
    )
