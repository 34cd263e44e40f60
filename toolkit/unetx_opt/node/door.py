"""Who may connect: addresses before a thread is started for them, certificates in that thread."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from unetx_opt.errors import SpecError
from unetx_opt.node.config import ListenTls, NodeConfig
from unetx_opt.optional import require

__all__ = ["Door", "make_server_class", "server_tls"]

_LOG: Final = logging.getLogger(__name__)


def server_tls(files: ListenTls) -> ssl.SSLContext:
    """Make the context of a receiver: TLS 1.2 or later, and a certificate of the sender.

    Raises
    ------
    SpecError
        A file cannot be read, or is no certificate or key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(files.certificate_file, files.key_file)
        context.load_verify_locations(files.client_ca_file)
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(map(str, (files.certificate_file, files.key_file, files.client_ca_file)))
        raise SpecError(f"TLS cannot be set up from {names}: {error}") from error
    return context


class Door:
    """Decides about connections.

    Parameters
    ----------
    config : NodeConfig
        Of the node.
    refuse : callable
        f(reason, address, detail=...), which logs, counts and records.
    """

    def __init__(self, config: NodeConfig, refuse: Callable[..., None]) -> None:
        self._networks, self._limits, self._refuse = config.networks, config.limits, refuse
        self._allowed = () if config.tls is None else config.tls.allowed_sha256
        self._context = None if config.tls is None else server_tls(config.tls)
        self._beginning: Counter[str] = Counter()
        self._lock = threading.Lock()

    def admit(self, address: str, associations: int) -> bool:
        """Whether an address may open one more connection beside its associations."""
        parsed = ipaddress.ip_address(address.partition("%")[0])
        plain = getattr(parsed, "ipv4_mapped", None) or parsed
        if not any(plain in network for network in self._networks):
            self._refuse("address", address)
            return False
        with self._lock:
            open_now = self._beginning[address] + associations
        if open_now >= self._limits.connections_per_address:
            self._refuse("connections", address, detail=f"{open_now} are open")
            return False
        return True

    def count(self, address: str, change: int) -> None:
        """A connection of an address begins, or has become an association or nothing."""
        with self._lock:
            self._beginning[address] += change
            if not self._beginning[address]:
                del self._beginning[address]

    def secure(self, request: Any, address: str) -> Any:
        """Shake hands where TLS is asked for; None where the other side does not prove who it is."""
        if self._context is None:
            return request
        request.settimeout(self._limits.handshake_s)
        try:
            secured = self._context.wrap_socket(request, server_side=True)
        except (OSError, ValueError) as error:
            self._refuse("certificate", address, detail=str(getattr(error, "reason", None) or type(error).__name__))
            return None
        digest = hashlib.sha256(secured.getpeercert(binary_form=True) or b"").hexdigest()
        if self._allowed and digest not in self._allowed:
            self._refuse("certificate", address, detail=f"not allowed, SHA-256 {digest}")
            secured.close()
            return None
        return secured


def make_server_class(door: Door) -> Any:
    """Make the class of a server with a door, of pynetdicom's, which is known at run time only."""
    transport: Any = require("pynetdicom.transport", purpose="receiving images")
    base: Any = transport.ThreadedAssociationServer

    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        addresses = [association.requestor.address for association in self.active_associations]
        return door.admit(client_address[0], addresses.count(client_address[0]))

    def process_request_thread(self: Any, request: Any, client_address: Any) -> None:
        door.count(client_address[0], 1)
        try:
            secured = door.secure(request, client_address[0])
            if secured is None:
                self.shutdown_request(request)
            else:
                base.process_request_thread(self, secured, client_address)
        finally:
            door.count(client_address[0], -1)

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        _LOG.warning("a connection from %s ended in its first moments", client_address[0])

    methods = {
        "verify_request": verify_request,
        "process_request_thread": process_request_thread,
        "handle_error": handle_error,
        "daemon_threads": True,
        "block_on_close": False,
        "request_queue_size": 64,
    }
    return type("Server", (base,), methods)
