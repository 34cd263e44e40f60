"""Real peers for the node on loopback, with ports of their own: Orthanc with DICOMweb, and storescp of dcmtk."""

from __future__ import annotations

import datetime
import io
import ipaddress
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PATIENT_NAME = "Lovelace^Augusta"
PATIENT_ID = "patient-18151210"
_PATIENCE_S = 20.0


def free_port() -> int:
    """Find a port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dcmtk(program: str) -> str:
    """Path of one of dcmtk's programs; pynetdicom installs others of the same names beside Python."""
    found = shutil.which(program, path="/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"{program} of dcmtk is not installed: apt-get install dcmtk")
    return found


def orthanc_program() -> str:
    """Path of Orthanc with DICOMweb, or skip; Debian puts it where only root looks."""
    found = shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if found is None or not DICOMWEB_PLUGIN.exists():
        pytest.skip("Orthanc with its DICOMweb plugin is not installed: apt-get install orthanc orthanc-dicomweb")
    return found


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = _PATIENCE_S) -> Any:
    """Return the first true value of a condition, or fail and say what was waited for."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail(f"not within {patience_s} s: {what}")


def radiograph(sop_instance_uid: str = "1.2.3.4.5", shape: tuple[int, int] = (37, 53), **attributes: Any) -> bytes:
    """A DICOM file of a small chest CR; its patient's name and number are what no log line may hold."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    values = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
        "SOPInstanceUID": sop_instance_uid,
        "StudyInstanceUID": "1.2.3.1",
        "SeriesInstanceUID": "1.2.3.2",
        "PatientName": PATIENT_NAME,
        "PatientID": PATIENT_ID,
        "PatientBirthDate": "19500102",
        "PatientSex": "O",
        "StudyDate": "20240102",
        "StudyTime": "101112",
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientOrientation": ["L", "F"],
        "PixelSpacing": [0.2, 0.2],
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "PixelRepresentation": 0,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
    }
    dataset = pydicom.Dataset()
    for keyword, value in (values | attributes).items():
        setattr(dataset, keyword, value)
    dataset.Rows, dataset.Columns = shape
    pixels = bytes(index * 7 % 256 for index in range(shape[0] * shape[1]))
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def segmentation(source: bytes, kinds: tuple[str, ...] = ("seg",)) -> dict[str, bytes]:
    """Results of the project's own writer for a radiograph, with UIDs that stay the same."""
    np = pytest.importorskip("numpy")
    pytest.importorskip("highdicom", reason="highdicom is not installed")
    from unetx_opt.dicom.read import ReadOptions, read_dicom_bytes
    from unetx_opt.dicom.results.request import Algorithm, Findings, ResultOptions
    from unetx_opt.dicom.results.write import encode_results

    image = read_dicom_bytes(source, ReadOptions(with_source=True))
    labels = np.zeros(image.pixels.shape, np.uint8)
    labels[5:20, 5:20] = 1
    overlay = np.stack([labels * 200] * 3, axis=-1)
    findings = Findings(labels, ("background", "lung"), image.spacing_mm, overlay_rgb=overlay)
    algorithm = Algorithm("1.2.3", "ab" * 32)
    return dict(encode_results(kinds, image.source_json, findings, algorithm, ResultOptions(stable_uids=True)))


class Authority:
    """A certificate authority of one test, and what it issues for 127.0.0.1."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        pytest.importorskip("cryptography", reason="certificates need cryptography: pip install 'unetx-opt[sign]'")
        from cryptography.hazmat.primitives.asymmetric import ec

        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate_file = folder / f"{name}.crt"
        self._write(self.certificate_file, name, self._key, authority=True)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of one party, as PEM files."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        certificate_file, key_file = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        self._write(certificate_file, name, key, authority=False)
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate_file, key_file

    def _write(self, path: Path, name: str, key: Any, *, authority: bool) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import NameOID

        def called(text: str) -> Any:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        now = datetime.datetime.now(datetime.UTC)
        alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        public = self._key.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(called(name))
            .issuer_name(called(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@dataclass
class Orthanc:
    """A PACS that can be stopped and started again with what it has stored.

    Attributes
    ----------
    folder : pathlib.Path
        Of its configuration and its storage.
    modalities : mapping of str to tuple
        AE title -> (host, port) of those that may store, and that storage commitment is reported to.
    """

    folder: Path
    modalities: Mapping[str, tuple[str, int]]
    ae_title: str = "PACS"
    dicom_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def dicomweb_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    def start(self) -> None:
        """Start it and wait until it answers."""
        configuration = {
            "Name": self.ae_title,
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [str(DICOMWEB_PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": self.ae_title,
            "DicomPort": self.dicom_port,
            "DicomCheckCalledAet": True,
            "DicomCheckModalityHost": True,
            "DicomAlwaysAllowEcho": False,
            "DicomAlwaysAllowStore": False,
            "DicomModalities": {
                name: {"AET": name, "Host": host, "Port": port} for name, (host, port) in self.modalities.items()
            },
            "StableAge": 1,
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(configuration), encoding="utf-8")
        with (self.folder / "orthanc.log").open("ab") as log:
            self.process = subprocess.Popen([orthanc_program(), str(path)], stdout=log, stderr=log)
        wait_until(self._answers, "Orthanc answers")

    def stop(self) -> None:
        """End it as a person does, which takes it some seconds; what it stored stays."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def kill(self) -> None:
        """End it as a power cut does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def get(self, path: str) -> Any:
        """What its REST interface answers, as JSON."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=_PATIENCE_S) as answer:
            return json.load(answer)

    def download(self, path: str) -> bytes:
        """What its REST interface answers, as bytes."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=_PATIENCE_S) as answer:
            return bytes(answer.read())

    def instances(self) -> dict[str, str]:
        """SOP Instance UID -> Orthanc's own id of everything that is stored.

        The index has one row for each instance received; a second copy under another id fails the test here.
        """
        found = self.get("/instances?expand")
        stored = {str(row["MainDicomTags"]["SOPInstanceUID"]): str(row["ID"]) for row in found}
        assert len(stored) == len(found), "an instance is stored twice"
        return stored

    def file_of(self, sop_instance_uid: str) -> bytes:
        """The file of one instance."""
        return self.download(f"/instances/{self.instances()[sop_instance_uid]}/file")

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"Orthanc ended: {(self.folder / 'orthanc.log').read_text(errors='replace')[-2000:]}")
        try:
            return bool(self.get("/system"))
        except (urllib.error.URLError, OSError):
            return False


@dataclass
class StoreScp:
    """dcmtk's storescp; every association's files land in `folder`."""

    folder: Path
    arguments: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until its port is open."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [dcmtk("storescp"), "-od", str(self.folder), "-uf", *self.arguments, str(self.port)]
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._listens, "storescp listens")

    def stop(self) -> None:
        """End it; received files stay."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def files(self) -> list[Path]:
        """What was received."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
