"""What a file is, and turning it into a model folder: through the command line, as a user does."""

from __future__ import annotations

import json

import pytest
import torch

from morphogen.checkpoints import (
    identify,
    load_hisdiff,
    load_latent_diffusion,
    load_ldm,
    load_pipeline,
    load_stem,
    read_weights,
)
from morphogen.cli.main import main
from morphogen.core.errors import CheckpointError
from morphogen.nets import load_first_stage


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture
def files(shared):
    return shared / "fixtures"


@pytest.mark.parametrize(
    ("name", "kind", "parameters", "sizes"),
    [
        ("stem_forward/0000003.pt", "stem", 111_082, {"genes": 24, "condition": 40, "width": 48, "depth": 2}),
        ("hisdiff_forward/0000100.pt", "hisdiff", 147_842, {"genes": 20, "condition": 64}),
        ("ldm_unet/checkpoint.ckpt", "ldm", 1_692_929, {"latent channels": 3, "widths": (32, 32, 64)}),
        ("ldm_unet/vq_first_stage.ckpt", "first_stage", 217_140, {"downsampling": 2, "codebook": 50}),
        ("stedm_unet/checkpoint.ckpt", "stedm", None, {"aggregation": "linear"}),
        ("histdist_inference/pipeline", "histdist", 494_051, {"U-Net channels": 8}),
        ("histdist_inference/pipeline/vae", "component", 81_215, {}),
        ("stem_forward/tensors.safetensors", "unknown", None, {}),
    ],
)
def test_every_published_format_is_recognised(files, name, kind, parameters, sizes):
    info = identify(files / name)
    assert info.kind == kind
    assert parameters is None or info.parameters == parameters
    assert {key: info.sizes[key] for key in sizes} == sizes


def test_parameters_under_several_names_count_once(files):
    info = identify(files / "stedm_unet" / "checkpoint.ckpt")
    state = read_weights(files / "stedm_unet" / "checkpoint.ckpt").state()
    once = sum(
        v.numel() for v in {v.data_ptr(): v for k, v in state.items() if k.startswith("_model.")}.values()
    )
    assert info.parameters == once < sum(v.numel() for v in state.values()) / 2
    assert info.keys == len(state)


def test_info_says_what_is_missing_and_what_to_do(files, capsys):
    code, out, _ = run(capsys, "checkpoint", "info", files / "stem_forward" / "0000003.pt")
    assert code == 0
    for part in (
        "Stem",
        "genes: 24",
        "weights: EMA",
        "--genes FILE",
        "--encoder NAME",
        "--heads N",
        "111,082",
    ):
        assert part in out
    code, out, _ = run(capsys, "checkpoint", "info", files / "stedm_unet" / "checkpoint.ckpt")
    assert "left inert" in out and "omegaconf" in out
    code, out, _ = run(capsys, "checkpoint", "info", files / "ldm_unet" / "checkpoint.ckpt", "--json")
    found = json.loads(out)
    assert found["kind"] == "ldm" and found["importable"] is True and found["sizes"]["patch embedding"] == 48


def test_info_of_folders_without_a_model(tmp_path):
    (tmp_path / "0000001.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no model: .* Give one of its files, such as 0000001.pt"):
        identify(tmp_path)


@pytest.mark.parametrize("method", ["stem", "hisdiff"])
@torch.no_grad()
def test_gene_networks_are_imported_with_their_genes(files, tmp_path, capsys, method):
    from morphogen.expression.model import ExpressionModel

    path = files / ("stem_forward/0000003.pt" if method == "stem" else "hisdiff_forward/0000100.pt")
    published = (load_stem if method == "stem" else load_hisdiff)(path, heads=4)
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(f"GENE{i}" for i in range(published.config.genes)) + "\n\n")
    out = tmp_path / "model"
    code, said, _ = run(
        capsys,
        "checkpoint",
        "import",
        path,
        "--genes",
        genes,
        "--encoder",
        "h0-mini",
        "--heads",
        4,
        "--out",
        out,
    )
    assert code == 0 and str(out) in said
    model = ExpressionModel.from_pretrained(out)
    assert (
        model.config.recipe == method
        and model.encoder["name"] == "h0-mini"
        and model.panel.genes[1] == "GENE1"
    )
    assert model.transform.log == "log2p1"
    for a, b in zip(model.head.network.parameters(), published.parameters(), strict=True):
        assert torch.equal(a, b)
    assert identify(out).kind == "morphogen"


@pytest.mark.parametrize("written", ["\ufeffA\r\nB\r\n", "gene\nA\nB\n", "'A'\n\"B\" \n\n"])
def test_gene_lists_as_people_save_them(tmp_path, written):
    from morphogen.checkpoints.importing import read_genes

    (tmp_path / "genes.txt").write_bytes(written.encode())
    assert read_genes(tmp_path / "genes.txt", 2) == ["A", "B"]


