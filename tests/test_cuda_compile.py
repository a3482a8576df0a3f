"""Each kernel compiled to machine code for GPUs that are not there, within the budget that stands beside it: no spilled
register, no stack, no float64, and no more registers and shared memory than it was given.
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
SINGLE = """naive tiled blocked softmax_rows log_softmax_rows cross_entropy_rows cross_entropy_rows_backward normalised_rows
    normalised_rows_backward sum_rows sum_parameters channel_norm channel_norm_backward gelu gelu_tanh erf gelu_backward
    gelu_tanh_backward sigmoid sigmoid_backward tanh_backward softplus softplus_backward elu elu_backward silu silu_backward
    mish mish_backward glu_each glu_each_backward softmax_slopes group_norm_rows group_norm_rows_backward
    group_norm_parameters add_bias finish_relu finish_gelu finish_gelu_tanh dropout_each attention_dropout_each
    embedding_rows scatter_rows adam_each squares leaky_relu_each leaky_relu_each_backward nearest_each
    nearest_each_backward binary_cross_entropy_each binary_cross_entropy_each_backward row_products one_query_64
    attention_backward_queries_64 to_columns from_columns sgemm_NT_64 attention_32_masked""".split()
RUNS = {75: HOT[:1] + HOT[2:3], 80: sorted({*HOT, *SINGLE}), 90: [*HOT[:3], "sgemm_NT_128"]}  # in the deep run, all


def compiled(arch):
    names = [] if DEEP else RUNS[arch]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "tests/cuda_ptx.py", str(arch), *names], capture_output=True, text=True, cwd=ROOT
    )


@pytest.fixture(scope="module")
def runs():
    with ThreadPoolExecutor(2) as pool:
        yield {arch: pool.submit(compiled, arch) for arch in RUNS}


@pytest.mark.parametrize("arch", RUNS)
def test_every_kernel_keeps_to_its_budget(runs, arch):
    done = runs[arch].result()
    assert done.returncode == 0, done.stderr
    why, *lines = map(json.loads, done.stdout.splitlines())
    if why is not None:
        pytest.skip(why)
    assert len(lines) >= len(RUNS[arch])
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
