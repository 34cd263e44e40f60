"""Health, metrics and the status page over HTTP, on loopback and nowhere else."""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from unetx_opt.errors import SpecError
from unetx_opt.node.metrics import CONTENT_TYPE, render_metrics
from unetx_opt.node.status import StatusSource, describe_status
from unetx_opt.node.thumbnails import thumbnail_path

__all__ = ["HttpPlan", "HttpSettings", "serve_http"]

_LOG: Final = logging.getLogger(__name__)
_MAX_CONNECTIONS: Final = 16
_TIMEOUT_S: Final = 10.0
_NAMES: Final = frozenset({"127.0.0.1", "[::1]", "localhost"})
_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
)


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """What a configuration says about it.

    Attributes
    ----------
    address : str
        An address of loopback.
    port : int
        0 takes a free one.
    page : bool
        Whether there is a status page. Its thumbnails show image data to whoever has an account on this machine.
    """

    address: str = "127.0.0.1"
    port: int = 9464
    page: bool = False

    def __post_init__(self) -> None:
        try:
            local = ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            local = False
        if not local or not 0 <= self.port < 65536:
            raise SpecError(
                f"http is {self.address!r} port {self.port}, expected 127.0.0.1 or ::1, and a port "
                "up to 65535: put a proxy that knows its users before it for others"
            )


@dataclass(frozen=True, slots=True)
class HttpPlan:
    """What is served.

    Attributes
    ----------
    settings : HttpSettings
        Where.
    connect : callable
        f() -> a connection of its own to the journal.
    status : StatusSource
        What the page is made from.
    folders : mapping of str to pathlib.Path
        Folders whose free disk space is told.
    checks : sequence of callable
        f() -> what is wrong, or None; the node is healthy when the journal answers and none of them has anything.
    """

    settings: HttpSettings
    connect: Callable[[], sqlite3.Connection]
    status: StatusSource
    folders: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))
    checks: Sequence[Callable[[], str | None]] = ()


@dataclass(frozen=True, slots=True)
class _Answer:
    status: HTTPStatus
    content_type: str
    body: bytes


def serve_http(plan: HttpPlan, stop: threading.Event, on_listening: Callable[[int], None] | None = None) -> None:
    """Serve until `stop` is set.

    Parameters
    ----------
    plan : HttpPlan
        What.
    stop : threading.Event
        Set by the caller.
    on_listening : callable, optional
        f(port), once requests are taken.

    Raises
    ------
    OSError
        The port is taken.
    """
    with _Server(plan) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="http", daemon=True)
        thread.start()
        if on_listening is not None:
            on_listening(server.server_port)
        stop.wait()
        server.shutdown()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 4 * _MAX_CONNECTIONS

    def __init__(self, plan: HttpPlan) -> None:
        self.plan = plan
        self.room = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        if ":" in plan.settings.address:
            self.address_family = socket.AF_INET6
        super().__init__((plan.settings.address, plan.settings.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection where there is room; idle ones of somebody else must not use up the node's threads."""
        if not self.room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, and make room again."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong without the request."""
        _LOG.warning("a request for health, metrics or status failed")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_S
    server_version = "unetx-opt"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests of a monitor every few seconds are no news."""

    def _answer(self, *, with_body: bool) -> None:
        answer = self._find()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in _HEADERS:
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def _find(self) -> _Answer:
        # A page of another site may let the browser ask here under its own name (DNS rebinding).
        host = self.headers.get("Host", "")
        if host.rpartition(":")[0] not in _NAMES and host not in _NAMES:
            return _text(HTTPStatus.FORBIDDEN, "ask for 127.0.0.1")
        route = _ROUTES.get(self.path.partition("?")[0])
        plan = self.server.plan
        try:
            if route is not None and (plan.settings.page or not route.of_page):
                return route.answer(plan)
            if plan.settings.page and self.path.startswith(_THUMBNAILS):
                return _thumbnail(plan, self.path.removeprefix(_THUMBNAILS))
        except sqlite3.Error as error:
            return _text(HTTPStatus.SERVICE_UNAVAILABLE, f"the journal does not answer: {type(error).__name__}")
        return _text(HTTPStatus.NOT_FOUND, "nothing here")


@dataclass(frozen=True, slots=True)
class _Route:
    answer: Callable[[HttpPlan], _Answer]
    of_page: bool = False


def _text(status: HTTPStatus, text: str) -> _Answer:
    return _Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode())


def _json(status: HTTPStatus, content: object) -> _Answer:
    return _Answer(status, "application/json", json.dumps(content, allow_nan=False).encode())


def _health(plan: HttpPlan) -> _Answer:
    problems = [problem for check in plan.checks if (problem := check()) is not None]
    try:
        with closing(plan.connect()) as journal:
            journal.execute("SELECT count(*) FROM deliveries WHERE state = 'sending'").fetchone()
    except sqlite3.Error as error:
        problems.append(f"the journal does not answer: {type(error).__name__}")
    status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
    return _json(status, {"healthy": not problems, "problems": problems})


def _metrics(plan: HttpPlan) -> _Answer:
    with closing(plan.connect()) as journal:
        return _Answer(HTTPStatus.OK, CONTENT_TYPE, render_metrics(journal, plan.folders))


def _status(plan: HttpPlan) -> _Answer:
    with closing(plan.connect()) as journal:
        return _json(HTTPStatus.OK, describe_status(journal, plan.status))


def _thumbnail(plan: HttpPlan, name: str) -> _Answer:
    path = thumbnail_path(plan.status.thumbnails, name.removesuffix(".png"))
    try:
        if path is not None and name.endswith(".png"):
            return _Answer(HTTPStatus.OK, "image/png", path.read_bytes())
    except OSError:
        pass
    return _text(HTTPStatus.NOT_FOUND, "no picture")


def _file(name: str, content_type: str) -> _Route:
    def answer(plan: HttpPlan) -> _Answer:
        data = resources.files("unetx_opt.node").joinpath("status_page", name).read_bytes()
        return _Answer(HTTPStatus.OK, content_type, data)

    return _Route(answer, of_page=True)


_THUMBNAILS: Final = "/thumbnails/"
_ROUTES: Final[Mapping[str, _Route]] = MappingProxyType(
    {
        "/healthz": _Route(_health),
        "/metrics": _Route(_metrics),
        "/status.json": _Route(_status, of_page=True),
        "/": _file("page.html", "text/html; charset=utf-8"),
        "/page.css": _file("page.css", "text/css; charset=utf-8"),
        "/icon.svg": _file("icon.svg", "image/svg+xml"),
        "/page.js": _file("page.js", "text/javascript; charset=utf-8"),
    }
)
