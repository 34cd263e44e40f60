"""`unetx-opt evaluate`: its figures against scikit-learn, SciPy and MONAI on the masks that it saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unetx_opt.cli.main import main
from unetx_opt.imaging.phantom import chest_phantom
from unetx_opt.specs import EngineRecord, InputContract, ModelSpec, Precision

torch = pytest.importorskip("torch")

SIDE = 64
COUNT = 6
RunJson = Callable[..., dict[str, Any]]


def read_png(path: Path) -> Any:
    with Image.open(path) as image:
        return np.array(image)


def boundary_of(mask: Any) -> Any:
    from scipy.ndimage import binary_erosion

    return np.argwhere(mask & ~binary_erosion(mask))


def brute_distances(found: Any, truth: Any) -> tuple[Any, Any]:
    from scipy.spatial.distance import cdist

    distances = cdist(boundary_of(found), boundary_of(truth))
    return distances.min(axis=1), distances.min(axis=0)


def test_figures_equal_an_independent_computation_on_the_saved_masks(
    phantoms: Path, checkpoint: Path, tmp_path: Path, run_json: RunJson
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    masks = tmp_path / "masks"
    document = run_json("--checkpoint", checkpoint, "--data", phantoms, "--save-masks", masks)
    assert (document["data"], document["split"], document["n"]) == (phantoms.name, "test", COUNT)
    expected: dict[str, list[float]] = {metric: [] for metric in document["metrics"]}
    for row in document["per_image"]:
        found, truth = (read_png(folder / row["name"]) > 127 for folder in (masks, phantoms / "masks"))
        assert 0 < found.mean() < 1
        flat = truth.ravel(), found.ravel()
        forth, back = brute_distances(found, truth)
        here = {
            "accuracy": metrics.accuracy_score(*flat),
            "balanced_accuracy": metrics.balanced_accuracy_score(*flat),
            "miou": metrics.jaccard_score(*flat, average="macro"),
            "dice": metrics.f1_score(*flat),
            "hd95_px": max(np.percentile(forth, 95), np.percentile(back, 95)),
            "assd_px": np.concatenate([forth, back]).mean(),
        }
        for metric, value in here.items():
            assert row[metric] == pytest.approx(value, abs=1e-6), (row["name"], metric)
            expected[metric].append(float(value))
    for metric, values in expected.items():
        summary = document["metrics"][metric]
        assert summary["mean"] == pytest.approx(np.mean(values), abs=1e-6)
        assert summary["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        assert summary["ci95"][0] <= summary["mean"] <= summary["ci95"][1]
        assert summary["n"] == COUNT


def test_the_settings_of_the_training_stand_beside_its_figures(
    phantoms: Path, checkpoint: Path, run_json: RunJson
) -> None:
    document = run_json("--checkpoint", checkpoint, "--data", phantoms)
    assert document["model"]["training"] == {"size_px": SIDE}


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own, about itself
def test_dice_and_distances_equal_monai(phantoms: Path, checkpoint: Path, tmp_path: Path, run_json: RunJson) -> None:
    monai = pytest.importorskip("monai.metrics")
    masks = tmp_path / "masks"
    document = run_json("--checkpoint", checkpoint, "--data", phantoms, "--save-masks", masks)
    found, truth = (
        torch.tensor(np.stack([read_png(folder / f"{i}.png") > 127 for i in range(COUNT)]))[:, None].float()
        for folder in (masks, phantoms / "masks")
    )
    dice = monai.compute_dice(found, truth, include_background=True)[:, 0]
    hd95 = monai.compute_hausdorff_distance(found, truth, include_background=True, percentile=95)[:, 0]
    assd = monai.compute_average_surface_distance(found, truth, include_background=True, symmetric=True)[:, 0]
    for metric, values in (("dice", dice), ("hd95_px", hd95), ("assd_px", assd)):
        figures = [row[metric] for row in document["per_image"]]
        assert figures == pytest.approx(values.tolist(), abs=1e-4 if metric != "dice" else 1e-6)


def test_a_bundle_of_the_same_network_gives_the_same_figures_without_torch(
    phantoms: Path, checkpoint: Path, tmp_path: Path, run_json: RunJson
) -> None:
    bundle = make_bundle(checkpoint, tmp_path / "bundle")
    network = run_json("--checkpoint", checkpoint, "--data", phantoms)
    code = (
        "import sys\nfrom unetx_opt.cli.main import main\n"
        f"code = main(['evaluate', '--bundle', {str(bundle)!r}, '--data', {str(phantoms)!r}, '--json'])\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules\nsys.exit(code)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    engine = json.loads(done.stdout)
    assert "engine: onnxruntime-cpu" in done.stderr
    assert engine["model"]["target"] == "onnxruntime-cpu"
    for metric in ("accuracy", "dice", "miou"):
        assert engine["metrics"][metric]["mean"] == pytest.approx(network["metrics"][metric]["mean"], abs=1e-3)


def make_bundle(checkpoint: Path, path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    onnx_trace = pytest.importorskip("unetx_exporters.onnx.trace")
    from unetx_opt.bundle import manifest as m
    from unetx_opt.bundle import parts
    from unetx_opt.bundle.write import staged_bundle, write_bundle
    from unetx_opt.models.checkpoint import load_model, read_checkpoint

    read = read_checkpoint(checkpoint)
    graph = onnx_trace.trace_onnx(load_model(read), SIDE, SIDE).model.SerializeToString()
    record = EngineRecord("onnxruntime-cpu", ("engines/onnxruntime-cpu/model.onnx",))
    with staged_bundle(path) as directory:
        (directory / "engines" / "onnxruntime-cpu").mkdir(parents=True)
        (directory / record.files[0]).write_bytes(graph)
        manifest = m.Manifest(
            product=parts.Product(name="unetx-opt", version="0"),
            variant="unet",
            spec=ModelSpec(width=4, depth=2),
            labels=(parts.Label(index=0, name="background"), parts.Label(index=1, name="lungs")),
            input=InputContract(height=SIDE, width=SIDE),
            precision=parts.PrecisionRecord(requested=Precision.FP32, dtype_counts={"float32": 1}),
            operations=parts.Operations(flop=2, baseline_flop=2, ratio=1.0, by_type={"Conv": 2}, parameters=2),
            engines=(parts.Engine.from_record(record),),
            checkpoint=parts.SourceCheckpoint(sha256=read.sha256, source="a test", variant="unet"),
            gate=parts.GateEvidence(name="off", images=None),
            build=parts.Build(command=(), seeds={}, tools={}, host={}, created="2000-01-01T00:00:00Z"),
        )
        write_bundle(directory, manifest)
    return path


def test_a_bundle_that_a_named_key_did_not_sign_is_refused(
    phantoms: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = ed25519.Ed25519PrivateKey.generate().public_key()
    key = tmp_path / "key.pem"
    key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    bundle = make_bundle(checkpoint, tmp_path / "bundle")
    arguments = ["--bundle", str(bundle), "--data", str(phantoms), "--public-key", str(key)]
    assert main(["evaluate", *arguments]) == 1
    assert "sign" in capsys.readouterr().err


def test_empty_masks_have_no_distance_and_say_so(
    phantoms: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run_json: RunJson,
    make_checkpoint: Callable[..., Path],
) -> None:
    empty = make_checkpoint(tmp_path / "empty.safetensors", head_bias=-1e4)
    document = run_json("--checkpoint", empty, "--data", phantoms)
    assert document["metrics"]["hd95_px"] == {"mean": None, "std": None, "ci95": None, "n": 0}
    assert document["metrics"]["dice"]["mean"] == 0.0
    assert {row["assd_px"] for row in document["per_image"]} == {None}
    assert main(["evaluate", "--checkpoint", str(empty), "--data", str(phantoms)]) == 0
    assert f"{COUNT} images, without a finite distance" in capsys.readouterr().err


def test_without_json_a_table_and_the_worst_images_are_printed(
    phantoms: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    arguments = ["--checkpoint", str(checkpoint), "--data", str(phantoms), "--size", "32", "--threads", "1"]
    assert main(["evaluate", *arguments]) == 0
    printed = capsys.readouterr().out
    for word in ("split test, 6 images", "Dice", "mean IoU", "95 % interval", "Worst 6 of 6 images by Dice"):
        assert word in printed
    assert torch.get_num_threads() == before


def test_organs_are_evaluated_on_chest_xray14(
    tmp_path: Path, run_json: RunJson, make_checkpoint: Callable[..., Path]
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    (tmp_path / "images").mkdir()
    names = [f"{patient:08d}_000.png" for patient in range(1, 5)]
    entries = [f"{name},No Finding,0,{int(name[:8])},50,F,PA,2000,2000,0.2,0.2" for name in names]
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    header += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join((header, *entries)) + "\n")
    (tmp_path / "test_list.txt").write_text("\n".join(names[1:]))
    (tmp_path / "train_val_list.txt").write_text(names[0])
    rows = [f"{name},0.9,100 20,1000 40,2000 60,64,64" for name in names]
    columns = "Image Index,Dice RCA (Mean),Left Lung,Right Lung,Heart,Height,Width"
    (tmp_path / "masks.csv").write_text("\n".join((columns, *rows)) + "\n")
    for index, name in enumerate(names):
        Image.fromarray(chest_phantom(index, size_px=64)[0]).save(tmp_path / "images" / name)
    four = make_checkpoint(tmp_path / "four.safetensors", num_classes=4)
    out = tmp_path.parent / f"{tmp_path.name}-masks"
    (tmp_path / "other.csv").write_text("\n".join((columns, *rows[:1])) + "\n")
    table = ("--masks", tmp_path / "masks.csv", "--minimum-dice", "0.9")
    document = run_json("--checkpoint", four, "--data", tmp_path, "--save-masks", out, *table)
    assert document["n"] == 3
    assert list(document["classes"]) == ["left lung", "right lung", "heart"]
    truth = np.zeros(64 * 64, dtype=np.uint8)
    for label, start, length in ((1, 100, 20), (2, 1000, 40), (3, 2000, 60)):
        truth[start - 1 : start - 1 + length] = label
    for row in document["per_image"]:
        found = read_png(out / row["name"]).ravel()
        ious = metrics.jaccard_score(truth, found, labels=range(4), average=None, zero_division=1.0)
        assert row["miou"] == pytest.approx(ious.mean(), abs=1e-6)
        assert [score["iou"] for score in row["classes"].values()] == pytest.approx(ious[1:].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ((), 2, "either --checkpoint or --bundle"),
        (("--checkpoint", "a", "--bundle", "b"), 2, "either --checkpoint or --bundle"),
        (("--bundle", "b", "--size", "64"), 2, "--size is for a checkpoint"),
        (("--checkpoint", "a", "--size", "0"), 2, "0 is not in the range"),
        (("--checkpoint", "a", "--target", "openvino-cpu"), 2, "--target is for a bundle"),
        (("--checkpoint", "nowhere.safetensors"), 1, "nowhere.safetensors"),
    ],
)
def test_bad_usage_is_named(
    phantoms: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], exit_code: int, message: str
) -> None:
    assert main(["evaluate", *arguments, "--data", str(phantoms)]) == exit_code
    assert message in capsys.readouterr().err


def test_masks_are_never_saved_over_those_of_the_data(
    phantoms: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (phantoms / "masks" / "0.png").read_bytes()
    arguments = ["--checkpoint", checkpoint, "--data", phantoms, "--save-masks", phantoms / "images" / ".." / "masks"]
    assert main(["evaluate", *map(str, arguments)]) == 2
    assert "inside --data" in capsys.readouterr().err
    assert (phantoms / "masks" / "0.png").read_bytes() == before


def test_data_that_does_not_fit_is_named(
    phantoms: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_checkpoint: Callable[..., Path],
) -> None:
    four = make_checkpoint(tmp_path / "four.safetensors", num_classes=4)
    for arguments, message in (
        (("--checkpoint", four, "--data", phantoms), "have 2 labels and those of the model 4"),
        (("--checkpoint", checkpoint, "--data", phantoms, "--split", "train"), "no image in split 'train'"),
        (("--checkpoint", checkpoint, "--data", phantoms, "--split", "tests"), "unknown split"),
        (("--checkpoint", checkpoint, "--data", tmp_path), "data folder holds"),
    ):
        assert main(["evaluate", *map(str, arguments)]) == 1
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""


def test_a_variant_whose_masks_need_another_step_is_refused(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_checkpoint: Callable[..., Path]
) -> None:
    path = make_checkpoint(tmp_path / "crf.safetensors", variant="crf")
    assert main(["evaluate", "--checkpoint", str(path), "--data", str(phantoms)]) == 1
    assert "dense_crf" in capsys.readouterr().err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, unetx_opt.cli.evaluate\n"
        "heavy = {'torch', 'numpy', 'scipy', 'PIL', 'rich', 'pydantic', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
