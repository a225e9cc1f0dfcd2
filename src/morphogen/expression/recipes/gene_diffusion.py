"""The recipes ``stem`` and ``hisdiff``: a gene transformer that denoises expression given the tissue."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.errors import ConfigError, InputError
from morphogen.diffusion import ItemNoise, SamplerConfig, Schedule, expectation, network_denoiser, sample
from morphogen.expression.config import ExpressionConfig, NetworkConfig, PredictConfig
from morphogen.expression.sections.tables import SectionTable
from morphogen.expression.sections.transforms import Standardiser, Transform
from morphogen.nets import GeneTransformer, GeneTransformerConfig, optimise_for_inference

Noise = Callable[[int], Tensor]
PUBLISHED_STEPS = 1000


@dataclass(frozen=True)
class EmbeddedSection:
    """A section as the gene transformer is given it: condition vectors (N, D) of its spots."""

    table: SectionTable
    embedded: Tensor


class GeneDiffusion(nn.Module):
    """A gene transformer with its schedule, target scaling and condition scaling: a :class:`Head`.

    Conditions of a whole section are embedded once (:meth:`condition`); a sample is then a function of its rows and
    its noise alone, so batches may mix spots and samples at will.
    """

    reads_out_mean = False
    draws_together = False

    target_mean: Tensor
    target_std: Tensor
    condition_mean: Tensor
    condition_std: Tensor

    def __init__(
        self, config: NetworkConfig, genes: int, embedding: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.hierarchical = config.conditioner != "image"
        heads = config.condition_heads if self.hierarchical else 1
        self.padding = -embedding % heads  # the hierarchical conditioner needs a multiple of its heads
        self.network = GeneTransformer(
            GeneTransformerConfig(
                genes=genes,
                condition_dim=embedding + self.padding,
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                channels=2 if config.learned_variance else 1,
                genes_per_token=config.genes_per_token,
                conditioner=config.conditioner,
                condition_heads=config.condition_heads,
            ),
            generator,
        )
        self._register(genes, embedding)
        self.schedule = schedule_of(config)

    def _register(self, genes: int, embedding: int) -> None:
        self.register_buffer("target_mean", torch.zeros(genes))
        self.register_buffer("target_std", torch.ones(genes))
        self.register_buffer("condition_mean", torch.zeros(embedding))
        self.register_buffer("condition_std", torch.ones(embedding))

    @classmethod
    def of_network(cls, network: GeneTransformer, config: NetworkConfig) -> GeneDiffusion:
        """Around a network that is there already, such as a published one."""
        out = cls.__new__(cls)
        nn.Module.__init__(out)
        out.config, out.padding = config, 0
        out.hierarchical = network.config.conditioner.startswith("hierarchical")
        out.network = network
        out._register(network.config.genes, network.config.condition_dim)
        out.schedule = schedule_of(config)
        return out

    @property
    def genes(self) -> int:
        return self.network.config.genes

    def set_scaling(self, tables: Sequence[SectionTable], *, target: bool, condition: bool) -> None:
        """Means and standard deviations over the training spots; identity where not wanted."""
        if target:
            z = Standardiser.fit(np.concatenate([t.y for t in tables]))
            self.target_mean.copy_(torch.from_numpy(z.mean))
            self.target_std.copy_(torch.from_numpy(z.std))
        if condition:
            z = Standardiser.fit(np.concatenate([t.embedding for t in tables]))
            self.condition_mean.copy_(torch.from_numpy(z.mean))
            self.condition_std.copy_(torch.from_numpy(z.std))

    def scaled_condition(self, embedding: Tensor) -> Tensor:
        """(…, C) embeddings → (…, C + padding) as the network takes them."""
        return nn.functional.pad((embedding - self.condition_mean) / self.condition_std, (0, self.padding))

    def scaled_target(self, values: Tensor) -> Tensor:
        return (values - self.target_mean) / self.target_std

    def unscaled(self, values: Tensor) -> Tensor:
        """(B, G) network space → the targets' transform."""
        return values * self.target_std + self.target_mean

    # --- sampling -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def condition(self, table: SectionTable, batch: int = 4096) -> Tensor:
        """Condition vectors (N, D) of all spots of a section."""
        device = self.target_mean.device
        expected = self.condition_mean.numel()
        if table.embedding.shape[1] != expected:
            raise InputError(
                f"its embeddings have width {table.embedding.shape[1]}, the model was trained on {expected}",
                where=table.section,
                fix="Prepare the section with the model's encoder",
            )
        scaled = self.scaled_condition(torch.from_numpy(table.embedding).to(device))
        if not self.hierarchical:
            return torch.cat([self.network.embed_condition(part) for part in scaled.split(batch)])
        near = torch.from_numpy(table.neighbours[:, : table.near]).long().to(device)
        region = torch.from_numpy(table.neighbours).long().to(device)
        conditioner: Any = self.network.conditioner
        return conditioner.embed_slide(scaled, near, region)

    def denoiser(self, precision: str = "fp32") -> Any:
        return network_denoiser(
            self.network,
            self.schedule,
            self.config.objective,
            learned_variance=self.config.learned_variance,
            precision=precision,
        )

    @torch.no_grad()
    def sample(
        self, embedded: Tensor, noise: Noise, sampler: SamplerConfig, precision: str = "fp32"
    ) -> Tensor:
        """One sample per row of ``embedded`` (B, D): (B, G) in the targets' transform.

        noise(step) is (B, G) standard normal, step −1 the start. ``model`` spacing is uniform in log-SNR.
        """
        if sampler.spacing == "model":
            sampler = sampler.replace(spacing="log_snr")
        start = noise(-1).to(embedded.device)
        given = {"embedded": embedded}
        return self.unscaled(
            sample(self.denoiser(precision), start, self.schedule, sampler, noise=noise, condition=given)
        )

    @torch.no_grad()
    def expected(self, embedded: Tensor, precision: str = "fp32") -> Tensor:
        """(B, G) expected values from one forward: E[x0 | tissue] is what the denoiser predicts at pure noise."""
        x = torch.zeros((len(embedded), self.genes), device=embedded.device)
        given = {"embedded": embedded}
        return self.unscaled(expectation(self.denoiser(precision), x, self.schedule, condition=given))

    # --- the face of a head -------------------------------------------------------------------------------

    @property
    def sampled(self) -> nn.Module:
        return self.network

    def check(self, config: PredictConfig) -> None:
        """Ancestral sampling needs a table of noise levels; and an ε-network says nothing about x0 at pure noise: its
        error is amplified by σ/α, 157 times on the linear schedule."""
        if not config.draws and self.config.objective == "epsilon":
            raise ConfigError(
                "an epsilon-model gives no mean from one forward (its error at pure noise is amplified 157 times)",
                where="--samples",
                fix="Ask for samples, e.g. --samples 20",
            )
        if config.draws and config.sampler.solver == "ddpm" and self.schedule.kind != "vp":
            raise ConfigError("a flow has no ancestral sampler", where="--solver", fix="Use --solver fast")

    def evaluations(self, config: PredictConfig) -> int:
        if not config.draws:
            return 1
        sampler = config.sampler
        if sampler.spacing == "model":
            sampler = sampler.replace(spacing="log_snr")
        return sampler.evaluations(self.schedule)

    def given(self, table: SectionTable, config: PredictConfig) -> EmbeddedSection:
        return EmbeddedSection(table, self.condition(table))

    def mean(self, given: EmbeddedSection, rows: np.ndarray, precision: str = "fp32") -> np.ndarray:
        return self.expected(given.embedded[rows], precision).float().cpu().numpy()

    def draw(
        self,
        given: EmbeddedSection,
        rows: np.ndarray,
        sample: np.ndarray,
        config: PredictConfig,
        precision: str = "fp32",
    ) -> Tensor:
        table = given.table
        keys = [(table.section, table.barcodes[i], int(s)) for i, s in zip(rows, sample, strict=True)]
        noise = ItemNoise(config.seed, keys, (self.genes,), given.embedded.device)
        return self.sample(given.embedded[rows], noise, config.sampler, precision)

    def reduced(self, precision: str) -> tuple[Self, str]:
        """A copy whose costly layers hold reduced weights (cheaper than casting them at every step); the sums over its
        blocks and the solver stay in float32."""
        head = copy.deepcopy(self)
        optimise_for_inference(head.network, precision)
        return head, "fp32"

    def facts(self) -> dict[str, Any]:
        return {"genes": self.genes, "embedding": self.condition_mean.numel()}

    @classmethod
    def from_facts(cls, config: ExpressionConfig, facts: Mapping[str, Any], transform: Transform) -> Self:
        return cls(config.network, int(facts["genes"]), int(facts["embedding"]))


def schedule_of(config: NetworkConfig) -> Schedule:
    """The noise schedule of a network; ``flow`` has its own."""
    if config.learned_variance and config.objective != "epsilon":
        raise ConfigError(
            f"learned variance belongs to epsilon, not to {config.objective}",
            where="network.learned_variance",
            fix="Set it to false",
        )
    if config.objective == "flow":
        return Schedule.flow()
    return (
        Schedule.linear(PUBLISHED_STEPS) if config.schedule == "linear" else Schedule.cosine(PUBLISHED_STEPS)
    )
