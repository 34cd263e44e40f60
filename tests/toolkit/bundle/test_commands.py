"""`inspect` and `verify` on bundles that run, that do not run here, and that are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unetx_opt.bundle.parts import Engine, GateEvidence
from unetx_opt.bundle.sign import Signer
from unetx_opt.bundle.write import staged_bundle, write_bundle
from unetx_opt.cli.main import main
from unetx_opt.specs import EngineRecord

Build = Callable[..., Path]


def graph(scale: float, *, height: int = 64, width: int = 96, rows: int | None = None) -> bytes:
    """An ONNX model of one line: logits = scale * (image - 0.5)."""
    onnx = pytest.importorskip("onnx", reason="making a graph needs onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Sub", ["image", "half"], ["centred"])]
    nodes.append(helper.make_node("Mul", ["centred", "scale"], ["logits"]))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "line",
            [helper.make_tensor_value_info("image", kind, ["n", 1, height, width])],
            [helper.make_tensor_value_info("logits", kind, ["n", 1, rows or height, width])],
            [helper.make_tensor("half", kind, [], [0.5]), helper.make_tensor("scale", kind, [], [scale])],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return bytes(model.SerializeToString())


@pytest.fixture
def build(tmp_path: Path, samples: Any) -> Build:
    """Makes a bundle whose engines are ONNX files, given by name, or records of other targets."""

    def make(
        files: dict[str, bytes], *others: EngineRecord, archive: bool = False, signer: Signer | None = None
    ) -> Path:
        path = tmp_path / "bundle"
        records = [EngineRecord("onnxruntime-cpu", (name,), settings={"file": name}) for name in files]
        manifest = samples.make_manifest(
            engines=tuple(Engine.from_record(record) for record in (*records, *others)),
            gate=GateEvidence(name="off", images=None),
            model_card=None,
        )
        with staged_bundle(path, archive=archive) as directory:
            for name, data in files.items():
                (directory / name).write_bytes(data)
            for other in others:
                (directory / other.files[0]).write_bytes(b"plan")
            write_bundle(directory, manifest, signer)
        return path

    return make


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_inspect_shows_what_is_in_a_bundle(capsys: pytest.CaptureFixture[str], samples: Any) -> None:
    code, out, err = run(capsys, "inspect", samples.root / "bundle.unetx")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for expected in (
        "bundle.unetx (archive, 5 files besides the manifest,",
        "Variant attention",
        "-19.7 % against unet at equal width",
        "Parameters 12,345",
        "64 x 96 px, 1 channel(s), percentiles 0.5 to 99.5 become 0 to 1, padding 0",
        "fp16: 20 float16, 1 float32 in the graph",
        "softmax: overflows in float16",
        "engines/rtx/sm86.plan",
        "CUDA 8.6, 8.9",
        "strict passed, by running the engine",
        "Not built: tensorrt: tensorrt is not installed",
        "Gate strict on 1 image(s) of phantom",
        "mean Dice kept 0.9996 >= 0.999 passed",
        "ab" * 32,
        "torch 2.13.0, onnx 1.23.2",
        "Note Not for diagnosis.",
    ):
        assert expected in text


def test_inspect_as_json_is_the_manifest_and_what_follows_from_it(
    capsys: pytest.CaptureFixture[str], samples: Any
) -> None:
    code, out, _ = run(capsys, "inspect", samples.root / "bundle", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["manifest"] == json.loads((samples.root / "bundle" / "manifest.json").read_bytes())
    assert result["derived"]["operations_change_percent"] == pytest.approx(-19.7)
    rtx = result["derived"]["engines"][1]
    assert (rtx["target"], rtx["size_bytes"], rtx["layer_counts"]) == ("tensorrt-rtx", 256, {"float16": 2})


def test_inspect_takes_no_text_of_a_manifest_for_markup(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, samples: Any
) -> None:
    samples.write_into(
        tmp_path, samples.make_manifest(variant="[red]x[/red]", notes=("[link=http://x]y[/link]:boom:",))
    )
    _, out, _ = run(capsys, "inspect", tmp_path)
    assert "[red]x[/red]" in out
    assert "[link=http://x]y[/link]:boom:" in out


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_damaged_bundle_is_one_line_and_exit_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, samples: Any, command: str
) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    (bundle / "model-card.md").write_bytes(b"# A modem\n")
    code, _, err = run(capsys, command, bundle)
    assert code == 1
    assert err.startswith(f"error: {bundle}: model-card.md was altered")
    assert err.count("\n") == 1
    code, _, err = run(capsys, command, tmp_path / "nothing")
    assert code == 1
    assert err == f"error: {tmp_path / 'nothing'} does not exist: expected a bundle, as unetx-opt build makes it\n"


def test_verify_reports_every_problem(capsys: pytest.CaptureFixture[str], tmp_path: Path, samples: Any) -> None:
    bundle = samples.directory(tmp_path / "bundle")
    (bundle / "model-card.md").write_bytes(b"# A modem\n")
    (bundle / "empty.txt").unlink()
    code, out, err = run(capsys, "verify", bundle, "--json")
    result = json.loads(out)
    assert (code, result["ok"], len(result["problems"])) == (1, False, 2)
    assert result["engines"] == []
    assert "(and 1 more problems)" in err


@pytest.mark.parametrize("archive", [False, True], ids=["directory", "archive"])
def test_verify_runs_every_engine_and_compares_them(
    capsys: pytest.CaptureFixture[str], build: Build, archive: bool
) -> None:
    rtx = EngineRecord("tensorrt-rtx", ("sm86.plan",), compute_capabilities=("1.0",))
    path = build({"a.onnx": graph(20.0), "b.onnx": graph(20.1)}, rtx, archive=archive)
    code, out, err = run(capsys, "verify", path, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["ok"]
    assert result["preferred"] == "onnxruntime-cpu"
    ran = [engine for engine in result["engines"] if engine["ran"]]
    assert [engine["target"] for engine in ran] == [
        "onnxruntime-cpu (file=a.onnx)",
        "onnxruntime-cpu (file=b.onnx)",
    ]
    (skipped,) = [engine for engine in result["engines"] if not engine["ran"]]
    assert skipped["target"] == "tensorrt-rtx"
    assert skipped["reason"]
    (comparison,) = result["comparisons"]
    assert 0 < comparison["mean_probability_difference"] < 0.01
    code, out, _ = run(capsys, "verify", path)
    assert code == 0
    assert out.splitlines()[-1] == "ok"
    assert "signature none" in out


def test_verify_finds_engines_that_disagree(capsys: pytest.CaptureFixture[str], build: Build) -> None:
    code, _, err = run(capsys, "verify", build({"a.onnx": graph(20.0), "b.onnx": graph(-20.0)}))
    assert code == 1
    assert "disagree: their probabilities differ by" in err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("not a graph", "cannot load"),
        ("infinite", "NaN or infinite"),
        ("another size", "onnxruntime-cpu"),
    ],
)
def test_verify_finds_an_engine_that_does_not_work(
    capsys: pytest.CaptureFixture[str], build: Build, name: str, expected: str
) -> None:
    data = {
        "not a graph": b"plan",
        "infinite": graph(float("inf")),
        "another size": graph(1.0, height=128, width=128),
    }[name]
    code, out, err = run(capsys, "verify", build({"a.onnx": data}))
    assert code == 1
    assert expected in err
    assert "problem" in out


def test_an_engine_whose_arithmetic_this_machine_lacks_is_not_run(
    capsys: pytest.CaptureFixture[str], build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetx_opt.runtime.segmenter import Segmenter

    monkeypatch.setattr(Segmenter, "compute_dtype", "bfloat16")
    code, out, err = run(capsys, "verify", build({"a.onnx": graph(20.0)}))
    assert code == 1
    assert "it computes bfloat16 on this machine, its record says float32" in err
    assert "not run   onnxruntime-cpu" in out


def test_an_engine_that_refuses_the_arithmetic_of_this_machine_is_not_run_and_no_problem(
    capsys: pytest.CaptureFixture[str], build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetx_opt.runtime.sessions import onnxruntime
    from unetx_opt.runtime.sessions.base import OpenRequest, OtherArithmeticError

    real = onnxruntime.open_onnxruntime

    def open_but_the_first(request: OpenRequest) -> onnxruntime.OnnxRuntimeSession:
        if request.record.files == ("a.onnx",):
            raise OtherArithmeticError("it computes float32 on this machine")
        return real(request)

    monkeypatch.setattr(onnxruntime, "open_onnxruntime", open_but_the_first)
    code, out, err = run(capsys, "verify", build({"a.onnx": graph(20.0), "b.onnx": graph(20.0)}))
    assert code == 0, err
    assert "not run   onnxruntime-cpu (file=a.onnx): it computes float32 on this machine" in out


def test_verify_fails_where_no_engine_can_run(capsys: pytest.CaptureFixture[str], build: Build) -> None:
    path = build({}, EngineRecord("tensorrt-rtx", ("sm86.plan",), compute_capabilities=("1.0",)))
    code, _, err = run(capsys, "verify", path)
    assert code == 1
    assert "no engine of this bundle runs on this machine: tensorrt-rtx: " in err


def key_pair(folder: Path) -> tuple[Path, Path]:
    """A fresh key as OpenSSL writes it: private and public file."""
    ed25519 = pytest.importorskip(
        "cryptography.hazmat.primitives.asymmetric.ed25519", reason="signing needs cryptography"
    )
    form = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / "key.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def test_a_signature_that_is_demanded_and_absent_is_an_error(
    capsys: pytest.CaptureFixture[str], build: Build, tmp_path: Path
) -> None:
    _, public = key_pair(tmp_path)
    path = build({"a.onnx": graph(20.0)})
    code, out, err = run(capsys, "verify", path, "--public-key", public)
    assert code == 1
    assert "the bundle is not signed, and a signature is demanded" in err
    assert "ok" not in out.splitlines()
    assert run(capsys, "verify", path, "--public-key", tmp_path / "no.pem")[0] == 2


def test_every_command_that_runs_a_bundle_obeys_the_keys_of_the_environment(
    capsys: pytest.CaptureFixture[str], build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, public = key_pair(tmp_path)
    path = build({"a.onnx": graph(20.0)})
    monkeypatch.setenv("UNETX_OPT_PUBLIC_KEY", str(public))
    for arguments in (("verify", path), ("segment", path, tmp_path / "no.png", "-o", tmp_path / "out")):
        Path(tmp_path, "no.png").write_bytes(b"")
        code, _, err = run(capsys, *arguments)
        assert code == 1
        assert "the bundle is not signed, and a signature is demanded" in err


def test_verify_says_whose_signature_it_found_and_whether_it_is_proven(
    capsys: pytest.CaptureFixture[str], build: Build, tmp_path: Path
) -> None:
    from unetx_opt.bundle.sign import read_signer

    private, public = key_pair(tmp_path)
    signer = read_signer(private)
    path = build({"a.onnx": graph(20.0)}, signer=signer)
    key = signer.key.sha256[:16]
    code, out, _ = run(capsys, "verify", path)
    assert (code, f"signature by the key {key}, not checked" in out) == (0, True)
    code, out, _ = run(capsys, "verify", path, "--public-key", public)
    assert (code, f"signature by the key {key}, which is trusted" in out) == (0, True)
    code, out, _ = run(capsys, "verify", path, "--public-key", public, "--json")
    assert json.loads(out)["signature"] == {"key_sha256": signer.key.sha256, "proven": True}
