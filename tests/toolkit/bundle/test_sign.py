"""Signatures of bundles, against the cryptography package's own verification and OpenSSL's key formats."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from unetx_opt.bundle.check import check_bundle
from unetx_opt.bundle.open import open_verified
from unetx_opt.bundle.sign import (
    Signature,
    VerifyingKey,
    check_signature,
    parse_signature,
    read_signer,
    read_verifying_key,
)
from unetx_opt.bundle.write import staged_bundle, write_bundle
from unetx_opt.errors import BundleError, SpecError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def private_file(path: Path, key: Ed25519PrivateKey = KEY, password: bytes | None = None) -> Path:
    protection = NoEncryption() if password is None else BestAvailableEncryption(password)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection))
    return path


def public_file(path: Path, key: Ed25519PrivateKey = KEY) -> Path:
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def trusted(key: Ed25519PrivateKey = KEY) -> tuple[VerifyingKey]:
    return (VerifyingKey(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)),)


@pytest.fixture
def signed_bundle(tmp_path: Path, samples: Any) -> Callable[..., Path]:
    def make(name: str = "bundle", *, archive: bool = False, key: Ed25519PrivateKey = KEY) -> Path:
        signer = read_signer(private_file(tmp_path / "key.pem", key))
        with staged_bundle(tmp_path / name, archive=archive) as directory:
            samples.write_into(directory, signer=signer)
        return tmp_path / name

    return make


@pytest.mark.parametrize("archive", [False, True], ids=["directory", "archive"])
def test_a_signed_bundle_opens_with_and_without_its_key(
    signed_bundle: Callable[..., Path], samples: Any, archive: bool
) -> None:
    path = signed_bundle(archive=archive)
    with open_verified(path) as bundle:
        assert bundle.manifest.signing_key_sha256 == trusted()[0].sha256
    with open_verified(path, trusted()) as bundle:
        assert bundle.read("model-card.md") == samples.files["model-card.md"]
    with open_verified(path, (*trusted(OTHER), *trusted())):
        pass
    check = check_bundle(path, trusted())
    assert (check.problems, check.signature_proven) == ((), True)
    assert not check_bundle(path).signature_proven


def test_the_signature_is_plain_ed25519_over_the_manifest_with_a_first_line_of_its_own(
    signed_bundle: Callable[..., Path],
) -> None:
    path = signed_bundle()
    content = json.loads((path / "manifest.sig.json").read_bytes())
    message = b"unetx-opt bundle manifest, signature 1\n" + (path / "manifest.json").read_bytes()
    Ed25519PublicKey.from_public_bytes(trusted()[0].raw).verify(base64.b64decode(content["signature"]), message)
    with pytest.raises(InvalidSignature):
        KEY.public_key().verify(base64.b64decode(content["signature"]), message[39:])


def test_every_byte_of_a_signed_bundle_matters_to_those_who_demand_the_key(
    signed_bundle: Callable[..., Path],
) -> None:
    path = signed_bundle()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content = file.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1} if content else set():
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(BundleError):
                open_verified(path, trusted())
            assert check_bundle(path, trusted()).problems
        file.write_bytes(content)
    open_verified(path, trusted()).close()


def test_a_swapped_engine_with_a_renewed_manifest_and_checksum_is_refused(
    signed_bundle: Callable[..., Path], samples: Any, tmp_path: Path
) -> None:
    path = signed_bundle()
    other = tmp_path / "other"
    shutil.copytree(path, other)
    for name in ("manifest.json", "manifest.sha256", "sbom.cdx.json", "manifest.sig.json"):
        (other / name).unlink()
    (other / "engines/cpu/model.onnx").write_bytes(b"another network")
    write_bundle(other, samples.make_manifest())  # unsigned and sound
    open_verified(other).close()
    with pytest.raises(BundleError, match="is not signed, and a signature is demanded"):
        open_verified(other, trusted())
    # With the old signature put back, no reader takes it, with or without a key.
    shutil.copy(path / "manifest.sig.json", other)
    with pytest.raises(BundleError, match="the manifest names no key"):
        open_verified(other)


def test_a_stripped_signature_is_refused_by_every_reader(signed_bundle: Callable[..., Path]) -> None:
    path = signed_bundle()
    (path / "manifest.sig.json").unlink()
    for keys in (None, trusted()):
        with pytest.raises(BundleError, match="was taken away"):
            open_verified(path, keys)
    assert "was taken away" in check_bundle(path).problems[0]


def test_a_signature_by_another_key_is_refused(signed_bundle: Callable[..., Path]) -> None:
    mine, theirs = signed_bundle("mine"), signed_bundle("theirs", key=OTHER)
    with pytest.raises(BundleError, match=r"is signed by the key .* expected"):
        open_verified(theirs, trusted())
    shutil.copy(theirs / "manifest.sig.json", mine)
    with pytest.raises(BundleError, match="the manifest names"):
        open_verified(mine)


def test_a_signature_that_only_names_the_trusted_key_is_refused(signed_bundle: Callable[..., Path]) -> None:
    path = signed_bundle()
    signature = json.loads((path / "manifest.sig.json").read_bytes())
    signature["signature"] = base64.b64encode(OTHER.sign(b"anything")).decode()
    (path / "manifest.sig.json").write_text(json.dumps(signature))
    open_verified(path).close()  # nobody demanded a proof
    with pytest.raises(BundleError, match="does not fit the manifest"):
        open_verified(path, trusted())


@given(manifest=st.binary(max_size=200), place=st.integers(0, 63))
def test_no_altered_signature_or_manifest_passes(manifest: bytes, place: int) -> None:
    good = KEY.sign(b"unetx-opt bundle manifest, signature 1\n" + manifest)
    sha256 = trusted()[0].sha256
    assert check_signature(manifest, Signature(sha256, good), trusted()) == trusted()[0]
    bad = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
    for data, signature in ((manifest, bad), (manifest + b" ", good)):
        with pytest.raises(BundleError):
            check_signature(data, Signature(sha256, signature), trusted())


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"x" * 5000, b'{"format":"unetx-opt signature 2","key_sha256":"a","signature":"b"}'],
    ids=["empty", "list", "no fields", "large", "another format"],
)
def test_a_file_that_is_no_signature_gets_one_clear_line(data: bytes) -> None:
    with pytest.raises(BundleError) as caught:
        parse_signature(data)
    assert "\n" not in str(caught.value)


def test_an_encrypted_key_asks_for_its_password(tmp_path: Path) -> None:
    path = private_file(tmp_path / "key.pem", password=b"secret")
    assert read_signer(path, lambda: "secret").key == trusted()[0]
    with pytest.raises(SpecError, match="read with this password"):
        read_signer(path, lambda: "wrong")
    with pytest.raises(SpecError, match="nobody to ask"):
        read_signer(path)


def test_keys_of_another_kind_or_half_are_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    curve = tmp_path / "curve.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    curve.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(SpecError, match="expected an Ed25519 private key: openssl genpkey"):
        read_signer(curve)
    curve.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(SpecError, match="expected an Ed25519 public key"):
        read_verifying_key(curve)
    with pytest.raises(SpecError, match="is a private key: pass its public half"):
        read_verifying_key(private_file(tmp_path / "key.pem"))
    for content in (b"", b"\x00" * 70_000, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        curve.write_bytes(content)
        for read in (read_signer, read_verifying_key):
            with pytest.raises(SpecError):
                read(curve)
    assert read_verifying_key(public_file(tmp_path / "public.pem")) == trusted()[0]
