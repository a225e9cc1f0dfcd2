"""Training: the two tasks per sample, starts, caches, resume, and that a stain is learned at all."""

import numpy as np
import pytest
import torch

from morphogen.core.errors import ConfigError, OutputError
from morphogen.stain.config import DataConfig, ModelConfig, ObjectiveConfig, SamplerConfig, TrainConfig
from morphogen.stain.data import find_pairs
from morphogen.stain.fitting.build import build_model
from morphogen.stain.fitting.cache import cache_crops
from morphogen.stain.pairs.crops import PairDataset
from morphogen.stain.recipes.network import StainNetwork
from morphogen.stain.train import StainTask, train_model
from morphogen.tasks import Cached
from morphogen.training import Draws, TrainingConfig

from .conftest import TINY

LOOP = TrainingConfig(steps=4, batch_size=2, lr=1e-3, save_every=2, log_every=1)


def config(**changes):
    base = TrainConfig(data=DataConfig(crop=32), model=TINY, training=LOOP)
    return base.replace(**changes)


class Recorder(torch.nn.Module):
    """Stands in for the network and writes down what it is shown."""

    null = torch.zeros(1, 1, 4)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    contexts = StainNetwork.contexts

    def project(self, tokens):
        return tokens[..., :4]

    def forward(self, x, t, **condition):
        self.seen.append({"x": x, "t": t, **condition})
        return x * self.weight


def task_and_batch(make_pairs, n=64, **objective):
    stain = build_model(TINY.replace(stains=("ER", "Ki67"), prediction="v"), crop=32)
    root = make_pairs(2, stain="ER")
    make_pairs(2, stain="Ki67")
    dataset = PairDataset(find_pairs(root).pairs, stain.stains, crop=32)
    task = StainTask(stain, dataset, config(objective=ObjectiveConfig(**objective)))
    items = [dataset[k % 4] for k in range(n)]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    return task, batch, Draws(0, torch.arange(n))


def test_task_is_drawn_for_each_sample_with_the_probability_asked_for(make_pairs):
    task, batch, draws = task_and_batch(make_pairs, n=400, bias_he_ihc=0.25)
    model = Recorder()
    figures = task.loss(model, batch, draws)
    seen = model.seen[0]
    generate = seen["label"] == 0
    assert 0.18 < generate.float().mean() < 0.32
    blank = seen["image"].flatten(1).abs().sum(1) == 0
    assert torch.equal(generate, blank)  # no H&E channels when H&E is generated
    expected = 1 + batch["label"]
    assert torch.equal(seen["label"][~generate], expected[~generate])
    assert figures["loss"].shape == (400,)
    runs = (generate[1:] != generate[:-1]).sum()
    assert runs > 100  # per sample, not batch by batch


def test_targets_belong_to_their_task(make_pairs):
    """At pure noise v is −x0: H&E for generation, the stain for translation."""
    task, batch, draws = task_and_batch(make_pairs, bias_he_ihc=0.5, last_step_share=1.0)
    model = Recorder()
    figures = task.loss(model, batch, draws)  # the recorder answers 0, so the loss is the mean square of x0
    seen = model.seen[0]
    assert (seen["t"] == 999).all()
    generate = seen["label"] == 0
    for name, chosen in (("he", generate), ("ihc", ~generate)):
        pixels = task.stain.pixels(batch[name][chosen])
        expected = (pixels**2).flatten(1).mean(1)
        torch.testing.assert_close(figures["loss"][chosen], expected, rtol=1e-4, atol=1e-5)


