"""The house keeps its order: who imports whom, who prints, who starts programs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyllamafile

PACKAGE = Path(pyllamafile.__file__).parent

# Of every module, what it may import of ours. A new module needs a row.
GRAPH = {
    "errors": set(),
    "progress": set(),
    "targets": {"errors"},
    "weights": {"errors"},
    "zipalign": {"errors"},
    "verify": {"errors"},
    "launcher": {"errors", "targets", "launcher.pe"},
    "launcher.pe": {"errors"},
    "native": {
        "targets",
        "launcher",
        "native.building.driver",
        "native.building.gui",
        "native.building.source",
        "native.building.tools",
        "progress",
    },
    "native.building": set(),
    "native.building.driver": {
        "errors",
        "native.building.licenses",
        "native.building.source",
        "native.building.tools",
        "progress",
        "targets",
    },
    "native.building.gui": {
        "errors",
        "native.building.source",
        "native.building.tools",
        "progress",
    },
    "native.building.icon": set(),
    "native.building.levels": set(),
    "native.building.licenses": {
        "errors",
        "native.building.tools",
        "targets",
    },
    "native.building.source": {"errors", "native.building.tools", "progress"},
    "native.building.tools": {"errors", "progress"},
    "plan": {"errors", "targets", "weights", "zipalign", "launcher"},
    "doctor": {"targets", "verify", "inspect"},
    "inspect": {"errors", "weights", "zipalign", "plan"},
    "quantize": {"errors", "weights"},
    "convert": {"errors", "native", "native.building.tools", "quantize", "weights"},
    "sources": {"errors", "convert", "weights"},
    "shift": {"errors", "launcher", "plan", "zipalign"},
    "care": {
        "",
        "build",
        "errors",
        "inspect",
        "launcher",
        "native",
        "plan",
        "shift",
        "sources",
        "targets",
        "verify",
        "zipalign",
    },
    "advise": {"errors", "quantize", "sources", "targets"},
    "build": {
        "",
        "convert",
        "errors",
        "quantize",
        "shift",
        "sources",
        "targets",
        "weights",
        "zipalign",
        "verify",
        "launcher",
        "native",
        "plan",
    },
    "": {"errors", "advise", "build", "care", "inspect", "verify"},
    "cli": {
        "",
        "advise",
        "care",
        "doctor",
        "errors",
        "inspect",
        "man",
        "native",
        "plan",
        "quantize",
        "targets",
        "verify",
        "zipalign",
    },
    "man": set(),
    "__main__": set(),  # pyllamafile_start, which imports cli
}
SPEAKERS = {"cli"}
STARTERS = {"native.building.driver", "native.building.licenses", "native.building.tools", "cli"}


def modules() -> dict[str, ast.Module]:
    """Every module of the package; that of a folder is called like the folder."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        name = name.removesuffix("__init__").rstrip("/").replace("/", ".")
        found[name] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that is imported, or might be: `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the graph"
            assert node.module
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            ours = [name for name in names if name.removeprefix("pyllamafile.") in MODULES]
            yield from ours or [node.module]


def test_every_module_has_a_row():
    assert MODULES.keys() == GRAPH.keys()


@pytest.mark.parametrize("name", GRAPH)
def test_imports_of_ours(name):
    ours = {
        module.removeprefix("pyllamafile").lstrip(".")
        for module in imports(MODULES[name])
        if module.split(".")[0] == "pyllamafile"
    }
    assert ours <= GRAPH[name]


@pytest.mark.parametrize("name", GRAPH.keys() - SPEAKERS)
def test_only_the_command_line_prints_or_exits(name):
    assert not {"click", "rich"} & {module.split(".")[0] for module in imports(MODULES[name])}
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "exit", "quit", "input", "sys.exit", "os._exit"}
            assert not called.startswith(("sys.stdout.", "sys.stderr."))
        if isinstance(node, ast.Raise) and node.exc:
            assert "SystemExit" not in ast.unparse(node.exc)


@pytest.mark.parametrize("name", GRAPH.keys() - STARTERS)
def test_only_native_and_the_command_line_start_programs(name):
    assert "subprocess" not in {module.split(".")[0] for module in imports(MODULES[name])}
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not called.startswith(("os.system", "os.exec", "os.spawn", "os.popen"))


def test_the_second_opinion_shares_no_code_with_the_writer():
    assert "pyllamafile.zipalign" not in set(imports(MODULES["verify"]))
    assert "zipfile" not in set(imports(MODULES["verify"]))
