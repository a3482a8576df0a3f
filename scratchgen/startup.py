"""Ctrl-C while the command loads: one line, not a traceback.

Python imports this package, and with it NumPy, before `__main__` runs and can catch anything. So the package imports this
module first, and where it is being loaded for the command, Ctrl-C is answered here until `main` says that it has taken
over. In any other program Ctrl-C stays what it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType


def is_command() -> bool:
    """Is this process `scratchgen …` or `python -m scratchgen …`?"""
    called = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    if called == "-m":  # what Python says while it looks for the module that it will run
        return "scratchgen" in sys.orig_argv
    return called in ("scratchgen", "scratchgen.exe")


def _begin() -> None:
    """From now on Ctrl-C ends the command with a line; where it is ignored, as in the background of a script, it stays so."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other set what a signal does
        return
    if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def end() -> None:
    """Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):  # stderr may be closed
        os.write(2, b"\nscratchgen: stopped.\n")
    os._exit(128 + number)  # not by an exception: an import might catch it, or tell of it


_begin()