def test_text_and_token_contexts_of_unequal_length_are_masked():
    network = build_model(TINY.replace(encoder="texture", texture_grid=1), crop=32).network
    network.null = torch.nn.Parameter(torch.randn(1, 5, network.latent.context_dim))
    tokens = torch.randn(3, 2, network.latent.context_dim)
    generate = torch.tensor([True, False, True])
    context, mask = network.contexts(tokens, generate)
    assert context.shape[1] == 5 and mask.sum(1).tolist() == [5, 2, 5]
    x, t = torch.randn(3, 48, 8, 8), torch.tensor([500, 500, 500])
    label = torch.tensor([0, 1, 0])
    with torch.no_grad():
        torch.nn.init.normal_(network.latent.unet.conv_out.weight)
        together = network(x, t, context=context, mask=mask, label=label)
        alone = network(x[1:2], t[1:2], context=tokens[1:2], label=label[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_one_null_token_is_the_same_as_many():
    network = build_model(TINY.replace(encoder="texture", texture_grid=2), crop=32).network
    torch.nn.init.normal_(network.null)
    tokens = torch.randn(2, 5, network.latent.context_dim)
    context, mask = network.contexts(tokens, torch.tensor([True, False]))
    assert mask is None and context.shape == tokens.shape
    x, label = torch.randn(1, 48, 8, 8), torch.tensor([0])
    with torch.no_grad():
        many, one = (network(x, 3, context=c, label=label) for c in (context[:1], network.null))
    torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-5)


def test_killed_training_resumes_to_the_same_weights(make_pairs, tmp_path):
    root = make_pairs(3)
    whole = train_model(find_pairs(root), config(), tmp_path / "whole", device="cpu")
    short = LOOP.replace(steps=2)
    train_model(find_pairs(root), config(training=short), tmp_path / "part", device="cpu")
    # The run of two steps is the first half of the run of four: remove what only its end wrote.
    run = (tmp_path / "part" / "run.json").read_text().replace('"steps": 2', '"steps": 4')
    (tmp_path / "part" / "run.json").write_text(run)
    part = train_model(find_pairs(root), config(), tmp_path / "part", device="cpu")
    for key, value in whole.model.network.state_dict().items():
        assert torch.equal(value, part.model.network.state_dict()[key]), key


def test_cached_crops_train_and_equal_fresh_ones(make_pairs, tmp_path):
    root = make_pairs(3)
    model = build_model(TINY.replace(encoder="texture", texture_grid=2), crop=32)
    dataset = PairDataset(find_pairs(root).pairs, model.stains, crop=32)
    folder = cache_crops(model, dataset, tmp_path / "cache", crops=3, seed=0)
    cached = Cached(folder)
    assert len(cached) == 9
    from morphogen.core.seeds import generator

    item, fresh = cached[4], dataset.draw(4 % 3, generator(0, "cached crop", 4))
    expected = model.first_stage.encode(model.pixels(fresh["he"][None])).mean[0]
    torch.testing.assert_close(item["he_mean"], expected, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(item["tokens"], model.tokens(fresh["he"][None])[0], atol=2e-2, rtol=2e-3)
    assert cache_crops(model, dataset, folder, crops=3, seed=0) == folder  # found, not made again
    with pytest.raises(OutputError, match=r"cached crops of another run \(crops was 3, now 2\)"):
        cache_crops(model, dataset, folder, crops=2, seed=0)
    stained = PairDataset(dataset.pairs, model.stains, crop=32, stain_jitter=0.2)
    with pytest.raises(OutputError, match="stain_jitter"):  # crops of other colours
        cache_crops(model, stained, folder, crops=3, seed=0)
    changed = config(
        data=DataConfig(crop=32, cache_crops=2), model=TINY.replace(encoder="texture", texture_grid=2)
    )
    result = train_model(find_pairs(root), changed, tmp_path / "run", device="cpu")
    assert np.isfinite(result.run.metrics["loss"])


def test_paper_size_starts_from_stable_diffusion(shared, tmp_path, make_pairs):
    """4 → 8 channels: before training, the H&E channels change nothing; labels and projections start at
    nothing.
    """
    from diffusers import UNet2DConditionModel

    source = shared / "fixtures" / "histdist_inference"
    start = tmp_path / "sd"
    import shutil

    shutil.copytree(source / "pipeline", start)
    old = UNet2DConditionModel.from_pretrained(start / "unet")
    with torch.no_grad():  # a 4-channel U-Net like Stable Diffusion's
        conv = torch.nn.Conv2d(4, old.conv_in.out_channels, 3, padding=1)
        conv.weight.copy_(old.conv_in.weight[:, :4])
        conv.bias.copy_(old.conv_in.bias)
        old.conv_in = conv
    old.register_to_config(in_channels=4)
    old.save_pretrained(start / "unet")
    settings = ModelConfig(
        size="paper", null_context="text", encoder=f"transformers:{source / 'vit'}", stains=("ER", "PR")
    )
    model = build_model(settings, start=start, crop=64)
    assert model.network.latent.in_channels == 8 and model.network.projection is None
    x, image = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    context = torch.randn(1, 17, 32)
    with torch.no_grad():
        expected = old(x, 500, context).sample
        for label in (0, 1, 2):
            found = model.network(x, 500, image=image, context=context, label=torch.tensor([label]))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    root = make_pairs(2, stain="ER")
    make_pairs(1, stain="PR")
    run = TrainConfig(
        data=DataConfig(crop=64), model=settings, training=LOOP.replace(steps=2), start=str(start)
    )
    trained = train_model(find_pairs(root), run, tmp_path / "run", device="cpu")
    from morphogen.stain import StainTransfer

    again = StainTransfer.from_pretrained(trained.folder, encoder=source / "vit")
    images = torch.randint(0, 255, (1, 64, 64, 3), dtype=torch.uint8)
    sampler = SamplerConfig.reference().replace(steps=2, inversion_steps=2)
    first, second = (each(images, sampler, stain="PR").latents for each in (trained.model, again))
    torch.testing.assert_close(first, second)


def test_a_trained_model_learns_further_stains(make_pairs, tmp_path):
    settings = TINY.replace(stains=("ER", "PR"))
    first = build_model(settings, crop=32)
    with torch.no_grad():
        first.network.latent.unet.class_embedding.weight.normal_()
    old = first.network.latent.unet.class_embedding.weight.detach().clone()
    first.save_pretrained(tmp_path / "first")

    grown = build_model(TINY.replace(stains=("Ki67", "ER")), start=tmp_path / "first", crop=32)
    new = grown.network.latent.unet.class_embedding.weight
    assert grown.stains == ("Ki67", "ER") and grown.network.latent.unet.config.num_class_embeds == 3
    torch.testing.assert_close(new[0], old[0])  # H&E generation
    torch.testing.assert_close(new[1], old[1:].mean(0))  # a stain not known before
    torch.testing.assert_close(new[2], old[1])  # ER keeps its label

    root = make_pairs(1, stain="Ki67")  # whose name joins those the model knows
    run = TrainConfig(
        data=DataConfig(crop=32), model=TINY, training=LOOP.replace(steps=1), start=str(tmp_path / "first")
    )
    trained = train_model(find_pairs(root), run, tmp_path / "run", device="cpu")
    assert trained.model.stains == ("ER", "PR", "Ki67")
    from morphogen.stain import StainTransfer

    assert StainTransfer.from_pretrained(trained.folder).stains == ("ER", "PR", "Ki67")


def test_what_the_network_is_cannot_change_where_training_begins(tmp_path):
    """Said, not left out in silence; what only a recipe sets is nobody's wish."""
    build_model(TINY, crop=32).save_pretrained(tmp_path / "first")
    for name, value in {"widths": (8, 24), "heads": 1, "detail": 8, "size": "paper"}.items():
        with pytest.raises(ConfigError, match=f"model.{name}: the model to start from has {name} .*not"):
            build_model(TINY.replace(**{name: value}), start=tmp_path / "first", crop=32)
    recipe = TrainConfig.recipe("small").model
    assert recipe.detail != TINY.detail and recipe.widths != TINY.widths
    assert build_model(recipe, start=tmp_path / "first", crop=32).config.widths == TINY.widths


def test_contradictory_models_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="size 'paper' starts from weights.*--start"):
        build_model(ModelConfig(size="paper"))
    with pytest.raises(ConfigError, match="needs size 'paper'"):
        ModelConfig(null_context="text")
    with pytest.raises(ConfigError, match="each may be named once"):
        ModelConfig(stains=("ER", "ER"))


def test_wrong_crop_and_unknown_stain_are_refused(make_pairs, tmp_path):
    root = make_pairs(2)
    with pytest.raises(ConfigError, match="a crop of 36 px does not fit this network.*multiple of 8"):
        train_model(find_pairs(root), config(data=DataConfig(crop=36)), tmp_path / "a", device="cpu")
    settings = TINY.replace(stains=("ER", "PR"))
    with pytest.raises(ConfigError, match="pairs are of stain IHC, the model of ER, PR"):
        train_model(find_pairs(root), config(model=settings), tmp_path / "b", device="cpu")


@pytest.mark.parametrize("regression", [False, True])
def test_a_stain_is_learned(make_pairs, tmp_path, regression):
    """DAB in place of eosin: after some steps the expected stain is much nearer to the truth than the H&E
    is.
    """
    root = make_pairs(4, size=64)
    make_pairs(2, size=64, split="val")
    settings = ModelConfig(
        widths=(16, 24),
        groups=4,
        heads=2,
        attention=(1,),
        encoder="none",
        pixel_factor=4,
        regression=regression,
    )
    run = TrainConfig(
        data=DataConfig(crop=32),
        model=settings,
        objective=ObjectiveConfig(bias_he_ihc=0.0, last_step_share=0.5),
        training=TrainingConfig(
            steps=100, batch_size=8, lr=4e-3, warmup_steps=10, lr_schedule="cosine", ema_decay=0.9, save_every=100,
            validate_every=100, preview_every=100,
        ),
        preview_pairs=2,
    )  # fmt: skip
    result = train_model(
        find_pairs(root), run, tmp_path / "run", validation=find_pairs(root, "val"), device="cpu"
    )
    assert list((tmp_path / "run" / "previews").rglob("stain.png"))
    dataset = PairDataset(find_pairs(root, "val").pairs, result.model.stains, crop=64)
    items = [dataset[k] for k in range(2)]
    he, ihc = (torch.stack([item[key] for item in items]).float() for key in ("he", "ihc"))
    made = result.model(he.to(torch.uint8), "mean").images.float()
    before, after = float((he - ihc).abs().mean()), float((made - ihc).abs().mean())
    assert after < 0.5 * before
    assert result.run.metrics["validate/colour_error"] < 0.6 * before


def test_detail_head_changes_nothing_at_first_and_sees_across_blocks():
    from morphogen.nets import DetailHead

    head = DetailHead(4, 8)
    out, x, image = (torch.randn(1, 48, 6, 6) for _ in range(3))
    with torch.no_grad():
        assert torch.equal(head(out, x, image), out)
        torch.nn.init.normal_(head.last.weight)
        before = head(out, x, image)
        moved = out.clone()
        moved[0, :, 2, 2] += 1.0
        changed = (head(moved, x, image) - before).abs().amax(dim=(0, 1)) > 1e-6
    assert changed[1:4, 1:4].all() and not changed[:, 5].any()


def test_no_training_step_waits_for_the_device(make_pairs, looks):
    """Cut and turned on the device, encoded, and through the network and back."""
    stain = build_model(TINY, crop=32)
    dataset = PairDataset(find_pairs(make_pairs(3)).pairs, stain.stains, crop=32)
    places = [dataset.place(k % 3, torch.Generator().manual_seed(k)) for k in range(4)]
    dataset._held.move(torch.device("meta"))
    for part in (stain.network, stain.first_stage):
        part.to("meta")
    batch = {name: value.to("meta") for name, value in dataset.cut(places).items()}
    task = StainTask(stain, dataset, TrainConfig())
    with looks() as looked:
        figures = task.loss(task.model, dataset.finish(batch), Draws(0, torch.arange(4), "meta"))
        figures["loss"].mean().backward()
    assert looked.found == [] and figures["loss"].device.type == "meta"
