"""The peers themselves: what other tests rely on is true of them."""

from __future__ import annotations

import subprocess
from pathlib import Path


def test_orthanc_keeps_what_it_stored_and_refuses_strangers(make_orthanc, peers, tmp_path: Path) -> None:
    pacs = make_orthanc({"FRIEND": ("127.0.0.1", 1)})
    sample = tmp_path / "sample.dcm"
    sample.write_bytes(peers.radiograph())

    def send(calling: str) -> int:
        command = [peers.dcmtk("storescu"), "-aet", calling, "-aec", "PACS", "127.0.0.1", str(pacs.dicom_port)]
        return subprocess.run([*command, str(sample)], capture_output=True, check=False).returncode

    assert send("STRANGER") != 0
    assert pacs.instances() == {}
    assert send("FRIEND") == 0
    before = pacs.instances()
    assert list(before) == ["1.2.3.4.5"]
    pacs.stop()
    pacs.start()
    assert pacs.instances() == before
    assert pacs.file_of(next(iter(before)))[128:132] == b"DICM"
    assert pacs.get("/plugins/dicom-web")["ID"] == "dicom-web"
