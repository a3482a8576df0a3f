"""Each kernel compiled to machine code for GPUs that are not there, within the budget that stands beside it: no spilled
register, no stack, no float64, and no more registers and shared memory than the budget allows.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEEP = os.environ.get("SCRATCHGEN_DEEP", "0") not in ("", "0")
HOT = ["sgemm_NN_128_vector", "tensor_NN_vector", "attention_64", "attention_backward_keys_64"]
# Kernels that add up, and how many sums: an addition of `sums.add` has four subtractions.
SUMS = dict(softmax_rows=1, log_softmax_rows=1, cross_entropy_rows=1, softmax_slopes=1, normalised_rows=3)  # noqa: C408
SUMS |= dict(normalised_rows_backward=2, channel_norm=3, channel_norm_backward=2, group_norm_rows=3)  # noqa: C408
SUMS |= dict(group_norm_rows_backward=2, group_norm_parameters=2, sum_rows=2, sum_parameters=4)  # noqa: C408
SUMS |= dict(scatter_rows=1, squares=1, nearest_each_backward=1, from_columns=1)  # noqa: C408
# Of the kernels that are made alike, one of each form.
OTHERS = """naive tiled blocked gelu_tanh_backward mish_backward elu glu_each glu_each_backward finish_gelu dropout_each
    embedding_rows adam_each binary_cross_entropy_each attention_backward_queries_64 one_query_64 to_columns""".split()
EVERYDAY = sorted({*HOT, *SUMS, *OTHERS})
ARCHITECTURES = [75, 80, 90] if DEEP else [80]


def compiled(arch):
    names = [] if DEEP else EVERYDAY  # in the deep run, every kernel
    return subprocess.run(
        [sys.executable, "-W", "ignore", "tests/cuda_ptx.py", str(arch), *names], capture_output=True, text=True, cwd=ROOT
    )


@pytest.fixture(scope="module")
def runs():
    with ThreadPoolExecutor(2) as pool:
        yield {arch: pool.submit(compiled, arch) for arch in ARCHITECTURES}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_keeps_to_its_budget(runs, arch):
    done = runs[arch].result()
    assert done.returncode == 0, done.stderr
    why, *lines = map(json.loads, done.stdout.splitlines())
    if why is not None:
        pytest.skip(why)
    assert len(lines) >= len(EVERYDAY) - (arch < 80)  # `tensor` needs 80
    over = []
    for name, costs, budget in lines:
        if costs["stack"] or costs["spills"] or costs["local"] or costs["float64"]:
            over.append((name, costs))
        if costs["registers"] > budget["registers"] or costs["shared"] > budget["shared"]:
            over.append((name, costs, budget))
    assert not over


def test_the_hot_loops_are_written_out(runs):
    """The product of a tile is 8 steps of 64 multiply-adds in a row, and its loads are 16 bytes wide."""
    why, *lines = map(json.loads, runs[80].result().stdout.splitlines())
    if why is not None:
        pytest.skip(why)
    costs = {name: cost for name, cost, _ in lines}
    assert costs["sgemm_NN_128_vector"]["fma"] >= 8 * 64 and costs["sgemm_NN_128_vector"]["wide"] >= 4
    assert costs["tensor_NN_vector"]["mma"] >= 16 and costs["tensor_NN_vector"]["fma"] == 0


def test_sums_stay_compensated(runs):
    """The compiler has not taken `sums.add` for total + x, as fast-math would, and has not rounded values near 0 to 0."""
    why, *lines = map(json.loads, runs[80].result().stdout.splitlines())
    if why is not None:
        pytest.skip(why)
    costs = {name: cost for name, cost, _ in lines}
    for name, sums in SUMS.items():
        assert costs[name]["subtractions"] >= 4 * sums and not costs[name]["flushed"], name
