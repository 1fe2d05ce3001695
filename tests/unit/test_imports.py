"""The house keeps its order: who imports whom, who prints, who starts programs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyllamafile

PACKAGE = Path(pyllamafile.__file__).parent

# Of every module, what it may import of ours. A new module needs a row. Deeper ones come first.
GRAPH = {
    "errors": set(),
    "paths": {"errors"},
    "progress": set(),
    "targets": {"errors"},
    "difference": {"errors"},
    "runtimes": {"difference", "errors"},
    "arguments": {"errors"},
    "persona": {"arguments", "errors", "paths"},
    "documents": {"arguments", "errors"},
    "passages": {"documents", "errors"},
    "state": {"errors"},
    "appearing": {"errors"},
    "machine": set(),
    "copying": {"errors", "progress"},
    "zipalign": {"appearing", "copying", "errors", "progress"},
    "shift": set(),
    "signature": {"arguments", "errors"},
    "llamafile": {"arguments", "copying", "errors", "progress", "signature", "zipalign"},
    "launcher": {"errors", "launcher.pe", "launcher.rsrc", "runtimes", "targets"},
    "launcher.pe": {"errors", "launcher.rsrc"},
    "launcher.rsrc": set(),
    "native": {
        "difference", "errors", "launcher", "launcher.pe", "native.building.aside",
        "native.building.driver", "native.building.gui", "native.building.shaders",
        "native.building.source", "native.building.tools", "progress", "runtimes", "targets",
    },
    "native.trial": {"errors", "native.building.tools", "progress"},
    "plan": {"copying", "errors", "launcher", "llamafile", "passages", "runtimes", "zipalign"},
    "engine": {
        "arguments", "documents", "errors", "launcher", "launcher.rsrc", "llamafile",
        "models.tiny", "native", "native.trial", "ops.verify", "passages", "persona", "plan",
        "progress", "runtimes", "targets", "zipalign",
    },
    "output": {
        "appearing", "errors", "llamafile", "ops.verify", "plan", "progress", "zipalign",
    },
    "models": set(),
    "models.gguf": {"errors"},
    "models.tiny": set(),
    "models.fit": {"arguments", "models.gguf"},
    "models.forecast": {"errors", "models.gguf"},
    "models.source": {"copying", "errors", "models.gguf", "progress"},
    "models.convert": {
        "errors", "models.forecast", "models.gguf", "native", "native.building.tools",
        "native.trial", "progress",
    },
    "models.hub": {"errors", "models.convert", "models.gguf", "models.source", "progress"},
    "models.ollama": {"arguments", "errors", "models.gguf", "models.source", "progress"},
    "models.sources": {
        "errors", "models.convert", "models.gguf", "models.hub", "models.ollama", "models.source",
    },
    "ops": set(),
    "ops.verify": {"errors", "progress"},
    "ops.inspect": {
        "documents", "errors", "llamafile", "models.gguf", "passages", "paths", "persona", "state",
        "zipalign",
    },
    "ops.state": {
        "errors", "llamafile", "native", "native.trial", "plan", "progress", "state", "targets",
        "zipalign",
    },
    "ops.extract": {
        "appearing", "copying", "errors", "llamafile", "paths", "progress", "zipalign",
    },
    "ops.export": {
        "appearing", "arguments", "copying", "engine", "errors", "llamafile", "models.gguf",
        "ops.verify", "paths", "plan", "progress", "targets", "zipalign",
    },
    "ops.edit": {
        "arguments", "engine", "errors", "llamafile", "models.fit", "models.gguf", "models.source",
        "paths", "plan", "progress", "zipalign",
    },
    "ops.advise": {
        "documents", "engine", "errors", "machine", "models.forecast", "models.gguf",
        "models.sources", "paths", "state", "targets",
    },
    "ops.doctor": {
        "arguments", "engine", "errors", "llamafile", "machine", "ops.verify", "paths", "targets",
    },
    "ops.hosts": {"errors", "llamafile", "ops.doctor", "paths", "targets"},
    "ops.sign": {
        "errors", "llamafile", "ops.verify", "paths", "progress", "signature", "zipalign",
    },
    "ops.in_place": {
        "copying", "errors", "llamafile", "models.gguf", "models.source", "plan", "progress",
        "shift", "zipalign",
    },
    "ops.build": {
        "", "appearing", "arguments", "documents", "engine", "errors", "llamafile",
        "models.convert", "models.fit", "models.forecast", "models.gguf", "models.source",
        "models.sources", "native.building.aside", "native.trial", "ops.in_place", "ops.state",
        "output", "passages", "paths", "persona", "plan", "progress", "state", "targets",
        "zipalign",
    },
    "ops.upgrade": {
        "", "appearing", "arguments", "copying", "engine", "errors", "launcher", "llamafile",
        "models.source", "ops.state", "output", "paths", "persona", "plan", "progress",
        "runtimes", "shift", "state", "targets", "zipalign",
    },
    "": {
        "errors", "models.forecast", "ops.advise", "ops.build", "ops.doctor", "ops.edit",
        "ops.export", "ops.extract", "ops.hosts", "ops.inspect", "ops.sign", "ops.upgrade",
        "ops.verify", "passages", "persona", "progress",
        "state",
    },
    "cli": {"cli.program", "cli.screen", "errors"},
    "cli.program": {""},
    "cli.options": {"errors", "targets", "zipalign"},
    "cli.advise": {"", "cli.options", "cli.screen"},
    "cli.build": {
        "", "arguments", "cli", "cli.options", "cli.screen", "models.forecast", "models.gguf",
        "persona", "state", "targets",
    },
    "cli.change": {
        "", "cli.options", "cli.screen", "errors", "llamafile", "ops.edit", "zipalign",
    },
    "cli.look": {"", "cli.options", "cli.screen", "errors", "llamafile", "models.gguf"},
    "cli.sign": {"", "cli.options", "cli.screen"},
    "cli.export": {"", "cli.options", "cli.screen"},
    "cli.manual": {"", "cli.man", "cli.program"},
    "cli.runtimes": {"cli.options", "cli.screen", "errors", "native", "runtimes", "targets"},
    "cli.bar": {"cli.screen", "progress"},
    "cli.man": set(),
    "cli.screen": {"cli.bar", "progress"},
    "__main__": {"cli"},
    "native.building": set(),
    "native.building.aside": set(),
    "native.building.driver": {
        "errors", "launcher", "native.building.gpus", "native.building.licenses",
        "native.building.seams", "native.building.shaders", "native.building.source",
        "native.building.tools", "progress", "runtimes", "targets",
    },
    "native.building.debian": {"errors"},
    "native.building.gpus": {
        "native.building.metal", "native.building.shaders", "native.building.vulkan", "progress",
    },
    "native.building.metal": {
        "errors", "native.building.shaders", "native.building.source", "native.building.tools",
        "progress",
    },
    "native.building.shaders": {
        "errors", "native.building.source", "native.building.tools", "progress",
    },
    "native.building.vulkan": {
        "native.building.debian", "native.building.shaders", "native.building.source",
        "native.building.tools", "progress",
    },
    "native.building.gui": {
        "errors", "native.building.source", "native.building.tools", "progress",
    },
    "native.building.icon": set(),
    "native.building.levels": set(),
    "native.building.licenses": {"errors", "native.building.tools", "targets"},
    "native.building.source": {"errors", "native.building.tools", "progress"},
    "native.building.seams": {"errors", "native.building.tools"},
    "native.building.update": {
        "errors", "models.gguf", "native.building.driver", "native.building.seams",
        "native.building.source", "native.building.tools", "progress",
    },
    "native.building.tools": {"errors", "native.building.aside", "progress"},
}  # fmt: skip
SPEAKERS = {name for name in GRAPH if name.split(".")[0] == "cli"} | {"__main__"}
STARTERS = {
    "native.trial",
    "ops.hosts",
    "ops.sign",
    *(
        f"native.building.{name}"
        for name in ("aside", "debian", "driver", "licenses", "shaders", "tools", "update")
    ),
}


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


@pytest.mark.parametrize("name", sorted(GRAPH.keys() - SPEAKERS))
def test_only_the_command_line_prints_or_exits(name):
    assert not {"click", "rich"} & {module.split(".")[0] for module in imports(MODULES[name])}
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "exit", "quit", "input", "sys.exit", "os._exit"}
            assert not called.startswith(("sys.stdout.", "sys.stderr."))
        if isinstance(node, ast.Raise) and node.exc:
            assert "SystemExit" not in ast.unparse(node.exc)


@pytest.mark.parametrize("name", sorted(GRAPH.keys() - STARTERS))
def test_only_what_builds_signs_or_asks_others_starts_programs(name):
    assert "subprocess" not in {module.split(".")[0] for module in imports(MODULES[name])}
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not called.startswith(("os.system", "os.exec", "os.spawn", "os.popen"))


def test_the_second_opinion_shares_no_code_with_the_writer():
    assert "pyllamafile.zipalign" not in set(imports(MODULES["ops.verify"]))
    assert "zipfile" not in set(imports(MODULES["ops.verify"]))


# What a test may import at once: the extra `test`, by the names of its modules, and what the
# package itself takes. All else a test asks for when it runs (`running.package`), and is skipped.
AT_HAND = {
    "click", "gguf", "hypothesis", "lief", "numpy", "pyllamafile", "pytest", "rich", "yaml",
    "linux_machine", "wine_arm64",  # of scripts/
}  # fmt: skip
TESTS = Path(__file__).parents[1]


def test_the_tests_import_nothing_but_the_extra_test():
    ours = {path.stem for path in TESTS.rglob("*.py")}
    for path in TESTS.rglob("*.py"):
        if path.name == "reference.py":  # a program that a test starts
            continue
        tree = ast.parse(path.read_text(), str(path))
        tree.body = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        roots = {module.split(".")[0] for module in imports(tree)}
        assert roots <= AT_HAND | ours | sys.stdlib_module_names, path
