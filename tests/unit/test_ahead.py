"""An iterator in a thread of its own: order, errors, bounds, and its end."""

import contextvars
import threading
import time

import pytest

from combo_hf.files.ahead import running_ahead


def size(item):
    return 1


def threads():
    return {thread.ident for thread in threading.enumerate()}


def test_items_come_in_order_and_from_another_thread():
    before, seen = threads(), []
    named = contextvars.ContextVar("named", default="other")
    named.set("mine")

    def items():
        for number in range(20):
            seen.append((threading.get_ident(), named.get()))
            yield number

    with running_ahead(items(), size, 3) as ahead:
        assert list(ahead) == list(range(20))
        assert list(ahead) == []
    assert {name for _, name in seen} == {"mine"} and threading.get_ident() not in {ident for ident, _ in seen}
    assert threads() == before


@pytest.mark.parametrize("most", [0, 1, 5])
def test_it_runs_ahead_but_not_too_far(most):
    made = []

    def items():
        for number in range(30):
            made.append(number)
            yield number

    with running_ahead(items(), size, most) as ahead:
        for taken, _ in enumerate(ahead, start=1):
            deadline = time.monotonic() + 10
            while len(made) < min(30, taken + most) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert min(30, taken + most) <= len(made) <= taken + most + 1
            if taken == 10:
                break
    assert len(made) < 30


@pytest.mark.parametrize("error", [ValueError("no such film"), KeyboardInterrupt(), SystemExit(3)])
def test_errors_arrive_after_the_items_before_them(error):
    def items():
        yield 1
        raise error

    taken = []
    with pytest.raises(type(error)) as caught, running_ahead(items(), size, 9) as ahead:
        taken.extend(ahead)  # keeps what came before the error
    assert caught.value is error and taken in ([1], [])


@pytest.mark.parametrize("busy", [True, False], ids=["at work", "waiting"])
def test_an_error_of_the_block_ends_it_at_once(busy):
    before, closed = threads(), []

    def items():
        try:
            yield 1
            while True:
                if busy:
                    time.sleep(0.001)
                else:
                    yield 2
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt), running_ahead(items(), size, 2) as ahead:
        assert next(ahead) == 1
        raise KeyboardInterrupt
    assert closed == [True] and threads() == before
