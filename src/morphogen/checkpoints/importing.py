"""Published checkpoints into model folders of ours: safetensors, and what the file itself does not say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from morphogen.checkpoints.folder import load_model, save_model
from morphogen.checkpoints.gene_networks import load_hisdiff, load_stem
from morphogen.checkpoints.identification import CheckpointInfo, identify
from morphogen.core.errors import CheckpointError, ConfigError, InputError
from morphogen.core.files import Manifest, atomic_path, file_hash, read_json, write_json
from morphogen.nets.config import GeneTransformerConfig
from morphogen.nets.gene_transformer import GeneTransformer

# What the papers say of the networks and the files do not.
GENE_NETWORK_FACTS: dict[str, Any] = {
    "transform": "log2p1",  # of raw counts
    "schedule": {"name": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps": 1000},
    "prediction": "epsilon",
    "learned_variance": True,
}
HISDIFF_NEIGHBOURS = {"near": 9, "region": 49}  # nearest spots, the spot itself included
HISTDIST_SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


def import_checkpoint(
    path: Path | str,
    out: Path | str,
    *,
    genes: Path | str | None = None,
    encoder: str | None = None,
    heads: int | None = None,
) -> tuple[CheckpointInfo, Path]:
    """Convert a published checkpoint to a model folder; returns what it was and where the folder is.

    genes: text file, one gene per line in the order of training (Stem, HisDiff). encoder: the image encoder
    that its conditions come from (all but a bare first stage). heads: attention heads where the file cannot
    say.
    """
    path, out = Path(path), Path(out)
    info = identify(path)
    if not info.importable:
        raise CheckpointError(f"nothing to import: {info.title}", where=path, fix=info.advice)
    if info.kind != "first_stage" and encoder is None:
        raise ConfigError(
            "the file does not say which encoder its image embeddings come from",
            where="--encoder",
            fix=_ENCODERS[info.kind],
        )
    if genes is not None and info.kind not in ("stem", "hisdiff"):
        raise ConfigError(f"a gene list does not belong to {info.title}", where="--genes")
    write = {"stem": _gene_network, "hisdiff": _gene_network, "ldm": _latent_diffusion, "histdist": _histdist}
    if info.kind == "first_stage":
        _first_stage(path, out)
    else:
        write[info.kind](info, out, genes, encoder, heads)
    return info, out


_ENCODERS = {
    "stem": "Give the encoders in the order they were joined, such as --encoder uni+conch",
    "hisdiff": "Give it, such as --encoder uni",
    "ldm": "Give it, such as --encoder phikon",
    "histdist": "Give it; the paper has --encoder phikon",
}


def read_genes(path: Path | str, expected: int) -> list[str]:
    """A gene list: one name per line; as many as the network has, each once."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError("there is no such file", where=path) from None
    except (OSError, UnicodeDecodeError):
        raise InputError("this is not a text file of gene names", where=path) from None
    genes = [line.strip() for line in lines if line.strip()]
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


def _source(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": file_hash(path)}


def _gene_network(
    info: CheckpointInfo, out: Path, genes: Path | str | None, encoder: str | None, heads: int | None
) -> None:
    if genes is None:
        raise ConfigError(
            f"the file does not say which {info.sizes['genes']} genes it was trained on",
            where="--genes",
            fix="Give a text file with one gene per line, in the order of training",
        )
    names = read_genes(genes, info.sizes["genes"])
    network = load_stem(info.path, heads) if info.kind == "stem" else load_hisdiff(info.path, heads)
    facts = GENE_NETWORK_FACTS | ({"neighbours": HISDIFF_NEIGHBOURS} if info.kind == "hisdiff" else {})
    save_model(
        out,
        network,
        network.config,
        kind="gene-network",
        method=info.kind,
        genes=names,
        encoder=encoder,
        source=_source(info.path),
        **facts,
    )


def load_gene_network(folder: Path | str) -> tuple[GeneTransformer, dict[str, Any]]:
    """An imported Stem or HisDiff folder: the network in eval mode, and its facts (method, genes, encoder,
    transform, schedule, prediction, learned_variance, source; neighbours for HisDiff)."""
    saved = load_model(folder, kind="gene-network")
    network = GeneTransformer(saved.settings(GeneTransformerConfig))
    saved.restore(network)
    return network, saved.facts


def _latent_diffusion(
    info: CheckpointInfo, out: Path, genes: Path | str | None, encoder: str | None, heads: int | None
) -> None:
    from morphogen.checkpoints.compvis import load_ldm, save_latent_diffusion

    save_latent_diffusion(
        load_ldm(info.path, heads=heads or 1), out, encoder=encoder, source=_source(info.path)
    )


def _first_stage(path: Path, out: Path) -> None:
    from morphogen.checkpoints.compvis import load_compvis_first_stage

    with atomic_path(out) as temporary:
        temporary.mkdir()
        load_compvis_first_stage(path).save_pretrained(temporary)


def _histdist(
    info: CheckpointInfo, out: Path, genes: Path | str | None, encoder: str | None, heads: int | None
) -> None:
    """The pipeline folder again, safetensors only, with the scheduler the model was trained for: a diffusers
    pipeline that samples rightly as it is."""
    index = read_json(info.path / "model_index.json")
    with atomic_path(out) as temporary:
        temporary.mkdir()
        for name in info.sizes["components"]:
            if name != "scheduler":
                shutil.copytree(
                    info.path / name,
                    temporary / name,
                    copy_function=shutil.copyfile,
                    ignore=shutil.ignore_patterns("*.bin", "*.pt", "*.ckpt", "*.msgpack", "*.h5"),
                )
        old = info.path / "scheduler" / "scheduler_config.json"
        betas = read_json(old) if old.is_file() else {}
        config = HISTDIST_SCHEDULER | {key: betas.get(key, value) for key, value in _BETAS.items()}
        write_json(temporary / "scheduler" / "scheduler_config.json", config)
        write_json(temporary / "model_index.json", index | {"scheduler": ["diffusers", "DDIMScheduler"]})
        facts = {"kind": "histdist", "version": 1, "config": {}, "encoder": encoder, "scheduler": config}
        write_json(temporary / "morphogen.json", facts)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        hashes = {path.relative_to(temporary).as_posix(): file_hash(path) for path in files}
        Manifest.write(temporary, kind="histdist", files=hashes)


_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
