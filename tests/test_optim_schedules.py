"""Schedules: their learning rates are those of the formulas, alone, chained, in sequence, and after a metric."""

import json
import math

import numpy as np
import pytest

from scratchgen import nn, optim
from scratchgen.nn import Parameter
from scratchgen.tensors import tensor


def fresh(kind=optim.SGD, **options):
    return kind([{"params": Parameter([1.0])}, {"params": Parameter([1.0]), "lr": 0.3}], lr=0.1, **options)


def rates(schedule, steps):
    """The learning rates of both groups at t = 0 … steps − 1."""
    found = []
    for t in range(steps):
        assert schedule.last_epoch == t
        found.append(schedule.get_last_lr())
        schedule.step()
    return np.array(found)


def resumed(make, steps, split, kind=optim.SGD, **options):
    """The learning rates and other options of a run that was saved as JSON at `split`, and continued by other objects."""
    optimizer = fresh(kind, **options)
    schedule = make(optimizer)
    path = []
    for t in range(steps):
        if t == split:
            states = json.loads(json.dumps([optimizer.state_dict(), schedule.state_dict()]))
            optimizer = fresh(kind, **options)
            schedule = make(optimizer)
            optimizer.load_state_dict(states[0])
            schedule.load_state_dict(states[1])
        path.append([{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups])
        schedule.step()
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Each by itself, and chained
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "rate"), [
    (lambda o: optim.LambdaLR(o, lambda t: 1 / (1 + t)), lambda lr, t: lr / (1 + t)),
    (lambda o: optim.LambdaLR(o, [lambda t: 0.9**t] * 2), lambda lr, t: lr * 0.9**t),
    (lambda o: optim.StepLR(o, 3, 0.5), lambda lr, t: lr * 0.5 ** (t // 3)),
    (lambda o: optim.LinearLR(o, 0.2, 0.6, 4), lambda lr, t: lr * np.interp(t, [0, 4], [0.2, 0.6])),
    (lambda o: optim.CosineAnnealingLR(o, 5, 0.01), lambda lr, t: 0.01 + (lr - 0.01) * math.cos(math.pi * t / 10) ** 2),
    (
        lambda o: optim.LambdaLR(o, lambda t: optim.warmup_cosine(t, warmup=3, steps=9)),
        lambda lr, t: lr * ((t + 1) / 4 if t < 3 else 0.1 + 0.9 * math.cos(math.pi * min(t - 3, 6) / 12) ** 2),
    ),
])  # fmt: skip
def test_schedules(make, rate):
    optimizer = fresh()
    schedule = make(optimizer)
    for t in range(33):  # three periods of the cosine
        np.testing.assert_allclose(schedule.get_last_lr(), [rate(0.1, t), rate(0.3, t)], rtol=1e-12)
        assert [group["lr"] for group in optimizer.param_groups] == schedule.get_last_lr() and schedule.last_epoch == t
        if t == 6:
            states = json.loads(json.dumps([optimizer.state_dict(), schedule.state_dict()]))
        schedule.step()
    other = fresh()
    resumed = make(other)
    other.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    for _ in range(27):
        resumed.step()
    assert resumed.get_last_lr() == schedule.get_last_lr() and resumed.last_epoch == 33


def test_schedules_of_one_optimiser_are_chained():
    """Each moves the learning rate from where the other left it: with η = 0, the product of the factors."""
    optimizer = optim.SGD([Parameter([1.0])], lr=0.1)
    schedules = [
        optim.LinearLR(optimizer, 0.25, 1.0, 4),
        optim.CosineAnnealingLR(optimizer, 6),
        optim.StepLR(optimizer, 5, 0.5),
    ]
    for t in range(16):
        factors = np.interp(t, [0, 4], [0.25, 1]) * 0.5 ** (t // 5)
        # After t = 6, where the learning rate is 0, what StepLR did before is forgotten, as in PyTorch.
        factors *= math.cos(math.pi * t / 12) ** 2 * (2 if t > 6 else 1)
        np.testing.assert_allclose(optimizer.param_groups[0]["lr"], 0.1 * factors, rtol=1e-9, atol=1e-17)
        assert all(s.base_lrs == [0.1] for s in schedules)
        for schedule in schedules:
            schedule.step()
    optim.LambdaLR(optimizer, lambda t: 0.5)  # PyTorch's is a function of the first learning rate alone
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_learning_rate_set_by_hand_is_scheduled_on():
    optimizer = optim.SGD([Parameter([1.0])], lr=0.1)
    schedule = optim.StepLR(optimizer, 2, 0.5)
    optimizer.param_groups[0]["lr"] = 8.0
    for expected in (8, 4, 4, 2):
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == expected
    assert schedule.base_lrs == [0.1]


@pytest.mark.parametrize(("make", "factor"), [
    (lambda o: optim.LambdaLR(o, lambda t: 1 / (1 + t)), lambda t: 1 / (1 + t)),
    (lambda o: optim.StepLR(o, 3, 0.5), lambda t: 0.5 ** (t // 3)),
    (lambda o: optim.LinearLR(o, 0.2, 0.6, 6), lambda t: np.interp(t, [0, 6], [0.2, 0.6])),
    (lambda o: optim.CosineAnnealingLR(o, 9), lambda t: math.cos(math.pi * t / 18) ** 2),
])  # fmt: skip
def test_a_group_added_later_is_scheduled_with_its_own_rate(make, factor):
    optimizer = optim.SGD([Parameter([1.0])], lr=0.1)
    schedules = [make(optimizer)]
    for _ in range(4):
        schedules[0].step()
    optimizer.add_param_group({"params": [Parameter([1.0])], "lr": 0.4})
    for t in range(5, 8):
        schedules[0].step()
        np.testing.assert_allclose(schedules[0].get_last_lr(), [0.1 * factor(t), 0.4 * factor(t)], rtol=1e-12)
    assert schedules[0].base_lrs == [0.1, 0.4] == [group["initial_lr"] for group in optimizer.param_groups]


def test_functions_for_each_group_are_wanted_for_a_group_added_later():
    optimizer = optim.SGD([Parameter([1.0])], lr=0.1)
    schedule = optim.LambdaLR(optimizer, [lambda t: 0.5**t])
    optimizer.add_param_group({"params": [Parameter([1.0])]})
    for _ in range(2):
        with pytest.raises(ValueError, match="^LambdaLR: expected a function of the step for each group, got 1 functions and"):
            schedule.step()
        assert schedule.get_last_lr() == [0.1, 0.1] and schedule.last_epoch == 0  # nothing has moved


def test_a_schedule_continues_at_a_given_epoch():
    optimizer = optim.SGD([{"params": [Parameter([1.0])], "initial_lr": 0.8, "lr": 0.2}])
    schedule = optim.StepLR(optimizer, 2, 0.5, last_epoch=4)
    assert schedule.last_epoch == 5 and optimizer.param_groups[0]["lr"] == 0.2
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    schedule = optim.LambdaLR(optimizer, lambda t: 0.5**t, last_epoch=2)
    assert schedule.last_epoch == 3 and optimizer.param_groups[0]["lr"] == 0.1


def test_a_schedule_takes_its_options_from_a_state():
    """The state dict that PyTorch's StepLR leaves, word for word."""
    state = {"step_size": 3, "gamma": 0.5, "base_lrs": [0.1], "last_epoch": 2, "_step_count": 3, "_is_initial": False,
             "_get_lr_called_within_step": False, "_last_lr": [0.1]}  # fmt: skip
    optimizer = optim.SGD([Parameter([1.0])], lr=0.1)
    schedule = optim.StepLR(optimizer, 10)
    schedule.load_state_dict(state)
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert schedule.state_dict() == {"step_size": 3, "gamma": 0.5, "base_lrs": [0.1], "last_epoch": 3}
    for wrong in ({**state, "T_max": 3}, {"last_epoch": 3}):
        with pytest.raises(ValueError, match=r"^StepLR.load_state_dict: expected last_epoch and 1 base_lrs, step_size, gamma"):
            schedule.load_state_dict(wrong)


def test_warmup_cosine_by_hand():
    factors = [optim.warmup_cosine(t, warmup=3, steps=7, final=0.2) for t in range(9)]
    half = 0.4 * math.sqrt(0.5)
    np.testing.assert_allclose(factors, [0.25, 0.5, 0.75, 1, 0.6 + half, 0.6, 0.6 - half, 0.2, 0.2])
    assert optim.warmup_cosine(0, warmup=0, steps=5) == 1 and optim.warmup_cosine(0, warmup=0, steps=0) == 0.1


def test_a_state_saved_under_a_schedule_loads_without_one():
    p = tensor([1.0], requires_grad=True)
    scheduled = optim.SGD([p], lr=0.5)
    optim.StepLR(scheduled, 1)
    fresh = optim.SGD([p], lr=0.1)
    fresh.load_state_dict(scheduled.state_dict())
    assert fresh.param_groups[0]["lr"] == 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Schedules that hand over to one another, cycle, or wait for a metric
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "rate"), [
    (lambda o: optim.ExponentialLR(o, 0.9), lambda lr, t: lr * 0.9**t),
    (lambda o: optim.MultiStepLR(o, [3, 5, 5, 9], 0.5), lambda lr, t: lr * 0.5 ** ((t >= 3) + 2 * (t >= 5) + (t >= 9))),
    (lambda o: optim.MultiStepLR(o, [0]), lambda lr, t: lr * 0.1),
    (
        lambda o: optim.SequentialLR(o, [optim.LinearLR(o, 0.2, 1.0, 4), optim.CosineAnnealingLR(o, 10)], [4]),
        lambda lr, t: lr * (0.2 + 0.2 * t if t < 4 else math.cos(math.pi * (t - 4) / 20) ** 2),
    ),
    (
        lambda o: optim.SequentialLR(
            o,
            [optim.StepLR(o, 2, 0.5), optim.ExponentialLR(o, 0.9), optim.MultiStepLR(o, [1, 2]), optim.ExponentialLR(o, 2.0)],
            [4, 6, 9],
        ),
        lambda lr, t: lr * (0.5 ** (t // 2) if t < 4 else [1, 0.9, 1, 0.1, 0.01, 1, 2, 4][t - 4]),
    ),
    (lambda o: optim.SequentialLR(o, [optim.LambdaLR(o, lambda t: 1 / (2 + t))], []), lambda lr, t: lr / (2 + t)),
    (
        lambda o: optim.SequentialLR(
            o, [optim.ExponentialLR(o, 0.5), optim.SequentialLR(o, [optim.StepLR(o, 1), optim.StepLR(o, 9)], [2])], [3]
        ),
        lambda lr, t: lr * (0.5**t if t < 3 else 0.1 ** (t - 3) if t < 5 else 1),
    ),
])  # fmt: skip
def test_rates(make, rate):
    expected = [[rate(0.1, t), rate(0.3, t)] for t in range(12)]
    np.testing.assert_allclose(rates(make(fresh()), 12), expected, rtol=1e-12)
    for split in (0, 3, 4, 7):
        path = resumed(make, 12, split)
        np.testing.assert_allclose([[g["lr"] for g in groups] for groups in path], expected, rtol=1e-12)


def test_the_first_of_a_sequence_begins_with_the_rate_before_all_schedules():
    """Constructing the later ones has moved the learning rate: that is undone, as in PyTorch."""
    o = fresh()
    optim.SequentialLR(o, [optim.ExponentialLR(o, 0.5), optim.LinearLR(o, 0.25), optim.LambdaLR(o, lambda t: 7.0)], [1, 2])
    assert [group["lr"] for group in o.param_groups] == [0.1, 0.3]


def test_a_group_added_later_is_scheduled_by_the_sequence():
    o = fresh()
    s = optim.SequentialLR(o, [optim.ExponentialLR(o, 0.5), optim.StepLR(o, 2, 0.1)], [3])
    s.step()
    o.add_param_group({"params": [Parameter([1.0])], "lr": 8.0})
    path = []
    for _ in range(5):
        s.step()
        path.append(o.param_groups[2]["lr"])
    np.testing.assert_allclose(path, [2.0, 8.0, 8.0, 0.8, 0.8])  # t = 2, 3, 4, 5, 6


# ---------------------------------------------------------------------------------------------------------------------
# One cycle
# ---------------------------------------------------------------------------------------------------------------------


def half(q):
    return (1 + math.cos(math.pi * q)) / 2


def test_one_cycle_by_hand():
    """T = 10, p = 0.3: up in t = 0, 1, 2 and down in t = 2 … 9; the momentum the other way."""
    o = fresh(momentum=0.5)
    s = optim.OneCycleLR(o, [1.0, 2.0], total_steps=10, div_factor=10, final_div_factor=100)
    momenta = []
    s.step, step = lambda: (momenta.append(o.param_groups[0]["momentum"]), step()), s.step
    up = [0.1, 1 - 0.9 * half(0.5), 1.0]
    expected = [*up, *[1e-3 + (1 - 1e-3) * half(q / 7) for q in range(1, 8)]]
    found = rates(s, 10)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(found[:, 1], 2 * np.array(expected), rtol=1e-12)
    np.testing.assert_allclose(momenta, [0.95, 0.9, 0.85, *[0.95 - 0.1 * half(q / 7) for q in range(1, 8)]], rtol=1e-12)
    np.testing.assert_allclose(s.get_last_lr(), [1e-3, 2e-3], rtol=1e-12)  # t = 10: after the last step
    with pytest.raises(ValueError, match="at most total_steps = 10 steps, got 11"):
        s.step()


def test_one_cycle_of_three_phases_in_lines():
    """T = 12, p = 1/3: the phases end at t = 3, 6 and 11."""
    o = fresh(optim.Adam)
    s = optim.OneCycleLR(
        o, 1.0, epochs=3, steps_per_epoch=4, pct_start=1 / 3, anneal_strategy="linear", div_factor=4.0, final_div_factor=10.0,
        base_momentum=[0.6, 0.7], max_momentum=0.9, three_phase=True,
    )  # fmt: skip
    betas = []
    s.step, step = lambda: (betas.append([g["betas"] for g in o.param_groups]), step()), s.step
    ends, rate, momentum = [0, 3, 6, 11], [0.25, 1.0, 0.25, 0.025], [0.9, 0.6, 0.9, 0.9]
    found = rates(s, 12)
    np.testing.assert_allclose(found, np.interp(range(12), ends, rate)[:, None] * [1, 1], rtol=1e-12)
    np.testing.assert_allclose([b[0] for b in betas], [(b, 0.999) for b in np.interp(range(12), ends, momentum)], rtol=1e-12)
    assert abs(betas[3][1][0] - 0.7) < 1e-12


@pytest.mark.parametrize(("share", "total", "peak"), [(0.0, 6, None), (1.0, 6, 5), (0.1, 10, 0)])
def test_one_cycle_at_its_edges(share, total, peak):
    """No way up; no way down; a way of no length."""
    found = rates(optim.OneCycleLR(fresh(), 1.0, total_steps=total, pct_start=share, cycle_momentum=False), total)[:, 0]
    assert np.isfinite(found).all() and found.max() <= 1 and (peak is None or abs(found[peak] - 1) < 1e-12)
    assert (peak == total - 1) == (found[-1] == found.max())


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.RMSprop])
def test_one_cycle_resumes(kind):
    def make(o):
        return optim.OneCycleLR(o, 1.0, total_steps=9)

    whole = resumed(make, 9, None, kind)
    assert resumed(make, 9, 4, kind) == whole and resumed(make, 9, 0, kind) == whole
    plain = fresh(kind)
    scheduled = fresh(kind)
    make(scheduled)
    plain.load_state_dict(scheduled.state_dict())  # a state saved under a schedule loads without one
    assert plain.param_groups[0]["lr"] == pytest.approx(0.04)


def test_a_group_that_one_cycle_does_not_know_is_refused():
    o = fresh()
    s = optim.OneCycleLR(o, 1.0, total_steps=9)
    o.add_param_group({"params": [Parameter([1.0])]})
    with pytest.raises(ValueError, match="max_lr and its kin in group 2, which was added later"):
        s.step()


# ---------------------------------------------------------------------------------------------------------------------
# Plateaus
# ---------------------------------------------------------------------------------------------------------------------


def plateau(metrics, **options):
    """The learning rate of group 0, in units of its first, after each metric."""
    o = fresh()
    s = optim.ReduceLROnPlateau(o, factor=0.5, **options)
    path = []
    for m in metrics:
        s.step(m)
        path.append(o.param_groups[0]["lr"] / 0.1)
    return path


@pytest.mark.parametrize(("metrics", "options", "expected"), [
    ([3, 2, 2, 2, 2], {"patience": 1}, [1, 1, 1, 0.5, 0.5]),
    ([3, 2, 2, 2, 2], {"patience": 0}, [1, 1, 0.5, 0.25, 0.125]),
    ([3, 2, 1.5, 1.2, 1.1], {"patience": 0, "threshold": 0.25}, [1, 1, 0.5, 0.5, 0.25]),  # below 1.5, then below 0.9 · …
    ([3, 2, 1.5, 1.2, 1.1], {"patience": 0, "threshold": 0.5, "threshold_mode": "abs"}, [1, 1, 0.5, 0.5, 0.25]),
    ([1, 2, 2.1, 2.3], {"patience": 0, "mode": "max", "threshold": 0.1}, [1, 1, 0.5, 0.5]),
    ([1, 2, 2.1, 2.3], {"patience": 0, "mode": "max", "threshold": 0.2, "threshold_mode": "abs"}, [1, 1, 0.5, 0.5]),
    ([1, 1, 1, 1, 1, 1], {"patience": 0, "cooldown": 2}, [1, 0.5, 0.5, 0.5, 0.25, 0.25]),
    ([1, 1, 1, 1], {"patience": 0, "min_lr": 0.04}, [1, 0.5, 0.4, 0.4]),
    ([1, 1, 1, 1], {"patience": 0, "min_lr": [0.06, 0.0]}, [1, 0.6, 0.6, 0.6]),
    ([1, 1, 1], {"patience": 0, "eps": 0.04}, [1, 0.5, 0.5]),  # 0.05 → 0.025 is less than 0.04
    ([math.nan, math.nan, 1.0, math.nan], {"patience": 0}, [0.5, 0.25, 0.25, 0.125]),
    ([tensor([1.0]), tensor([1.0])], {"patience": 0}, [1, 0.5]),
])  # fmt: skip
def test_plateau_by_hand(metrics, options, expected):
    np.testing.assert_allclose(plateau(metrics, **options), expected, rtol=1e-12)


def test_plateau_counts_bad_metrics_and_waits_after_a_reduction():
    s = optim.ReduceLROnPlateau(fresh(), factor=0.5, patience=1, cooldown=2)
    counted = []
    for metric in (3, 3, 3, 3, 3, 3, 1, 1, 1):
        s.step(metric)
        state = s.state_dict()
        counted.append((state["best"], state["cooldown_counter"], state["num_bad_epochs"], round(0.1 / s.get_last_lr()[0])))
    assert counted == [
        (3, 0, 0, 1), (3, 0, 1, 1), (3, 2, 0, 2), (3, 1, 0, 2), (3, 0, 0, 2),
        (3, 0, 1, 2), (1, 0, 0, 2), (1, 0, 1, 2), (1, 2, 0, 4),
    ]  # fmt: skip
    assert s.last_epoch == 9


def test_plateau_resumes_and_reduces_groups_that_were_added():
    metrics = [3, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    o = fresh()
    s = optim.ReduceLROnPlateau(o, patience=2, cooldown=1)
    paths = []
    for t, m in enumerate(metrics):
        if t == 6:
            states = json.loads(json.dumps([o.state_dict(), s.state_dict()]))
        s.step(m)
        paths.append(s.get_last_lr())
    o = fresh()
    s = optim.ReduceLROnPlateau(o)
    o.load_state_dict(states[0])
    s.load_state_dict(states[1])
    for t, m in enumerate(metrics[6:], 6):
        assert s.last_epoch == t
        s.step(m)
        assert s.get_last_lr() == paths[t]
    assert paths[-1][0] < 0.1
    o.add_param_group({"params": [Parameter([1.0])], "lr": 1.0})
    for m in (5, 5, 5, 5):
        s.step(m)
    assert o.param_groups[2]["lr"] == pytest.approx(0.1)


P = Parameter([1.0])


@pytest.mark.parametrize(("call", "said"), [
    (lambda o: optim.MultiStepLR(o, [1.5]), "milestones to be whole numbers of at least 0, got 1.5"),
    (lambda o: optim.SequentialLR(o, [optim.ExponentialLR(o, 1)], [3]), "a milestone between any two schedules"),
    (lambda o: optim.SequentialLR(o, [optim.ExponentialLR(o, 1)] * 3, [3, 2]), r"in their order, got 3 schedules and \[3, 2\]"),
    (lambda o: optim.SequentialLR(o, [], []), "got 0 schedules"),
    (lambda o: optim.SequentialLR(o, [o], []), "schedules of the step alone, got SGD"),
    (lambda o: optim.SequentialLR(o, [optim.ReduceLROnPlateau(o)], []), "got ReduceLROnPlateau"),
    (lambda o: optim.SequentialLR(o, [optim.ExponentialLR(optim.SGD([P]), 1)], []), "expected schedules of this optimiser"),
    (lambda o: optim.OneCycleLR(P, 1, 3), "expected an Optimizer, got Parameter"),
    (lambda o: optim.OneCycleLR(o, 1), "expected total_steps, or epochs and steps_per_epoch"),
    (lambda o: optim.OneCycleLR(o, 1, 0), "total_steps to be a whole number of at least 1, got 0"),
    (lambda o: optim.OneCycleLR(o, 1, 3, pct_start=2), "pct_start from 0 to 1"),
    (lambda o: optim.OneCycleLR(o, 1, 3, anneal_strategy="no"), "'cos' or 'linear', got 0.3 and 'no'"),
    (lambda o: optim.OneCycleLR(o, [1, 1, 1], 3), r"max_lr to be a number, or one for each of 2 groups, got \[1, 1, 1\]"),
    (lambda o: optim.OneCycleLR(optim.Adagrad([P]), 1, 3), "momentum or betas, which Adagrad has not"),
    (lambda o: optim.ReduceLROnPlateau(P), "expected an Optimizer, got Parameter"),
    (lambda o: optim.ReduceLROnPlateau(o, "mid"), "mode 'min' or 'max' .* got 'mid' and 'rel'"),
    (lambda o: optim.ReduceLROnPlateau(o, threshold_mode="no"), "got 'min' and 'no'"),
    (lambda o: optim.ReduceLROnPlateau(o, factor=1.0), "factor below 1, got 1.0"),
    (lambda o: optim.ReduceLROnPlateau(o, min_lr=[0.1]), "min_lr to be a number, or one for each of 2 groups"),
    (lambda o: optim.ReduceLROnPlateau(o).load_state_dict({"best": 1}), "load_state_dict: expected mode, factor"),
    (
        lambda o: optim.SequentialLR(o, [optim.ExponentialLR(o, 1)], []).load_state_dict({"last_epoch": 1}),
        "_milestones, last_epoch and 1 _schedulers",
    ),
])  # fmt: skip
def test_refusals(call, said):
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        call(fresh())
    assert "\n" not in str(caught.value)


def test_a_min_lr_for_each_group_does_not_stretch():
    o = fresh()
    s = optim.ReduceLROnPlateau(o, patience=0, min_lr=[0.0, 0.1])
    o.add_param_group({"params": [Parameter([1.0])]})
    s.step(1.0)
    with pytest.raises(ValueError, match=r"a min_lr for each of 3 groups, got \[0.0, 0.1\]"):
        s.step(1.0)


def test_pytorchs_states_load():
    """What PyTorch's schedules of these names save, its own notes included."""
    o = fresh()
    s = optim.MultiStepLR(o, [1])
    s.load_state_dict({"milestones": {2: 1}, "gamma": 0.5, "base_lrs": [0.1, 0.3], "last_epoch": 1, "_step_count": 2})
    s.step()
    assert o.param_groups[0]["lr"] == pytest.approx(0.05)
    s = optim.ReduceLROnPlateau(o)
    s.load_state_dict({
        "factor": 0.5, "default_min_lr": 0, "min_lrs": [0, 0], "patience": 0, "cooldown": 0, "eps": 1e-8, "last_epoch": 3,
        "_last_lr": [0.05, 0.15], "mode_worse": math.inf, "mode": "min", "threshold": 1e-4, "threshold_mode": "rel",
        "best": 1.0, "cooldown_counter": 0, "num_bad_epochs": 0,
    })  # fmt: skip
    s.step(2.0)
    assert o.param_groups[0]["lr"] == pytest.approx(0.025)


def test_training_by_one_cycle():
    """Least squares: the loss falls a thousandfold in one cycle."""
    g = np.random.default_rng(6)
    x, w = g.normal(size=(64, 3)), g.normal(size=(3, 2))
    model = nn.Linear(3, 2, dtype=np.float64, generator=g)
    o = optim.SGD(model.parameters())
    s = optim.OneCycleLR(o, 0.1, total_steps=120)
    losses = []
    for _ in range(120):
        o.zero_grad()
        loss = (model(tensor(x)) - tensor(x @ w)).square().mean()
        loss.backward()
        o.step()
        s.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 1000
