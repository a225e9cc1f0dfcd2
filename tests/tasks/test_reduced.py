"""Networks on a GPU: bf16 where it is harmless, compiled when the work ahead pays. The GPU is told, not there."""

from __future__ import annotations

import pytest
import torch

from morphogen.core.devices import CALLS
from morphogen.tasks.pretrained import Pretrained


class Recorder(torch.nn.Linear):
    """A network that records how often it is compiled."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.compiled = 0

    def compile(self, *_, **__) -> None:
        self.compiled += 1


class Model(Pretrained):
    kind = "recorder"

    def __init__(self) -> None:
        self.network = Recorder()

    def components(self):
        return {"network": self.network}

    def saved(self):
        return {}

    @classmethod
    def restored(cls, read, **options):
        return cls()


@pytest.fixture
def told_gpu(monkeypatch):
    """Every model believes to be on a GPU."""
    monkeypatch.setattr(Pretrained, "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr("morphogen.core.devices._has_compiler", lambda: True)
    import torch._dynamo

    with torch._dynamo.config.patch(suppress_errors=False):
        yield


def test_a_model_is_compiled_once_when_the_work_pays(told_gpu):
    model = Model().compile(None)
    model.expect(CALLS - 1)
    assert not model.network.compiled and not torch._dynamo.config.suppress_errors
    model.expect(CALLS)
    model.expect(10 * CALLS)
    assert model.network.compiled == 1 and torch._dynamo.config.suppress_errors


def test_what_is_said_decides(told_gpu):
    said, never, silent = Model().compile(), Model().compile(False), Model()
    for model in (said, never, silent):
        model.expect(100 * CALLS)
    assert (said.network.compiled, never.network.compiled, silent.network.compiled) == (1, 0, 0)
    assert not torch._dynamo.config.suppress_errors


def test_a_cpu_never_compiles_by_itself():
    model = Model().compile(None)
    model.expect(1e12)
    assert not model.network.compiled
