"""The model object: everything from a prepared section to an AnnData of predictions, saved and loaded as one folder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import anndata as ad
import torch
from torch import nn

from morphogen.checkpoints import load_model, save_model
from morphogen.core.devices import resolve_device
from morphogen.core.errors import CheckpointError, InputError
from morphogen.core.files import content_hash
from morphogen.expression.config import ExpressionConfig, PredictConfig
from morphogen.expression.data import facts
from morphogen.expression.recipes.gene_diffusion import GeneDiffusion
from morphogen.expression.recipes.spatial import SpatialModel
from morphogen.expression.sections.panels import Panel
from morphogen.expression.sections.prepare import encoder_of
from morphogen.expression.sections.transforms import Transform
from morphogen.nets import fast_precision, optimise_for_inference

KIND = "expression"


class ExpressionModel:
    """Gene expression of the spots of a section, with samples and their spread.

    ``model = ExpressionModel.from_pretrained(folder)``; ``adata = model(section)`` with a prepared section, measured
    or not. Made by :func:`morphogen.expression.train`, or from a published checkpoint by :meth:`from_published`.

    Attributes
    ----------
    head: :class:`GeneDiffusion` (stem, hisdiff) or :class:`SpatialModel`; an ``nn.Module`` in eval mode.
    config, panel, transform: how it was made, its genes in order, and what its values are.
    encoder: name, identity, width and field of the embeddings it was trained on.
    training: sections, patients and split it was trained on, seed, steps.
    """

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
        self.head = head.eval()
        self.config, self.panel, self.transform = config, panel, transform
        self.encoder, self.training, self.prepared = dict(encoder), dict(training), dict(prepared or {})
        self._reduced: dict[str, GeneDiffusion] = {}

    def __repr__(self) -> str:
        return (
            f"ExpressionModel({self.config.recipe}, {len(self.panel)} genes, encoder {self.encoder['name']})"
        )

    @property
    def identity(self) -> str:
        """Hash of weights and panel, 16 hex digits: the checkpoint id in result files."""
        state = self.head.state_dict()
        return content_hash(
            self.panel.hash, [(k, v.detach().cpu().numpy()) for k, v in sorted(state.items())]
        )[:16]

    def to(self, device: str | torch.device) -> ExpressionModel:
        self.head.to(resolve_device(device))
        return self

    def sampler(self, precision: str) -> tuple[nn.Module, str]:
        """``(head, precision)`` to sample with. For a gene transformer in reduced precision that is a copy whose
        costly layers hold reduced weights (cheaper than casting them at every step), made once; the sums over its
        blocks and the solver stay in float32."""
        if precision == "fp32" or not isinstance(self.head, GeneDiffusion):
            return self.head, precision
        if precision not in self._reduced:
            head = copy.deepcopy(self.head)
            optimise_for_inference(head.network, precision)
            self._reduced[precision] = head
        return self._reduced[precision].to(self.device), "fp32"

    def compile(self) -> ExpressionModel:
        """Compile the network that sampling calls, in place."""
        network = self.head.residual.network if isinstance(self.head, SpatialModel) else self.head.network
        network.compile()  # type: ignore[operator, union-attr]
        return self

    @property
    def device(self) -> torch.device:
        return next(self.head.buffers()).device

    def check_section(self, section: ad.AnnData) -> None:
        """Refuse a section whose embeddings are not those the model was trained on."""
        found, name = encoder_of(section), facts(section).section
        if found["width"] != self.encoder["width"]:
            raise InputError(
                f"its embeddings have width {found['width']} ({found['name']}), the model takes "
                f"{self.encoder['width']} ({self.encoder['name']})",
                where=name,
                fix=f"Prepare it with --encoder {self.encoder['name']}",
            )
        for key in ("identity", "field"):
            if self.encoder.get(key) and found[key] != self.encoder[key]:
                raise InputError(
                    f"its embeddings come from another {'encoder' if key == 'identity' else 'field'} "
                    f"({found['name']}, {found[key]}) than the model's ({self.encoder['name']}, {self.encoder[key]})",
                    where=name,
                    fix="Prepare it with the model's encoder and settings",
                )

    def check_panel(self, section: ad.AnnData) -> list[str]:
        """Panel genes that a measured section lacks; an error when it measures none of them."""
        missing = [gene for gene in self.panel.genes if gene not in section.var_names]
        if section.n_vars and len(missing) == len(self.panel):
            raise InputError(
                f"it measures none of the model's {len(self.panel)} panel genes ({', '.join(self.panel.genes[:3])} …)",
                where=facts(section).section,
                fix="Check that gene names are of the kind the model was trained with (symbols or Ensembl ids)",
            )
        return missing

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
        bf16, fp16, or ``auto``: with the fast solver what pays on the device (bf16 where it multiplies in it), with
        the reference solver fp32.
        """
        from morphogen.expression.predict import predict_section

        chosen = (config or PredictConfig()).replace(**settings) if settings else config or PredictConfig()
        self.to(device)
        if precision == "auto":
            precision = fast_precision(self.device) if chosen.solver == "fast" else "fp32"
        return predict_section(self, section, chosen, precision=precision, out=out)

    # --- files --------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write ``morphogen.json`` and ``model.safetensors``, whole or not at all."""
        return save_model(
            folder,
            self.head,
            self.config,
            kind=KIND,
            panel=self.panel.to_dict(),
            transform=self.transform.to_dict(),
            encoder=self.encoder,
            preprocessing={k: v for k, v in self.prepared.items() if k != "key"},
            training=self.training,
            head=self.head.facts() if isinstance(self.head, SpatialModel) else _sizes(self.head),
            identity=self.identity,
        )

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> ExpressionModel:
        """Load a folder (or a hub id) written by :meth:`save_pretrained`."""
        read = load_model(folder, KIND)
        config = read.settings(ExpressionConfig)
        try:
            panel = Panel.from_dict(read.facts["panel"])
            transform = Transform.from_dict(read.facts["transform"])
            about = read.facts["head"]
            head: nn.Module
            if config.recipe == "spatial":
                spatial = SpatialModel(config.spatial, about["sizes"], transform)
                spatial.set_facts(about)
                head = spatial
            else:
                head = GeneDiffusion(config.network, int(about["genes"]), int(about["embedding"]))
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"morphogen.json lacks {error}", where=read.path, fix="Copy it again"
            ) from None
        read.restore(head)
        return cls(
            head,
            config,
            panel,
            transform,
            read.facts["encoder"],
            read.facts["training"],
            read.facts.get("preprocessing"),
        )

    @classmethod
    def from_published(
        cls, checkpoint: Path | str, kind: str, genes: list[str], *, heads: int | None = None
    ) -> ExpressionModel:
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


def _sizes(head: nn.Module) -> dict[str, int]:
    assert isinstance(head, GeneDiffusion)
    return {"genes": head.genes, "embedding": head.condition_mean.numel()}
