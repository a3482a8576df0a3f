"""Several threads of Python, forked children and spawned workers: nothing is lost, nothing hangs, the bits are the same."""

import multiprocessing
import os
import pickle
import sys
import threading

import numba
import numpy as np
import pytest

import scratchgen as sg
from kernels.cpu.build import INT, VOID, Kernel, result
from scratchgen import functional as F
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig
from tests.test_kernels import python


@pytest.fixture
def eager_switches():
    """Python passes from thread to thread as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(work, count=8):
    """Run work(0), work(1), … in threads that start together; what one raises is raised here."""
    start, raised = threading.Barrier(count), []

    def run(i):
        try:
            start.wait()
            work(i)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


# ------------------------------------------------------------------------------------------------------------ the engine


@pytest.mark.parametrize("named", [False, True])
def test_sweeps_of_several_threads_into_one_leaf_lose_no_gradient(eager_switches, named):
    x = sg.tensor(np.ones(3), requires_grad=True)

    def work(_):
        for _ in range(200):
            (x * 1.0).sum().backward(inputs=[x] if named else None)

    at_once(work)
    assert x.grad.tolist() == [1600.0] * 3


def test_sweeps_of_one_graph_towards_different_inputs_do_not_disturb_each_other(eager_switches):
    xs = [sg.tensor(np.full(4, i + 1.0), requires_grad=True) for i in range(2)]
    y = F.mse_loss(xs[0], xs[1], reduction="sum")  # its gradients: 2 (a − b) and 2 (b − a)

    def work(i):
        for _ in range(200):
            (g,) = sg.grad(y, xs[i % 2], retain_graph=True)
            assert g.tolist() == [2 * (-1.0) ** (i % 2 + 1)] * 4

    at_once(work)


def test_anomaly_detection_stays_on_while_other_threads_sweep(eager_switches):
    x = sg.tensor(np.ones(2), requires_grad=True)

    def work(_):
        for _ in range(50):
            (x * x).sum().backward()

    with sg.detect_anomaly():
        at_once(work)
        with pytest.raises(ArithmeticError, match="Log"), np.errstate(divide="ignore"):
            (x - x).log()


# ------------------------------------------------------------------------------------------------------------ other processes


MODELS = {
    "GPT": lambda: GPT(GPTConfig(11, 8, 1, 2, 8)),
    "VAE": lambda: VAE(VAEConfig((1, 8, 8))),
    "GAN": lambda: GAN(GANConfig((1, 8, 8), "mlp")),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_and_its_optimiser_are_pickled_whole(name):
    model = MODELS[name]()
    optimizer = sg.optim.AdamW(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = sg.ones(*p.shape)
    optimizer.step()
    twin, twin_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    mine, theirs = model.state_dict(), twin.state_dict()
    assert list(mine) == list(theirs) and all(np.array_equal(mine[k], theirs[k]) for k in mine)
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in model.parameters()]
    for p in twin.parameters():
        p.grad = sg.ones(*p.shape)
    optimizer.step(), twin_optimizer.step()  # the moments came along, and belong to the twin's parameters
    mine, theirs = model.state_dict(), twin.state_dict()
    assert all(np.array_equal(mine[k], theirs[k]) for k in mine)


def test_a_pickled_tensor_is_frozen_and_keeps_its_kind():
    weight = pickle.loads(pickle.dumps(sg.nn.Parameter([1.0, 2.0])))
    assert type(weight) is sg.nn.Parameter and weight.requires_grad and weight.grad is None
    with pytest.raises(ValueError, match="read-only"):
        weight.detach().numpy()[0] = 3
    (weight * weight).sum().backward()
    assert weight.grad.tolist() == [2.0, 4.0]


def test_the_result_of_an_op_is_not_pickled():
    x = sg.tensor([1.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="pickle: expected a tensor made by the user, got the result of an op"):
        pickle.dumps(x * 2)


def logits_of(model, tokens):
    return model(tokens).detach().numpy().copy()


def test_a_spawned_worker_computes_with_a_model_that_it_was_sent():
    model, tokens = MODELS["GPT"](), sg.tensor([[1, 2, 3]])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert np.array_equal(pool.apply(logits_of, (model, tokens)), logits_of(model, tokens))


# ------------------------------------------------------------------------------------------------------------ the kernels

BEGIN = """
import multiprocessing, os, sys, threading, warnings
import numpy as np
import kernels
from kernels.cpu import rows, threads

