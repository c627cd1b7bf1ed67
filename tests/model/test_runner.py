"""One thread owns the model; callers come, go and are never forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing

import pytest

from kvnet.errors import Cancelled, TooBusy
from kvnet.model.runner import ModelRunner

Cancel = Callable[[], bool]


class Gate:
    """A job that runs until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.opened.wait(10)
        return "through"


@pytest.fixture
async def runner() -> AsyncIterator[ModelRunner]:
    async with ModelRunner(max_waiting=2) as runner:
        yield runner


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.wait, 10)


async def test_every_job_runs_on_the_same_thread_and_not_on_the_loops(runner: ModelRunner) -> None:
    threads = {await runner.run(threading.get_ident) for _ in range(3)}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_result_arguments_and_errors_cross_over(runner: ModelRunner) -> None:
    assert await runner.run(divmod, 7, 2) == (3, 1)
    assert await runner.run(int, "ff", base=16) == 255
    with pytest.raises(ZeroDivisionError):
        await runner.run(divmod, 7, 0)
    assert await runner.run(abs, -1) == 1


async def test_loop_stays_free_while_a_job_runs(runner: ModelRunner, gate: Gate) -> None:
    async with asyncio.TaskGroup() as group:
        job = group.create_task(runner.run(gate))
        await entered(gate)
        assert not job.done()
        gate.opened.set()
    assert job.result() == "through"


async def test_full_line_is_too_busy_at_once(runner: ModelRunner, gate: Gate) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(runner.run(gate))
        await entered(gate)
        waiting = [group.create_task(runner.run(abs, -n)) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TooBusy, match="2 requests"):
            await runner.run(abs, 0)
        with pytest.raises(TooBusy):
            await anext(runner.stream(lambda _: iter(())))
        gate.opened.set()
    assert [task.result() for task in waiting] == [0, 1]


async def test_job_whose_caller_left_the_line_never_starts(runner: ModelRunner, gate: Gate) -> None:
    started: list[int] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(runner.run(gate))
        await entered(gate)
        waiting = group.create_task(runner.run(started.append, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        gate.opened.set()
    await runner.run(abs, 0)
    assert not started


async def test_items_arrive_in_order_and_the_generator_is_closed(runner: ModelRunner) -> None:
    closed: list[int] = []

    def count(_: Cancel) -> Iterator[int]:
        try:
            yield from range(200)
        finally:
            closed.append(threading.get_ident())

    assert [item async for item in runner.stream(count)] == list(range(200))
    assert closed == [await runner.run(threading.get_ident)]


async def test_items_arrive_while_the_generator_still_runs(runner: ModelRunner, gate: Gate) -> None:
    def items(_: Cancel) -> Iterator[str]:
        yield "first"
        yield gate()

    async with aclosing(runner.stream(items)) as stream:
        assert await anext(stream) == "first"
        gate.opened.set()
        assert await anext(stream) == "through"


async def test_error_in_the_generator_follows_its_items(runner: ModelRunner) -> None:
    def items(_: Cancel) -> Iterator[int]:
        yield 1
        raise Cancelled("gone")

    async with aclosing(runner.stream(items)) as stream:
        assert await anext(stream) == 1
        with pytest.raises(Cancelled, match="gone"):
            await anext(stream)


async def test_generator_stops_when_its_reader_leaves(runner: ModelRunner) -> None:
    produced: list[int] = []
    closed = threading.Event()

    def endless(cancelled: Cancel) -> Iterator[int]:
        try:
            while not cancelled():
                produced.append(len(produced))
                yield produced[-1]
        finally:
            closed.set()

    async with aclosing(runner.stream(endless)) as stream:
        async for item in stream:
            if item == 3:
                break
    assert await asyncio.to_thread(closed.wait, 10)
    assert await runner.run(abs, -1) == 1


async def test_generator_without_items_yet_learns_that_its_reader_was_cancelled(runner: ModelRunner) -> None:
    started, stopped = threading.Event(), threading.Event()

    def prefill(cancelled: Cancel) -> Iterator[int]:
        started.set()
        while not cancelled():
            threading.Event().wait(0.005)
        stopped.set()
        yield 1

    async def read() -> None:
        async with aclosing(runner.stream(prefill)) as stream:
            await anext(stream)

    reader = asyncio.create_task(read())
    await asyncio.to_thread(started.wait, 10)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await asyncio.to_thread(stopped.wait, 10)


async def test_generator_waits_for_a_slow_reader(runner: ModelRunner) -> None:
    produced: list[int] = []

    def items(_: Cancel) -> Iterator[int]:
        for number in range(1000):
            produced.append(number)
            yield number

    async with aclosing(runner.stream(items)) as stream:
        await anext(stream)
        await asyncio.sleep(0.05)
        assert len(produced) < 100


async def test_generator_whose_reader_left_the_line_never_starts(runner: ModelRunner, gate: Gate) -> None:
    started: list[int] = []

    def items(_: Cancel) -> Iterator[int]:
        started.append(1)
        yield 1

    async def read() -> None:
        async with aclosing(runner.stream(items)) as stream:
            await anext(stream)

    async with asyncio.TaskGroup() as group:
        group.create_task(runner.run(gate))
        await entered(gate)
        reader = group.create_task(read())
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])
        gate.opened.set()
    await runner.run(abs, 0)
    assert not started


async def test_closing_ends_what_runs_and_what_waits(gate: Gate) -> None:
    runner = ModelRunner()
    running = threading.Event()

    def endless(_: Cancel) -> Iterator[int]:
        while True:
            running.set()
            yield 1

    async def read() -> None:
        async with aclosing(runner.stream(endless)) as stream:
            async for _ in stream:
                pass

    tasks = [asyncio.create_task(read())]
    await asyncio.to_thread(running.wait, 10)
    tasks.append(asyncio.create_task(runner.run(abs, -1)))
    await asyncio.sleep(0)
    await runner.close()
    for task in tasks:
        with pytest.raises(Cancelled, match="shutting down"):
            await task
    with pytest.raises(Cancelled):
        await runner.run(abs, -1)
    await runner.close()


async def test_task_cancelled_while_the_runner_closes_stays_cancelled(gate: Gate) -> None:
    runner = ModelRunner()
    task = asyncio.create_task(runner.run(gate))
    await entered(gate)
    task.cancel()
    gate.opened.set()
    await runner.close()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nothing_is_left_behind(runner: ModelRunner) -> None:
    before = asyncio.all_tasks()
    async with aclosing(runner.stream(lambda _: iter(range(5)))) as stream:
        await anext(stream)
    assert asyncio.all_tasks() == before
    await runner.close()
    assert "kvnet-model" not in {thread.name for thread in threading.enumerate()}


async def test_error_that_the_reader_did_not_stay_for_is_not_reported(runner: ModelRunner) -> None:
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))

    def items(_: Cancel) -> Iterator[int]:
        yield 1
        raise RuntimeError("after the reader left")

    async with aclosing(runner.stream(items)) as stream:
        await anext(stream)
        await runner.run(abs, 0)
    await asyncio.sleep(0)
    assert not reports
