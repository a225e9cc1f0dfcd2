"""The model object: everything from a prepared section to an AnnData of predictions, saved and loaded as one folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import anndata as ad
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from morphogen.checkpoints.folder import ModelFolder
from morphogen.core.errors import CheckpointError, InputError
from morphogen.core.files import content_hash
from morphogen.expression.config import ExpressionConfig, PredictConfig
from morphogen.expression.predict import predict_section
from morphogen.expression.recipes.gene_diffusion import GeneDiffusion
from morphogen.expression.recipes.heads import HEADS
from morphogen.expression.sections.panels import Panel
from morphogen.expression.sections.transforms import Transform
from morphogen.nets import fast_precision
from morphogen.tasks.pretrained import Pretrained


class PanelFile(BaseModel):
    """What a model folder must say of its panel."""

    genes: Annotated[list[str], Field(min_length=1)]
    method: str
    sections: list[str] = []
    cut: int = 0
    hash: str | None = None


class TransformFile(BaseModel):
    """What a model folder must say of its values."""

    log: str
    library: bool
    target: Annotated[float, Field(ge=0)]


_Count = Annotated[int, Field(gt=0, le=1 << 20)]
_Micrometres = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class EncoderFile(BaseModel):
    """What a model folder must say of the encoder it was trained with."""

    model_config = ConfigDict(extra="allow")
    name: str
    width: _Count
    identity: str | None = None
    field: str | None = None
    field_px: _Count = 224


class PreparedFile(BaseModel):
    """How the sections of a model folder were prepared, where it says so."""

    model_config = ConfigDict(extra="allow")
    pitch_um: _Micrometres | None = None
    field: str = "112um"
    field_px: _Count = 224
    field_um: _Micrometres | None = None
    near: _Count = 9
    region: _Count = 49


class ExpressionModel(Pretrained):
    """Gene expression of the spots of a section, with samples and their spread.

    ``model = ExpressionModel.from_pretrained(folder)``; ``adata = model(section)`` with a prepared section, measured
    or not. Made by :func:`morphogen.expression.train_model`, or from a published checkpoint by :meth:`from_published`.

    Attributes
    ----------
    head: :class:`~morphogen.expression.recipes.heads.Head` of the recipe, an ``nn.Module`` in eval mode.
    config, panel, transform: how it was made, its genes in order, and what its values are.
    encoder: name, identity, width and field of the embeddings it was trained on.
    training: sections, patients and split it was trained on, seed, steps.
    """

    kind: ClassVar[str] = "expression"
    config: ExpressionConfig

    def __init__(
        self,
        head: nn.Module,
        config: ExpressionConfig,
        panel: Panel,
        transform: Transform,
        encoder: dict[str, Any],
        training: dict[str, Any],
        prepared: dict[str, Any] | None = None,
    ) -> None:
        self.head: Any = head.eval()  # an nn.Module that is a Head
        self.config, self.panel, self.transform = config, panel, transform
        self.encoder, self.training, self.prepared = dict(encoder), dict(training), dict(prepared or {})
        self._reduced: dict[str, tuple[Any, str]] = {}

    def __repr__(self) -> str:
        return (
            f"ExpressionModel({self.config.recipe}, {len(self.panel)} genes, encoder {self.encoder['name']})"
        )

    @property
    def network(self) -> Any:
        return self.head

    def components(self) -> dict[str, Any]:
        return {"model": self.head}

    def hashed(self) -> tuple[Any, ...]:
        state = self.head.state_dict()
        return self.panel.hash, [(k, v.detach().cpu().numpy()) for k, v in sorted(state.items())]

    @cached_property
    def identity(self) -> str:
        """Hash of weights and panel, 16 hex digits: the checkpoint id in result files."""
        return content_hash(*self.hashed())[:16]

    def sampler(self, precision: str) -> tuple[Any, str]:
        """``(head, autocast)`` to sample with: the head itself in fp32, what it makes of itself in reduced precision
        else, made once."""
        if precision == "fp32":
            return self.head, precision
        if precision not in self._reduced:
            self._reduced[precision] = self.head.reduced(precision)
            if self._compiled:  # a copy does not take that along
                self._reduced[precision][0].sampled.compile()
        head, autocast = self._reduced[precision]
        return head.to(self.device), autocast

    def compile_networks(self) -> None:
        """The network that sampling calls, in every precision."""
        for head in (self.head, *(head for head, _ in self._reduced.values())):
            head.sampled.compile()

    def __call__(
        self,
        section: ad.AnnData,
        config: PredictConfig | None = None,
        *,
        device: str = "auto",
        precision: str = "fp32",
        out: Path | str | None = None,
        **settings: Any,
    ) -> ad.AnnData:
        """Predict a prepared section; see :func:`morphogen.expression.predict.predict_section`.

        ``settings`` are fields of :class:`PredictConfig`, e.g. ``samples=20``, ``solver="fast"``. precision: fp32,
        bf16, fp16, or ``auto``: what pays on the device (bf16 where it multiplies in it), but fp32 with the reference
        solver.
        """
        chosen = (config or PredictConfig()).replace(**settings) if settings else config or PredictConfig()
        self.to(device)
        if precision == "auto":
            precision = fast_precision(self.device) if chosen.sampler.solver != "ddpm" else "fp32"
        return predict_section(self, section, chosen, precision=precision, out=out)

    # --- files --------------------------------------------------------------------------------------------

    def saved(self) -> dict[str, Any]:
        return {
            "panel": self.panel.to_dict(),
            "transform": self.transform.to_dict(),
            "encoder": self.encoder,
            "preprocessing": {k: v for k, v in self.prepared.items() if k != "key"},
            "training": self.training,
            "head": self.head.facts(),
            "identity": self.identity,
        }

    @classmethod
    def restored(cls, read: ModelFolder, **options: Any) -> Self:
        config = read.settings(ExpressionConfig)
        panel = Panel.from_dict(read.fact("panel", PanelFile).model_dump())
        transform = Transform.from_dict(read.fact("transform", TransformFile).model_dump())
        about = read.fact("head", dict[str, Any])
        try:
            head = HEADS[config.recipe].from_facts(config, about, transform)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
            line = " ".join(str(error)[:400].split())[:120]
            raise CheckpointError(
                f"morphogen.json does not describe its network ({type(error).__name__}: {line})",
                where=read.path,
                fix="Copy it again",
            ) from None
        read.restore(head)
        return cls(
            head,
            config,
            panel,
            transform,
            read.fact("encoder", EncoderFile).model_dump(exclude_unset=True),
            read.fact("training", dict[str, Any]),
            read.fact("preprocessing", PreparedFile, PreparedFile()).model_dump(exclude_unset=True),
        )

    @classmethod
    def from_published(
        cls, checkpoint: Path | str, kind: str, genes: list[str], *, heads: int | None = None
    ) -> Self:
        """A published Stem or HisDiff checkpoint with the list of its genes (``selected_gene_list.txt``).

        kind: ``"stem"`` (UNI ⊕ CONCH embeddings) or ``"hisdiff"`` (UNI). heads: see
        :func:`morphogen.checkpoints.load_stem`. Values are log2(count + 1), unscaled.
        """
        from morphogen.checkpoints import load_hisdiff, load_stem

        if kind not in ("stem", "hisdiff"):
            raise InputError(f"'{kind}' is no published method of this room", fix="Use stem or hisdiff")
        network = load_stem(checkpoint, heads) if kind == "stem" else load_hisdiff(checkpoint, heads)
        size = network.config
        if len(genes) != size.genes:
            raise InputError(
                f"the list has {len(genes)} genes, the checkpoint {size.genes}",
                where=checkpoint,
                fix="Give the selected_gene_list.txt the checkpoint was trained with",
            )
        config = ExpressionConfig(
            recipe=kind,
            size="paper",
            network={
                "width": size.width, "depth": size.depth, "heads": size.heads,
                "condition_heads": size.condition_heads, "learned_variance": size.channels == 2,
            },
        )  # fmt: skip
        head = GeneDiffusion.of_network(network, config.network)
        encoder = {"name": "uni+conch" if kind == "stem" else "uni", "width": size.condition_dim}
        training: dict[str, Any] = {
            "published": Path(checkpoint).name,
            "sections": [],
            "patients": {},
            "split": None,
        }
        return cls(head, config, Panel(tuple(genes), "published"), Transform("log2p1"), encoder, training)
