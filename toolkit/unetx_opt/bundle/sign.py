"""Signatures of bundles: Ed25519 (RFC 8032) over the manifest, which holds the hash of every other file.

``manifest.sig.json`` stands beside the manifest. The signed message is a fixed line followed by the bytes of
``manifest.json``, so that a signature of a bundle is never a valid signature of anything else. The manifest names the
key that signed it: a bundle whose signature was taken away is refused by every reader, and one that was signed anew
with another key is refused by those who demand the first.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from unetx_opt.bundle.strict_json import parse_object
from unetx_opt.errors import BundleError, SpecError
from unetx_opt.optional import require

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "MAX_SIGNATURE_BYTES",
    "SIGNATURE_NAME",
    "Signature",
    "Signer",
    "VerifyingKey",
    "check_signature",
    "parse_signature",
    "read_signer",
    "read_verifying_key",
]

SIGNATURE_NAME: Final = "manifest.sig.json"
MAX_SIGNATURE_BYTES: Final = 4096
_FORMAT: Final = "unetx-opt signature 1"
_DOMAIN: Final = b"unetx-opt bundle manifest, signature 1\n"
_ED25519: Final = "cryptography.hazmat.primitives.asymmetric.ed25519"
_SERIALIZATION: Final = "cryptography.hazmat.primitives.serialization"
_EXCEPTIONS: Final = "cryptography.exceptions"
_MAX_KEY_BYTES: Final = 65_536
_MAKE_KEYS: Final = (
    "openssl genpkey -algorithm ed25519 -out key.pem, then openssl pkey -in key.pem -pubout -out public.pem"
)


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key.

    Attributes
    ----------
    raw : bytes
        The 32 bytes of RFC 8032.
    """

    raw: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of `raw`: how manifests and messages name the key."""
        return hashlib.sha256(self.raw).hexdigest()


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key, ready to sign.

    Attributes
    ----------
    key : VerifyingKey
        Its public half.
    sign : callable
        Bytes of a manifest -> bytes of ``manifest.sig.json``.
    """

    key: VerifyingKey
    sign: Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Signature:
    """The content of ``manifest.sig.json``.

    Attributes
    ----------
    key_sha256 : str
        Which key made it, see `VerifyingKey.sha256`.
    signature : bytes
        64 bytes.
    """

    key_sha256: str
    signature: bytes


