"""Importing is instant, tab completion lists what there is, and the examples in the docstrings are true."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import morphogen as mg

ROOMS = [part.name for part in pkgutil.iter_modules(mg.__path__) if part.ispkg and part.name != "cli"]


def modules_with_examples():
    for info in pkgutil.walk_packages(mg.__path__, "morphogen."):
        spec = importlib.util.find_spec(info.name)
        if spec is not None and spec.origin and spec.origin.endswith(".py"):
            with open(spec.origin, encoding="utf-8") as file:
                if ">>> " in file.read():
                    yield info.name
    yield "morphogen"


@pytest.mark.parametrize("name", sorted(set(modules_with_examples())))
def test_examples_of_the_docstrings_are_true(name):
    module = importlib.import_module(name)
    done = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert done.failed == 0
    examples = [example for test in doctest.DocTestFinder().find(module) for example in test.examples]
    assert examples, "they are not where doctest looks for them"


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_lists_its_names_and_has_them(room):
    face = getattr(mg, room)
    listed = dir(face)
    for name in getattr(face, "__all__", ()):
        assert name in listed and getattr(face, name) is not None


def test_rooms_load_when_they_are_used():
    code = (
        "import sys, morphogen as mg; before = 'torch' in sys.modules; mg.diffusion.Schedule; "
        "print(before, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
    assert set(ROOMS) | {"__version__"} <= set(dir(mg))
    with pytest.raises(AttributeError):
        mg.stains  # noqa: B018


def test_every_model_is_loaded_onto_a_device():
    """``device=`` on every ``from_pretrained`` of the package."""
    found = []
    for info in pkgutil.walk_packages(mg.__path__, "morphogen."):
        if info.name.rpartition(".")[2] not in ("model", "pretrained"):
            continue
        for _, value in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if value.__module__ == info.name and hasattr(value, "from_pretrained"):
                found.append(value)
                assert "device" in inspect.signature(value.from_pretrained).parameters, value
    assert len(found) >= 3


@pytest.mark.parametrize("name", ["images", "pairs", "stain"])
def test_what_is_real_comes_first(name):
    """Metrics of two sets or two images take what is real, then what was generated."""
    module = getattr(mg.metrics, name)
    taken = [
        list(inspect.signature(value).parameters)
        for key, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__ and not key.startswith("_")
    ]
    both = [names for names in taken if {"real", "generated"} <= set(names)]
    assert both and all(names.index("real") < names.index("generated") for names in both)
    assert not [names for names in taken if {"fake", "predicted"} & set(names)]
