"""``node.toml``: what a node listens to, whom it lets in, what it makes and where it sends it."""

from __future__ import annotations

import dataclasses
import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from unetx_opt.errors import SpecError
from unetx_opt.node.audit_syslog import SyslogCollector
from unetx_opt.node.destinations import RESULT_KINDS, Destination
from unetx_opt.node.http_server import HttpSettings

__all__ = [
    "AuditSettings",
    "Limits",
    "ListenTls",
    "NodeConfig",
    "ResultSettings",
    "WorkSettings",
    "parse_config",
    "read_config",
]

_MAX_CONFIG_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ListenTls:
    """Mutual TLS of the receiver, as PEM files.

    Attributes
    ----------
    certificate_file, key_file : pathlib.Path
        What the node shows.
    client_ca_file : pathlib.Path
        Who signed the certificates of senders.
    allowed_sha256 : tuple of str
        SHA-256 (hex) of the certificates that may send; empty lets in every one that the authority signed.
    """

    certificate_file: Path
    key_file: Path
    client_ca_file: Path
    allowed_sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for digest in self.allowed_sha256:
            if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
                raise SpecError(f"allowed_sha256 has {digest!r}, expected 64 lower-case hexadecimal digits")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sender may use up.

    Attributes
    ----------
    associations : int
        At the same time.
    connections_per_address : int
        At the same time, with those that have not said who they are yet.
    pdu_bytes, message_bytes : int
        Of one PDU, and of one C-STORE with all its PDUs.
    handshake_s, idle_s, message_s : float
        From connection to association, between two messages, for one whole message.
    free_bytes : int
        With less free disk space than this, images are answered with 0xA700.
    waiting_images : int
        With more images waiting than this, too.
    """

    associations: int = 16
    connections_per_address: int = 32
    pdu_bytes: int = 1 << 18
    message_bytes: int = 256 << 20
    handshake_s: float = 10.0
    idle_s: float = 60.0
    message_s: float = 300.0
    free_bytes: int = 2 << 30
    waiting_images: int = 10_000

    def __post_init__(self) -> None:
        if min(self.associations, self.connections_per_address, self.waiting_images, self.free_bytes) < 1:
            raise SpecError("limits of associations, connections, images and free bytes: expected at least 1")
        if not 16_384 <= self.pdu_bytes <= 1 << 24 or not self.pdu_bytes <= self.message_bytes <= 1 << 31:
            raise SpecError(
                "limits of pdu_bytes and message_bytes: expected 16384 up to 16 MiB, and that up to 2 GiB"
            )
        if min(self.handshake_s, self.idle_s, self.message_s) <= 0:
            raise SpecError("limits of time: expected above 0 s")


@dataclass(frozen=True, slots=True)
class WorkSettings:
    """How images are segmented.

    Attributes
    ----------
    processes : int
        Each opens the bundle.
    threads : int or None
        CPU threads of one inference; None leaves it to the engine.
    attempts : int
        An image whose worker died this often is dead.
    read_timeout_s : float
        For reading one image.
    read_memory_mib : int
        Of the process that reads it.
    force : bool
        Take what is no single frontal chest radiograph.
    """

    processes: int = 1
    threads: int | None = None
    attempts: int = 3
    read_timeout_s: float = 30.0
    read_memory_mib: int = 3072
    force: bool = False

    def __post_init__(self) -> None:
        if self.processes < 1 or self.attempts < 1 or (self.threads is not None and self.threads < 1):
            raise SpecError("work has processes, attempts and threads: expected at least 1")


@dataclass(frozen=True, slots=True)
class ResultSettings:
    """How results are written.

    Attributes
    ----------
    segmentation_kind : str
        BINARY, FRACTIONAL or LABELMAP.
    udi : str or None
        Unique Device Identifier.
    keep_hours : float
        How long images and results are kept after everything was stored.
    """

    segmentation_kind: str = "BINARY"
    udi: str | None = None
    keep_hours: float = 24.0

    def __post_init__(self) -> None:
        if self.segmentation_kind not in ("BINARY", "FRACTIONAL", "LABELMAP") or self.keep_hours < 0:
            raise SpecError(
                "results: expected segmentation_kind BINARY, FRACTIONAL or LABELMAP, and keep_hours from 0"
            )


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Where the audit trail goes besides its file.

    Attributes
    ----------
    syslog : SyslogCollector or None
        A collector over TLS.
    """

    syslog: SyslogCollector | None = None


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """A whole configuration.

    Attributes
    ----------
    state : pathlib.Path
        Folder of everything that the node keeps.
    ae_title : str
        Its own; senders must name it.
    address, port : str, int
        What it listens to.
    calling_ae_titles, peer_addresses : tuple of str
        Who may connect: AE titles, and addresses or networks. Both must fit.
    destination : tuple of Destination
        Where results go.
    tls : ListenTls or None
        None listens in the clear.
    limits, work, results, http, audit
        See there.
    """

    state: Path
    ae_title: str
    port: int
    calling_ae_titles: tuple[str, ...]
    peer_addresses: tuple[str, ...]
    destination: tuple[Destination, ...]
    address: str = "127.0.0.1"
    tls: ListenTls | None = None
    limits: Limits = Limits()
    work: WorkSettings = WorkSettings()
    results: ResultSettings = ResultSettings()
    http: HttpSettings = field(default_factory=HttpSettings)
    audit: AuditSettings = AuditSettings()

    def __post_init__(self) -> None:
        for title in (self.ae_title, *self.calling_ae_titles):
            if not 0 < len(title.strip()) <= len(title) <= 16 or "\\" in title or not title.isprintable():
                raise SpecError(f"AE title is {title!r}, expected 1 to 16 printable characters without a backslash")
        if not self.calling_ae_titles or not self.peer_addresses:
            raise SpecError("calling_ae_titles and peer_addresses say who may send: expected at least one of each")
        if not 0 < self.port < 65536:
            raise SpecError(f"port is {self.port}, expected 1 to 65535")
        for text in (self.address, *self.peer_addresses):
            _parse_network(text)
        names = [destination.name for destination in self.destination]
        if not names or len(set(names)) < len(names):
            raise SpecError(f"destinations are {names}, expected at least one, and each name once")

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """`peer_addresses`, parsed."""
        return tuple(_parse_network(text) for text in self.peer_addresses)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind of result that a destination wants, in the order in which they are made."""
        wanted = {kind for destination in self.destination for kind in destination.results}
        return tuple(kind for kind in RESULT_KINDS if kind in wanted)


def read_config(path: Path) -> NodeConfig:
    """Read a configuration file; relative paths in it start at its folder.

    Raises
    ------
    SpecError
        It cannot be read, is no TOML, or has a key or value that cannot be meant.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise SpecError(f"{path} has over {_MAX_CONFIG_BYTES} bytes: that is no configuration")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"configuration {path} cannot be read: {error}") from error
    return parse_config(content, path)


