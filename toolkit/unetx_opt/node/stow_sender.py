"""Results over STOW-RS (PS3.18 10.5): the bytes of the file, one request each."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any, Final

from unetx_opt.node.destinations import StowPeer
from unetx_opt.node.outcome import Outcome, Verdict, judge_status
from unetx_opt.node.sender import Sender
from unetx_opt.optional import require

__all__ = ["StowSender"]

_MAX_ANSWER_BYTES: Final = 1 << 20
_MAX_TOKEN_BYTES: Final = 1 << 14
_CONNECT_S: Final = 10.0
_FAILED_SEQUENCE: Final = "00081198"
_FAILURE_REASON: Final = "00081197"

#: Answers that say nothing about the object; others are judged by their hundred.
_HTTP: Final = {
    400: (Verdict.REFUSED, "bad request"),
    401: (Verdict.ABSENT, "not authenticated"),
    403: (Verdict.ABSENT, "not allowed"),
    404: (Verdict.ABSENT, "no such service"),
    405: (Verdict.ABSENT, "no such service"),
    413: (Verdict.REFUSED, "too large"),
    415: (Verdict.REFUSED, "media type not supported"),
    422: (Verdict.REFUSED, "cannot be processed"),
    429: (Verdict.ABSENT, "too many requests"),
    502: (Verdict.ABSENT, "not available"),
    503: (Verdict.ABSENT, "not available"),
    504: (Verdict.ABSENT, "not available"),
}


class StowSender(Sender):
    """Results over STOW-RS.

    Parameters
    ----------
    peer : StowPeer
        Where they go.
    timeout_s : float
        How long an answer is waited for.
    """

    def __init__(self, peer: StowPeer, *, timeout_s: float) -> None:
        requests: Any = require("requests", purpose="sending over STOW-RS")
        self._peer = peer
        self._timeout_s = timeout_s
        self._session = requests.Session()
        # Neither proxies nor passwords of the environment take part, and no other host is followed to.
        self._session.trust_env = False
        if peer.tls is not None:
            self._session.verify = str(peer.tls.ca_file)
            if peer.tls.certificate_file is not None:
                self._session.cert = (str(peer.tls.certificate_file), str(peer.tls.key_file))

    def send(self, path: Path) -> Outcome:
        """Post one file, byte for byte."""
        requests: Any = require("requests", purpose="sending over STOW-RS")
        boundary = secrets.token_hex(16)
        try:
            body = _multipart(path.read_bytes(), boundary)
        except FileNotFoundError:
            return Outcome(Verdict.REFUSED, "its file is gone")
        try:
            headers = self._headers(boundary)
        except OSError as error:
            return Outcome(Verdict.ABSENT, f"its token file cannot be read ({type(error).__name__})")
        try:
            with self._session.post(
                f"{self._peer.url.rstrip('/')}/studies",
                data=body,
                headers=headers,
                timeout=(min(self._timeout_s, _CONNECT_S), self._timeout_s),
                allow_redirects=False,
                stream=True,
            ) as answer:
                text = answer.raw.read(_MAX_ANSWER_BYTES, decode_content=True)
                return _judge(answer.status_code, text, answer.headers.get("Retry-After", ""))
        except (requests.RequestException, OSError) as error:
            return Outcome(Verdict.ABSENT, f"no answer: {type(error).__name__}")
        except Exception as error:  # urllib3's own errors while the answer is read
            if not type(error).__module__.startswith("urllib3"):
                raise
            return Outcome(Verdict.ABSENT, f"answer lost: {type(error).__name__}")

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def _headers(self, boundary: str) -> dict[str, str]:
        headers = {
            "Accept": "application/dicom+json",
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        }
        if self._peer.token_file is not None:
            with self._peer.token_file.open("r", encoding="ascii") as file:
                headers["Authorization"] = f"Bearer {file.read(_MAX_TOKEN_BYTES).strip()}"
        return headers


def _multipart(data: bytes, boundary: str) -> bytes:
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode("ascii")
    return b"".join((head, data, f"\r\n--{boundary}--\r\n".encode("ascii")))


def _judge(status: int, text: bytes, retry_after: str) -> Outcome:
    failed, reason = _failure(text)
    if reason is not None:
        return judge_status(reason)
    if status == 200 and not failed:
        return Outcome(Verdict.STORED, "HTTP 200")
    if status == 202 and failed is False:  # stored with warnings, and the answer says so
        return Outcome(Verdict.STORED, "HTTP 202, stored with a warning")
    pause_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 6 else 0.0
    verdict, meaning = _HTTP.get(status, (Verdict.AGAIN, "not stored"))
    return Outcome(verdict, f"HTTP {status}, {meaning}", pause_s)


def _failure(text: bytes) -> tuple[bool | None, int | None]:
    """Whether the one instance that was sent failed, None where no DICOM JSON says it, and the Failure Reason."""
    try:
        answer = json.loads(text)
        failed = answer.get(_FAILED_SEQUENCE, {}).get("Value") or []
    except (ValueError, AttributeError, RecursionError):
        return None, None
    if not failed:
        return False, None
    try:
        return True, int(failed[0][_FAILURE_REASON]["Value"][0])
    except (LookupError, TypeError, ValueError):
        return True, None
