"""DICOM results: judged by other people's tools, and the mask read back bit for bit."""

from __future__ import annotations

import io
import json
import logging
import shutil
import subprocess
import uuid
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from unetx_opt.dicom.read import ReadOptions, read_dicom, read_dicom_bytes
from unetx_opt.dicom.results.codes import LABEL_CODES, code_of_label
from unetx_opt.dicom.results.outlines import trace_outlines
from unetx_opt.dicom.results.request import Algorithm, Findings, ResultOptions
from unetx_opt.dicom.results.write import RESULTS, encode_results
from unetx_opt.dicom.sandbox import DicomReader
from unetx_opt.dicom.source_header import KEPT_KEYWORDS
from unetx_opt.errors import ImageError, SpecError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
hd = pytest.importorskip("highdicom", reason="highdicom is not installed")

NAMES = ("background", "left lung", "right_lung", "Heart", "rib 7")
ALGORITHM = Algorithm("1.2.3", "ab" * 32, udi="(01)00844588003288")
WITH_SOURCE = ReadOptions(with_source=True)
CR = "1.2.840.10008.5.1.4.1.1.1"


def needs(tool):
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def radiograph(shape=(37, 53), **attributes):
    """Bytes of an 8-bit Computed Radiography image; an attribute of None is left out."""
    values = {
        "SOPClassUID": CR,
        "SOPInstanceUID": "1.2.3.4.5",
        "StudyInstanceUID": "1.2.3.1",
        "SeriesInstanceUID": "1.2.3.2",
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": "Müller^Jürgen",
        "PatientID": "secret-id",
        "PatientBirthDate": "19500102",
        "PatientSex": "M",
        "StudyDate": "20240102",
        "StudyTime": "101112",
        "StudyID": "7",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "Doctor^Who",
        "InstanceNumber": 3,
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        "PatientOrientation": ["L", "F"],
        "PixelSpacing": [0.2, 0.1],
        "PhotometricInterpretation": "MONOCHROME2",
        "WindowCenter": 120,
        "WindowWidth": 200,
    }
    dataset = pydicom.Dataset()
    for keyword, value in (values | attributes).items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8).tobytes()
    dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def find(image, seed=0, names=NAMES):
    shape = image.pixels.shape
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for label in range(1, len(names)):
        top, left = rng.integers(0, shape[0] // 2), rng.integers(0, shape[1] // 2)
        labels[top : top + shape[0] // 3, left : left + shape[1] // 3] = label
    probabilities = rng.random((len(names), *shape), dtype=np.float32)
    overlay = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return Findings(labels, names, image.spacing_mm, probabilities, overlay)


def make(data, names=tuple(RESULTS), findings=None, **options):
    image = read_dicom_bytes(data, WITH_SOURCE)
    findings = findings or find(image)
    encoded = encode_results(names, image.source_json, findings, ALGORITHM, ResultOptions(**options))
    return findings, {name: pydicom.dcmread(io.BytesIO(data)) for name, data in encoded.items()}, encoded


SOURCES = {
    "plain": {},
    "monochrome1": {"PhotometricInterpretation": "MONOCHROME1"},
    "no spacing": {"PixelSpacing": None},
    "zero spacing": {"PixelSpacing": [0, 0]},
    "detector spacing": {"PixelSpacing": None, "ImagerPixelSpacing": [0.143, 0.143]},
    "digital x-ray": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX"},
    "secondary capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"},
    "multi-frame class, one frame": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2", "NumberOfFrames": 1},
    "window of no width": {"WindowWidth": 0},
    "window without width": {"WindowWidth": None},
    "two windows": {"WindowCenter": [10, 120], "WindowWidth": [20, 200]},
    "slope alone": {"RescaleSlope": 2.5},
    "rescaled": {"RescaleSlope": 0.5, "RescaleIntercept": -10, "RescaleType": "US"},
    "nothing but its identity": dict.fromkeys(
        (
            *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
            *("AccessionNumber", "ReferringPhysicianName", "InstanceNumber", "BodyPartExamined"),
            *("PatientOrientation", "PixelSpacing", "WindowCenter", "WindowWidth", "SpecificCharacterSet"),
        )
    ),
}


def judge(tool, *paths):
    """Lines of errors that a tool of dicom3tools finds."""
    result = subprocess.run([tool, *map(str, paths)], capture_output=True, text=True, check=False)
    return [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")]


@needs("dciodvfy")
@needs("dcentvfy")
@pytest.mark.parametrize("source", SOURCES)
def test_dciodvfy_and_dcentvfy_find_no_error(tmp_path, source):
    data = radiograph(**SOURCES[source])
    _, _, encoded = make(data)
    paths = []
    for name, content in encoded.items():
        paths.append(tmp_path / f"{name}.dcm")
        paths[-1].write_bytes(content)
        assert judge("dciodvfy", "-new", paths[-1]) == [], name
    fractional = tmp_path / "fractional.dcm"
    fractional.write_bytes(make(data, ("seg",), segmentation_kind="FRACTIONAL")[2]["seg"])
    assert judge("dciodvfy", "-new", fractional) == []
    assert judge("dcentvfy", *paths, fractional) == []


@needs("dciodvfy")
def test_dciodvfy_does_find_an_error_where_there_is_one(tmp_path):
    _, results, _ = make(radiograph())
    del results["seg"].SegmentSequence
    results["seg"].save_as(tmp_path / "bad.dcm")
    assert judge("dciodvfy", "-new", tmp_path / "bad.dcm")


@needs("dcmdump")
@needs("dsrdump")
@needs("dcm2pnm")
def test_dcmtk_reads_every_result(tmp_path):
    findings, _, encoded = make(radiograph())
    for name, content in encoded.items():
        path = tmp_path / f"{name}.dcm"
        path.write_bytes(content)
        dump = subprocess.run(["dcmdump", str(path)], capture_output=True, text=True, check=True)
        assert "E:" not in dump.stderr
    text = subprocess.run(["dsrdump", str(tmp_path / "sr.dcm")], capture_output=True, text=True, check=True).stdout
    assert "Imaging Measurement Report" in text
    subprocess.run(["dcm2pnm", "--write-raw-pnm", tmp_path / "sc.dcm", tmp_path / "sc.ppm"], check=True)
    raw = (tmp_path / "sc.ppm").read_bytes()[-findings.overlay_rgb.size :]
    assert raw == findings.overlay_rgb.tobytes()


def unpack(dataset):
    """Frames of a BINARY segmentation from its bytes alone (PS3.5 8.1.1: the first pixel is the lowest bit)."""
    count = int(dataset.NumberOfFrames) * dataset.Rows * dataset.Columns
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")[:count]
    return bits.reshape(int(dataset.NumberOfFrames), dataset.Rows, dataset.Columns)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), height=st.integers(16, 45), width=st.integers(16, 45))
