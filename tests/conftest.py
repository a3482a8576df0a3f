"""The strict session: whatever a test leaves behind, or NumPy would only mutter about, fails it.

Warnings are errors (setup.cfg). Beyond that, around each test: NumPy's floating-point errors raise (but for underflow,
which is the right answer of e^{−1000}), the library's generator is seeded, and global switches must be as they were.
The tests run on the reference kernels, which the compiled ones are held to in `test_kernels*.py`, in processes of their own.
Ctrl-C is a KeyboardInterrupt, as in a terminal, also where a shell has started the session in the background and SIGINT is
ignored: what is ignored would be so in each child process too.
`SCRATCHGEN_DEEP=1` (make test-deep) draws a hundred times the examples, new ones each time.
"""

import os
import signal
import sys
from collections import Counter
from importlib import import_module

os.environ["SCRATCHGEN_KERNELS"] = "reference"  # before `kernels` is imported; child processes inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import numpy as np
import pytest

from kernels import backends
from kernels.backends import choice
from scratchgen import anomaly, random
from scratchgen.tensors import recording
from tests.strategies import DEEP

EXAMPLES = 25
common = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("everyday", max_examples=EXAMPLES, derandomize=True, database=None, **common)
hypothesis.settings.register_profile("deep", max_examples=100 * EXAMPLES, derandomize=False, print_blob=True, **common)
hypothesis.settings.load_profile("deep" if DEEP else "everyday")


def pytest_addoption(parser):
    parser.addoption("--cost", action="store_true", help="print at the end how many seconds the tests of each file took")


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("cost"):
        seconds = Counter()
        for report in [r for reports in terminalreporter.stats.values() for r in reports if hasattr(r, "duration")]:
            seconds[report.location[0]] += report.duration
        terminalreporter.section("seconds by file")
        for file, s in [*seconds.most_common(), ("all", seconds.total())]:
            terminalreporter.write_line(f"{s:7.1f} {file}")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("deep") and not DEEP and not item.get_closest_marker("gpu"):  # where all is fast
            item.add_marker(pytest.mark.skip(reason="only in the deep run: SCRATCHGEN_DEEP=1"))


@pytest.fixture(scope="session", autouse=True)
def _a_folder_of_their_own(tmp_path_factory):
    """What tests make once, such as a classifier, they keep apart: the user's cache holds what the user's kernels made."""
    from scratchgen.training import kept

    patch = pytest.MonkeyPatch()
    patch.setattr(kept, "folder", lambda: tmp_path_factory.getbasetemp() / "kept")
    yield
    patch.undo()


def switches():
    """Every global switch: recording, anomaly detection, the backend of the kernels, NumPy's generator and error state."""
    legacy = np.random.get_state()  # noqa: NPY002 (to see that nobody uses it)
    return {
        "grad mode": recording.on,
        "anomaly detection": anomaly.detecting.on,
        "kernels": (choice.host.name, choice.reason, choice.device),
        "np.random's global generator (use a seeded np.random.Generator)": (legacy[1].tobytes(), legacy[2]),
        "np.errstate": np.geterr(),
    }


@pytest.fixture(autouse=True)
def strict():
    """Floating-point errors raise, the library's generator starts at 0, and switches are found as they were left."""
    random.manual_seed(0)
    with np.errstate(divide="raise", invalid="raise", over="raise", under="ignore"):
        before = switches()
        yield
        after = switches()
    changed = [name for name in before if before[name] != after[name]]
    recording.on, anomaly.detecting.on = before["grad mode"], before["anomaly detection"]
    assert not changed, f"the test left changed: {', '.join(changed)}"


# ---------------------------------------------------------------------------------------------------------------------
# Machines for the CUDA kernels (tests/cuda_machines.py)
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def emulated(monkeypatch):
    """The emulator: the launches take the orders of threads in turn."""
    return import_module("tests.cuda_machines").emulation(monkeypatch)


@pytest.fixture(
    params=[*(("forward", "reverse", "shuffled") if DEEP else ["in turn"]), pytest.param("gpu", marks=pytest.mark.gpu)]
)
def machine(request, monkeypatch):
    """The emulator, everyday with the orders of threads in turn and in the deep run with each; and a GPU."""
    machines = import_module("tests.cuda_machines")
    if request.param == "gpu":
        return machines.gpu(monkeypatch)
    return machines.emulation(monkeypatch, machines.ORDERS if request.param == "in turn" else [request.param])


@pytest.fixture
def open_device():
    """As far as this test goes, and no further, kernels look where their arrays are."""
    backends.open_device()
    yield
    sys.modules["scratchgen.device"]._kept.cache_clear()
    choice.device = None
