"""Health, metrics and status over HTTP: what they say, and to whom."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from unetx_opt.errors import SpecError
from unetx_opt.node.http_server import HttpPlan, HttpSettings, serve_http
from unetx_opt.node.measures import MEASURES, count, observe
from unetx_opt.node.status import StatusSource
from unetx_opt.node.thumbnails import thumbnail_path, write_thumbnail

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")


@contextlib.contextmanager
def serving(node, page=True, checks=()):
    stop, listening, ports = threading.Event(), threading.Event(), []
    plan = HttpPlan(
        HttpSettings(port=0, page=page),
        node.connect,
        StatusSource("UNETX", node.folder / "thumbnails"),
        {"state": node.folder},
        checks,
    )

    def tell(port):
        ports.append(port)
        listening.set()

    thread = threading.Thread(target=serve_http, args=(plan, stop, tell))
    thread.start()
    assert listening.wait(10)
    try:
        yield ports[0]
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def ask(port, path, method="GET", **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def samples(text):
    """Name with labels -> value, read by prometheus-client's own parser."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_metrics_say_what_the_journal_holds(node):
    node.queue(3, ("pacs", "archive"))
    with contextlib.closing(node.connect()) as journal:
        journal.execute("UPDATE deliveries SET state = 'dead' WHERE destination = 'archive'")
        count(journal, "unetx_refusals", 'a "quoted"\nreason')
        count(journal, "unetx_worker_restarts", "worker", by=2)
        for seconds in (0.2, 0.3, 7200.0):
            observe(journal, "unetx_received_to_stored_seconds", seconds, "pacs")
    with serving(node) as port:
        status, headers, text = ask(port, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = samples(text)
    assert found["unetx_deliveries", (("destination", "pacs"), ("state", "waiting"))] == 3
    assert found["unetx_deliveries", (("destination", "pacs"), ("state", "dead"))] == 0
    assert found["unetx_deliveries", (("destination", "archive"), ("state", "dead"))] == 3
    assert found["unetx_receipts", (("state", "done"),)] == 3
    assert found["unetx_refusals_total", (("reason", 'a "quoted"\nreason'),)] == 1
    assert found["unetx_worker_restarts_total", (("part", "worker"),)] == 2
    assert 1 <= found["unetx_oldest_waiting_seconds", (("destination", "pacs"),)] < 60
    assert found["unetx_disk_free_bytes", (("folder", "state"),)] > 0
    name = "unetx_received_to_stored_seconds"
    buckets = {dict(labels)["le"]: value for (sample, labels), value in found.items() if sample == f"{name}_bucket"}
    assert (buckets["0.1"], buckets["0.25"], buckets["0.5"], buckets["3600.0"], buckets["+Inf"]) == (0, 1, 2, 2, 3)
    assert found[f"{name}_sum", (("destination", "pacs"),)] == pytest.approx(7200.5)
    assert found[f"{name}_count", (("destination", "pacs"),)] == 3


def test_every_measure_is_exposed_before_it_was_ever_counted(node):
    with serving(node) as port:
        text = ask(port, "/metrics")[2].decode()
    for name in MEASURES:
        assert re.search(rf"^# TYPE {name}(_total)? (counter|histogram)$", text, re.MULTILINE), name


def test_counters_outlive_the_process_and_go_with_their_transaction(node):
    for _ in range(2):
        with contextlib.closing(node.connect()) as journal:
            count(journal, "unetx_refusals", "size")
    with contextlib.closing(node.connect()) as journal:
        journal.execute("BEGIN")
        count(journal, "unetx_refusals", "size")
        journal.rollback()
    assert node.measures()["unetx_refusals", ("size",)] == {-2.0: 2.0}


@pytest.mark.parametrize("call", [(count, "none"), (count, "unetx_refusals"), (observe, "unetx_refusals", 1.0, "a")])
def test_a_measure_that_is_not_in_the_table_is_refused(node, call):
    with contextlib.closing(node.connect()) as journal, pytest.raises(SpecError):
        call[0](journal, *call[1:])


def test_health_is_503_with_the_reason_while_something_is_wrong(node):
    troubles = []
    with serving(node, checks=(lambda: troubles[0] if troubles else None,)) as port:
        assert ask(port, "/healthz")[0] == 200
        troubles.append("no worker runs")
        status, _, text = ask(port, "/healthz")
        assert status == 503
        assert json.loads(text) == {"healthy": False, "problems": ["no worker runs"]}
        troubles.clear()
        with contextlib.closing(node.connect()) as journal:
            journal.execute("DROP TABLE deliveries")
        status, _, text = ask(port, "/healthz")
        assert status == 503
        assert "journal" in json.loads(text)["problems"][0]
        assert ask(port, "/metrics")[0] == 503


@pytest.mark.parametrize("path", ["/", "/page.js", "/status.json", "/thumbnails/r0.png"])
def test_the_page_and_its_pictures_are_there_only_where_they_were_asked_for(node, path):
    node.queue(1)
    write_thumbnail(node.folder / "thumbnails", "r0", np.arange(600).reshape(20, 30), np.zeros((20, 30), np.uint8))
    with serving(node, page=False) as port:
        assert ask(port, path)[0] == 404
        assert ask(port, "/healthz")[0] == 200
    with serving(node) as port:
        status, headers, body = ask(port, path)
        assert status == 200
        assert body
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        "/thumbnails/../audit.jsonl",
        "/thumbnails/%2e%2e/audit.jsonl",
        "/thumbnails/..%2faudit.jsonl.png",
        "/thumbnails/.png",
        "/thumbnails/r0",
        "/../../etc/passwd",
        "/status_page/page.html",
    ],
)
def test_no_other_file_can_be_asked_for(node, path):
    (node.folder / "thumbnails").mkdir()
    (node.folder / "audit.jsonl").write_text("secret")
    (node.folder / "audit.jsonl.png").write_text("secret")
    with serving(node) as port, socket.create_connection(("127.0.0.1", port), 5) as plain:
        plain.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        answer = plain.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.0 404")
    assert b"secret" not in answer


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:9464", 200),
        ("[::1]:9464", 200),
        ("evil.example", 403),
        ("evil.example:9464", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_a_page_of_another_site_cannot_ask_under_its_own_name(node, host, status):
    with serving(node) as port:
        assert ask(port, "/status.json", Host=host)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(node, method):
    with serving(node) as port:
        assert ask(port, "/status.json", method)[0] == 501


def test_connections_that_say_nothing_cost_a_bounded_number_of_threads_and_end(node, peers, monkeypatch):
    import unetx_opt.node.http_server as module

    monkeypatch.setattr(module._Handler, "timeout", 0.5)
    with serving(node) as port, contextlib.ExitStack() as silent:
        for _ in range(40):
            silent.enter_context(socket.create_connection(("127.0.0.1", port), 5))
        assert threading.active_count() < 30

        def answers():
            with contextlib.suppress(OSError):
                return ask(port, "/healthz")[0] == 200

        peers.wait_until(answers, "health is told again once the silent ones were cut off")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "localhost", ""])
def test_no_address_but_loopback_is_taken(address):
    with pytest.raises(SpecError, match="127"):
        HttpSettings(address)


def test_thumbnails_are_small_and_the_oldest_are_forgotten(tmp_path):
    from PIL import Image

    labels = np.zeros((1955, 1841), np.uint8)
    labels[500:900, 400:800] = 1
    pixels = np.linspace(0, 4095, labels.size).reshape(labels.shape)
    write_thumbnail(tmp_path, "big", pixels, labels)
    with Image.open(tmp_path / "big.png") as picture:
        assert max(picture.size) <= 192
        colours = np.asarray(picture.convert("RGB")).astype(int)
        assert (np.ptp(colours, axis=2) > 40).mean() > 0.005, "the outline is there"
    for index in range(60):
        write_thumbnail(tmp_path, f"r{index}", pixels[:64, :64], labels[:64, :64])
    kept = {path.stem for path in tmp_path.glob("*.png")}
    assert len(kept) == 48
    assert "r59" in kept
    assert "big" not in kept
    assert thumbnail_path(tmp_path, "../x") is None
