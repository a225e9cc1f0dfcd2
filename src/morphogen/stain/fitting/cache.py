"""Latents and tokens of crops, computed once: training then costs the U-Net alone."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.errors import InputError, OutputError
from morphogen.core.files import Manifest, atomic_path, content_hash, writable_folder
from morphogen.core.jobs import RECORD, Job, kept_facts
from morphogen.core.progress import progress
from morphogen.core.seeds import generator
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.crops import PairDataset

SHARD = 64  # crops per file
_NOT_OF_LATENTS = ("encoder_weights", "regression", "residual", "residual_scale")


@torch.no_grad()
def cache_crops(
    model: StainTransfer, dataset: Any, folder: Path | str, *, crops: int, seed: int, batch: int = 8
) -> Path:
    """Encode ``crops`` random crops of every pair and keep them in ``folder``.

    A shard holds, per crop, mean and SD of the latents of both images and the encoder's tokens, in float16.
    A folder of the same crops is used as it is; one that a kill left incomplete goes on with its next shard.
    """
    assert isinstance(dataset, PairDataset)
    folder = writable_folder(folder)
    settings = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OF_LATENTS}
    encoder = model.encoder.identity() if model.encoder is not None else "none"
    pairs = [pair.identity() for pair in dataset.pairs]
    former = content_hash(settings, encoder, pairs, [dataset.crop, dataset.orient, crops, seed, len(dataset)])
    job = Job(
        {
            "model": settings,
            "encoder": encoder,
            "pairs": content_hash(pairs),
            "crop": dataset.crop,
            "orient": dataset.orient,
            "crops": crops,
            "seed": seed,
        }
    )
    manifest = Manifest.read(folder)
    if manifest is not None and manifest.get("mark") in (job.mark, former):
        return folder
    if manifest is not None and kept_facts(folder / RECORD) is None:
        raise OutputError(
            "holds cached crops of another run", where=folder, fix="Remove it, or choose another --out"
        )
    rank, world = (int(os.environ.get(key, default)) for key, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if rank == 0 and not job.begin(folder / RECORD, "cached crops", fix="Remove it, or choose another --out"):
        for stray in folder.glob("crops-*.safetensors"):  # of a job that nothing tells of
            stray.unlink()
        (folder / "mark.txt").unlink(missing_ok=True)
    while not job.same(kept_facts(folder / RECORD) or {}):
        time.sleep(1)  # for the first process
    total = crops * len(dataset)
    shards = range(0, total, SHARD)[rank::world]
    for first in progress(shards, total=len(shards), what="encoding shards"):
        path = folder / f"crops-{first:08d}.safetensors"
        if path.is_file():
            continue
        numbers = range(first, min(first + SHARD, total))
        parts = [
            _encode(model, [_crop(dataset, number, seed) for number in numbers[at : at + batch]])
            for at in range(0, len(numbers), batch)
        ]
        _save({key: torch.cat([part[key] for part in parts]) for key in parts[0]}, path)
    while len(list(folder.glob("crops-*.safetensors"))) < -(-total // SHARD):
        time.sleep(1)  # for the shards of other processes
    if rank == 0:
        Manifest.write(folder, kind="cached crops", mark=job.mark, crops=total, shard=SHARD)
    while Manifest.read(folder) is None:
        time.sleep(1)
    return folder


def _crop(dataset: PairDataset, number: int, seed: int) -> dict[str, Tensor]:
    return dataset.draw(number % len(dataset), generator(seed, "cached crop", number))


def _encode(model: StainTransfer, items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    out = {key: torch.stack([item[key] for item in items]) for key in ("label", "index")}
    for name in ("he", "ihc"):
        encoded = model.first_stage.encode(model.pixels(torch.stack([item[name] for item in items])))
        spread = encoded.std if encoded.std is not None else torch.zeros_like(encoded.mean)
        out[f"{name}_mean"], out[f"{name}_std"] = encoded.mean.half().cpu(), spread.half().cpu()
    tokens = model.tokens(torch.stack([item["he"] for item in items]))
    if tokens is not None:
        out["tokens"] = tokens.half().cpu()
    return out


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)


class CachedCrops(Dataset):
    """Crops kept by :func:`cache_crops`; an item has ``he_mean, he_std, ihc_mean, ihc_std`` (C, h, w)
    float32, ``tokens`` (T, d), ``label`` and ``index``."""

    def __init__(self, folder: Path | str) -> None:
        manifest = Manifest.read(folder)
        if manifest is None:
            raise InputError("the cached crops are incomplete", where=folder, fix="Run the training again")
        self.folder, self.total, self.shard = Path(folder), int(manifest["crops"]), int(manifest["shard"])

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        from safetensors import safe_open

        first = index // self.shard * self.shard
        with safe_open(self.folder / f"crops-{first:08d}.safetensors", framework="pt") as file:
            item = {key: file.get_slice(key)[index - first] for key in file.keys()}  # noqa: SIM118 (no iterator)
        return {key: value.float() if value.is_floating_point() else value for key, value in item.items()}
