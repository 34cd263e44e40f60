"""`build --sign-key`: a real build, signed, in both forms, with keys as OpenSSL writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from unetx_opt.cli.main import main


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key file."""
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.mark.parametrize("archive", [False, True], ids=["directory", "archive"])
def test_a_signed_build_verifies_with_its_key_and_with_no_other(
    tiny_checkpoint: Path, tmp_path: Path, keys: tuple[Path, Path], archive: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys
    output = tmp_path / "signed"
    arguments = ["build", "--variant", "attention", "--precision", "fp32", "--target", "onnxruntime-cpu"]
    arguments += ["--checkpoint", str(tiny_checkpoint), "--size", "64", "--sign-key", str(private), "-o", str(output)]
    assert main([*arguments, *(["--archive"] if archive else [])]) == 0
    assert main(["verify", str(output), "--public-key", str(public)]) == 0
    assert "which is trusted" in capsys.readouterr().out
    other = tmp_path / "other.pem"
    stranger = Ed25519PrivateKey.generate().public_key()
    other.write_bytes(stranger.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert main(["verify", str(output), "--public-key", str(other)]) == 1
    assert "expected" in capsys.readouterr().err


def test_a_key_that_cannot_sign_is_found_before_the_work(
    tiny_checkpoint: Path, tmp_path: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "signed"
    arguments = ["build", "--variant", "attention", "--precision", "fp32", "--checkpoint", str(tiny_checkpoint)]
    assert main([*arguments, "--sign-key", str(keys[1]), "-o", str(output)]) == 1
    assert "expected Ed25519" in capsys.readouterr().err
    assert not output.exists()
