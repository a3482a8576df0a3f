"""Several threads of Python, forked children and spawned workers: nothing is lost, nothing hangs, the bits are the same."""

import multiprocessing
import pickle
import sys
import threading

import numpy as np
import pytest

import scratchgen as sg
from scratchgen import functional as F
from scratchgen.models import GAN, GPT, VAE, GANConfig, GPTConfig, VAEConfig


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
