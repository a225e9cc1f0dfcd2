"""The network's tensors in a checkpoint, under whatever its training script wrapped around them.

Scripts put a state dict under a key (``state_dict``, ``model``, ``model_state_dict``, ``ema``, ``ema.shadow``,
``teacher``, …), and wrappers of modules put words before its names (``module.`` DistributedDataParallel,
``_orig_mod.`` torch.compile, ``model.`` and ``net.`` Lightning modules, ``backbone.``, ``encoder.``, ``ema_model.``).
Every reader looks for its network here: by what names the network has, where that is known, the averaged (EMA)
weights first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from morphogen.core.errors import CheckpointError
from morphogen.core.weights.reading import WeightFile, only_tensors

Fits = Callable[[Mapping[str, Tensor]], bool]

_COMPILED = "_orig_mod."  # no module is called that
_WRAPPERS = (
    "module.", "model.", "net.", "network.", "denoiser.", "backbone.", "encoder.", "student.", "online_model.",
    "ema_model.", "model_ema.", "ema.", "teacher.", "shadow.",
)  # fmt: skip
_EMA = re.compile(r"(^|[._])(ema|shadow|teacher|averaged)([._]|$)")
_NOT_WEIGHTS = re.compile(r"opt(im\w*)?(_\w+)?|optimizer\w*|lr_sched\w*|scheduler\w*|callbacks|loops|scaler")
_HEADS = re.compile(r"\w*(head|proj|predictor|loss|center|queue)\w*\.")
_DEPTH = 3


@dataclass(frozen=True)
class Candidate:
    """A state dict found in a file. ``place``: where (``"ema.shadow"``, ``"state_dict"``, ``""`` for the top
    level); ``prefix``: what was taken off its names; ``alone``: whether that took every name of its place."""

    state: dict[str, Tensor]
    place: str = ""
    prefix: str = ""
    alone: bool = True

    @property
    def ema(self) -> bool:
        """Whether these are averaged weights."""
        return bool(_EMA.search(f"{self.place}.{self.prefix}"))


def candidates(content: Any) -> list[Candidate]:
    """Every reading of a file's content as a state dict: averaged weights first, then as few wrappers taken off
    as possible."""
    found = [reading for place in _places(content) for reading in _readings(place)]
    return sorted(found, key=lambda each: not each.ema)  # stable: otherwise in the order of the file


def _places(value: Any, place: str = "", depth: int = 0) -> Iterator[Candidate]:
    if not isinstance(value, Mapping):
        return
    tensors = {key.replace(_COMPILED, ""): tensor for key, tensor in only_tensors(value).items()}
    if tensors:
        yield Candidate(tensors, place)
    for key, inner in value.items() if depth < _DEPTH else ():
        if isinstance(inner, Mapping) and not _NOT_WEIGHTS.fullmatch(str(key)):
            yield from _places(inner, f"{place}.{key}" if place else str(key), depth + 1)


def _readings(whole: Candidate) -> Iterator[Candidate]:
    layer = [whole]
    for _ in range(_DEPTH + 1):
        yield from layer
        layer = [inner for each in layer for inner in _stripped(each)]


def _stripped(outer: Candidate) -> Iterator[Candidate]:
    for prefix in _WRAPPERS:
        inner = {
            key.removeprefix(prefix): value for key, value in outer.state.items() if key.startswith(prefix)
        }
        if inner:
            others = [key for key in outer.state if not key.startswith(prefix)]
            alone = outer.alone and all(_HEADS.match(key) for key in others)
            yield Candidate(inner, outer.place, outer.prefix + prefix, alone)


def find_network(
    file: WeightFile, fits: Fits | None = None, weights: str | None = None, what: str = "network"
) -> Candidate:
    """The network's state dict.

    Parameters
    ----------
    file:
        From :func:`~morphogen.core.weights.reading.read_weights`.
    fits:
        Says by its names whether a state dict is the network looked for. ``None``: the first state dict, without
        the wrappers that all its names share (heads of self-supervised training aside).
    weights:
        ``"ema"`` or ``"model"`` to insist on averaged weights or on those that were trained; ``None`` takes the
        averaged ones where they are.
    what:
        What is looked for, for the message.

    Raises
    ------
    CheckpointError
        Nothing fits, or the tensors found are sparse, on no device, or larger than their data.
    """
    found = candidates(file.content)
    if weights is not None:
        if weights not in ("ema", "model"):
            raise CheckpointError(f"weights are 'ema' or 'model', not '{weights}'", where=file.path)
        found = [each for each in found if each.ema == (weights == "ema")]
    if fits is not None:
        found = [each for each in found if fits(each.state)]
    if not found:
        if weights == "ema":
            raise CheckpointError(
                "there are no EMA weights in it", where=file.path, fix="Use weights='model'"
            )
        raise CheckpointError(
            f"there is no {what} in it", where=file.path, fix="See `morphogen checkpoint info`"
        )
    chosen = found[0]
    if fits is None:
        same = [each for each in found if each.place == chosen.place and each.alone]
        chosen = max(same, key=lambda each: len(each.prefix)) if same else chosen
    check_tensors(chosen.state, file.path)
    return chosen


def find_by_names(file: WeightFile, expected: Collection[str]) -> Candidate:
    """The state dict with most of the names ``expected``; of equals, the averaged one."""
    found = candidates(file.content)
    wanted = set(expected)
    best = max(found, key=lambda each: len(wanted & each.state.keys()), default=None)
    if best is None or not wanted & best.state.keys():
        raise CheckpointError("there are no tensors of this network in it", where=file.path)
    check_tensors({key: value for key, value in best.state.items() if key in wanted}, file.path)
    return best


def check_tensors(state: Mapping[str, Tensor], where: Any) -> None:
    """Refuse tensors that cannot be weights: sparse ones, those without data, and those that claim more numbers
    than the file has."""
    for key, value in state.items():
        if value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(f"parameter {key[:80]} is a sparse or quantised tensor", where=where)
        if value.is_meta:
            raise CheckpointError(f"parameter {key[:80]} has no values (meta device)", where=where)
        if value.numel() * value.element_size() > 2 * value.untyped_storage().nbytes() + (1 << 20):
            raise CheckpointError(f"parameter {key[:80]} claims more numbers than the file has", where=where)