def test_the_mask_read_back_from_a_binary_seg_is_equal_bit_for_bit(seed, height, width):
    labels = np.random.default_rng(seed).integers(0, 5, (height, width), dtype=np.uint8)
    _, results, _ = make(radiograph((height, width)), ("seg",), Findings(labels, NAMES))
    seg = results["seg"]
    by_hand = unpack(seg)
    frames = seg.PerFrameFunctionalGroupsSequence
    numbers = [frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber for frame in frames]
    assert numbers == [1, 2, 3, 4]
    for number, frame in zip(numbers, by_hand, strict=True):
        assert np.array_equal(frame, labels == number)
    assert np.array_equal(by_hand, seg.pixel_array)
    # highdicom's reader wants a slice thickness, which a projection has not, where its writer states a spacing.
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = None
    opened = hd.seg.Segmentation.from_dataset(seg)
    whole = opened.get_pixels_by_source_instance(["1.2.3.4.5"], combine_segments=True)
    assert np.array_equal(whole[0], labels)


def test_a_mask_of_nothing_keeps_a_frame_for_every_segment():
    labels = np.zeros((37, 53), np.uint8)
    _, results, _ = make(radiograph(), findings=Findings(labels, NAMES, None, None, np.zeros((37, 53, 3), np.uint8)))
    assert unpack(results["seg"]).shape == (4, 37, 53)
    assert not unpack(results["seg"]).any()
    assert "GraphicAnnotationSequence" not in results["gsps"]


