"""What a known peer may still send: files made to hurt, over a real association; and peers that are not known."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import pytest

from unetx_bench.bad_input.hostile import HOSTILE

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
pynetdicom = pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")

CASES = (
    *("deflate-1-gib", "nested-20000", "pixels-4-gib", "sides-65535-frames-2-31", "jpeg-2000-65535"),
    *("instance-uid-upwards", "study-uid-upwards", "series-uid-absolute", "window-width-0", "elf-preamble"),
)
_DX = "1.2.840.10008.5.1.4.1.1.1.1"


def send_raw(port: int, data: bytes, uid: str) -> int:
    """Send a file's data set as it lies there, which no well-behaved sender does; the status of the answer."""
    file = io.BytesIO(data)
    pydicom.filereader.read_preamble(file, False)
    meta = pydicom.filereader._read_file_meta_info(file)
    entity = pynetdicom.AE(ae_title="CR1")
    sop_class = meta.get("MediaStorageSOPClassUID", _DX)
    entity.add_requested_context(sop_class, meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", port, ae_title="NODE")
    assert association.is_established
    request = pynetdicom.dimse_primitives.C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, uid
    request.DataSet = io.BytesIO(file.read())
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    assert answer is not None, "the node gave no answer"
    return int(answer.Status)


@pytest.fixture(scope="module")
def node(make_shared, peers):
    nobody = f'dicom = {{ host = "127.0.0.1", port = {peers.free_port()}, ae_title = "NOBODY" }}\n'
    return make_shared(f'[[destination]]\nname = "pacs"\n{nobody}')


def test_files_made_to_hurt_end_with_a_reason_and_the_node_goes_on(node, peers, tmp_path):
    uids = {f"1.2.9.{index}": name for index, name in enumerate(CASES)}
    for uid, name in uids.items():
        assert send_raw(node.port, HOSTILE[name](), uid) == 0, name
    peers.wait_until(
        lambda: {node.state_of(uid) for uid in uids} <= {"done", "refused", "dead"}, "every one has ended", 120.0
    )
    ended = {uids[uid]: (state, reason) for uid, state, reason in node.receipts() if uid in uids}
    assert "dead" not in {state for state, _ in ended.values()}, ended
    assert all(reason for state, reason in ended.values() if state == "refused")
    must_refuse = {"deflate-1-gib", "nested-20000", "pixels-4-gib", "sides-65535-frames-2-31", "jpeg-2000-65535"}
    assert {ended[name][0] for name in must_refuse} == {"refused"}, ended
    # A path in a UID leads nowhere: what the node wrote is named after its own receipts.
    assert not Path("/tmp/evil").exists()
    assert not [path for path in node.state.rglob("*") if "evil" in path.name]
    memory = Path(f"/proc/{node.process.pid}/status").read_text().splitlines()
    assert int(next(line for line in memory if line.startswith("VmHWM")).split()[1]) < 400_000
    good = tmp_path / "good.dcm"
    good.write_bytes(peers.radiograph("1.2.9.100"))
    assert send_raw(node.port, good.read_bytes(), "1.2.9.100") == 0
    peers.wait_until(lambda: node.state_of("1.2.9.100") == "done", "an image is segmented after them")


def test_a_peer_from_another_address_is_refused_and_logged(node, peers):
    with socket.create_connection(("127.0.0.1", node.port), 5, source_address=("127.0.0.2", 0)) as connection:
        connection.settimeout(10)
        assert connection.recv(1) == b"", "the node answered a stranger"
    peers.wait_until(lambda: "refused: address, 127.0.0.2" in node.log, "it is logged")
