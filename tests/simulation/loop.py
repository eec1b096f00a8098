"""An event loop whose time is virtual: when nothing is ready it jumps to the next timer. And threads that take turns with it."""

from __future__ import annotations

import asyncio
import asyncio.base_events
import itertools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextvars import Context, copy_context
from typing import Any, ClassVar

from tests.simulation.life import LIFE, Crashed, Life

_LAST_WORDS_MAX = 20  # places at which a coroutine may wait while it is closed
STEPS_AT_ONCE_MAX = 200_000  # callbacks without time passing: more are a loop that never waits


class Stuck(AssertionError):
    """Nothing can happen any more, or time stands still."""


class SimTask(asyncio.tasks._PyTask):  # type: ignore[name-defined,misc]
    """Hashed by its number, so that sets of tasks have the same order in each run."""

    _numbers = itertools.count()

    def __init__(self, *args: Any, **options: Any) -> None:
        self._number = next(SimTask._numbers)
        super().__init__(*args, **options)
        self._log_destroy_pending = False

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.base_events.BaseEventLoop):
    """Drops the callbacks of processes that were killed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._selector = self  # type: ignore[assignment]
        self._clock_resolution = 1e-6
        self._steps = 0
        self.tasks: list[SimTask] = []
        self.set_task_factory(self._make_task)
        self.errors: list[str] = []
        self.set_exception_handler(lambda loop, context: self.errors.append(str(context.get("exception") or context["message"])))

    def time(self) -> float:
        return self.now

    def select(self, timeout: float | None) -> list[Any]:
        """What the base class calls for I/O, of which there is none."""
        self._steps += 1
        if timeout is None:
            raise Stuck("every task waits and no timer is set")
        if timeout > 0 and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
            self._steps = 0
        if self._steps > STEPS_AT_ONCE_MAX:
            raise Stuck("time stands still")
        return []

    def close(self) -> None:
        self._selector = None  # type: ignore[assignment]
        super().close()
        _Thread.end_idle()

    def _process_events(self, events: list[Any]) -> None: ...
    def _write_to_self(self) -> None: ...

    def add_signal_handler(self, *args: Any) -> None: ...

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        context = context or copy_context()
        return super().call_soon(_alive(callback, context), *args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        context = context or copy_context()
        return super().call_at(when, _alive(callback, context), *args, context=context)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> SimTask:
        task = SimTask(coro, loop=loop, **options)
        if len(self.tasks) > 2000:
            self.tasks = [task for task in self.tasks if not task.done()]
        self.tasks.append(task)
        return task

    def bury(self) -> None:
        """End what the killed processes left, so that nothing of it is found later."""
        for task in self.tasks:
            if not task.done():
                _end(task.get_coro())
        self.tasks.clear()


def _end(coro: Any) -> None:
    """Close a coroutine from its innermost one on, as often as it waits for something on its way out: nobody hears it."""
    for _ in range(_LAST_WORDS_MAX):
        if hasattr(inner := getattr(coro, "cr_await", None), "cr_await"):
            _end(inner)
        try:
            coro.close()
            return
        except BaseException:  # noqa: BLE001 - see above
            continue


def _alive(callback: Any, context: Context) -> Callable[..., Any]:
    life = context.get(LIFE)
    if life is None:
        return callback  # type: ignore[no-any-return]

    def call(*args: Any) -> Any:
        return None if life.is_dead else callback(*args)

    return call


class _Thread:
    """Runs one fiber after another: to start a thread takes longer than most fibers do."""

    _idle: ClassVar[list[_Thread]] = []

    def __init__(self) -> None:
        self._has_work = threading.Lock()
        self._has_work.acquire()
        self._work: Callable[[], Callable[[], None]] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @classmethod
    def begin(cls, work: Callable[[], Callable[[], None]]) -> None:
        """`work` in a thread; what it returns is called when the thread may be used again."""
        thread = cls._idle.pop() if cls._idle else cls()
        thread._work = work
        thread._has_work.release()

    @classmethod
    def end_idle(cls) -> None:
        while cls._idle:
            thread = cls._idle.pop()
            thread._has_work.release()
            thread._thread.join()

    def _run(self) -> None:
        while True:
            self._has_work.acquire()
            work, self._work = self._work, None
            if work is None:
                return
            tell = work()
            del work  # what it holds is not kept until the next one
            self._idle.append(self)
            tell()
            del tell


class Fiber:
    """A function in a thread of its own that runs only while the loop waits for it: `resume` returns when it parks or ends."""

    current: Fiber | None = None

    def __init__(self, loop: VirtualLoop, work: Callable[[], Any]) -> None:
        self._loop, self._work, self._context = loop, work, copy_context()
        self.life: Life | None = LIFE.get()
        self._ours, self._theirs = threading.Lock(), threading.Lock()
        self._ours.acquire()
        self._theirs.acquire()
        self._timer: asyncio.TimerHandle | None = None
        self._woken_by: Any = None
        self.result: Future[Any] = Future()
        self.has_ended = False
        self._is_started = False
        self._thread = 0

    @property
    def is_here(self) -> bool:
        """Whether it is the fiber that asks: a thread that somebody left behind is none."""
        return self._thread == threading.get_ident()

    def resume(self, value: Any = None) -> None:
        """On the loop's thread (or from a fiber that starts another)."""
        if self.has_ended:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._woken_by = value
        before, Fiber.current = Fiber.current, self
        if self._is_started:
            self._theirs.release()
        else:
            self._is_started = True
            _Thread.begin(lambda: self._context.run(self._run))
        self._ours.acquire()
        Fiber.current = before

    def park(self, timeout_s: float | None) -> Any:
        """In the fiber: what `resume` gives, or None after `timeout_s`."""
        if self.life is not None and self.life.is_dead:
            raise Crashed
        if timeout_s is not None:
            self._timer = self._loop.call_later(timeout_s, self.resume)
        self._ours.release()
        self._theirs.acquire()
        if isinstance(self._woken_by, BaseException):
            raise self._woken_by
        return self._woken_by

    def kill(self) -> None:
        """End it where it parks."""
        if self._is_started and not self.has_ended and Fiber.current is not self:
            self.resume(Crashed())
        elif not self._is_started:
            self.has_ended = True

    def _run(self) -> Callable[[], None]:
        """Returns what lets the loop go on."""
        self._thread = threading.get_ident()
        error: BaseException | None = None
        value = None
        try:
            value = self._work()
        except BaseException as caught:  # noqa: BLE001 - whoever waits for the result gets it
            error = caught
        self.has_ended = True
        if error is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(value)
        return self._ours.release


