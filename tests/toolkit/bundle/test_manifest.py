"""The manifest: what is written reads back, and nothing else does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import unetx_opt.bundle.manifest as manifest_module
from unetx_opt.bundle.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest, serialize_manifest
from unetx_opt.bundle.parts import (
    Build,
    Engine,
    EngineGate,
    GateEvidence,
    ImageSet,
    Label,
    Operations,
    Postprocess,
    SkippedTarget,
)
from unetx_opt.bundle.write import command_line
from unetx_opt.errors import BundleError
from unetx_opt.metrics.gates import GateDecision, GateRow
from unetx_opt.specs import (
    EngineRecord,
    Gate,
    InputContract,
    ModelSpec,
    Normalization,
    Upsampling,
)

Json = dict[str, Any]


@pytest.fixture
def written(samples: Any) -> bytes:
    return (samples.root / "bundle" / "manifest.json").read_bytes()


def refused(data: bytes | Json) -> str:
    """The one line that a bad manifest is refused with."""
    with pytest.raises(BundleError) as caught:
        parse_manifest(data if isinstance(data, bytes) else json.dumps(data).encode())
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert message.startswith("manifest.json")
    return message


def test_the_published_schema_is_that_of_the_model() -> None:
    published = Path(manifest_module.__file__).with_name("manifest.schema.json").read_text(encoding="utf-8")
    assert json.loads(published) == manifest_module.manifest_schema(), "run tests/toolkit/bundle/make_golden.py"


def test_the_published_schema_demands_every_field_and_forbids_others() -> None:
    schema = manifest_module.manifest_schema()
    objects = [part for part in (schema, *schema["$defs"].values()) if part["type"] == "object"]
    assert len(objects) > 15
    for part in objects:
        assert part["additionalProperties"] is False
        assert set(part["required"]) == set(part["properties"])


def test_the_same_content_gives_the_same_bytes(written: bytes) -> None:
    assert serialize_manifest(parse_manifest(written)) == written


def test_an_engine_comes_back_as_its_builder_left_it() -> None:
    record = EngineRecord(
        target="openvino-cpu",
        files=("a.xml", "a.bin"),
        settings={"inference_precision": "bf16"},
        storage_dtype="float16",
        compute_dtype="bfloat16",
        layers={"conv + relu": "bfloat16"},
        compute_capabilities=("12.0",),
        tools={"openvino": "2026.4"},
    )
    assert Engine.from_record(record).record == record


def test_a_decision_of_a_gate_becomes_part_of_the_manifest() -> None:
    row = GateRow("hd95", "95 % Hausdorff shift", "lung", float("inf"), "<=", 1.0, False, "a.png")
    decision = GateDecision("strict", False, (row,), 20, ("lung",), False, 0.9, 0.5, "a.png")
    gate = EngineGate.from_decision(decision, why_graph="no CUDA device")
    assert gate.evaluated == "graph"
    assert gate.rows[0].value is None
    assert EngineGate.from_decision(decision).evaluated == "engine"


texts = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)
hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
counts = st.integers(0, 2**53)
file_names = st.from_regex(r"[a-z][a-z0-9_]{0,8}\.(onnx|plan)", fullmatch=True)
specs = st.builds(
    ModelSpec,
    width=st.integers(1, 256),
    depth=st.integers(2, 6),
    upsampling=st.sampled_from(Upsampling),
    gate=st.sampled_from(Gate),
    gate_levels=st.sampled_from([(), (1,), (0, 1)]),
)
contracts = st.builds(
    InputContract,
    height=st.integers(16, 8192),
    normalization=st.just(Normalization.WINDOW),
    window=st.tuples(st.floats(-1e6, 0), st.floats(1, 1e6)),
    padding_value=st.floats(allow_nan=False, allow_infinity=False),
)
operations = st.builds(
    lambda flop, base, types: Operations(
        flop=flop, baseline_flop=base, ratio=flop / base, by_type=types, parameters=flop
    ),
    counts,
    st.integers(1, 2**53),
    st.dictionaries(texts, counts, max_size=3),
)
engines = st.builds(
    Engine,
    target=texts,
    files=st.tuples(file_names),
    settings=st.dictionaries(texts, texts, max_size=3),
    storage_dtype=texts,
    compute_dtype=texts,
    layers=st.dictionaries(texts, texts, max_size=5),
    compute_capabilities=st.sampled_from([(), ("7.5",), ("8.6", "12.0")]),
    tools=st.dictionaries(texts, texts, max_size=3),
)
processes = st.builds(
    Postprocess, name=texts, parameters=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False))
)


@given(
    changes=st.fixed_dictionaries(
        {
            "variant": texts,
            "spec": specs,
            "input": contracts,
            "operations": operations,
            "engines": st.lists(engines, min_size=1, max_size=3, unique_by=lambda e: e.target).map(tuple),
            "postprocess": st.none() | processes,
            "skipped": st.lists(st.builds(SkippedTarget, target=texts, reason=texts), max_size=2).map(tuple),
            "notes": st.lists(texts, max_size=2).map(tuple),
        }
    ),
    digest=hashes,
)
def test_any_manifest_reads_back_as_it_was_written(samples: Any, changes: Json, digest: str) -> None:
    names = {name for engine in changes["engines"] for name in engine.files}
    manifest = samples.make_manifest(
        **changes,
        gate=GateEvidence(name="off", images=None),
        model_card=None,
        files={name: manifest_module.FileRecord(sha256=digest, size=1) for name in names},
    )
    data = serialize_manifest(manifest)
    assert parse_manifest(data) == manifest
    assert serialize_manifest(parse_manifest(data)) == data


def paths(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from paths(inner, (*place, key))


def at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


FREE_KEYS = {"files", "layers", "settings", "tools", "seeds", "host", "by_type", "dtype_counts", "parameters"}


def test_no_field_can_be_left_out(written: bytes) -> None:
    whole = json.loads(written)
    tried = 0
    for place in paths(whole):
        if isinstance(place[-1], int) or any(key in FREE_KEYS for key in place[:-1]):
            continue
        bad = copy.deepcopy(whole)
        del at(bad, place[:-1])[place[-1]]
        assert str(place[-1]) in refused(bad)
        tried += 1
    assert tried > 60


def test_no_field_can_be_added(written: bytes) -> None:
    whole = json.loads(written)
    for place in [(), *paths(whole)]:
        if isinstance(at(whole, place), dict) and not FREE_KEYS & {*place}:
            bad = copy.deepcopy(whole)
            at(bad, place)["surprise"] = 1
            assert "surprise" in refused(bad)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
)


@given(data=st.data())
def test_a_wrong_value_anywhere_is_refused_or_changes_nothing_else(samples: Any, data: st.DataObject) -> None:
    whole = json.loads((samples.root / "bundle" / "manifest.json").read_bytes())
    place = data.draw(st.sampled_from(list(paths(whole))))
    at(whole, place[:-1])[place[-1]] = data.draw(anything)
    text = json.dumps(whole).encode()
    try:
        manifest = parse_manifest(text)
    except BundleError as error:
        assert "\n" not in str(error)
        return
    assert json.loads(serialize_manifest(manifest)) == whole


def change(place: str, value: Any) -> Callable[[Json], None]:
    *parents, last = [int(key) if key.isdigit() else key for key in place.split("/")]

    def apply(whole: Json) -> None:
        at(whole, tuple(parents))[last] = value

    return apply


def fail_gate(whole: Json) -> None:
    gate = at(whole, ("engines", 1, "gate"))
    gate["passed"] = gate["rows"][0]["passed"] = False
    gate["rows"][0]["value"] = 0.5


@pytest.mark.parametrize(
    ("mutate", "expected"),
    [
        (change("schema_version", 2), "knows version 1: update unetx-opt"),
        (change("schema_version", True), "schema version 'True'"),
        (change("schema_version", "1"), "schema version"),
        (change("spec/width", 0), "width is 0, expected 1 to 256"),
        (change("spec/width", "8"), "spec.width: Input should be a valid integer"),
        (change("spec/width", True), "spec.width: Input should be a valid integer"),
        (change("spec/gate", "best"), "spec.gate"),
        (change("input/height", 8193), "input height is 8193"),
        (change("input/window", [0, 1]), "window"),
        (change("input/value_range", [0, 1, 2]), "input.value_range"),
        (change("engines/0/target", "\x1b[2J"), "cannot be printed"),
        (change("engines/0/target", "\u202egnp.exe"), "cannot be printed"),
        (change("engines/0/files", []), "engines.0.files"),
        (change("engines/0/files", ["other.onnx"]), "other.onnx is used but not listed in files"),
        (change("engines/1/compute_capabilities", ["sm_86"]), "compute_capabilities"),
        (change("engines/1/gate/why_graph", None), "why_graph"),
        (change("engines/1/gate/passed", False), "contradicts the rows"),
        (change("engines/1/gate/rows/0/value", 0.5), "passed is True, but 0.5 >= 0.999 is False"),
        (change("engines/1/gate/rows/0/value", None), "passed is True, but None >= 0.999 is False"),
        (fail_gate, "the gate strict failed for tensorrt-rtx: a bundle holds engines that pass"),
        (change("engines/1/gate", None), "the gate is 'strict', but that of tensorrt-rtx is 'off'"),
        (change("engines/1/layers", {"a": "b" * 5000}), "engines.1.layers.a"),
        (change("gate/images/count", 2), "count is 2, but 1 image hashes are listed"),
        (change("gate/images", None), "images are listed if and only if"),
        (change("operations/ratio", 0.5), "ratio is 0.5, but flop / baseline_flop is 0.803"),
        (change("operations/flop", -1), "operations.flop"),
        (change("operations/flop", 2**60), "operations.flop"),
        (change("operations/baseline_flop", 0), "operations.baseline_flop"),
        (change("labels/1/index", 2), "indices 0 to 1"),
        (change("labels/1/name", "background"), "same name"),
        (change("labels/1/colour", "red"), "labels.1.colour"),
        (change("spec/num_classes", 3), "indices 0 to 2"),
        (change("input/channels", 3), "the input has 3 channels, the model reads 1"),
        (change("build/command", ["/home/someone/x"]), "holds a path"),
        (change("build/created", "yesterday"), "build.created"),
        (change("checkpoint/sha256", "AB" * 32), "checkpoint.sha256"),
        (change("checkpoint/file", "weights.safetensors"), "used but not listed"),
        (change("model_card", "../card.md"), "not a safe relative file name"),
        (change("files", {}), "lists no files"),
        (change("notes", ["x"] * 101), "notes"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(written: bytes, mutate: Callable[[Json], None], expected: str) -> None:
    whole = json.loads(written)
    mutate(whole)
    assert expected in refused(whole)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a\\b",
        "C:\\x",
        "C:x",
        "a//b",
        "./a",
        "a/",
        "",
        "nul",
        "aux.txt",
        "com1/x",
        "a.",
        "a ",
        "a\0b",
        "a:b",
        "x" * 201,
        "caf\u00e9",
        "manifest.json",
        "MANIFEST.json",
        "manifest.sha256",
        "ENGINES/cpu/model.onnx",
        "engines/cpu",
    ],
)
def test_an_unsafe_or_ambiguous_file_name_is_refused(written: bytes, name: str) -> None:
    whole = json.loads(written)
    whole["files"][name] = {"sha256": "0" * 64, "size": 1}
    refused(whole)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not JSON"),
        (b"[]", "holds a JSON list, expected an object"),
        (b"null", "expected an object"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"a": 1, "a": 1}', "the key 'a' appears twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": ' + b"[" * 90_000 + b"}", "nested too deeply"),
        (b'{"a":' * 90_000, "nested too deeply"),
        (b'{"schema_version": 1, "a": "\\ud800"}', "manifest.json"),
        (b"{}", "has no schema_version"),
        (b'{"schema_version": 1}', "Field required"),
        (b'{"schema_version": 1e0}', "schema version"),
        (b"[" + b"[]," * 150_000 + b"1]", "values, expected at most 100000"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "expected at most 8388608"),
    ],
    ids=range(17),
)
def test_hostile_text_is_refused_in_one_line(data: bytes, expected: str) -> None:
    assert expected in refused(data)


def test_a_key_that_appears_twice_deep_inside_is_refused(written: bytes) -> None:
    twice = written.replace(b'"width": 8,', b'"width": 8, "width": 64,')
    assert twice != written
    assert "'width' appears twice" in refused(twice)


def test_a_number_that_overflows_to_infinity_is_refused(written: bytes) -> None:
    assert "finite" in refused(written.replace(b'"padding_value": 0.0', b'"padding_value": 1e999'))


def test_a_manifest_of_unknown_fields_is_refused_without_listing_them() -> None:
    unknown = ",".join(f'"{index:036d}":[]' for index in range(40_000))
    assert "values do not fit the schema" in refused(('{"schema_version":1,' + unknown + "}").encode())


def test_the_same_image_may_not_calibrate_and_decide(samples: Any) -> None:
    images = samples.make_manifest().gate.images
    with pytest.raises(ValueError, match="both calibrated the engines and decided their gate"):
        samples.make_manifest(calibration=ImageSet(**{**dict(images), "data": "lungs"}))


def test_two_equal_engines_are_refused_and_two_with_other_settings_are_not(samples: Any, written: bytes) -> None:
    whole = json.loads(written)
    whole["engines"].append(copy.deepcopy(whole["engines"][0]))
    assert "two engines" in refused(whole)
    whole["engines"][-1]["settings"] = {"inference_precision": "bf16"}
    assert len(parse_manifest(json.dumps(whole).encode()).engines) == 3


def test_a_manifest_cannot_be_changed(samples: Any) -> None:
    with pytest.raises(ValueError, match="frozen"):
        samples.make_manifest().variant = "other"


@given(st.lists(st.text(st.characters(codec="ascii", exclude_categories=["C"])), max_size=5))
def test_a_command_line_loses_its_directories_and_is_accepted(arguments: list[str]) -> None:
    command = command_line(arguments)
    assert len(command) == len(arguments)
    Build(command=command, seeds={}, tools={}, host={}, created="2026-01-01T00:00:00Z")


def test_a_model_of_many_classes_names_each(samples: Any) -> None:
    manifest: Manifest = samples.make_manifest(
        spec=ModelSpec(num_classes=3),
        labels=tuple(Label(index=index, name=name) for index, name in enumerate(("none", "lung", "heart"))),
    )
    assert len(manifest.labels) == 3
