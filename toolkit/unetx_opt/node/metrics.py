"""What Prometheus reads: the journal's rows as gauges, the kept measures as counters and histograms."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from unetx_opt import __version__
from unetx_opt.node.deliveries import DELIVERY_STATES, count_deliveries
from unetx_opt.node.measures import MEASURES, read_measures
from unetx_opt.optional import require

__all__ = ["CONTENT_TYPE", "render_metrics"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PURPOSE: Final = "the node's metrics"
_SUM, _COUNT = -1.0, -2.0


def render_metrics(journal: sqlite3.Connection, folders: Mapping[str, Path]) -> bytes:
    """Render all metrics in Prometheus' text format.

    Parameters
    ----------
    journal : sqlite3.Connection
        Read, never written.
    folders : mapping of str to pathlib.Path
        Name -> a folder whose free disk space is told.

    Raises
    ------
    MissingPackageError
        prometheus-client is not installed.
    """
    client: Any = require("prometheus_client", purpose=_PURPOSE)
    # A registry of its own: the library's global one has gauges of this process, which is not the node.
    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(_Collector(journal, folders))
    text: bytes = client.generate_latest(registry)
    return text


class _Collector:
    """Everything, read once at the moment of a scrape."""

    def __init__(self, journal: sqlite3.Connection, folders: Mapping[str, Path]) -> None:
        self._journal, self._folders = journal, folders

    def collect(self) -> Iterator[Any]:
        """Yield families, as prometheus-client asks for."""
        yield from self._gauges()
        yield from self._kept()

    def _gauges(self) -> Iterator[Any]:
        core: Any = require("prometheus_client.core", purpose=_PURPOSE)
        build = core.GaugeMetricFamily("unetx_build", "Version of the node", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        deliveries = core.GaugeMetricFamily("unetx_deliveries", "Results by state", labels=["destination", "state"])
        counts = count_deliveries(self._journal)
        for destination in sorted({name for name, _ in counts}):
            for state in DELIVERY_STATES:
                deliveries.add_metric([destination, state], counts.get((destination, state), 0))
        yield deliveries
        oldest = core.GaugeMetricFamily(
            "unetx_oldest_waiting_seconds", "Age of the receipt whose result waits longest", labels=["destination"]
        )
        for destination, received_at in self._journal.execute(
            "SELECT d.destination, min(r.received_at) FROM deliveries d JOIN receipts r USING (receipt_id) "
            "WHERE d.state IN ('waiting', 'sending') GROUP BY d.destination"
        ):
            oldest.add_metric([destination], max(0.0, time.time() - received_at))
        yield oldest
        receipts = core.GaugeMetricFamily("unetx_receipts", "Received images by state", labels=["state"])
        for state, number in self._journal.execute("SELECT state, count(*) FROM receipts GROUP BY state"):
            receipts.add_metric([state], number)
        yield receipts
        free = core.GaugeMetricFamily("unetx_disk_free_bytes", "Free space of a folder's disk", labels=["folder"])
        for name, path in self._folders.items():
            free.add_metric([name], shutil.disk_usage(path).free)
        yield free

    def _kept(self) -> Iterator[Any]:
        core: Any = require("prometheus_client.core", purpose=_PURPOSE)
        found = read_measures(self._journal)
        for name, measure in MEASURES.items():
            family_kind = core.HistogramMetricFamily if measure.buckets else core.CounterMetricFamily
            family = family_kind(name, measure.help, labels=list(measure.labels))
            for (found_name, labels), values in sorted(found.items()):
                if found_name != name or len(labels) != len(measure.labels):
                    continue
                if measure.buckets:
                    family.add_metric(list(labels), _cumulate(values, measure.buckets), values.get(_SUM, 0.0))
                else:
                    family.add_metric(list(labels), values.get(_COUNT, 0.0))
            yield family


def _cumulate(values: Mapping[float, float], bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    buckets, total = [], 0.0
    for bound in bounds:
        total += values.get(bound, 0.0)
        buckets.append((repr(bound), total))
    return [*buckets, ("+Inf", values.get(_COUNT, 0.0))]
