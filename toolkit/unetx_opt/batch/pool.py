"""Several worker processes on this machine, each fed when it is free."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from unetx_opt.batch.settings import Task
from unetx_opt.batch.worker import SegmentWorker

__all__ = ["segment_tasks"]

_Answers = queue.SimpleQueue["dict[str, Any] | BaseException"]
_Tasks = queue.SimpleQueue["Task | None"]


def segment_tasks(workers: Sequence[SegmentWorker], tasks: Iterator[Task]) -> Iterator[dict[str, Any]]:
    """Segment tasks and give what became of each as it ends, in no order.

    At most two tasks per worker are on their way, so that memory does not grow with their number. When the generator
    is closed or raises, what is on its way may still be written by its worker.

    Raises
    ------
    UnetxError
        A worker process broke and could not be started again.
    """
    waiting: _Tasks = queue.SimpleQueue()
    answers: _Answers = queue.SimpleQueue()
    threads = [
        threading.Thread(target=_work, args=(worker, waiting, answers), daemon=True, name="segment worker")
        for worker in workers
    ]
    with contextlib.ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(waiting.put, None)
        under_way = 0
        for task in tasks:
            if under_way == 2 * len(workers):
                yield _take(answers)
                under_way -= 1
            waiting.put(task)
            under_way += 1
        for _ in range(under_way):
            yield _take(answers)


def _work(worker: SegmentWorker, waiting: _Tasks, answers: _Answers) -> None:
    while (task := waiting.get()) is not None:
        try:
            answers.put(worker.segment(task))
        except BaseException as error:  # told where it can be handled
            answers.put(error)
            return


def _take(answers: _Answers) -> dict[str, Any]:
    answer = answers.get()
    if isinstance(answer, BaseException):
        raise answer
    return answer
