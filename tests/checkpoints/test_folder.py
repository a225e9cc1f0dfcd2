"""Model folders: whole or absent, the same numbers back, every defect named."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from morphogen.checkpoints import load_model, resolve_folder, save_model
from morphogen.core.errors import CheckpointError
from morphogen.core.files import Manifest
from morphogen.nets import (
    GeneTransformer,
    GeneTransformerConfig,
    PixelFirstStage,
    UNetConfig,
    build_unet,
    load_unet,
)

CONFIG = GeneTransformerConfig(genes=5, condition_dim=4, width=16, depth=1, heads=2)


def network(seed: int = 0) -> GeneTransformer:
    made = GeneTransformer(CONFIG, torch.Generator().manual_seed(seed)).eval()
    nn.init.normal_(made.head.linear.weight)
    return made


@torch.no_grad()
def test_round_trip(tmp_path):
    saved = network()
    folder = save_model(tmp_path / "m", saved, CONFIG, kind="expression", panel=["A", "B"], encoder="texture")
    read = load_model(folder, kind="expression", verify=True)
    assert read.facts["panel"] == ["A", "B"] and read.facts["encoder"] == "texture"
    config = read.settings(GeneTransformerConfig)
    assert config == CONFIG
    again = read.restore(GeneTransformer(config))
    x, c = torch.randn(3, 5), torch.randn(3, 4)
    assert torch.equal(again(x, 9, c), saved(x, 9, c))


@torch.no_grad()
def test_components_save_themselves_in_their_own_layout(tmp_path):
    unet = build_unet(UNetConfig.small(3, 3, 8), seed=0).eval()
    parts = {"unet": unet.unet, "first_stage": PixelFirstStage(2), "embedder": nn.Linear(3, 8)}
    folder = save_model(tmp_path / "m", parts, UNetConfig.small(3, 3, 8), kind="tissue")
    read = load_model(folder)
    again = load_unet(read.component("unet"))
    x, context = torch.randn(1, 3, 8, 8), torch.randn(1, 2, 8)
    assert torch.equal(again(x, 5, context), unet(x, 5, context))
    linear = read.restore(nn.Linear(3, 8), "embedder")
    assert torch.equal(linear.weight, parts["embedder"].weight)
    with pytest.raises(CheckpointError, match="the component 'vae' is missing"):
        read.component("vae")


def test_a_model_that_was_read_and_written_is_the_same_folder(tmp_path):
    """Nothing of where it lay is kept: a library writes the path it read a network from into its config.json."""
    config = UNetConfig.small(3, 3, 8)
    first = save_model(tmp_path / "here", {"unet": build_unet(config, seed=0).unet}, config, kind="tissue")
    again = load_unet(first / "unet").unet
    assert "here" in str(again.config["_name_or_path"])
    second = save_model(tmp_path / "there", {"unet": again}, config, kind="tissue")
    for path in (path for path in first.rglob("*") if path.is_file()):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path.name


def test_parameters_that_share_memory_are_saved_each(tmp_path):
    shared = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    shared[1].weight = shared[0].weight
    folder = save_model(tmp_path / "m", shared, CONFIG, kind="x")
    again = load_model(folder).restore(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    assert torch.equal(again[1].weight, shared[0].weight)


def test_a_failed_save_leaves_the_old_model(tmp_path):
    folder = save_model(tmp_path / "m", network(1), CONFIG, kind="expression")
    before = load_model(folder, verify=True).state()

    class Broken(nn.Module):
        def state_dict(self, *args, **kwargs):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        save_model(folder, {"model": Broken()}, CONFIG, kind="expression")
    after = load_model(folder, verify=True).state()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_defects_are_named(tmp_path):
    folder = save_model(tmp_path / "m", network(), CONFIG, kind="expression")
    with pytest.raises(CheckpointError, match="kind 'expression', not 'stain'"):
        load_model(folder, kind="stain")
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load_model(folder).state()
    weights.write_bytes(data[:-4] + b"\1\2\3\4")
    load_model(folder)
    with pytest.raises(CheckpointError, match="its hash is not the manifest's"):
        load_model(folder, verify=True)
    weights.unlink()
    with pytest.raises(CheckpointError, match="model.safetensors is missing"):
        load_model(folder)
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="its weights do not fit its configuration"):
        load_model(folder).restore(GeneTransformer(CONFIG.replace(genes=6)))
    values = json.loads((folder / "morphogen.json").read_text())
    (folder / "morphogen.json").write_text(json.dumps(values | {"version": 99}))
    with pytest.raises(CheckpointError, match="format version 99, and this morphogen reads up to 1. Update"):
        load_model(folder)
    (folder / "morphogen.json").write_text(json.dumps(values | {"config": {"genes": 5, "hats": 1}}))
    with pytest.raises(CheckpointError, match="its configuration does not fit"):
        load_model(folder).settings(GeneTransformerConfig)
    (folder / "morphogen.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a valid JSON file"):
        load_model(folder)
    (folder / Manifest.NAME).unlink()
    with pytest.raises(CheckpointError, match="incomplete: its manifest is missing"):
        load_model(folder)
    (folder / "morphogen.json").unlink()
    with pytest.raises(CheckpointError, match="not a model folder of ours"):
        load_model(folder)


def test_names_that_are_neither_folder_nor_hub_id(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no such model folder"):
        resolve_folder(tmp_path / "none")
    with pytest.raises(CheckpointError, match="no such model folder"):
        resolve_folder("no-such-folder")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="could not be fetched as a hub id") as error:
        resolve_folder("someone/no-such-model")
    assert "\n" not in str(error.value)


def test_hub_ids_fetch_no_pickles(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def fetch(name, *, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_folder("lab/stem@v2") == tmp_path
    assert (asked["name"], asked["revision"]) == ("lab/stem", "v2")
    assert not any(pattern.endswith((".bin", ".pt", ".ckpt", "*")) for pattern in asked["patterns"])


FOREIGN = [
    ("morphogen.json", lambda values: [values], "valid dictionary|object"),
    ("morphogen.json", lambda values: values | {"kind": 3}, "'kind' is 3, but"),
    ("morphogen.json", lambda values: values | {"version": "1"}, "'version' is '1', but"),
    ("morphogen.json", lambda values: values | {"version": True}, "'version' is True, but"),
    ("morphogen.json", lambda values: values | {"config": [1]}, "'config' is \\[1\\], but"),
    ("morphogen.json", lambda values: values | {"components": "model"}, "'components' is 'model'"),
    ("manifest.json", lambda values: [], "valid dictionary|object"),
    ("manifest.json", lambda values: values | {"files": ["model.safetensors"]}, "'files' is"),
    ("manifest.json", lambda values: values | {"files": {"../../x": ""}}, "the file name '..' cannot name"),
    ("manifest.json", lambda values: values | {"files": {"/etc/passwd": ""}}, "the file name '' cannot name"),
]


@pytest.mark.parametrize(("name", "change", "says"), FOREIGN, ids=range(len(FOREIGN)))
def test_another_structure_is_refused_in_one_sentence(tmp_path, name, change, says):
    path = save_model(tmp_path / "m", network(), CONFIG, kind="expression") / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=says) as error:
        load_model(tmp_path / "m")
    assert "\n" not in str(error.value) and len(str(error.value).replace(str(tmp_path), "")) < 250


def test_facts_are_read_as_what_they_must_be(tmp_path):
    folder = save_model(tmp_path / "m", network(), CONFIG, kind="x", mpp="0.5", names=["a"], flag=True)
    read = load_model(folder)
    assert read.fact("names", list[str]) == ["a"]
    with pytest.raises(CheckpointError, match="morphogen.json, mpp: .*valid number"):
        read.fact("mpp", float)
    with pytest.raises(CheckpointError, match="valid number"):
        read.fact("flag", float)
    with pytest.raises(CheckpointError, match="'crop' is missing"):
        read.fact("crop", int)


@pytest.mark.parametrize(
    "size",
    [{"width": 10**9}, {"depth": 10**6}, {"genes": 10**12}, {"width": 60_000, "depth": 900, "heads": 1}],
)
def test_sizes_that_no_machine_builds_are_refused_before_it_tries(size):
    from morphogen.core.errors import ConfigError

    with pytest.raises(ConfigError):
        CONFIG.replace(**size)
    with pytest.raises(ConfigError):
        UNetConfig.small(3, 3).replace(layers=10**6)
    with pytest.raises(ConfigError):
        UNetConfig.small(3, 3).replace(widths=(64_000, 64_000))


def test_a_component_that_lacks_tensors_or_has_absurd_sizes_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    build_unet(UNetConfig.small(3, 3, 8)).unet.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config, weights = json.loads(path.read_text()), tmp_path / "diffusion_pytorch_model.safetensors"
    for change in ({"layers_per_block": 10**6}, {"block_out_channels": [10**9]}, {"layers_per_block": True},
                   {"cross_attention_dim": "8"}, {"in_channels": -1}):  # fmt: skip
        path.write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=next(iter(change))) as error:
            load_unet(tmp_path)
        assert len(str(error.value).replace(str(tmp_path), "")) < 250
    for text in ("[1]", "[" * 100_000, "null"):
        path.write_text(text)
        with pytest.raises(CheckpointError):
            load_unet(tmp_path)
    path.write_text(json.dumps(config))
    state = load_file(weights)
    del state["conv_out.bias"]
    save_file(state, weights)
    with pytest.raises(CheckpointError, match="its weights lack 1 tensors, first 'conv_out.bias'"):
        load_unet(tmp_path)
