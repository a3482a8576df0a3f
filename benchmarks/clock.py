"""Timing that programs on the same cores can be compared by.

A thread pool keeps its idle threads spinning for a tenth of a second: what runs in that time beside them runs at half its
speed; and two pools in one process share a library (OpenMP) and change each other's number of threads. So each rival is
a process of its own, warm and waiting, and they take turns, with an idle gap before each. A turn repeats the call often
enough to be measured; the figure is the median over the rounds, a ratio the median of the ratios within a round, since
the machine drifts between rounds. A turn in which somebody else used the cores is taken again, three times at most.

A benchmark is a module with a function `build(who, case)`: the call that is to be timed, after its result has been
compared with the reference. If the call returns a number, the numbers of all rivals are compared here.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from kernels import settings

GAP = 0.15  # seconds of idleness before a turn
TURN = 0.05  # seconds of work in a turn, at least
FOREIGN = 0.15  # cores in use by others, above which a turn is taken again
THREADS = settings.threads() or os.cpu_count() or 1
POOLS = ("SCRATCHGEN_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# What forces a library to the instructions or the cache of another processor than this one: no rival runs under it.
FORCED = (
    *("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS"),
    *("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES"),
)


class Missing(Exception):
    """A rival that cannot run here, and why."""


@dataclass
class Goal:
    """A row of the table of aims. `figure` is None where the rival is missing; `below`: less is better."""

    what: str
    ours: str
    rival: str
    figure: float | None
    least: float
    aim: float
    below: bool = False

    def row(self) -> dict:
        """As the table shows it."""
        met = "no rival"
        if self.figure is not None:
            reached = [self.figure <= bound if self.below else self.figure >= bound for bound in (self.aim, self.least)]
            met = "aim" if reached[0] else "yes" if reached[1] else "NO"
        return {
            "what": self.what,
            "ours": self.ours,
            "beside": self.rival,
            "figure": "-" if self.figure is None else self.figure,
            "at least": ("≤ " if self.below else "") + f"{self.least:g}",
            "aim": f"{self.aim:g}",
            "met": met,
        }


def torch() -> Any:
    """PyTorch on as many threads as ours."""
    import torch

    torch.set_num_threads(THREADS)
    return torch


def environment(threads: int) -> dict[str, str]:
    """For a process that is timed: so many threads, and each library its own choice of instructions."""
    kept = {name: value for name, value in os.environ.items() if name not in FORCED}
    return kept | dict.fromkeys(POOLS, str(threads))


def instructions() -> dict[str, str]:
    """Which instructions each side uses, as it says itself in a process such as those that are timed."""
    call = "from benchmarks.clock import report; report()"
    answer = subprocess.check_output([sys.executable, "-c", call], env=environment(THREADS), text=True)
    return json.loads(answer.splitlines()[-1])


def report() -> None:
    """Print the instruction sets: of the kernels, of NumPy's BLAS, of NumPy's own loops and of PyTorch."""
    import numpy
    from threadpoolctl import threadpool_info

    from kernels.cpu import simd

    loops = numpy.show_config(mode="dicts")["SIMD Extensions"]
    found = {"ours": f"{simd.BITS} bits", "numpy": [*loops["baseline"], *loops.get("found", [])][-1]}
    found |= {f"numpy's {x['internal_api']}": x["architecture"] for x in threadpool_info() if x["user_api"] == "blas"}
    try:
        found["torch"] = torch().backends.cpu.get_cpu_capability()
    except ImportError:
        pass  # told as a missing rival
    print(json.dumps(found))


# ---------------------------------------------------------------------------------------------------------------------
# The process that is timed
# ---------------------------------------------------------------------------------------------------------------------


def serve(module: str, who: str) -> None:
    """For each line {case, repeats}: repeat the case, and say how long a call took and how many cores were in use."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    if who == "ours":
        import kernels

        kernels.use("cpu")
    build = importlib.import_module(f"benchmarks.{module}").build
    calls: dict[str, Callable[[], Any]] = {}
    for line in sys.stdin:
        case, repeats = json.loads(line)
        try:
            if case not in calls:
                calls.clear()  # the operands of the last case
                calls[case] = build(who, case)
                values = [v for v in (calls[case](), calls[case]()) if isinstance(v, float)]
                start = time.perf_counter()
                calls[case]()
                answer: dict[str, Any] = {"seconds": time.perf_counter() - start, "values": values}
            else:
                for _ in range(max(1, repeats // 5)):
                    calls[case]()  # wake the pool
                cpu, start = _used(), time.perf_counter()
                for _ in range(repeats):
                    calls[case]()
                taken = time.perf_counter() - start
                answer = {"seconds": taken / repeats, "cores": (_used() - cpu) / taken}
        except (ImportError, Missing) as error:
            answer = {"missing": str(error)}
        except Exception as error:  # told to the one who asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


def _used() -> float:
    """Core-seconds of this process."""
    times = os.times()
    return times.user + times.system


def _busy() -> float | None:
    """Core-seconds of the whole machine, where the system tells."""
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return None
    return (sum(fields[:3]) + sum(fields[5:])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------------------------------------------------------------
# The one that asks
# ---------------------------------------------------------------------------------------------------------------------


class Rivals:
    """Warm processes, one for each program, on so many threads each; `missing`: those that cannot run here, and why."""

    missing: dict[str, str] = {}  # of all benchmarks of this run
    disturbed = 0  # turns in which somebody else used the cores, even the third time

    def __init__(self, module: str, names: Iterable[str], threads: int = THREADS) -> None:
        command = [sys.executable, "-c", "import sys; from benchmarks.clock import serve; serve(*sys.argv[1:])", module]
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.processes = {n: subprocess.Popen([*command, n], env=environment(threads), **pipe) for n in names}

    def __enter__(self) -> Rivals:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.stdin.close()
            process.wait()

    def _ask(self, name: str, case: str, repeats: int) -> dict[str, Any]:
        process = self.processes[name]
        process.stdin.write(json.dumps([case, repeats]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with status {process.wait()}"}
        if "error" in answer:
            raise RuntimeError(f"benchmarks: {name}, {case}: {answer['error']}")
        return answer

    def compare(
        self, case: str, rounds: int = 7, turn: float = TURN, names: Iterable[str] | None = None, rtol: float = 1e-3
    ) -> dict[str, list[float]]:
        """Seconds a call, for each rival that can run and each round."""
        once: dict[str, dict[str, Any]] = {}
        for name in names or self.processes:
            answer = self._ask(name, case, 0)
            if "missing" in answer:
                Rivals.missing[name] = answer["missing"]
                continue
            once[name] = answer
        values = {name: answer["values"] for name, answer in once.items()}
        for name, found in values.items():
            for a, b in zip(values.get("ours", found), found, strict=True):
                if not abs(a - b) <= rtol * abs(a):
                    raise RuntimeError(f"benchmarks: {case}: expected what ours gives, {values['ours']}, got {found} of {name}")
        times: dict[str, list[float]] = {name: [] for name in once}
        for _ in range(rounds):
            for name in times:
                seconds = self._turn(name, case, turn, once[name]["seconds"])
                times[name].append(seconds)
                once[name]["seconds"] = seconds
        return times

    def _turn(self, name: str, case: str, turn: float, once: float) -> float:
        for attempt in range(3):
            time.sleep(GAP)
            before, start = _busy(), time.perf_counter()
            answer = self._ask(name, case, max(2, int(turn / max(once, 1e-7))))
            elapsed, after = time.perf_counter() - start, _busy()
            if before is None or (after - before) / elapsed - answer["cores"] < FOREIGN + 0.02 / elapsed:  # ticks of 10 ms
                break
            Rivals.disturbed += attempt == 2
        return answer["seconds"]


def ratio(times: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """How many times faster ours is."""
    return median(t / o for o, t in zip(times[ours], times[theirs], strict=True))


def summary(times: Mapping[str, list[float]], scale: float = 1e3, unit: str = "ms") -> dict[str, float]:
    """{"ours ms": median, "torch ms": median, "× torch": ratio, …} of what `compare` measured; above 1: ours is faster."""
    row = {f"{name} {unit}": scale * median(t) for name, t in times.items()}
    return row | {f"× {name}": ratio(times, "ours", name) for name in times if name != "ours"}


def table(rows: list[dict]) -> str:
    """Rows of one kind as aligned columns."""
    if not rows:
        return ""
    names = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_shown(row.get(n, "")) for n in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = [names, *cells]
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in lines
    )


def _shown(x: Any) -> str:
    return f"{x:.2f}" if isinstance(x, float) and abs(x) < 100 else f"{x:.0f}" if isinstance(x, float) else str(x)
