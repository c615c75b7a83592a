"""Run shard tasks in processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import forkserver
from typing import TypeVar

from sharding.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

#: An engine runs ``function`` on every task, in any order and possibly more than once, and yields each result once.
Engine = Callable[[Callable[[Task], Result], Iterable[Task]], Iterator[Result]]

_ATTEMPTS = 3

#: Workers are forked from a process that has these imported, which spares each of them half a second. It has one
#: thread and nothing open, so that forking it is safe, as forking the caller would not be.
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["sharding.build"]


def inline(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Run the tasks one after the other in this process."""
    return map(function, tasks)


def warm_up() -> None:
    """Start, in the background, the process that workers are forked from: its imports then overlap with planning."""
    _CONTEXT.set_forkserver_preload(_PRELOADED)
    forkserver.ensure_running()


def process_pool(processes: int) -> Engine:
    """Return an engine of ``processes`` fresh Python processes; a task whose process dies is run again elsewhere."""
    warm_up()

    def run(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        waiting = iter(tasks)
        again: list[tuple[Task, int]] = []
        while True:
            batch = yield from _until_broken(processes, function, waiting, again)
            if not batch:
                return
            again = batch

    return run


def _until_broken(
    processes: int, function: Callable[[Task], Result], waiting: Iterator[Task], again: list[tuple[Task, int]]
) -> Generator[Result, None, list[tuple[Task, int]]]:
    """Work until all is done, or until a process died: then return the tasks that were in its pool's hands."""
    # Tasks that lost a process run one at a time: then it is known which of them kills its process.
    limit = 1 if again else 2 * processes
    pending: dict[Future[Result], tuple[Task, int]] = {}
    with ProcessPoolExecutor(processes, _CONTEXT, _begin, (dict(os.environ),)) as pool:
        try:
            while True:
                while len(pending) < limit and (again or (limit > 1 and (more := list(islice(waiting, 1))))):
                    task, attempts = again.pop(0) if again else (more[0], 0)
                    pending[pool.submit(function, task)] = (task, attempts)
                if not pending:
                    if limit > 1:
                        return []
                    limit = 2 * processes
                    continue
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    del pending[future]
                    yield result
        except BrokenProcessPool as error:
            return [*_retried(pending.values(), limit, error), *again]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):
                process.terminate()  # what they were writing has no final name yet
            raise


def _retried(pending: Iterable[tuple[Task, int]], limit: int, error: BrokenProcessPool) -> list[tuple[Task, int]]:
    tasks = [(task, attempts + (limit == 1)) for task, attempts in pending]
    if any(attempts >= _ATTEMPTS for _, attempts in tasks):
        named = getattr(tasks[0][0], "name", tasks[0][0])
        raise UserError(
            f"the process that worked on {named} died {_ATTEMPTS} times", "out of memory? try fewer --processes"
        ) from error
    return tasks


def _begin(environment: dict[str, str]) -> None:
    """Take on the caller's environment, and die when the caller is killed: an orphan would wait for tasks for ever.

    Ctrl-C reaches every process of a terminal; the main one alone decides what happens then.
    """
    os.environ.clear()  # the process that this one was forked from may be older than the caller's settings
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
