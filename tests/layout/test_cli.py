"""The command line: from annotated and other images to a report, and what it says of bad input."""

from __future__ import annotations

import json

import pytest
import yaml
from PIL import Image

from morphogen.cli.main import main

from .conftest import write_folder


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


TINY = ("--training.batch_size", 4, "--training.save_every", 2)
NET = ("--network.widths", "[8, 16]", *TINY)


def test_from_images_to_a_report(tmp_path, capsys, tissue):
    split = ("--annotated", "P1", "P2", "--test", "P4", "--crop", 32)
    code, out, err = run(
        capsys, "layout", "train", tissue, *split, "--style-sampling", "mp", "--size", "tiny", "--steps", 2, *TINY,
        "--out", tmp_path / "model", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert "on 4 annotated and 2 other images" in out
    model = tmp_path / "model" / "model"
    code, out, err = run(
        capsys, "layout", "segmenter", tissue, *split, "--steps", 2, *NET, "--out", tmp_path / "seg",
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    code, out, err = run(
        capsys, "layout", "synthesize", tissue, "--model", model, "--count", 4, "--out", tmp_path / "syn",
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0 and "4 images in the styles of 1 patients" in out, err
    code, out, err = run(
        capsys, "layout", "evaluate", tissue, *split, "--synthetic", tmp_path / "syn", "--model", model, "--steps", 2,
        *NET, "--out", tmp_path / "report", "--device", "cpu", "--json", "--pairs", 3,
    )  # fmt: skip
    assert code == 0, err
    values = json.loads(out)
    assert len(values["iou"]) == 8 and "style match, colour" in values["synthetic"]
    assert (tmp_path / "report" / "report.html").is_file()
    code, out, err = run(
        capsys, "layout", "segment", tissue / "images", "--model", tmp_path / "seg" / "model", "--out",
        tmp_path / "labels", "--device", "cpu",
    )  # fmt: skip
    assert code == 0 and "8 label maps" in out, err


def test_the_options_of_the_published_code(tmp_path, capsys, shared):
    checkpoint = shared / "fixtures" / "stedm_unet" / "checkpoint.ckpt"
    code, out, err = run(capsys, "layout", "import-config", checkpoint, "--out", tmp_path / "train.yaml")
    assert code == 0, err
    values = yaml.safe_load((tmp_path / "train.yaml").read_text())
    assert values["network"]["style"] == {"aggregator": "linear", "images": 3}
    assert (values["data"]["sampling"], values["data"]["style_images"]) == ("mp", 3)
    assert (values["data"]["stain_shift"], values["data"]["focus_shift"]) == (0, 0)  # it has none
    assert (values["objective"]["style_drop"], values["objective"]["loss"]) == (0.25, "l1")
    given = {
        "data": {"class_train_samples": 6, "patch_size": 512, "overlap_train": 64, "ratios": [0.2, 0.8]},
        "ce_ratio": 0.1,
        "dice_ratio": 0.9,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    code, out, err = run(
        capsys, "layout", "import-config", tmp_path / "config.yaml", "--out", tmp_path / "s.yaml"
    )
    assert code == 0 and "morphogen layout segmenter" in out, err
    values = yaml.safe_load((tmp_path / "s.yaml").read_text())
    assert (values["ce"], values["dice"], values["overlap"], values["synthetic_ratio"]) == (0.1, 0.9, 64, 0.8)
    assert (values["data"]["class_train_samples"], values["data"]["crop"]) == (6, 512)


def test_a_published_checkpoint_synthesises(tmp_path, capsys, tissue, shared):
    checkpoint = shared / "fixtures" / "stedm_unet" / "checkpoint.ckpt"
    code, out, err = run(
        capsys, "layout", "synthesize", tissue, "--annotated", "P1", "--classes", "tumour", "--model", checkpoint,
        "--count", 3, "--style_images", 3, "--out", tmp_path / "syn", "--device", "cpu",
    )  # fmt: skip
    assert code == 0 and "3 images in the styles of 3 patients" in out, err
    assert Image.open(tmp_path / "syn" / "images" / "syn_00001.png").size == (32, 32)
    code, out, err = run(
        capsys,
        "layout",
        "synthesize",
        tissue,
        "--model",
        checkpoint,
        "--out",
        tmp_path / "all",
        "--device",
        "cpu",
    )
    assert code == 2 and "has 3 classes, the model 2" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--test", "P9"), "there is no patient 'P9'"),
        (("--annotated", "P1", "--test", "P1"), "patient P1 is annotated and in the test"),
        (("--classes", "bone"), "there is no class 'bone'"),
        (("--data.crops", "32"), "Did you mean 'crop'"),
        (("--style-sampling", "mp", "--data.style_images", "0"), "style_images"),
    ],
)
def test_bad_input_is_said_in_one_sentence(tmp_path, capsys, tissue, arguments, said):
    code, out, err = run(capsys, "layout", "train", tissue, *arguments, "--out", tmp_path / "out")
    assert code == 2 and said in err and len(err) < 330 and "Traceback" not in err


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda p: Image.new("L", (10, 12)).save(p), "its mask has 10 × 12 px, the image 64 × 64"),
        (lambda p: Image.new("L", (64, 64), 7).save(p), "values that are no label: 7 (4096 px)"),
        (lambda p: Image.new("L", (64, 64)).save(p, format="JPEG"), "this mask is a JPEG"),
        (lambda p: p.write_bytes(b"no image"), "p1_0"),
    ],
    ids=["size", "values", "jpeg", "bytes"],
)
def test_a_bad_mask_ends_the_training_in_one_sentence(tmp_path, capsys, harm, said):
    root = write_folder(tmp_path / "set", patients=(1, 2), images=1)
    harm(root / "masks" / "p1_0.png")
    code, out, err = run(
        capsys, "layout", "train", root, "--size", "tiny", "--crop", 32, "--steps", 1, *TINY, "--out",
        tmp_path / "out",
    )  # fmt: skip
    assert code == 2 and said in err and "p1_0" in err and len(err) < 330 and "Traceback" not in err


def test_synthetic_images_of_other_classes_are_refused(tmp_path, capsys, tissue):
    other = write_folder(tmp_path / "other", patients=(1,), images=1)
    (other / "labels.json").write_text('{"0": "a", "1": "b", "2": "c"}')
    code, out, err = run(
        capsys, "layout", "segmenter", tissue, "--synthetic", other, "--crop", 32, "--out", tmp_path / "out"
    )
    assert code == 2 and "its classes are not those of the real images" in err
