"""Class defaults < preset of recipe and size < YAML < command line, for every verb that has settings."""

import ast
from pathlib import Path

import pytest

import morphogen.cli
from morphogen.cli import main
from morphogen.core.errors import ConfigError
from morphogen.core.presets import layered, merged, parse_settings
from morphogen.diffusion import SamplerConfig
from morphogen.expression.config import EvaluateConfig as ExpressionEvaluation
from morphogen.expression.config import ExpressionConfig, PredictConfig
from morphogen.stain.config import ApplyConfig, EvaluateConfig, TrainConfig
from morphogen.stain.registration.table import RegisterConfig

CLI = Path(morphogen.cli.__file__).parent


class Resolved(BaseException):
    """Ends a verb where its configuration is complete."""

    def __init__(self, config):
        self.config = config


@pytest.fixture
def resolve(monkeypatch, tmp_path):
    """The configuration that a command line resolves to, with a YAML file when given."""

    def run(*tokens, yaml=None):
        from morphogen.cli import common

        real = common.load_config

        def stop(*arguments, **chosen):
            raise Resolved(real(*arguments, **chosen))

        module = __import__(f"morphogen.cli.{tokens[0]}", fromlist=["app"])
        monkeypatch.setattr(module, "load_config", stop)
        line = list(tokens)
        if yaml is not None:
            path = tmp_path / "given.yaml"
            path.write_text(yaml)
            line += ["--config", str(path)]
        with pytest.raises(Resolved) as found:
            main.main(line)
        return found.value.config

    return run


EXPRESSION = ("expression", "train", "store", "--out", "o")
STAIN = ("stain", "train", "pairs", "--out", "o")


def test_a_setting_of_the_command_line_is_not_overruled_by_an_option_that_was_not_given(resolve):
    assert resolve(*EXPRESSION, "--training.seed", "7").training.seed == 7
    assert resolve(*EXPRESSION).training.seed == 0
    assert resolve(*EXPRESSION, "--seed", "7").training.seed == 7


def test_a_file_says_recipe_size_and_seed(resolve):
    found = resolve(*EXPRESSION, yaml="recipe: stem\nsize: paper\nseed: 5\n")
    assert (found.recipe, found.size, found.training.seed) == ("stem", "paper", 5)
    assert found == ExpressionConfig(recipe="stem", size="paper", seed=5)
    assert found.training.steps == 250_000 and found.target.log == "log2p1"


def test_the_command_line_chooses_the_preset_under_a_file(resolve):
    found = resolve(*EXPRESSION, "--recipe", "hisdiff", "--size", "paper", yaml="training: {steps: 9}\n")
    assert (found.training.steps, found.training.batch_size, found.network.heads) == (9, 128, 12)
    found = resolve(*STAIN, "--size", "paper", yaml="training: {lr: 0.5}\n")
    assert found == TrainConfig.recipe("paper").replace(
        training=TrainConfig.recipe("paper").training.replace(lr=0.5)
    )
    found = resolve(*STAIN, yaml="size: paper\nseed: 4\n")
    assert found.model.size == "paper" and found.data.crop == 512 and found.training.seed == 4


def test_a_preset_fills_only_what_is_unset(resolve):
    assert resolve(*STAIN) == TrainConfig.recipe("small")
    assert resolve(*STAIN, "--steps", "20") == TrainConfig.recipe("small", 20)
    found = resolve(*STAIN, "--residual", yaml="objective: {last_step_share: 0.2}\n")
    assert found.objective.last_step_share == 0.2 and found.objective.bias_he_ihc == 0.05
    reference = resolve(
        "stain", "apply", "m", "i", "--out", "o", "--solver", "reference", yaml="sampler: {eta: 0.5}\n"
    )
    assert reference.sampler.eta == 0.5 and reference.sampler.inversion_steps == 100


@pytest.mark.parametrize(
    ("tokens", "cls"),
    [
        (("stain", "apply", "m", "i", "--out", "o"), ApplyConfig),
        (("stain", "evaluate", "p", "d", "--out", "o"), EvaluateConfig),
        (("expression", "predict", "s.h5ad", "--model", "m", "--out", "o"), PredictConfig),
        (("expression", "evaluate", "s", "--model", "m", "--test", "A", "--out", "o"), ExpressionEvaluation),
    ],
)
def test_the_seed_of_a_file_counts_in_every_verb(resolve, tokens, cls):
    assert resolve(*tokens) == cls()
    assert resolve(*tokens, yaml="seed: 11\n").seed == 11
    assert resolve(*tokens, "--seed", "3", yaml="seed: 11\n").seed == 3


def test_registration_reads_a_file_too(resolve):
    found = resolve(
        "stain",
        "register",
        "p",
        "--out",
        "o.csv",
        "--max-shift",
        "9",
        yaml="motion: affine\nskip_bad: true\n",
    )
    assert found == RegisterConfig(motion="affine", skip_bad=True, max_shift=9)


def verbs_with_settings():
    for path in sorted(CLI.glob("*.py")):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Call) and ast.unparse(node.func) == "load_config":
                        yield pytest.param(path, function, node, id=f"{path.stem} {function.name}")


@pytest.mark.parametrize(("path", "function", "call"), verbs_with_settings())
def test_what_a_verb_lays_over_the_file_was_chosen(path, function, call):
    """Every option that reaches the configuration is None unless the user gave it."""
    options = function.args.kwonlyargs
    defaults = {a.arg: d for a, d in zip(options, function.args.kw_defaults, strict=True)}
    wrong = []
    for keyword in call.keywords:
        for name in {n.id for n in ast.walk(keyword.value) if isinstance(n, ast.Name)} & set(defaults):
            default = defaults[name]
            unset = isinstance(default, ast.Constant) and default.value in (None, False)
            if default is not None and not unset:
                wrong.append(f"--{name} is {ast.unparse(default)}")
    assert not wrong, f"{path.name} {function.name}: {wrong}"


def test_layers_do_not_change_what_they_are_made_of():
    low = {"a": {"x": 1}}
    assert merged(low, {"a": {"y": 2}}) == {"a": {"x": 1, "y": 2}} and low == {"a": {"x": 1}}
    values = layered(ExpressionConfig, {"recipe": "stem"}, {"network": {"width": 7}})
    assert values["network"]["width"] == 7 and ExpressionConfig(recipe="stem").network.width == 96


def test_a_short_name_stands_behind_the_full_one():
    assert ExpressionConfig.load(None, {"seed": 1, "training.seed": 2}).training.seed == 2
    trained = ExpressionConfig(recipe="stem").training
    assert ExpressionConfig(seed=4, training=trained).training.seed == 4


def test_settings_that_are_none_are_named():
    with pytest.raises(ConfigError, match="key=value"):
        parse_settings(["training.seed"])
    with pytest.raises(ConfigError, match="recipe"):
        ExpressionConfig.load(None, {"recipe.name": 1})


def test_presets_of_a_sampler_lie_under_its_fields():
    found = ApplyConfig.load(None, {"sampler.preset": "reference", "sampler.steps": 7}).sampler
    assert found.steps == 7 and found.solver == "ddim" and found.name == "reference"
    assert SamplerConfig(solver="heun").name == "heun" and SamplerConfig(steps=3).name == "fast"
