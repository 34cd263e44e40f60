"""State on disk: whole at any moment, checked when read, never pickled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unetx_opt.errors import CheckpointError
from unetx_opt.training import state as state_module
from unetx_opt.training.state import (
    EpochRecord,
    SavedState,
    has_state,
    load_state,
    remove_state,
    save_state,
)

torch = pytest.importorskip("torch", reason="a state holds tensors: pip install 'unetx-opt[train]'")


def _state(epochs: int) -> SavedState:
    history = tuple(EpochRecord(n + 1, 1.0 / (n + 1), 0.5 + 0.1 * (n % 3)) for n in range(epochs))
    tensors = {
        "model/weight": torch.full((2, 3), float(epochs)),
        "model/steps": torch.tensor(epochs),
        "optimizer/weight/exp_avg": torch.ones(2, 4, 3, 3).contiguous(memory_format=torch.channels_last),
    }
    return SavedState({"options": {"seed": 1}}, history, tensors, {"weight": torch.zeros(2)})


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_state(tmp_path / "s", _state(3))
    loaded = load_state(tmp_path / "s")
    assert loaded.history == _state(3).history
    assert loaded.identity == {"options": {"seed": 1}}
    assert loaded.tensors.keys() == _state(3).tensors.keys()
    for name, value in _state(3).tensors.items():
        assert torch.equal(loaded.tensors[name], value)
        assert loaded.tensors[name].dtype == value.dtype


def test_only_the_last_epoch_and_the_best_stay(tmp_path: Path) -> None:
    for epochs in range(1, 6):
        save_state(tmp_path / "s", _state(epochs))
    names = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert names == ["best-0003.safetensors", "epoch-0005.safetensors", "state.json"]


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_a_writer_that_dies_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    save_state(tmp_path / "s", _state(2))
    real, left = state_module.write_file, [writes]

    def dying(path: Path, data: bytes) -> None:
        if not left[0]:
            raise SystemExit
        left[0] -= 1
        real(path, data)

    monkeypatch.setattr(state_module, "write_file", dying)
    with pytest.raises(SystemExit):
        save_state(tmp_path / "s", _state(3))
    monkeypatch.undo()
    assert len(load_state(tmp_path / "s").history) == 2
    save_state(tmp_path / "s", _state(3))
    assert len(load_state(tmp_path / "s").history) == 3


def test_an_altered_tensor_file_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "s", _state(1))
    path = tmp_path / "s" / "epoch-0001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="was altered: remove the folder"):
        load_state(tmp_path / "s")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 9}', '{"schema_version": 1, "history": []}'],
)
def test_a_damaged_or_foreign_state_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match="train from the start"):
        load_state(tmp_path)


def test_nothing_in_the_state_is_used_as_a_path(tmp_path: Path) -> None:
    save_state(tmp_path / "s", _state(1))
    path = tmp_path / "s" / "state.json"
    document = json.loads(path.read_text())
    document["sha256"] = {"../" + name: digest for name, digest in document["sha256"].items()}
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="no usable training state"):
        load_state(tmp_path / "s")


def test_a_removed_state_is_gone(tmp_path: Path) -> None:
    save_state(tmp_path / "s", _state(1))
    assert has_state(tmp_path / "s")
    remove_state(tmp_path / "s")
    assert not (tmp_path / "s").exists()
    remove_state(tmp_path / "s")
