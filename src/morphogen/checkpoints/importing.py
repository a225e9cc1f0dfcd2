"""What an import needs beside the file, and the imports that need no task room.

A published checkpoint says nothing of its genes, its image encoder or its attention heads; :func:`check_import`
asks for what is missing in one sentence. Gene networks and stain models are then written by their rooms
(``ExpressionModel.from_published``, ``StainTransfer.from_pretrained``), latent diffusion models and first stages here.
"""

from __future__ import annotations

from pathlib import Path

from morphogen.checkpoints.info import CheckpointInfo
from morphogen.core.errors import CheckpointError, ConfigError, InputError
from morphogen.core.files import atomic_path, file_hash
from morphogen.core.reading.names import read_names
from morphogen.slides.encoders import encoder_spec

_EXAMPLE = {"stem": "uni+conch", "hisdiff": "uni", "ldm": "phikon"}


def check_import(
    info: CheckpointInfo, genes: Path | str | None, encoder: str | None, heads: int | None = None
) -> tuple[list[str], str]:
    """The gene list (empty where none belongs) and the encoder's name ("" where none belongs).

    Raises :class:`CheckpointError` for what cannot be imported and :class:`ConfigError` / :class:`InputError` for
    what is missing or does not fit. Where no encoder is named, the one of the published weights is taken, if the
    widths say that these are they.
    """
    if not info.importable:
        raise CheckpointError(f"nothing to import: {info.title}", where=info.path, fix=info.advice)
    if heads is not None and heads < 1:
        raise ConfigError(f"a network has at least one attention head, not {heads}", where="--heads")
    if heads is not None and info.kind not in ("stem", "hisdiff", "ldm"):
        raise ConfigError(f"the heads of {info.title} are known", where="--heads", fix="Leave it out")
    if heads is None and info.kind == "ldm" and not info.heads_known:
        raise ConfigError(
            "the file does not say how many attention heads its U-Net has, and its widths are not the published ones",
            where="--heads",
            fix="Give the number it was trained with",
        )
    for part in (encoder or "").split("+") if encoder else ():
        encoder_spec(part)  # an unknown name is refused, and the nearest suggested
    encoder = encoder or info.encoder
    if not encoder and info.kind != "first_stage":
        raise ConfigError(
            "the file does not say which encoder its image embeddings come from",
            where="--encoder",
            fix=f"Give it, such as --encoder {_EXAMPLE[info.kind]}",
        )
    if info.kind not in ("stem", "hisdiff"):
        if genes is not None:
            raise ConfigError(f"a gene list does not belong to {info.title}", where="--genes")
        return [], encoder
    if genes is None:
        raise ConfigError(
            f"the file does not say which {info.sizes['genes']} genes it was trained on",
            where="--genes",
            fix="Give a text file with one gene per line, in the order of training",
        )
    return read_genes(genes, info.sizes["genes"]), encoder


def read_genes(path: Path | str, expected: int) -> list[str]:
    """A gene list (:func:`~morphogen.core.reading.names.read_names`): as many as the network has, each once."""
    genes = read_names(path)
    if len(genes) != expected:
        raise InputError(
            f"it has {len(genes)} genes, but the network was trained with {expected}",
            where=path,
            fix="Give the list of its training, in that order",
        )
    repeated = next((gene for gene in genes if genes.count(gene) > 1), None)
    if repeated is not None:
        raise InputError(f"gene {repeated} is in it more than once", where=path)
    return genes


def import_latent_diffusion(
    path: Path | str, out: Path | str, encoder: str, heads: int | None = None
) -> Path:
    """A CompVis latent diffusion checkpoint as a model folder (kind "latent-diffusion")."""
    from morphogen.checkpoints.compvis import load_ldm, save_latent_diffusion

    path = Path(path)
    source = {"file": path.name, "sha256": file_hash(path)}
    return save_latent_diffusion(load_ldm(path, heads), out, encoder=encoder, source=source)


def import_first_stage(path: Path | str, out: Path | str) -> Path:
    """A CompVis autoencoder as a diffusers component folder."""
    from morphogen.checkpoints.compvis import load_compvis_first_stage

    with atomic_path(out) as temporary:
        temporary.mkdir()
        load_compvis_first_stage(path).save_pretrained(temporary)
    return Path(out)
