"""Where results go: what ``[[destination]]`` of a node's configuration says."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from unetx_opt.errors import SpecError

__all__ = ["Destination", "DicomPeer", "RetryPolicy", "StowPeer", "TlsFiles", "client_tls"]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
#: Kinds of results, as `unetx_opt.dicom.results.write.RESULTS` names them.
RESULT_KINDS: Final = ("seg", "sc", "gsps", "sr")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a TLS connection is proven with, as PEM files.

    Attributes
    ----------
    ca_file : pathlib.Path
        Certificates that the peer's must be signed by; those of the system are not used.
    certificate_file, key_file : pathlib.Path or None
        What the node shows of itself where the peer asks for it; both or none.
    """

    ca_file: Path
    certificate_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise SpecError("tls has one of certificate_file and key_file, expected both or none")


@dataclass(frozen=True, slots=True)
class DicomPeer:
    """A destination that takes C-STORE.

    Attributes
    ----------
    host, port : str, int
        Where it listens.
    ae_title, calling_ae_title : str
        Of the peer, and of the node towards it.
    tls : TlsFiles or None
        None sends in the clear.
    """

    host: str
    port: int
    ae_title: str
    calling_ae_title: str = "UNETX"
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        if not self.host or not 0 < self.port < 65536:
            raise SpecError(
                f"destination is {self.host!r} port {self.port}, expected a host and a port of 1 to 65535"
            )
        for title in (self.ae_title, self.calling_ae_title):
            if not 0 < len(title.strip()) <= len(title) <= 16 or "\\" in title or not title.isprintable():
                raise SpecError(f"AE title is {title!r}, expected 1 to 16 printable characters without a backslash")


@dataclass(frozen=True, slots=True)
class StowPeer:
    """A destination that takes STOW-RS (PS3.18 10.5).

    Attributes
    ----------
    url : str
        Root of its DICOMweb service, without ``/studies``; ``https``, or ``http`` on networks that are trusted.
    tls : TlsFiles or None
        None trusts the certificates of the system.
    token_file : pathlib.Path or None
        File of a bearer token, read before every transfer so that it can be renewed.
    """

    url: str
    tls: TlsFiles | None = None
    token_file: Path | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise SpecError(f"stow url is {self.url!r}, expected http(s)://HOST[:PORT]/PATH")
        if parts.username is not None or parts.password is not None:
            raise SpecError("stow url holds a user or a password: put a bearer token into token_file")
        if parts.scheme == "http" and self.token_file is not None and parts.hostname not in _LOOPBACK:
            raise SpecError(
                f"stow url is {self.url!r} with a token_file: a token leaves this machine over https only"
            )


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a result is sent again.

    Attributes
    ----------
    max_attempts : int
        A result that was not taken this often is dead: it is kept, and sent again by ``unetx-opt queue retry``.
    first_delay_s, max_delay_s : float
        The delay doubles from the first to the greatest; a random part of up to a half is taken off, so that many
        nodes do not come back at once. As it stands, 600 attempts last about four days.
    """

    max_attempts: int = 600
    first_delay_s: float = 2.0
    max_delay_s: float = 600.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or not 0 < self.first_delay_s <= self.max_delay_s <= 86400:
            raise SpecError(
                f"retry has {self.max_attempts} attempts and delays of {self.first_delay_s} to {self.max_delay_s} s, "
                "expected at least 1 attempt, and delays above 0 s and up to a day in rising order"
            )


@dataclass(frozen=True, slots=True)
class Destination:
    """One destination.

    Attributes
    ----------
    name : str
        As journal, metrics and ``unetx-opt queue`` call it.
    dicom, stow : DicomPeer, StowPeer or None
        Exactly one of them.
    results : tuple of str
        Kinds of results that it is sent.
    commitment : bool
        Ask for storage commitment (PS3.4 J) after storing; C-STORE only. The peer reports to the node's own AE
        title and port, which it must know.
    commitment_timeout_s : float
        How long a report is waited for before it is asked for again.
    commitment_linger_s : float
        How long the association of the request is kept for a report on it; most peers open one of their own.
    timeout_s : float
        How long any answer of the peer is waited for.
    retry : RetryPolicy
        When a result is sent again.
    """

    name: str
    dicom: DicomPeer | None = None
    stow: StowPeer | None = None
    results: tuple[str, ...] = ("seg",)
    commitment: bool = False
    commitment_timeout_s: float = 600.0
    commitment_linger_s: float = 0.0
    timeout_s: float = 30.0
    retry: RetryPolicy = RetryPolicy()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise SpecError(f"destination name is {self.name!r}, expected 1 to 32 of a-z, 0-9, _ and -")
        if (self.dicom is None) == (self.stow is None):
            raise SpecError(f"destination {self.name} needs exactly one of dicom and stow")
        if (
            not self.results
            or not set(self.results) <= set(RESULT_KINDS)
            or len(set(self.results)) < len(self.results)
        ):
            raise SpecError(
                f"destination {self.name} has the results {list(self.results)}, expected each at most once of "
                f"{', '.join(RESULT_KINDS)}"
            )
        if self.commitment and self.dicom is None:
            raise SpecError(
                f"destination {self.name} asks for storage commitment, which stow does not have: use dicom"
            )
        if not (
            0 < self.timeout_s <= 3600
            and 0 < self.commitment_timeout_s <= 7 * 86400
            and 0 <= self.commitment_linger_s <= 60
        ):
            raise SpecError(
                f"destination {self.name} has a time out of range: expected timeout_s up to an hour, "
                "commitment_timeout_s up to a week and commitment_linger_s up to a minute"
            )

    @property
    def peer(self) -> DicomPeer | StowPeer:
        """The one that is set."""
        peer = self.dicom or self.stow
        if peer is None:
            raise SpecError(f"destination {self.name} needs exactly one of dicom and stow")
        return peer


def client_tls(files: TlsFiles) -> ssl.SSLContext:
    """Make the context of a connection to a peer: TLS 1.2 or later, certificate and host name checked.

    Raises
    ------
    SpecError
        A file cannot be read, or is no certificate or key.
    """
    try:
        context = ssl.create_default_context(cafile=str(files.ca_file))
        if files.certificate_file is not None and files.key_file is not None:
            context.load_cert_chain(files.certificate_file, files.key_file)
    except (OSError, ssl.SSLError) as error:
        names = [str(path) for path in (files.ca_file, files.certificate_file, files.key_file) if path is not None]
        raise SpecError(f"TLS cannot be set up from {', '.join(names)}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
