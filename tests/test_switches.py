"""no_grad and its kin: what holds inside a `with`, and in decorated functions, generators and coroutines."""

import asyncio
import threading

import numpy as np
import pytest

import scratchgen as sg


def leaf(*values):
    return sg.tensor(np.array(values, np.float64), requires_grad=True)


def test_no_grad_and_enable_grad():
    x = leaf(1.0)
    with sg.no_grad():
        assert not (x * 2).requires_grad and not sg.is_grad_enabled()
        with sg.enable_grad():
            assert (x * 2).requires_grad
    assert sg.is_grad_enabled()

    @sg.no_grad()
    def double(t):
        return t * 2

    assert not double(x).requires_grad and sg.is_grad_enabled()


def test_set_grad_enabled_holds_from_the_call_on():
    try:
        switch = sg.set_grad_enabled(False)
        assert not sg.is_grad_enabled()
        with switch:
            assert not sg.is_grad_enabled()
        assert sg.is_grad_enabled()  # a `with` ends at what was before the call
        sg.set_grad_enabled(False)
        with sg.set_grad_enabled(True):
            assert sg.is_grad_enabled()
        assert not sg.is_grad_enabled()
        sg.set_grad_enabled(mode=True)
        assert sg.is_grad_enabled()

        @sg.set_grad_enabled(False)
        def inside():
            return sg.is_grad_enabled()

        assert sg.is_grad_enabled() and not inside() and sg.is_grad_enabled()  # decorating is no call
        with pytest.raises(TypeError, match="^set_grad_enabled: expected True or False, got 0$"):
            sg.set_grad_enabled(0)
    finally:
        sg.set_grad_enabled(True)


def test_switches_decorate_without_parentheses():
    @sg.no_grad
    def off(n):
        """What it says."""
        return [sg.is_grad_enabled(), *(off(n - 1) if n else on())]

    @sg.enable_grad
    def on():
        return [sg.is_grad_enabled()]

    class Model:
        @sg.no_grad
        def generate(self):
            return self, sg.is_grad_enabled()

    assert off(2) == [False, False, False, True] and sg.is_grad_enabled() and off.__doc__ == "What it says."
    model = Model()
    assert model.generate() == (model, False)
    for thing in (Model, 3):
        with pytest.raises(TypeError, match="no_grad: expected a function to decorate, got (the class Model|3)$"):
            sg.no_grad(thing)

    async def numbers():
        yield 1

    with pytest.raises(TypeError, match="expected a function to decorate, got <function .*numbers"):
        sg.no_grad(numbers)


@pytest.mark.parametrize("decorate", [sg.no_grad, lambda f: sg.no_grad()(f), lambda f: sg.set_grad_enabled(False)(f)])
def test_a_generator_under_a_switch_leaves_its_caller_alone(decorate):
    seen = []

    @decorate
    def numbers(n):
        try:
            for i in range(n):
                seen.append(sg.is_grad_enabled())
                try:
                    got = yield i
                except KeyError:
                    got = "caught"
                seen.append((got, sg.is_grad_enabled()))
            return "end"
        finally:
            seen.append(("left", sg.is_grad_enabled()))

    a, b = numbers(3), numbers(2)
    assert (next(a), sg.is_grad_enabled(), next(b), sg.is_grad_enabled()) == (0, True, 0, True)
    assert (a.send("x"), sg.is_grad_enabled()) == (1, True)
    assert (a.throw(KeyError), sg.is_grad_enabled()) == (2, True)
    with pytest.raises(StopIteration) as end:
        a.send("y")
    assert end.value.value == "end" and sg.is_grad_enabled()
    assert seen == [False, False, ("x", False), False, ("caught", False), False, ("y", False), ("left", False)]
    b.close()
    assert seen[-1] == ("left", False) and sg.is_grad_enabled()
    with pytest.raises(ZeroDivisionError):
        c = numbers(1)
        next(c)
        c.throw(ZeroDivisionError)
    assert seen[-1] == ("left", False) and sg.is_grad_enabled()


def test_a_coroutine_under_a_switch_leaves_others_alone():
    seen = []

    @sg.no_grad
    async def quiet():
        seen.append(sg.is_grad_enabled())
        await asyncio.sleep(0)
        seen.append(sg.is_grad_enabled())
        return 7

    async def both():
        task = asyncio.ensure_future(quiet())
        for _ in range(3):
            assert sg.is_grad_enabled()
            await asyncio.sleep(0)
        return await task

    assert asyncio.run(both()) == 7 and seen == [False, False] and sg.is_grad_enabled()


def test_decorated_functions_run_in_threads_of_either_mode():
    """Each call has a switch of its own: the mode that one thread comes with does not reach another."""
    gates = [threading.Event() for _ in range(3)]
    found = {}

    @sg.no_grad
    def work(entered, leave):
        entered.set()
        leave.wait(10)

    def first():
        work(gates[0], gates[1])
        found["first"] = sg.is_grad_enabled()
        gates[2].set()

    def second():
        gates[0].wait(10)
        with sg.no_grad():
            work(gates[1], gates[2])
            found["second"] = sg.is_grad_enabled()

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {"first": True, "second": False}


def test_grad_mode_belongs_to_the_thread():
    seen = []
    with sg.no_grad():
        thread = threading.Thread(target=lambda: seen.append(sg.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]
