"""python -m benchmarks [NAME …] [--quick] [--json FILE]"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path

import numpy as np

from benchmarks.clock import table, torch_or_none

NAMES = ["engine", "steps", "matmul", "attention", "rows", "convolution"]


def machine() -> dict:
    """What the figures were measured on."""
    torch = torch_or_none()
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor()
    )
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__ if torch is not None else "not installed: no rival in these figures",
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Figures beside PyTorch, where it is installed.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in NAMES:
            print(f"benchmarks: expected one of {', '.join(NAMES)}, got {name!r}", file=sys.stderr)
            return 2
    found = {"machine": machine()}
    print("  ".join(f"{k}: {v}" for k, v in found["machine"].items()))
    for name in args.names or NAMES:
        print(name)
        found[name] = importlib.import_module(f"benchmarks.{name}").run(args.quick)
        print(table(found[name]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