def test_labelmap_and_fractional_are_written_on_request():
    data = radiograph()
    findings, results, _ = make(data, ("seg",), segmentation_kind="LABELMAP")
    assert results["seg"].SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.7"
    assert np.array_equal(results["seg"].pixel_array, findings.labels)
    findings, results, _ = make(data, ("seg",), segmentation_kind="FRACTIONAL")
    seg = results["seg"]
    assert (seg.SegmentationType, seg.SegmentationFractionalType) == ("FRACTIONAL", "PROBABILITY")
    np.testing.assert_allclose(seg.pixel_array / 255, findings.probabilities_khw[1:], atol=0.5 / 255 + 1e-6)
    binary = Findings(findings.labels.clip(0, 1), ("background", "lungs"), None, findings.probabilities_khw[:1])
    _, results, _ = make(data, ("seg",), binary, segmentation_kind="FRACTIONAL")
    np.testing.assert_allclose(results["seg"].pixel_array / 255, binary.probabilities_khw[0], atol=0.5 / 255 + 1e-6)


def test_geometry_patient_and_references_are_those_of_the_source():
    _, results, _ = make(radiograph())
    for name, result in results.items():
        assert str(result.PatientName) == "Müller^Jürgen", name
        assert (result.PatientID, result.StudyInstanceUID, result.AccessionNumber) == ("secret-id", "1.2.3.1", "A1")
        assert result.SpecificCharacterSet == "ISO_IR 192"
        assert result.SeriesInstanceUID != "1.2.3.2"
        assert result.UDISequence[0].UniqueDeviceIdentifier == ALGORITHM.udi
        assert ALGORITHM.bundle_sha256 in json.dumps(result.to_json_dict())
        if name != "sr":
            assert (result.ManufacturerModelName, result.SoftwareVersions) == ("unetx-opt", "1.2.3")
    seg, sc, gsps = results["seg"], results["sc"], results["gsps"]
    for image in (seg, sc):
        assert (image.Rows, image.Columns) == (37, 53)
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [0.2, 0.1] == sc.PixelSpacing
    derived = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert (derived.ReferencedSOPClassUID, derived.ReferencedSOPInstanceUID) == (CR, "1.2.3.4.5")
    assert sc.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.5"
    series = gsps.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == "1.2.3.2"
    assert series.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.5"
    assert (gsps.SoftcopyVOILUTSequence[0].WindowCenter, gsps.SoftcopyVOILUTSequence[0].WindowWidth) == (120, 200)
    assert gsps.PresentationLUTShape == "IDENTITY"
    area = gsps.DisplayedAreaSelectionSequence[0]
    assert (area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner) == ([1, 1], [53, 37])
    assert make(radiograph(PhotometricInterpretation="MONOCHROME1"))[1]["gsps"].PresentationLUTShape == "INVERSE"


def lut(entries, first, bits):
    item = pydicom.Dataset()
    item.add_new(0x00283002, "US", [len(entries) % 65536, first, bits])
    item.add_new(0x00283006, "US", [int(entry) for entry in entries])
    return [item]


def test_references_name_the_class_of_a_source_whose_class_has_several_frames():
    multi_frame = "1.2.840.10008.5.1.4.1.1.7.2"
    _, results, _ = make(radiograph(SOPClassUID=multi_frame, NumberOfFrames=1))
    for name, result in results.items():
        found = [
            item.ReferencedSOPClassUID for item in references(result) if item.ReferencedSOPInstanceUID == "1.2.3.4.5"
        ]
        assert set(found) == {multi_frame}, name


def references(item):
    if "ReferencedSOPInstanceUID" in item:
        yield item
    for element in item:
        if element.VR == "SQ":
            for child in element.value:
                yield from references(child)


