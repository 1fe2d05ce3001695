"""Turn a language model into one file that anybody can run.

The command line's main parts as functions:

    >>> import pyllamafile
    >>> built = pyllamafile.build("phi3.gguf", "phi3.llamafile")
    >>> pyllamafile.inspect(built.path).models[0].quantization
    'Q5_K_M'
    >>> pyllamafile.verify(built.path)
    []

A name is imported when it is asked for, so that `import pyllamafile` costs nothing.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

TYPE_CHECKING = False  # as typing has it, whose import takes longer than everything here

if TYPE_CHECKING:
    from pyllamafile.errors import (
        AccessError,
        DamagedError,
        ExistsError,
        NotFoundError,
        PyllamafileError,
        RefusedError,
        UnavailableError,
    )
    from pyllamafile.models.forecast import Memory
    from pyllamafile.ops.advise import Advice, Reading, Row, advise
    from pyllamafile.ops.build import Adapter, Built, build
    from pyllamafile.ops.doctor import Finding, examine
    from pyllamafile.ops.edit import add, remove
    from pyllamafile.ops.export import Exported, Layer, export
    from pyllamafile.ops.extract import extract
    from pyllamafile.ops.hosts import Host, examine_host
    from pyllamafile.ops.inspect import EntryFacts, ModelFacts, Report, inspect
    from pyllamafile.ops.sign import SignatureCheck, Signed, sign, signed_by
    from pyllamafile.ops.upgrade import Upgraded, upgrade
    from pyllamafile.ops.verify import Problem, verify
    from pyllamafile.passages import Documents
    from pyllamafile.persona import Persona
    from pyllamafile.progress import Progress, Step
    from pyllamafile.state import State

_MODULES = {
    "errors": (
        "AccessError",
        "DamagedError",
        "ExistsError",
        "NotFoundError",
        "PyllamafileError",
        "RefusedError",
        "UnavailableError",
    ),
    "models.forecast": ("Memory",),
    "ops.advise": ("Advice", "Reading", "Row", "advise"),
    "ops.build": ("Adapter", "Built", "build"),
    "ops.doctor": ("Finding", "examine"),
    "ops.edit": ("add", "remove"),
    "ops.export": ("Exported", "Layer", "export"),
    "ops.extract": ("extract",),
    "ops.hosts": ("Host", "examine_host"),
    "ops.inspect": ("EntryFacts", "ModelFacts", "Report", "inspect"),
    "ops.sign": ("SignatureCheck", "Signed", "sign", "signed_by"),
    "ops.upgrade": ("Upgraded", "upgrade"),
    "ops.verify": ("Problem", "verify"),
    "passages": ("Documents",),
    "persona": ("Persona",),
    "progress": ("Progress", "Step"),
    "state": ("State",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AccessError",
    "Adapter",
    "Advice",
    "Built",
    "DamagedError",
    "Documents",
    "EntryFacts",
    "ExistsError",
    "Exported",
    "Finding",
    "Host",
    "Layer",
    "Memory",
    "ModelFacts",
    "NotFoundError",
    "Persona",
    "Problem",
    "Progress",
    "PyllamafileError",
    "Reading",
    "RefusedError",
    "Report",
    "Row",
    "SignatureCheck",
    "Signed",
    "State",
    "Step",
    "UnavailableError",
    "Upgraded",
    "__version__",
    "add",
    "advise",
    "build",
    "examine",
    "examine_host",
    "export",
    "extract",
    "inspect",
    "remove",
    "sign",
    "signed_by",
    "upgrade",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
