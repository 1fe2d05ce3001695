"""Turn a language model into one file that anybody can run.

The command line's main parts as functions:

    >>> import pyllamafile
    >>> built = pyllamafile.build("phi3.gguf", "phi3.llamafile")
    >>> pyllamafile.inspect(built.path).models[0].quantization
    'Q5_K_M'
    >>> pyllamafile.verify(built.path)
    []
"""

from __future__ import annotations

__version__ = "0.1.0"

from pyllamafile.advise import Advice, advise
from pyllamafile.build import Adapter, Built, build
from pyllamafile.care import Upgraded, upgrade
from pyllamafile.errors import PyllamafileError
from pyllamafile.inspect import Report, extract, inspect
from pyllamafile.verify import Problem, verify

__all__ = [
    "Adapter",
    "Advice",
    "Built",
    "Problem",
    "PyllamafileError",
    "Report",
    "Upgraded",
    "__version__",
    "advise",
    "build",
    "extract",
    "inspect",
    "upgrade",
    "verify",
]