def parse_config(content: Mapping[str, Any], path: Path) -> NodeConfig:
    """Validate the content of a configuration file; parameters and errors as of `read_config`."""
    from pydantic import TypeAdapter, ValidationError

    try:
        config = TypeAdapter(NodeConfig).validate_python(dict(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise SpecError(f"configuration {path}: {where}: {first['msg']}") from error
    except SpecError as error:
        raise SpecError(f"configuration {path}: {error}") from error
    if unknown := _unknown_keys(content, config):
        raise SpecError(f"configuration {path}: unknown key {unknown[0]}, expected one of {', '.join(unknown[1])}")
    rooted: NodeConfig = _rooted(config, path.resolve().parent)
    return rooted


def _parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise SpecError(f"address is {text!r}, expected one like 10.0.0.7 or 10.0.0.0/24") from error


def _unknown_keys(content: Any, value: Any, where: str = "") -> tuple[str, list[str]] | None:
    """The first key that no field takes, and what fields there are: a mistyped limit must not vanish silently."""
    if isinstance(content, Mapping) and dataclasses.is_dataclass(value):
        known = [item.name for item in dataclasses.fields(value)]
        for key, part in content.items():
            if key not in known:
                return f"{where}{key}", known
            if found := _unknown_keys(part, getattr(value, key), f"{where}{key}."):
                return found
    elif isinstance(content, list) and isinstance(value, tuple):
        for part, item in zip(content, value, strict=True):
            if found := _unknown_keys(part, item, where):
                return found
    return None


def _rooted(value: Any, folder: Path) -> Any:
    """Let relative paths start at a folder, however deep they are."""
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, tuple):
        return tuple(_rooted(item, folder) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {item.name: _rooted(getattr(value, item.name), folder) for item in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value
