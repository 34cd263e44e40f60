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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from unetx_opt.batch.settings import BatchSettings, EngineFacts, Task, settings_from_json, settings_to_json
from unetx_opt.batch.worker import SegmentWorker
from unetx_opt.optional import require

if TYPE_CHECKING:
    from unetx_opt.batch.run import Runner

__all__ = ["ray_runner"]

#: Inputs that are handed to the cluster at once: the driver knows no more of them at a time, and the workers open the
#: bundle once for all of them.
PORTION: Final = 4096
#: Inputs of one unit of work.
_BLOCK: Final = 4


def ray_runner(address: str, workers: int) -> Runner:
    """Return a runner over a Ray cluster.

    Parameters
    ----------
    address : str
        As `ray.init` takes it: "auto", "local" to start a cluster of this machine alone, "HOST:PORT", "ray://...".
    workers : int
        Workers, each with one processor of the cluster.

    Raises
    ------
    MissingPackageError
        Ray is not installed.
    """
    ray = require("ray", purpose="segmenting over a cluster")

    def run(
        settings: BatchSettings, facts: EngineFacts, first: SegmentWorker, tasks: Iterator[Task]
    ) -> Iterator[dict[str, Any]]:
        first.close()  # it has told what is to be opened, and its memory is wanted elsewhere
        data = require("ray.data", purpose="segmenting over a cluster")
        chosen = settings_to_json(dataclasses.replace(settings, target=facts.target))
        _silence_ray()
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        try:
            data.DataContext.get_current().enable_progress_bars = False
            while portion := [_to_row(task) for task in itertools.islice(tasks, PORTION)]:
                blocks = -(-len(portion) // _BLOCK)
                answers = data.from_items(portion, override_num_blocks=blocks).map(
                    RaySegmenter,
                    fn_constructor_args=(chosen, dataclasses.asdict(facts)),
                    compute=data.ActorPoolStrategy(size=min(workers, blocks)),
                    num_cpus=1,
                )
                for answer in answers.iter_rows():
                    yield json.loads(answer["row"])
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
        self._worker.open()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Segment one input; rows cross the cluster as text, since Arrow knows fewer types than JSON."""
        task = json.loads(row["task"])
        return {"row": json.dumps(self._worker.segment(Task(Path(task["source"]), task["stem"])))}

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._worker.close()


def _silence_ray() -> None:
    """Keep standard error for the inputs, and a cluster that is started here from reporting to its makers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _to_row(task: Task) -> dict[str, Any]:
    return {"task": json.dumps({"source": str(task.source), "stem": task.stem})}
