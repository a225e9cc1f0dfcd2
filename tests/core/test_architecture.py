"""The rules of the house, enforced: who imports whom, no unread setting, no code in files from strangers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from morphogen.core.config import Config, section_of

from .house import BUILDING, FLOORS, SOURCE, python_files
from .readers import bases, reads

FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "morphogen" and len(parts) > 1 and not parts[1].startswith("_"):
                rooms.add(parts[1])
    return rooms


def test_imports_point_down():
    wrong = []
    for path in python_files():
        room = path.relative_to(SOURCE).parts[0]
        if room not in FLOOR_OF:
            continue
        for other in imported_rooms(path) - {room}:
            assert other in FLOOR_OF, f"{path}: room '{other}' is not in the plan"
            if FLOOR_OF[other] >= FLOOR_OF[room]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {other}")
    assert not wrong


def test_every_room_is_in_the_plan():
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and (path / "__init__.py").is_file()}
    assert rooms <= set(FLOOR_OF)


def all_modules() -> list[str]:
    return [
        info.name for info in pkgutil.walk_packages([str(SOURCE)], "morphogen.") if ".cli." not in info.name
    ]


def config_classes() -> dict[type[Config], str]:
    found: dict[type[Config], str] = {}
    for name in all_modules():
        text = (SOURCE / Path(*name.split(".")[1:])).with_suffix(".py")
        if not text.is_file() or "Config" not in text.read_text():
            continue
        module = importlib.import_module(name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Config) and value.__module__ == name:
                found[value] = name
    found.pop(Config, None)
    return found


def readers_of(cls: type[Config], setting: str) -> set[str]:
    """Lines that read a setting of this class, of one it derives from, or of one that derives from it."""
    own = cls.__module__.removeprefix("morphogen."), cls.__name__
    related = {
        (each.__module__.removeprefix("morphogen."), each.__name__)
        for each in cls.__mro__
        if issubclass(each, Config) and setting in each.model_fields
    }
    return {
        line
        for (key, name), lines in reads().items()
        if name == setting and (key in related or own in bases(key))
        for line in lines
    }


def test_every_setting_is_read_by_a_named_reader():
    """A ``seed`` of one configuration is not read because another has one too."""
    classes = config_classes()
    assert classes, "no configuration class was found: the walk is broken"
    unread = [
        f"{cls.__module__}.{cls.__name__}.{field}"
        for cls in classes
        for field in cls.model_fields
        if cls.__module__.split(".")[1] not in BUILDING and not readers_of(cls, field)
    ]
    assert not unread, f"settings nothing reads: {unread}"


def test_readers_are_told_apart_by_what_they_read():
    from morphogen.expression.config import EvaluateConfig as OfExpression
    from morphogen.stain.config import ApplyConfig
    from morphogen.stain.config import EvaluateConfig as OfStain

    rooms = {cls: {line.split(".")[0] for line in readers_of(cls, "seed")} for cls in (OfExpression, OfStain)}
    assert rooms == {OfExpression: {"expression"}, OfStain: {"stain"}}
    assert {line.split(":")[0] for line in readers_of(ApplyConfig, "seed")} == {"stain.recipes.translator"}
    assert not readers_of(ApplyConfig, "resamples")  # which EvaluateConfig has


def test_every_setting_says_what_it_means():
    mute = [
        f"{cls.__name__}.{name}"
        for cls in config_classes()
        for name, field in cls.model_fields.items()
        if not field.description and section_of(field.annotation) is None
    ]
    assert not mute, f"settings without a description: {mute}"


def calls(path: Path) -> list[tuple[int, str, dict[str, object]]]:
    """``(line, dotted name, constant keyword arguments)`` of every call in a file."""
    return [
        (
            node.lineno,
            ast.unparse(node.func),
            {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)},
        )
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize(
    ("keyword", "value", "why"),
    [
        ("weights_only", False, "torch.load must not execute what a file names"),
        ("allow_pickle", True, "NumPy must not unpickle"),
        ("trust_remote_code", True, "code from a hub must not run unasked"),
    ],
)
def test_no_call_opens_the_door_to_foreign_code(keyword, value, why):
    found = [
        f"{p.name}:{line}"
        for p in python_files()
        for line, _, given in calls(p)
        if given.get(keyword) is value
    ]
    assert not found, f"{why}: {found}"


SOLVERS = ("ddim", "ddim_invert", "ddpm", "dpmpp_2m", "dpmpp_3m", "plms", "euler", "heun")
INVERSION = {"ddim_invert": "stain/recipes/sampling.py"}  # a start for the sampler, not a sample


def test_rooms_sample_through_the_sampler():
    """Solvers are called in diffusion/ alone; every other room goes through ``diffusion.sampler.sample``."""
    found = []
    for path in python_files():
        inside = path.relative_to(SOURCE)
        if inside.parts[0] == "diffusion":
            continue
        for line, name, _ in calls(path):
            last = name.rpartition(".")[2]
            if last in SOLVERS and INVERSION.get(last) != inside.as_posix():
                found.append(f"{inside}:{line} calls {name}")
    assert not found, f"use morphogen.diffusion.sample: {found}"


def test_nothing_is_unpickled():
    found = [
        f"{p.name}:{line}"
        for p in python_files()
        for line, name, _ in calls(p)
        if name in ("pickle.load", "pickle.loads", "joblib.load", "pickle.Unpickler")
    ]
    assert not found


def test_no_global_random_state():
    """Seeding torch is allowed only inside ``fork_rng``, which gives the caller's state back."""
    seeding = (
        "torch.manual_seed",
        "np.random.seed",
        "random.seed",
        "numpy.random.seed",
        "torch.cuda.manual_seed",
    )
    found = [
        f"{p.name}:{line}"
        for p in python_files()
        for line, name, _ in calls(p)
        if name in seeding and "torch.random.fork_rng" not in p.read_text()
    ]
    assert not found


def test_images_are_opened_in_one_place():
    """Pillow's other formats run programs, and only one place knows what samples, sizes and tags mean."""
    homes = {"slides/images.py"}
    openers = (
        "Image.open",
        "PIL.Image.open",
        "tifffile.TiffFile",
        "tifffile.imread",
        "cv2.imread",
        "plt.imread",
    )
    found = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in python_files()
        for line, name, _ in calls(path)
        if name in openers and str(path.relative_to(SOURCE)) not in homes
    ]
    assert not found


def test_no_stub():
    found = [
        f"{path.name}:{number}"
        for path in python_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"NotImplementedError|\bTODO\b|\bFIXME\b", line)
    ]
    assert not found


def test_files_are_short():
    long = {
        str(p.relative_to(SOURCE)): n for p in python_files() if (n := len(p.read_text().splitlines())) > 400
    }
    assert not long, f"files over 400 lines: {long}"


def test_package_import_is_light():
    import subprocess
    import sys

    code = (
        "import sys, morphogen, morphogen.cli.main as m; m.build_app(); "
        "print([x for x in ('torch', 'numpy', 'pandas') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