x = np.random.default_rng(0).standard_normal((3000, 41), np.float32)  # worth two threads
def run(_=0):
    return rows.column_sums(x).tobytes()
"""


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_a_forked_child_and_its_child_compute_the_same_bits(layer):
    program = """
warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
expected, fork = run(), multiprocessing.get_context("fork")
def both(_):
    with fork.Pool(1) as pool:
        return run(), pool.apply(run)
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2, mp_context=fork) as pool:
    assert list(pool.map(both, range(2), timeout=60)) == [(expected, expected)] * 2
assert run() == expected
"""
    done = python("-c", BEGIN + program, SCRATCHGEN_THREADS="2", NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER=layer)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_threads_of_python_may_call_kernels_at_once(layer):
    program = """
sys.setswitchinterval(1e-6)
expected, wrong = run(), []
def work():
    for _ in range(200):
        if run() != expected:
            wrong.append(1)
at_once = [threading.Thread(target=work) for _ in range(4)]
for thread in at_once: thread.start()
for thread in at_once: thread.join()
assert not wrong
"""
    done = python("-c", BEGIN + program, SCRATCHGEN_THREADS="2", NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER=layer)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts the threads in Linux's /proc")
@pytest.mark.parametrize(("asked", "made"), [("1", 0), ("2", 1), ("3", 2)])
def test_so_many_threads_are_made_as_are_asked_for(asked, made):
    program = """
import time
from kernels.cpu import matmul
matmul.small["f"]  # what a kernel that is not parallel brings along
def count():
    time.sleep(0.3)  # the threads that loaded the kernels are gone
    return len(os.listdir("/proc/self/task"))
before = count()
rows.column_sums(x)
rows.softmax(x)
print(count() - before, threads.threads())
"""
    done = python("-c", BEGIN + program, SCRATCHGEN_THREADS=asked, NUMBA_NUM_THREADS="4")
    assert done.stdout.split() == [str(made), asked], done.stderr


def test_the_number_of_threads_may_be_changed_between_two_calls():
    program = """
both = run()
threads.set_threads(1)
alone = run()
threads.set_threads(2)
assert run() == both
y = np.frombuffer(alone, np.float32)
np.testing.assert_allclose(y, x.sum(0, dtype=np.float64), rtol=1e-4, atol=1e-4)
"""
    done = python("-c", BEGIN + program, SCRATCHGEN_THREADS="2", NUMBA_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


def test_a_sum_that_threads_share_is_whole_however_often_it_is_taken():
    """Numba would share `parts.sum()` too, and add it up by an index of the thread that our threads do not have."""
    program = """
x, t = (np.random.default_rng(i).random((16, 784), np.float32) for i in range(2))
total = lambda: float(kernels.binary_cross_entropy(x, t, total=True))
assert {total() for _ in range(20_000)} == {total()}
"""
    done = python("-c", BEGIN + program, SCRATCHGEN_THREADS="2", NUMBA_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


def test_a_parallel_kernel_that_adds_up_across_its_parts_is_refused():
    def adds(x, nt):
        total = 0.0
        for t in numba.prange(nt):
            total += x[t]
        x[0] = total

    with pytest.raises(TypeError, match="expected a prange whose parts write to different elements, got one that adds up"):
        Kernel(adds, lambda T: VOID(result(T, 1, "C"), INT), parallel=True).compile("f")


def test_a_thread_whose_keys_no_query_sees_adds_nothing_to_the_gradient_of_the_queries():
    """Causal, 63 queries, 300 keys, five threads: the last begins at key 64, and its memory holds whatever was there before."""
    program = """
from kernels import reference
from kernels.cpu import attention, memory
q, k, v, dout = (np.random.default_rng(0).standard_normal((1, n, 16), np.float32) for n in (63, 300, 300, 63))
out, statistics = attention.attention(q, k, v, causal=True)
memory.scratch("f", 1 << 20)[:] = np.nan
found = attention.attention_backward(dout, q, k, v, out, statistics, causal=True)[:3]
for a, b in zip(found, reference.attention_backward(dout, q, k, v, out, statistics, causal=True)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
"""
    done = python("-c", BEGIN + program, SCRATCHGEN_THREADS="5", NUMBA_NUM_THREADS="5")
    assert done.returncode == 0, done.stderr