@needs("dciodvfy")
@pytest.mark.parametrize("with_numbers", [False, True])
def test_lookup_tables_of_the_source_are_repeated_in_the_presentation_state(tmp_path, with_numbers):
    modality, voi = np.arange(256) * 257, np.linspace(0, 65535, 4096).astype(int)
    numbers = (
        {"RescaleSlope": 2, "RescaleIntercept": 1} if with_numbers else {"WindowCenter": None, "WindowWidth": None}
    )
    data = radiograph(ModalityLUTSequence=lut(modality, 0, 16), VOILUTSequence=lut(voi, 0, 16), **numbers)
    _, results, encoded = make(data, ("gsps",))
    (tmp_path / "gsps.dcm").write_bytes(encoded["gsps"])
    assert judge("dciodvfy", "-new", tmp_path / "gsps.dcm") == []
    state = results["gsps"]
    assert "RescaleSlope" not in state
    for item, entries in (
        (state.ModalityLUTSequence[0], modality),
        (state.SoftcopyVOILUTSequence[0].VOILUTSequence[0], voi),
    ):
        assert list(item.LUTDescriptor)[:2] == [len(entries), 0]
        found = item.LUTData
        found = np.frombuffer(found, "<u2") if isinstance(found, bytes) else np.array(found)
        assert np.array_equal(found, entries)
    assert "WindowWidth" not in state.SoftcopyVOILUTSequence[0]


@pytest.mark.parametrize("spacing", [None, [0, 0], [-1, 1]], ids=str)
def test_an_unknown_spacing_is_stated_nowhere(spacing):
    _, results, _ = make(radiograph(PixelSpacing=spacing))
    assert "PixelSpacing" not in results["sc"]
    assert "PixelSpacing" not in json.dumps([item.to_json_dict() for item in results["seg"].SegmentSequence])
    assert "00280030" not in json.dumps(results["seg"].to_json_dict())


def test_segments_carry_snomed_codes_and_the_algorithm():
    _, results, _ = make(radiograph(), ("seg",))
    segments = results["seg"].SegmentSequence
    codes = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in segments]
    assert [code.CodeValue for code in codes] == ["44029006", "3341006", "80891009", "85756007"]
    assert {code.CodingSchemeDesignator for code in codes} == {"SCT"}
    assert [segment.SegmentLabel for segment in segments] == list(NAMES[1:])
    identity = segments[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (identity.AlgorithmName, identity.AlgorithmVersion) == ("unetx-opt", "1.2.3")
    assert ALGORITHM.bundle_sha256 in identity.AlgorithmParameters


def test_codes_of_the_table_mean_what_pydicom_says():
    from pydicom.sr.codedict import codes

    for name, code in (("lungs", codes.SCT.Lung), ("heart", codes.SCT.Heart)):
        assert (LABEL_CODES[name].kind.value, LABEL_CODES[name].kind.meaning) == (code.value, code.meaning)
    assert code_of_label("Left-Lung") is LABEL_CODES["left lung"]


def contents(item):
    yield item
    for child in item.get("ContentSequence", ()):
        yield from contents(child)


@pytest.mark.parametrize("with_seg", [True, False], ids=["beside a SEG", "alone"])
@pytest.mark.parametrize(("spacing", "unit"), [([0.2, 0.1], "mm2"), (None, "{pixels}")], ids=["mm", "pixels"])
def test_the_report_states_the_area_of_every_segment(with_seg, spacing, unit):
    names = ("seg", "sr") if with_seg else ("sr",)
    findings, results, encoded = make(radiograph(PixelSpacing=spacing), names)
    numbers = [item for item in contents(results["sr"]) if item.get("ValueType") == "NUM"]
    pixel = 0.02 if spacing else 1
    found = [float(item.MeasuredValueSequence[0].NumericValue) for item in numbers]
    assert found == pytest.approx([np.sum(findings.labels == label) * pixel for label in range(1, 5)])
    units = {item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue for item in numbers}
    assert units == {unit}
    references = [
        item.ReferencedSOPSequence[0] for item in contents(results["sr"]) if "ReferencedSOPSequence" in item
    ]
    assert {"1.2.3.4.5"} <= {str(reference.ReferencedSOPInstanceUID) for reference in references}
    segments = [reference for reference in references if "ReferencedSegmentNumber" in reference]
    assert len(segments) == (4 if with_seg else 0)
    for reference in segments:
        assert reference.ReferencedSOPInstanceUID == results["seg"].SOPInstanceUID
        assert "ReferencedFrameNumber" not in reference
    report = hd.sr.srread(io.BytesIO(encoded["sr"])).content
    groups = report.get_planar_roi_measurement_groups() if with_seg else report.get_image_measurement_groups()
    assert len(groups) == 4


def fill(outlines, shape):
    """Even-odd fill: a pixel is inside where an odd number of vertical borders lies left of it."""
    crossings = np.zeros((shape[0], shape[1] + 1), np.int64)
    for outline in outlines:
        assert np.array_equal(outline[0], outline[-1])
        for (x0, y0), (x1, y1) in pairwise(outline.astype(int)):
            assert (x0 == x1) != (y0 == y1)
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0] += 1
    return crossings.cumsum(axis=1)[:, :-1] % 2 == 1


