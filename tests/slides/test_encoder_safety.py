"""Weights from strangers: through no encoder's loading code does anything in them run; wrapped ones are found."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from morphogen.core.errors import MorphogenError, WeightsError
from morphogen.slides import get_encoder
from morphogen.slides.encoders import hub, plain
from morphogen.slides.encoders.registry import encoder_spec
from morphogen.slides.encoders.spec import FILENAME, lazyslide_specs


class Evil:
    """Makes a file where an unrestricted unpickler opens it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def poisoned(path: Path, mark: Path, form: str) -> Path:
    """A file of weights that would run code: a torch file, one of torch < 1.6, a bare pickle, an exported program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    state = {"x": Evil(mark)}
    if form == "torch":
        torch.save(state, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(Evil(mark)))
    else:
        inner = pickle.dumps(Evil(mark))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/archive_format", "pt2")
            archive.writestr("m/models/model.json", "{}")
            archive.writestr("m/data/weights/weight_0", inner)
    return path


FORMS = ["torch", "legacy", "pickle", "exported"]


@pytest.mark.parametrize("form", FORMS)
def test_no_encoder_runs_what_its_weights_hold(tmp_path, monkeypatch, form):
    """Every registered encoder's own class on a poisoned file at every name it may read. (Encoders whose weights
    come with code refuse before that; the others never see the object.)"""
    monkeypatch.setenv("HF_TOKEN", "none")
    mark, folder = tmp_path / "it-ran", tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10t", "model_type": "vit"}))
    names = {"pytorch_model.bin", "open_clip_pytorch_model.bin", "model.pt", *FILENAME.values()}
    files = [poisoned(folder / name, mark, form) for name in sorted(names)]
    specs = lazyslide_specs()
    assert len(specs) > 40
    for name in [*specs, "timm:resnet10t", f"transformers:{folder}"]:
        own = folder / FILENAME.get(name, "pytorch_model.bin")
        for weights in (folder, own):
            with pytest.raises(MorphogenError) as error:
                get_encoder(name, weights, device="cpu")
            assert not mark.exists(), f"{name} ran code of {weights.name}"
            assert "\n" not in str(error.value)
            if name in specs and specs[name].runs_code:
                assert "--trust-remote-code" in str(error.value)
    assert files


@pytest.mark.parametrize("form", FORMS)
def test_loading_code_that_sees_the_file_itself_does_not_run_it(tmp_path, monkeypatch, form):
    """The second door: were a pickled file shown as it is, torch would still unpickle tensors alone."""
    mark = tmp_path / "it-ran"
    monkeypatch.setattr(hub, "plain_file", lambda path, copy: path)
    monkeypatch.setattr("morphogen.slides.encoders.sources.plain_file", lambda path, copy: path)
    # Initial values, slow on the meta device, decide nothing here.
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *_: tensor)
    folder = tmp_path / "w"
    for name in ("pytorch_model.bin", *FILENAME.values()):
        poisoned(folder / name, mark, form)
    for name, spec in lazyslide_specs().items():
        if not spec.runs_code:
            file = folder / FILENAME.get(name, "pytorch_model.bin")
            with (
                torch.device("meta"),
                pytest.raises(MorphogenError),
            ):  # full-size networks, without their memory
                get_encoder(name, file, device="cpu")
            assert not mark.exists(), name


def test_torch_load_unpickles_tensors_alone_while_foreign_code_loads(tmp_path, monkeypatch):
    mark = tmp_path / "it-ran"
    poisoned(tmp_path / "a.pt", mark, "torch")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with plain.tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=False)
    assert not mark.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_every_class_whose_source_runs_code_is_known_to():
    """What loads a program, code of a repository or any pickle must say so in its specification."""
    from lazyslide_models import MODEL_REGISTRY

    marks = ("trust_remote_code=True", "torch.hub.load", "export.load", "jit.load", "weights_only=False",
             "weights_only\"] = False", "pickle.load", "joblib")  # fmt: skip
    for name, spec in lazyslide_specs().items():
        cls = MODEL_REGISTRY[name]
        text = "".join(
            inspect.getsource(base) for base in cls.__mro__ if base.__module__.startswith("lazyslide_models")
        )
        module = inspect.getsource(sys.modules[cls.__module__])
        if any(mark in text for mark in marks) or "trust_remote_code=True" in module:
            assert spec.runs_code, name
    assert encoder_spec("ctranspath").runs_code and encoder_spec("chief").runs_code


def test_a_published_exported_program_is_loaded_once_it_is_trusted(tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) * 2  # (N, 3)

    (tmp_path / "CTransPath").mkdir()
    program = torch.export.export(Net(), (torch.zeros(3, 3, 224, 224),))
    torch.export.save(program, tmp_path / "CTransPath" / "CTransPath_exported.pt2")
    images = np.full((3, 224, 224, 3), 100, np.uint8)
    encoder = get_encoder("ctranspath", tmp_path, device="cpu", trust_remote_code=True)
    assert encoder(images).shape == (3, 3)
    with pytest.raises(WeightsError, match="trust-remote-code"):
        get_encoder("ctranspath", tmp_path, device="cpu")


def test_a_folder_that_lacks_tensors_is_not_filled_at_random(tmp_path):
    from safetensors.torch import load_file, save_file
    from transformers import Dinov2Config, Dinov2Model

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop(next(key for key in state if "layer.1" in key))
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("midnight", f"transformers:{tmp_path}"):
        with pytest.raises(WeightsError, match="lacks 1 tensors"):
            get_encoder(name, tmp_path, device="cpu")


WRAPPED = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "module": lambda state: {"module." + key: value for key, value in state.items()},
    "compiled": lambda state: {"_orig_mod." + key: value for key, value in state.items()},
    "lightning": lambda state: {"state_dict": {"model.net." + key: value for key, value in state.items()}},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"x": torch.ones(1)}},
    "dino": lambda state: {
        "student": {"module.backbone." + key: value + 1 for key, value in state.items()},
        "teacher": {"backbone." + key: value for key, value in state.items()}
        | {"dino_head.mlp.weight": torch.ones(2)},
    },
    "ema_model": lambda state: {
        "model": {key: value + 1 for key, value in state.items()},
        "ema_model": {"module." + key: value for key, value in state.items()},
    },
    "shadow": lambda state: {
        "model": {key: value + 1 for key, value in state.items()},
        "ema": {"decay": 0.999, "shadow": state},
    },
    "encoder": lambda state: {"encoder." + key: value for key, value in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_weights_are_found_under_every_wrapper(tmp_path, wrapper):
    """For timm's own models, and for the loading code of others, which sees them without it."""
    import argparse

    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    state = dict(model.state_dict())
    torch.save(state, tmp_path / "flat.pt")
    content = WRAPPED[wrapper](state)
    if wrapper != "plain":
        content["args"] = argparse.Namespace(lr=1e-3)
    torch.save(content, tmp_path / "wrapped.pt")
    expected = get_encoder("timm:resnet10t", tmp_path / "flat.pt", device="cpu")(images)
    assert torch.equal(get_encoder("timm:resnet10t", tmp_path / "wrapped.pt", device="cpu")(images), expected)
    shown = plain.plain_file(tmp_path / "wrapped.pt", tmp_path / "copy.pt")
    assert (shown.name == "wrapped.pt") == (wrapper == "plain")
    seen = torch.load(shown, weights_only=True)
    assert seen.keys() == state.keys() and all(torch.equal(seen[key], state[key]) for key in state)
