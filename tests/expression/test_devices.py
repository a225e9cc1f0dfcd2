"""What runs on a device: compiled networks, calls that are told ahead, no step that waits for it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from morphogen.expression import ExpressionModel
from morphogen.expression.config import PredictConfig, SamplerConfig
from morphogen.expression.recipes.gene_diffusion import GeneDiffusion
from morphogen.expression.recipes.plan import Plan
from morphogen.expression.sections.tables import tabulate

from .conftest import config


@pytest.mark.parametrize("first", ["compiled", "reduced"])
def test_compiling_reaches_the_reduced_network_that_is_sampled(models, monkeypatch, first):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *_, **__: compiled.append(self))
    model = ExpressionModel(
        models["stem"].head,
        models["stem"].config,
        models["stem"].panel,
        models["stem"].transform,
        models["stem"].encoder,
        {},
    )
    if first == "reduced":
        model.sampler("bf16")
    model.compile()
    head, _ = model.sampler("bf16")
    assert any(each is head.sampled for each in compiled) and head is not model.head


def test_calls_ahead_are_told_before_a_section_is_predicted(models, world, monkeypatch):
    told = []
    monkeypatch.setattr(ExpressionModel, "expect", lambda self, calls: told.append(calls))
    n = world[3].n_obs
    models["stem"](world[3], samples=3, steps=5, batch_size=50, device="cpu")
    assert told == [-(-3 * n // 50) * 5]


def test_no_step_of_sampling_waits_for_the_device(models, world, monkeypatch, looks):
    """One copy back for each batch, and nothing is asked in between."""
    from morphogen.expression.recipes import plan as plans

    copies = []
    monkeypatch.setattr(
        plans, "fetched", lambda values: copies.append(values.device.type) or (lambda: np.zeros(values.shape))
    )
    head, _ = models["stem"].sampler("fp32")
    head = copy.deepcopy(head)
    chosen = PredictConfig(samples=2, batch_size=60, sampler=SamplerConfig(steps=4))
    plan = Plan(head, len(models["stem"].panel), tabulate(world[3]), chosen, "fp32")
    head.to("meta")
    plan.given = type(plan.given)(plan.given.table, plan.given.embedded.to("meta"))
    rows = next(iter(plan.shards()))
    with looks() as looked:
        plan.shard(rows, want_samples=False)
    assert looked.found == [] and copies == ["meta"] * -(-len(rows) * 2 // 60)


def test_no_training_step_waits_for_the_device(models, world, looks):
    from morphogen.expression.train import DiffusionTask
    from morphogen.training import Draws

    chosen = config("stem")
    panel, transform = models["stem"].panel, models["stem"].transform
    tables = [tabulate(section, panel, transform, training=True) for section in world[:2]]
    head = GeneDiffusion(chosen.network, tables[0].y.shape[1], tables[0].embedding.shape[1])
    task = DiffusionTask(head, tables, chosen)
    task.to(torch.device("meta"))
    batch = {name: value.to("meta") for name, value in task.dataset.cut(range(8)).items()}
    with looks() as looked:
        task.loss(task.model, batch, Draws(0, torch.arange(8), "meta"))["loss"].mean().backward()
    assert looked.found == []