@given(region=arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_outlines_enclose_exactly_the_pixels_of_their_region(region):
    assert np.array_equal(fill(trace_outlines(region), region.shape), region)


def test_a_rectangle_has_four_corners_and_noise_without_end_is_refused():
    region = np.zeros((9, 9), bool)
    region[2:5, 3:7] = True
    (outline,) = trace_outlines(region)
    assert {tuple(corner) for corner in outline.astype(int).tolist()} == {(3, 2), (7, 2), (7, 5), (3, 5)}
    assert len(outline) == 5
    checkers = np.indices((1000, 1000)).sum(0) % 2 == 0
    with pytest.raises(ImageError, match="too ragged"):
        trace_outlines(checkers)


def test_outlines_of_a_presentation_state_give_the_mask_back_also_where_they_are_long():
    shape = (200, 700)
    labels = np.zeros(shape, np.uint8)
    labels[10:190] = 1
    labels[20:180, 1::2] = 0  # a comb: one outline of more points than one element holds
    labels[10:190, 0] = 1
    labels[100, :] = 1
    names = ("background", "lungs")
    _, results, _ = make(radiograph(shape), ("gsps",), Findings(labels, names))
    (annotation,) = results["gsps"].GraphicAnnotationSequence
    crossings = np.zeros((shape[0], shape[1] + 1), np.int64)
    points = 0
    for item in annotation.GraphicObjectSequence:
        assert (item.GraphicType, item.GraphicAnnotationUnits, item.GraphicFilled) == ("POLYLINE", "PIXEL", "N")
        corners = np.array(item.GraphicData).reshape(-1, 2).astype(int)
        points = max(points, len(corners))
        for (x0, y0), (x1, y1) in pairwise(corners):
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0] += 1
    assert np.array_equal(crossings.cumsum(axis=1)[:, :-1] % 2, labels)
    assert points <= 8000


def test_stable_uids_are_the_same_again_and_differ_by_source_bundle_and_kind():
    def uids(data, algorithm=ALGORITHM, **options):
        image = read_dicom_bytes(data, WITH_SOURCE)
        encoded = encode_results(RESULTS, image.source_json, find(image), algorithm, ResultOptions(**options))
        opened = [pydicom.dcmread(io.BytesIO(item)) for item in encoded.values()]
        return [(str(item.SOPInstanceUID), str(item.SeriesInstanceUID)) for item in opened]

    first = uids(radiograph(), stable_uids=True)
    assert first == uids(radiograph(), stable_uids=True)
    other_image = uids(radiograph(SOPInstanceUID="1.2.3.4.6"), stable_uids=True)
    assert [series for _, series in other_image] == [series for _, series in first]
    other_bundle = uids(radiograph(), Algorithm("1.2.3", "cd" * 32), stable_uids=True)
    several = [first, other_image, other_bundle, uids(radiograph()), uids(radiograph())]
    instances = [instance for found in several for instance, _ in found]
    assert len(set(instances)) == len(instances)
    for uid in instances:
        assert uid.startswith("2.25.")
        assert len(uid) <= 64
        assert uuid.UUID(int=int(uid[5:])).version == 5