@torch.no_grad()
def test_latent_diffusion_is_imported_with_its_parts(files, tmp_path, capsys, tensors):
    T, path, out = tensors("ldm_unet"), files / "ldm_unet" / "checkpoint.ckpt", tmp_path / "model"
    code, *_ = run(capsys, "checkpoint", "import", path, "--encoder", "phikon", "--heads", 1, "--out", out)
    assert code == 0
    published, imported = load_ldm(path, heads=1), load_latent_diffusion(out)
    assert torch.equal(
        imported.network(T["x"], T["t"], T["context"]), published.network(T["x"], T["t"], T["context"])
    )
    assert torch.equal(imported.first_stage.images(T["latent"]), published.first_stage.images(T["latent"]))
    assert torch.equal(imported.embedder(patch=T["emb_patch"]), published.embedder(patch=T["emb_patch"]))
    assert imported.schedule == published.schedule
    assert not list(out.rglob("*.bin")) and not list(out.rglob("*.pt"))


@torch.no_grad()
def test_a_first_stage_is_imported_as_a_component(files, tmp_path, capsys, tensors):
    T, path, out = tensors("ldm_unet"), files / "ldm_unet" / "vq_first_stage.ckpt", tmp_path / "vq"
    assert run(capsys, "checkpoint", "import", path, "--out", out)[0] == 0
    got = load_first_stage(out).latents(T["image"])
    torch.testing.assert_close(got, T["vq2_encode_prequant"], atol=3e-5, rtol=1e-4)


@torch.no_grad()
def test_histdist_is_imported_with_the_scheduler_it_was_trained_for(files, tmp_path, capsys, tensors):
    from diffusers import DDIMScheduler

    from morphogen.stain.model import StainTransfer

    T, out = tensors("histdist_inference"), tmp_path / "hd"
    assert (
        run(capsys, "checkpoint", "import", files / "histdist_inference" / "pipeline", "--out", out)[0] == 0
    )
    scheduler = DDIMScheduler.from_pretrained(out, subfolder="scheduler")
    torch.testing.assert_close(scheduler.alphas_cumprod, T["alphas_cumprod_zero_snr"])
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(20)
    assert torch.equal(scheduler.timesteps, T["timesteps_translation"])
    for network in (load_pipeline(out).network, StainTransfer.from_pretrained(out).network.latent):
        got = network(T["unet_x"], T["unet_t"], T["unet_ctx"])
        torch.testing.assert_close(got, T["unet_out"], atol=3e-5, rtol=1e-4)
    assert identify(out).title.endswith("kind stain")


def test_what_an_import_lacks_is_one_line_and_exit_2(files, tmp_path, capsys):
    path, out = files / "stem_forward" / "0000003.pt", tmp_path / "m"
    genes = tmp_path / "genes.txt"

    def error(*options) -> str:
        code, _, err = run(capsys, "checkpoint", "import", path, "--out", out, *options)
        assert code == 2 and err.count("\n") == 1 and not out.exists()
        return err

    assert "does not say which encoder" in error()
    assert "does not say which 24 genes" in error("--encoder", "uni")
    assert "there is no such file" in error("--encoder", "uni", "--genes", genes)
    genes.write_text("A\nB\n")
    assert "it has 2 genes, but the network was trained with 24" in error(
        "--encoder", "uni", "--genes", genes
    )
    genes.write_text("A\n" * 24)
    assert "gene A is in it more than once" in error("--encoder", "uni", "--genes", genes)
    genes.write_text("\n".join(f"G{i}" for i in range(24)))
    assert "how many attention heads" in error("--encoder", "uni", "--genes", genes)
    assert "at least one attention head, not 0" in error("--encoder", "uni", "--genes", genes, "--heads", "0")
    path = files / "ldm_unet" / "checkpoint.ckpt"
    assert "a gene list does not belong to" in error("--encoder", "uni", "--genes", genes, "--heads", "1")
    assert "at least one attention head, not 0" in error("--encoder", "uni", "--heads", "0")
    assert "how many attention heads its U-Net has" in error("--encoder", "uni")
    assert "unknown encoder 'phikn'. Did you mean 'phikon'" in error("--encoder", "phikn", "--heads", "1")
    assert "unknown encoder 'nosuch'" in error("--encoder", "uni+nosuch", "--heads", "1")
    path = files / "ldm_unet" / "vq_first_stage.ckpt"
    assert "unknown encoder 'nosuch'" in error("--encoder", "nosuch")
    assert "are known" in error("--heads", "2")
    path = files / "stedm_unet" / "checkpoint.ckpt"
    assert "nothing to import: STEDM" in error()
    path = tmp_path / "none.pt"
    assert "there is no such file" in error()
