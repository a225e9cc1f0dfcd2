"""Messages say where, what and what to do; configuration refuses what it does not know."""

import pickle

import pytest
from pydantic import model_validator

from morphogen.core.config import Config, describe
from morphogen.core.errors import ConfigError, InputError, SlideError, nearest


class Inner(Config):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


class Outer(Config):
    train: Inner = Inner()
    name: str = "x"
    flag: bool = False
    limit: int | None = None


def test_message_says_where_what_and_what_to_do():
    error = InputError("row 3 has no barcode", where="spots.tsv", fix="Add one")
    assert str(error) == "spots.tsv: row 3 has no barcode. Add one."
    assert str(SlideError("cannot be opened")) == "cannot be opened."


def test_errors_survive_the_trip_between_processes():
    error = pickle.loads(pickle.dumps(SlideError("no µm/px", where="a.svs", fix="Give --mpp")))
    assert isinstance(error, SlideError)
    assert str(error) == "a.svs: no µm/px. Give --mpp."


@pytest.mark.parametrize(
    ("given", "choices", "found"),
    [("phikn", ["phikon", "uni"], "phikon"), ("H-DAB", ["h_dab", "he"], "h_dab"), ("zzz", ["uni"], "")],
)
def test_nearest_name(given, choices, found):
    assert nearest(given, choices) == (f" Did you mean '{found}'?" if found else "")


def test_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown setting 'train.lrr'.* Did you mean 'lr'"):
        Outer.load(overrides={"train.lrr": "1"})
    with pytest.raises(ConfigError, match="Did you mean 'name'"):
        Outer(nam="y")
    with pytest.raises(ConfigError, match="Did you mean 'flag'"):
        Outer().replace(flagg=True)


def test_yaml_then_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train:\n  lr: 0.5\nname: from-file\n")
    config = Outer.load(
        path, {"train.betas": "[0.5, 0.9]", "name": "from-line", "limit": "7", "flag": "true"}
    )
    assert config.train == Inner(lr=0.5, betas=(0.5, 0.9))
    assert (config.name, config.limit, config.flag) == ("from-line", 7, True)
    assert Outer.load(overrides={"train.lr": "1e-4"}).train.lr == 1e-4
    assert Outer.load(overrides={"limit": "null"}).limit is None


def test_a_rule_about_a_section_does_not_print_the_section():
    class Ruled(Config):
        a: int = 1
        b: int = 2

        @model_validator(mode="after")
        def _order(self):
            if self.a > self.b:
                raise ValueError(f"a is {self.a} but b is {self.b}; a must not be larger")
            return self

    class Holder(Config):
        part: Ruled = Ruled()

    with pytest.raises(ConfigError) as caught:
        Holder.load(overrides={"part.a": "3"})
    assert str(caught.value) == "in section 'part', a is 3 but b is 2; a must not be larger."


def test_saved_configuration_reads_back_equal(tmp_path):
    config = Outer(train=Inner(lr=0.25), limit=3)
    assert Outer.load(config.save(tmp_path / "a.yaml")) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1\n- 2\n", "key: value"),
        ("train: 3\n", "train"),
        ("limit: many\n", "limit"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises((ConfigError, InputError), match=message) as caught:
        Outer.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_is_said():
    with pytest.raises(InputError, match="no such configuration file"):
        Outer.load("nowhere.yaml")


def test_configurations_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        Outer().name = "y"


def test_describe_flattens_sections():
    assert [row[0] for row in describe(Outer)] == ["train.lr", "train.betas", "name", "flag", "limit"]