@pytest.mark.parametrize(
    ("keyword", "values"),
    [("PatientID", ["a", "b"]), ("StudyID", ["a", "b"]), ("PixelSpacing", [1, 2, 3]), ("PatientOrientation", ["L"])],
)
def test_what_has_more_or_fewer_values_than_it_may_stays_behind(keyword, values):
    image = read_dicom_bytes(radiograph(**{keyword: values}), WITH_SOURCE)
    assert keyword not in pydicom.Dataset.from_json(image.source_json)
    assert "WindowCenter" in pydicom.Dataset.from_json(image.source_json)


def test_what_results_repeat_leaves_nothing_malformed_and_nothing_else_behind():
    sentinel = "S3cretNote"
    data = radiograph(
        PatientComments=sentinel,
        InstitutionName=sentinel,
        PatientSex="X Y",
        StudyDate="not-a-date",
        StudyTime="99",
        AccessionNumber="far too long for a short string" * 3,
    )
    image = read_dicom_bytes(data, WITH_SOURCE)
    kept = pydicom.Dataset.from_json(image.source_json)
    assert {element.keyword for element in kept} <= set(KEPT_KEYWORDS)
    assert sentinel not in image.source_json
    assert not {"StudyDate", "StudyTime", "AccessionNumber"} & {element.keyword for element in kept}
    assert "Jürgen" not in repr(image)
    assert read_dicom_bytes(data).source_json is None
    _, results, _ = make(data)
    assert all(result.PatientSex == "" for result in results.values())


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_source_without_identity_is_refused_without_its_patient_data(keyword):
    with pytest.raises(ImageError, match=keyword) as error:
        make(radiograph(**{keyword: None}))
    assert "Jürgen" not in str(error.value)


def test_no_library_says_a_name_in_logs_or_warnings(caplog, recwarn):
    caplog.set_level(logging.DEBUG)
    warnings.simplefilter("always")
    data = radiograph(PatientName="Bad=^^^^^^Name^Jürgen")
    recwarn.clear()
    caplog.clear()
    make(data)
    assert "rgen" not in caplog.text + "".join(str(entry.message) for entry in recwarn.list)


def test_findings_that_do_not_fit_are_refused():
    data = radiograph()
    with pytest.raises(ImageError, match="as its source"):
        make(data, ("seg",), Findings(np.zeros((5, 5), np.uint8), NAMES))
    with pytest.raises(ImageError, match="label 9"):
        make(data, ("seg",), Findings(np.full((37, 53), 9, np.uint8), NAMES))
    plain = Findings(np.zeros((37, 53), np.uint8), NAMES)
    with pytest.raises(SpecError, match="overlay"):
        make(data, ("sc",), plain)
    with pytest.raises(SpecError, match="probabilities"):
        make(data, ("seg",), plain, segmentation_kind="FRACTIONAL")
    with pytest.raises(SpecError, match="unknown result"):
        make(data, ("pdf",), plain)
    with pytest.raises(SpecError, match="segmentation kind"):
        ResultOptions("COLOUR")


REAL = (
    "nih_dx_implicit_mono2_8bit.dcm",
    "rsna_cr_pa_jpegbaseline_fake_mono1.dcm",
    "wg04_RG3_J2KR_extremity_mono1_10bit.dcm",
)


@needs("dciodvfy")
@pytest.mark.parametrize("name", REAL)
def test_results_of_real_files_are_clean_and_their_masks_come_back(dicom_samples, tmp_path, name):
    with DicomReader() as reader:
        image = reader.read(dicom_samples / name, ReadOptions(force=True, with_source=True))
    assert image.source_json == read_dicom(dicom_samples / name, ReadOptions(True, True)).source_json
    findings = find(image)
    encoded = encode_results(RESULTS, image.source_json, findings, ALGORITHM)
    for kind, content in encoded.items():
        path = tmp_path / f"{kind}.dcm"
        path.write_bytes(content)
        assert judge("dciodvfy", "-new", path) == [], kind
    frames = unpack(pydicom.dcmread(tmp_path / "seg.dcm"))
    assert all(np.array_equal(frame, findings.labels == label) for label, frame in enumerate(frames, start=1))
