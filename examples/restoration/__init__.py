"""Data, networks, training and results of the examples.

Scripts import this before all else: importing torch and the rest takes seconds, and from here on
Ctrl-C or a package that is missing is one line. Threads that wait for each other sleep, unless
OMP_WAIT_POLICY says otherwise: torch reads it once, and threads that spin make a run several
times slower as soon as another program needs a core.
"""

import os
import sys
from types import TracebackType


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an exception that nothing caught."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    elif isinstance(error, ModuleNotFoundError):
        extra = "encoder" if error.name == "vector_quantize_pytorch" else "examples"
        print(f'error: {error}: run pip install -e ".[{extra}]" in the clone', file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
