"""The same work over a cluster: Ray Data distributes the inputs, and worker processes on its machines segment them.

Every machine must see the inputs, the bundle and the output folder under the same paths, and have this package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import platform
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.batch.settings import BatchSettings, EngineFacts, Task, settings_from_json, settings_to_json
from unetx_opt.batch.worker import SegmentWorker
from unetx_opt.errors import UnetxError
from unetx_opt.optional import require

if TYPE_CHECKING:
    from unetx_opt.batch.run import Runner

__all__ = ["ray_runner"]

#: Inputs that are handed to the cluster at once: the driver knows no more of them at a time, and the workers open the
#: bundle once for all of them.
PORTION: Final = 4096
#: Inputs of one unit of work.
_BLOCK: Final = 4
_KNOCK_S: Final = 10.0


def ray_runner(address: str, workers: int) -> Runner:
    """Return a runner over a Ray cluster.

    Parameters
    ----------
    address : str
        As `ray.init` takes it: "auto", "local" to start a cluster of this machine alone, "HOST:PORT", "ray://...".
    workers : int
        Workers, each with as many processors of the cluster as an inference has threads.

    Raises
    ------
    MissingPackageError
        Ray is not installed.
    UnetxError
        Nothing answers at the address.
    """
    ray = require("ray", purpose="segmenting over a cluster")
    _check_address(address)

    def run(
        settings: BatchSettings, facts: EngineFacts, first: SegmentWorker, tasks: Iterator[Task]
    ) -> Iterator[dict[str, Any]]:
        first.close()  # it has told what is to be opened, and its memory is wanted elsewhere
        data = require("ray.data", purpose="segmenting over a cluster")
        chosen = settings_to_json(dataclasses.replace(settings, target=facts.target))
        _connect(ray, address)
        try:
            data.DataContext.get_current().enable_progress_bars = False
            while portion := [_to_row(task) for task in itertools.islice(tasks, PORTION)]:
                blocks = -(-len(portion) // _BLOCK)
                answers = data.from_items(portion, override_num_blocks=blocks).map(
                    RaySegmenter,
                    fn_constructor_args=(chosen, dataclasses.asdict(facts)),
                    compute=data.ActorPoolStrategy(size=min(workers, blocks)),
                    num_cpus=settings.threads or 1,
                )
                for answer in answers.iter_rows():
                    yield _read_answer(answer["row"])
        except ray.exceptions.RayError as error:
            raise UnetxError(f"the Ray cluster failed ({type(error).__name__}): go on with --resume") from error
        finally:
            ray.shutdown()

    return run


class RaySegmenter:
    """What runs on a machine of the cluster: a worker process, which an input may break without harm to Ray.

    Parameters
    ----------
    settings : str
        As `settings_to_json` writes them.
    facts : dict
        Fields of the `EngineFacts` that the bundle must open with here, too.
    """

    def __init__(self, settings: str, facts: dict[str, Any]) -> None:
        self._worker = SegmentWorker(settings_from_json(settings), EngineFacts(**facts))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Segment one input; rows cross the cluster as text, since Arrow knows fewer types than JSON."""
        task = json.loads(row["task"])
        try:
            answer = self._worker.segment(Task(Path(task["source"]), task["stem"]))
        except UnetxError as error:  # of the worker and not of the input; told to the driver in its own words
            answer = {"fault": f"{platform.node()}: {error}"}
        return {"row": json.dumps(answer)}

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._worker.close()


def _read_answer(text: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(text)
    if "fault" in answer:
        raise UnetxError(answer["fault"])
    return answer


def _check_address(address: str) -> None:
    """Knock first: Ray itself would knock for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # "auto", "local"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UnetxError(f"no Ray cluster answers at {address} ({error}): start one, or say --ray local") from error


def _connect(ray: ModuleType, address: str) -> None:
    # Standard error is for the inputs, and a cluster that is started here does not report to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UnetxError(
            f"no Ray cluster at {address}: {reason}; one with token authentication wants RAY_AUTH_TOKEN here, too"
        ) from error


def _to_row(task: Task) -> dict[str, Any]:
    return {"task": json.dumps({"source": str(task.source), "stem": task.stem})}
