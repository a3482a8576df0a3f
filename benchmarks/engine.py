"""What a node of the graph costs: a chain of small ops, forward and backward, beside PyTorch on one thread."""

from __future__ import annotations

import numpy as np

import scratchgen as sg
from benchmarks.clock import compare, summary, torch_or_none

NODES = 2000  # half of them products, half sums


def chain(x, w):
    y = x
    for _ in range(NODES // 2):
        y = y * w
        y = y + x
    return y


def run(quick: bool = False) -> list[dict]:
    """Microseconds a node, 8 × 8 floats, forward and backward together."""
    a = np.random.default_rng(0).random((8, 8)).astype(np.float32)
    found = {}

    def ours() -> None:
        x, w = sg.tensor(a, requires_grad=True), sg.tensor(0.5 * a, requires_grad=True)
        chain(x, w).sum().backward()
        found["ours"] = x.grad.numpy()

    rivals = {}
    torch = torch_or_none()
    if torch is not None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)

        def rival() -> None:
            x, w = torch.tensor(a, requires_grad=True), torch.tensor(0.5 * a, requires_grad=True)
            chain(x, w).sum().backward()
            found["torch"] = x.grad.numpy()

        rivals["torch"] = rival
        ours(), rival()
        np.testing.assert_allclose(found["ours"], found["torch"], rtol=1e-4)
    times = compare({"ours": ours, **rivals}, rounds=3 if quick else 11, turn=0.1 if quick else 0.3)
    if torch is not None:
        torch.set_num_threads(threads)
    return [{"what": "chain of 2,000 small ops", **summary(times, 1e6 / NODES, "us_per_node")}]