class SimExecutor(Executor):
    """One worker, whose jobs begin `delay()` later and take no time. A job of another executor's job runs at once.

    `ThreadPoolExecutor` is replaced by it in the modules that the simulation runs."""

    delay: Callable[[], float] = staticmethod(lambda: 0.0)
    on_crash: Callable[[Life], None] = staticmethod(lambda life: None)

    def __init__(self, workers: int = 1, name: str = "") -> None:
        self._name = name
        self._jobs: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._fiber: Fiber | None = None
        self._life = LIFE.get()

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        job = (future, lambda: work(*args, **options))
        if Fiber.current is not None:
            _perform(*job)
            return future
        self._jobs.append(job)
        if self._fiber is None and len(self._jobs) == 1:
            _running_loop().call_later(SimExecutor.delay(), self._start)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._fiber is None and self._jobs:
            self._work()

    def _start(self) -> None:
        if self._jobs and self._fiber is None:
            self._fiber = Fiber(_running_loop(), self._work)
            self._fiber.result.add_done_callback(self._ended)
            if self._life is not None:
                self._life.cleanups.append(self._fiber)
            self._fiber.resume()

    def _work(self) -> None:
        while self._jobs:
            _perform(*self._jobs.pop(0))

    def _ended(self, result: Future[Any]) -> None:
        if self._life is not None and self._fiber in self._life.cleanups:
            self._life.cleanups.remove(self._fiber)
        self._fiber = None
        if isinstance(result.exception(), Crashed) and self._life is not None and not self._life.is_dead:
            _running_loop().call_soon(SimExecutor.on_crash, self._life)


def _perform(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except Crashed:
        raise
    except BaseException as error:  # noqa: BLE001 - as ThreadPoolExecutor does
        future.set_exception(error)
    else:
        future.set_result(result)


the_loop: VirtualLoop | None = None


def _running_loop() -> VirtualLoop:
    assert the_loop is not None
    return the_loop


class SimEvent:
    """`threading.Event` for a fiber: its `wait` lets virtual time pass."""

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: list[Fiber] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for fiber in self._waiting:
            _running_loop().call_soon(fiber.resume)

    def wait(self, timeout: float | None = None) -> bool:
        if self._is_set or Fiber.current is None:
            return self._is_set
        fiber = Fiber.current
        self._waiting.append(fiber)
        try:
            fiber.park(timeout)
        finally:
            self._waiting.remove(fiber)
        return self._is_set
