"""What is public is listed, documented and there; what is listed is public."""

import ast
import importlib.util
import inspect
import pkgutil
from pathlib import Path

import pytest

import guard

ROOT = Path(__file__).parents[1]
ENTRY_POINTS = {"calibrate.__main__", "serving.__main__"}


def modules(package):
    """Return the names of all modules of a package but the generated ones, and those that hold but a docstring."""
    found = [package, *(module.name for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."))]
    return [name for name in found if "._pb" not in name and len(ast.parse(source(name)).body) > 1]


def source(name):
    return Path(importlib.util.find_spec(name).origin).read_text()


ALL = [name for package in ("guard", "calibrate", "serving") for name in modules(package)]


def defined_in(module):
    """Return the public functions and classes that a module itself defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = ast.parse(source(module.__name__))
    return {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}


def members(cls):
    """Yield the public methods and properties that a class itself defines, by name."""
    for name, member in vars(cls).items():
        if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
            yield f"{cls.__name__}.{name}", member


def test_the_package_shows_its_errors_the_guard_and_what_a_guard_gives():
    assert guard.__all__ == [
        "BundleError", "CalibrationError", "CappedChannel", "Evidence", "Guard", "GuardError", "InputError",
        "ModelError", "TensorSpec", "Threshold", "Verdict",
    ]  # fmt: skip
    public = {name for name, value in vars(guard).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(guard.__all__)


@pytest.mark.parametrize("name", ALL)
def test_every_module_lists_its_names_in_order_and_has_them(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert list(module.__all__) == sorted(module.__all__, key=in_order)
    assert [listed for listed in module.__all__ if not hasattr(module, listed)] == []


def in_order(name):
    """Order as ruff does: constants, then classes, then the rest."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2, name


@pytest.mark.parametrize("name", [name for name in ALL if name not in ENTRY_POINTS])
def test_every_public_definition_is_listed(name):
    module = importlib.import_module(name)
    assert defined_in(module) <= set(module.__all__)


@pytest.mark.parametrize("name", ALL)
def test_everything_public_says_what_it_does_in_one_line_first(name):
    module = importlib.import_module(name)
    public = {listed: getattr(module, listed) for listed in module.__all__ if listed in defined_in(module)}
    for cls in [value for value in public.values() if inspect.isclass(value)]:
        public |= members(cls)
    lines = {key: (inspect.getdoc(value) or "").partition("\n")[0] for key, value in public.items()}
    assert {key: line for key, line in lines.items() if not line.endswith((".", ":"))} == {}
