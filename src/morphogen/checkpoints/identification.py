"""What a checkpoint file or folder is, from its keys and shapes, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from morphogen.checkpoints.gene_networks import PUBLISHED_WIDTH, hisdiff_config, stem_config
from morphogen.checkpoints.info import CheckpointInfo, count
from morphogen.checkpoints.keys import is_first_stage, is_hisdiff, is_latent_diffusion, is_stedm, is_stem
from morphogen.checkpoints.pipelines import identify_folder
from morphogen.core.errors import CheckpointError
from morphogen.core.weights.finding import Candidate, candidates, check_tensors
from morphogen.core.weights.reading import WeightFile, read_weights, walk_tensors


def identify(path: Path | str) -> CheckpointInfo:
    """Recognise a weight file, a diffusers folder or a model folder; :class:`CheckpointError` if
    unreadable."""
    path = Path(path)
    if path.is_dir():
        return identify_folder(path)
    return identify_weights(read_weights(path))


def identify_weights(file: WeightFile) -> CheckpointInfo:
    """Recognise the content of a weight file."""
    readings = candidates(file.content)
    for matches, describe in _KINDS:
        found = next((each for each in readings if matches(each.state)), None)
        if found is not None:
            check_tensors(found.state, file.path)
            info = describe(file, found)
            break
    else:
        info = _unknown(file)
    tensors = dict(walk_tensors(file.content))
    info.keys = len(tensors)
    info.foreign = file.foreign
    info.contents = _sections(tensors)
    return info


def _sections(tensors: Iterable[str]) -> dict[str, int]:
    sections: dict[str, int] = {}
    for key in tensors:
        top = key.split(".")[0]
        sections[top] = sections.get(top, 0) + 1
    return dict(sorted(sections.items(), key=lambda item: -item[1])[:12])


def _gene_network(file: WeightFile, found: Candidate, kind: str) -> CheckpointInfo:
    state = found.state
    read = stem_config if kind == "stem" else hisdiff_config
    title = "Stem: spatial gene expression" if kind == "stem" else "HisDiff: spatial gene expression"
    missing = ["the gene list, in the order of training (--genes FILE)"]
    config = read(state, heads=None if _width(state) == PUBLISHED_WIDTH else 1, where=file.path)
    known = _width(state) == PUBLISHED_WIDTH
    encoder = _PUBLISHED_ENCODERS.get((kind, config.condition_dim), "")
    if not encoder:
        missing.append("the image encoder's name (--encoder NAME)")
    if not known:
        missing.append("the number of attention heads (--heads N)")
    sizes = {
        "genes": config.genes,
        "condition": config.condition_dim,
        "width": config.width,
        "depth": config.depth,
        "heads": f"{config.heads} (published)" if known else "not in the file",
        "encoder": f"{encoder} (published)" if encoder else "not in the file",
        "weights": "EMA" if found.ema else "as trained (no EMA)",
    }
    if found.place or found.prefix:
        sizes["found under"] = " ".join(
            part for part in (found.place, found.prefix and f"{found.prefix}*") if part
        )
    ignored = [
        name for name in ("opt", "epoch", "args") if isinstance(file.content, dict) and name in file.content
    ]
    if found.ema and file.section("model"):
        ignored.append("model (the EMA weights are taken)")
    options = ("" if encoder else " --encoder NAME") + ("" if known else " --heads N")
    return CheckpointInfo(
        file.path,
        kind,
        title,
        sizes,
        count(state.values()),
        ignored=ignored,
        missing=missing,
        heads_known=known,
        encoder=encoder,
        advice=f"morphogen checkpoint import {file.path} --genes GENES.txt{options} --out FOLDER",
    )


# Encoders of the published weights, known by the width of their embeddings.
_PUBLISHED_ENCODERS = {("stem", 1536): "uni+conch", ("hisdiff", 1024): "uni"}


def _width(state: Mapping[str, Tensor]) -> int:
    return state["final_layer.linear.weight"].shape[1] if "final_layer.linear.weight" in state else 0


def _ldm(file: WeightFile, found: Candidate) -> CheckpointInfo:
    from morphogen.checkpoints.compvis import (
        EMA,
        EMBEDDER,
        FIRST_STAGE,
        LDM_HEADS,
        LDM_WIDTHS,
        UNET,
        schedule_info,
        unet_config,
    )

    state = found.state
    parts = {"U-Net": UNET, "first stage": FIRST_STAGE, "embedder": EMBEDDER}
    inside = {name: [v for k, v in state.items() if k.startswith(prefix)] for name, prefix in parts.items()}
    unet = {key.removeprefix(UNET): value for key, value in state.items() if key.startswith(UNET)}
    info = CheckpointInfo(file.path, "ldm", "latent diffusion (CompVis/Lightning)")
    try:
        config = unet_config(unet, where=file.path)
        schedule = schedule_info(state, file.path)
    except CheckpointError as error:
        info.kind, info.advice = "unknown", f"Not read by morphogen: {error.what}"
    else:
        published = info.heads_known = config.widths == LDM_WIDTHS
        info.sizes = {
            "latent channels": config.in_channels,
            "widths": config.widths,
            "blocks per level": config.layers,
            "attention levels": config.attention,
            "heads": f"{LDM_HEADS} (published)" if published else "not in the file",
            "context width": config.context_dim,
            "schedule": f"scaled-linear {schedule.beta_start} → {schedule.beta_end}, {schedule.steps} steps",
            "weights": "EMA" if any(key.startswith(EMA) for key in state) else "as trained (no EMA)",
        }
        for name in ("patch", "region"):
            weight = state.get(f"{EMBEDDER}{name}_fc.weight")
            if weight is not None:
                info.sizes[f"{name} embedding"] = weight.shape[1]
        info.missing = [f"the {name}" for name, values in inside.items() if not values]
        info.missing.append("the image encoder's name (--encoder NAME)")
        if not published:
            info.missing.append("the number of attention heads (--heads N)")
        option = "" if published else " --heads N"
        info.advice = f"morphogen checkpoint import {file.path} --encoder NAME{option} --out FOLDER"
    info.parameters = count(value for values in inside.values() for value in values)
    known = (*parts.values(), EMA)
    buffers = ("betas", "alphas_", "sqrt_", "log_one", "posterior_", "scale_factor", "logvar", "lvlb")
    rest = sorted({key.split(".")[0] for key in state if not key.startswith((*known, *buffers))})
    info.ignored = [f"{name}.*" for name in rest]
    return info


def _first_stage(file: WeightFile, found: Candidate) -> CheckpointInfo:
    from morphogen.checkpoints.compvis import first_stage_from

    state = found.state
    stage = first_stage_from(state, file.path)
    config = stage.autoencoder.config
    return CheckpointInfo(
        file.path,
        "first_stage",
        f"{type(stage.autoencoder).__name__}: first stage (CompVis)",
        {
            "downsampling": stage.factor,
            "latent channels": stage.channels,
            "widths": tuple(config.block_out_channels),
            "codebook": config.get("num_vq_embeddings", "none"),
            "scaling": stage.scaling,
        },
        count(value for key, value in state.items() if not key.startswith("loss.")),
        ignored=["loss.*"] if any(key.startswith("loss.") for key in state) else [],
        advice=f"morphogen checkpoint import {file.path} --out FOLDER",
    )


def _stedm(file: WeightFile, found: Candidate) -> CheckpointInfo:
    """Every tensor is in the file under ``_model.`` and ``model.``; one copy is counted."""
    own = {
        key.removeprefix("_model."): value for key, value in found.state.items() if key.startswith("_model.")
    }
    groups = {
        "U-Net": "model.diffusion_model.",
        "first stage": "first_stage_model.",
        "aggregator": "_agg_block.",
        "layout rescaler": "cond_stage_model.",
        "EMA": "model_ema.",
    }
    sizes: dict[str, Any] = {}
    for name, prefix in groups.items():
        tensors = [value for key, value in own.items() if key.startswith(prefix)]
        if tensors:
            sizes[name] = f"{len(tensors)} tensors, {count(tensors):,} parameters"
    if any(key.startswith("_agg_block.transformer.") for key in own):
        sizes["aggregation"] = "sViT"
    elif any("_agg_block" in key and "embedder" not in key for key in own):
        sizes["aggregation"] = "linear"
    else:
        sizes["aggregation"] = "mean (or none learned)"
    return CheckpointInfo(
        file.path,
        "stedm",
        "STEDM: layout- and style-conditioned tissue (Lightning)",
        sizes,
        count(own.values()),
        ignored=["model.* (the same tensors again)"],
        advice=f"morphogen layout synthesize INPUT --model {file.path} --out FOLDER",
    )


def _unknown(file: WeightFile) -> CheckpointInfo:
    tensors = [tensor for _, tensor in walk_tensors(file.content)]
    if not tensors:
        raise CheckpointError("there are no tensors in it", where=file.path, fix="Give a file of weights")
    return CheckpointInfo(
        file.path,
        "unknown",
        "weights of no format that is known here",
        parameters=count(tensors),
        advice="Known are Stem, HisDiff, CompVis latent diffusion and first stages, STEDM, diffusers folders",
    )


_KINDS: list[tuple[Callable[[Mapping[str, Tensor]], bool], Callable[[WeightFile, Candidate], CheckpointInfo]]]
_KINDS = [
    (is_stem, lambda file, found: _gene_network(file, found, "stem")),
    (is_hisdiff, lambda file, found: _gene_network(file, found, "hisdiff")),
    (is_stedm, _stedm),
    (is_latent_diffusion, _ldm),
    (is_first_stage, _first_stage),
]


def describe(info: CheckpointInfo) -> list[str]:
    """The lines that ``morphogen checkpoint info`` prints."""
    lines = [f"{info.path}", f"  {info.title}"]
    lines += [f"  {name}: {_plain(value)}" for name, value in info.sizes.items()]
    if info.parameters:
        lines.append(f"  parameters: {info.parameters:,}")
    if info.keys:
        lines.append(f"  tensors: {info.keys:,} ({', '.join(f'{k} {v}' for k, v in info.contents.items())})")
    for name, values in (("not used", info.ignored), ("missing", info.missing)):
        if values:
            lines.append(f"  {name}: {'; '.join(values)}")
    if info.foreign:
        shown = ", ".join(info.foreign[:6]) + (
            f" and {len(info.foreign) - 6} more" if len(info.foreign) > 6 else ""
        )
        lines.append(f"  left inert: the file names classes that were not imported ({shown})")
    if info.advice:
        lines.append(f"  next: {info.advice}")
    return lines


def _plain(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, (tuple, list)) else str(value)
