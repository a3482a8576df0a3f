"""The package `kernels` beside this one: scratchgen does not take another module of that name for it.

A script `kernels.py` in the folder in which Python starts comes first in the search for modules, and package indexes have a
`kernels` too. That it is the wrong one would show much later, as a function that is missing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from scratchgen import startup


def obstacle() -> str | None:
    """Why `import kernels` does not give scratchgen's own package; None where it does. Another package found is not run."""
    ours = Path(__file__).resolve().parents[1] / "kernels"
    try:
        spec = find_spec("kernels")
    except ValueError:  # a module that no file was read for
        spec = None
    found = spec.origin if spec and spec.origin else "nothing of ours"
    if Path(found).resolve().parent != ours:
        return (
            f"scratchgen needs its own package kernels, in {ours}, but `import kernels` finds {found}: "
            "rename that, or remove it from where Python looks for modules."
        )
    if not hasattr(import_module("kernels"), "chosen"):
        return f"another package kernels was installed over scratchgen's own, in {ours}: install one of the two elsewhere."
    return None


def check() -> None:
    """Raises ImportError if there is an obstacle; the command says so in one line and ends."""
    why = obstacle()
    if why and startup.is_command():
        print(f"scratchgen: {why}", file=sys.stderr)
        raise SystemExit(2)
    if why:
        raise ImportError(why)


check()