def read_signer(path: Path, password: Callable[[], str] | None = None) -> Signer:
    """Read a private key to sign with.

    Parameters
    ----------
    path : pathlib.Path
        An Ed25519 key in PEM (PKCS #8).
    password : callable, optional
        Asked once where the key is encrypted.

    Raises
    ------
    SpecError
        The file is no such key, or the password is wrong or missing.
    MissingPackageError
        The package cryptography is not installed.
    """
    ed25519 = require(_ED25519, purpose="signing a bundle")
    serialization = require(_SERIALIZATION, purpose="signing a bundle")
    data = _read_key(path)
    secret = None
    if b"ENCRYPTED" in data:
        if password is None:
            raise SpecError(f"{path} is encrypted and there is nobody to ask for its password: decrypt it first")
        secret = password().encode()
    try:
        key = serialization.load_pem_private_key(data, secret)
    except (ValueError, TypeError) as error:
        raise SpecError(
            f"{path} is no private key in PEM that can be read with this password, expected Ed25519: {_MAKE_KEYS}"
        ) from error
    except _unsupported() as error:
        raise SpecError(
            f"{path} holds a kind of key that is not known here, expected Ed25519: {_MAKE_KEYS}"
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise SpecError(f"{path} is a {type(key).__name__}, expected an Ed25519 private key: {_MAKE_KEYS}")
    public = VerifyingKey(_raw(key.public_key()))
    return Signer(public, lambda manifest: _sign(key, public, manifest))


def read_verifying_key(path: Path) -> VerifyingKey:
    """Read a public key to check signatures with.

    Parameters
    ----------
    path : pathlib.Path
        An Ed25519 key in PEM (SubjectPublicKeyInfo).

    Raises
    ------
    SpecError
        The file is no such key.
    MissingPackageError
        The package cryptography is not installed.
    """
    ed25519 = require(_ED25519, purpose="checking a signature")
    serialization = require(_SERIALIZATION, purpose="checking a signature")
    data = _read_key(path)
    if b"PRIVATE KEY" in data:
        raise SpecError(f"{path} is a private key: pass its public half (openssl pkey -in {path.name} -pubout)")
    try:
        key = serialization.load_pem_public_key(data)
    except _unreadable() as error:
        raise SpecError(f"{path} is no public key in PEM, expected Ed25519: {_MAKE_KEYS}") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise SpecError(f"{path} is a {type(key).__name__}, expected an Ed25519 public key: {_MAKE_KEYS}")
    return VerifyingKey(_raw(key))


def parse_signature(data: bytes, source: str = SIGNATURE_NAME) -> Signature:
    """Read ``manifest.sig.json`` that came from anywhere.

    Raises
    ------
    BundleError
        It is not one, or is of another format.
    """
    if len(data) > MAX_SIGNATURE_BYTES:
        raise BundleError(f"{source} has {len(data)} bytes, expected at most {MAX_SIGNATURE_BYTES}")
    raw = parse_object(data, source)
    if set(raw) != {"format", "key_sha256", "signature"} or not all(isinstance(value, str) for value in raw.values()):
        raise BundleError(f"{source} is not a signature as this program writes it: get the bundle again")
    if raw["format"] != _FORMAT:
        raise BundleError(f"{source} has the format {raw['format'][:40]!r}, expected {_FORMAT!r}: update unetx-opt")
    try:
        signature = base64.b64decode(raw["signature"], validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    if len(signature) != 64 or len(raw["key_sha256"]) != 64:
        raise BundleError(f"{source} does not hold a key's hash and 64 bytes of signature: get the bundle again")
    return Signature(raw["key_sha256"], signature)


def check_signature(manifest: bytes, signature: Signature | None, trusted: Sequence[VerifyingKey]) -> VerifyingKey:
    """Demand that one of some keys signed a manifest.

    Parameters
    ----------
    manifest : bytes
        The content of ``manifest.json``.
    signature : Signature or None
        What stands beside it; None where nothing does.
    trusted : sequence of VerifyingKey
        Who may have signed it.

    Returns
    -------
    VerifyingKey
        Whose signature it is.

    Raises
    ------
    BundleError
        There is no signature, it is by another key, or the manifest is not what was signed.
    """
    if signature is None:
        raise BundleError("the bundle is not signed, and a signature is demanded: ask its maker for a signed one")
    key = next((key for key in trusted if key.sha256 == signature.key_sha256), None)
    if key is None:
        expected = " or ".join(key.sha256[:16] for key in trusted) or "none"
        raise BundleError(
            f"the bundle is signed by the key {signature.key_sha256[:16]}, expected {expected}: get the bundle from "
            "its maker, or pass that maker's public key"
        )
    ed25519 = require(_ED25519, purpose="checking a signature")
    invalid: type[Exception] = require(_EXCEPTIONS, purpose="checking a signature").InvalidSignature
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key.raw).verify(signature.signature, _DOMAIN + manifest)
    except invalid:
        raise BundleError(
            f"the signature of the key {key.sha256[:16]} does not fit the manifest: the bundle was altered after it "
            "was signed; get it again"
        ) from None
    return key


def _sign(key: Ed25519PrivateKey, public: VerifyingKey, manifest: bytes) -> bytes:
    content = {
        "format": _FORMAT,
        "key_sha256": public.sha256,
        "signature": base64.b64encode(key.sign(_DOMAIN + manifest)).decode("ascii"),
    }
    return (json.dumps(content, indent=1) + "\n").encode("ascii")


def _raw(key: Ed25519PublicKey) -> bytes:
    serialization = require(_SERIALIZATION, purpose="reading a key")
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _unreadable() -> tuple[type[Exception], ...]:
    return (ValueError, TypeError, *_unsupported())


def _unsupported() -> tuple[type[Exception], ...]:
    return (require(_EXCEPTIONS, purpose="reading a key").UnsupportedAlgorithm,)


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}; expected a key in PEM") from error
    if len(data) > _MAX_KEY_BYTES:
        raise SpecError(f"{path} has more than {_MAX_KEY_BYTES} bytes: it is no key in PEM")
    return data
