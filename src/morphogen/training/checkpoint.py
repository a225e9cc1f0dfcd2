"""Checkpoints: whole folders that carry the hashes of their files, or nothing.

``checkpoints/step-00001000/`` holds ``model.safetensors`` and ``ema.safetensors`` (full tensors, whatever the sharding
of the run), ``optimizer.pt`` (plain tensors by parameter name, read with ``weights_only``), ``state.json`` and, written
last, ``manifest.json`` with size and SHA-256 of each. There is no generator state to keep: every draw is a function of
the seed and the step. ``best/step-…/`` holds ``model.safetensors`` with the averaged weights of the best validation.
"""

from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from morphogen.core.errors import CheckpointError
from morphogen.core.files import Manifest, atomic_path, file_hash, read_json, write_json

log = logging.getLogger("morphogen.training")

CHECKPOINTS, BEST = "checkpoints", "best"


@dataclass
class Checkpoint:
    """Everything that a run continues from; tensors on the CPU."""

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]


def save_checkpoint(out: Path, step: int, checkpoint: Checkpoint, *, keep_last: int) -> Path:
    """Write the checkpoint of ``step`` atomically, then remove all but the ``keep_last`` newest."""
    folder = _folder(out / CHECKPOINTS, step)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        _save_tensors(checkpoint.model, temporary / "model.safetensors")
        _save_tensors(checkpoint.ema, temporary / "ema.safetensors")
        torch.save(checkpoint.optimizer, temporary / "optimizer.pt")
        write_json(temporary / "state.json", checkpoint.state)
        _seal(temporary, "training checkpoint", step)
    # A refused later folder stays until this run reaches its step and replaces it.
    whole = [each for each in list_steps(out / CHECKPOINTS) if each.name <= folder.name]
    for old in whole[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that :func:`newest_checkpoint` found intact."""
    try:
        optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            "optimizer.pt holds other objects than tensors and is not loaded",
            where=folder,
            fix="Remove this checkpoint if you do not trust where it comes from",
        ) from None
    return Checkpoint(
        model=load_file(folder / "model.safetensors"),
        ema=load_file(folder / "ema.safetensors"),
        optimizer=optimizer,
        state=read_json(folder / "state.json"),
    )


def newest_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint whose files are whole; each one refused on the way is said in one line."""
    refused: list[tuple[Path, str]] = []
    found = None
    for folder in reversed(list_steps(out / CHECKPOINTS)):
        problem = damage(folder)
        if problem is None:
            found = folder
            break
        refused.append((folder, problem))
    for folder, problem in refused:
        instead = f"continuing from {found.name}" if found else "no other is left, starting anew"
        log.warning("%s is refused: %s; %s.", folder, problem, instead)
    return found


def save_best(out: Path, step: int, weights: Mapping[str, torch.Tensor], **facts: Any) -> Path:
    """Write the averaged weights of the best validation so far; the former best goes once this one is whole."""
    folder = _folder(out / BEST, step)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        _save_tensors(weights, temporary / "model.safetensors")
        _seal(temporary, "best weights", step, **facts)
    for old in list_steps(out / BEST):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def best_weights(out: Path) -> dict[str, torch.Tensor] | None:
    """The averaged weights of the best validation, or ``None`` when the run chose none."""
    for folder in reversed(list_steps(out / BEST)):
        problem = damage(folder)
        if problem is not None:
            raise CheckpointError(problem, where=folder, fix="Remove it and run the training again")
        return load_file(folder / "model.safetensors")
    return None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or ``None`` when every file is there, of its size and hash."""
    manifest = Manifest.read(folder)
    if manifest is None:
        return "it is cut short (no manifest)"
    for name, facts in manifest.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            return f"it is cut short ({name} is missing)"
        if path.stat().st_size != facts["bytes"]:
            return f"it is cut short ({name} has {path.stat().st_size} of {facts['bytes']} bytes)"
        if file_hash(path) != facts["sha256"]:
            return f"{name} is damaged (its hash differs)"
    return None


def list_steps(parent: Path) -> list[Path]:
    """Folders ``step-…`` in ``parent``, oldest first, whole or not."""
    return sorted(p for p in parent.glob("step-*") if p.is_dir() and p.name[5:].isdigit())


def _folder(parent: Path, step: int) -> Path:
    return parent / f"step-{step:08d}"


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    # Tied weights share storage, which safetensors refuses: each name gets its own copy.
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        if tensor.numel() and tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        plain[name] = tensor
    save_file(plain, path)


def _seal(folder: Path, kind: str, step: int, **facts: Any) -> None:
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": file_hash(p)}
        for p in sorted(folder.iterdir())
        if p.is_file()
    }
    Manifest.write(folder, kind=kind, step=step, files=files, **facts)
