from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.checkpoints.layouts import load_weights
from lakeclip.errors import CheckpointError
from tests.unit.checkpoints.weights import VIT, original, save


@pytest.mark.parametrize("layout", ["openai", "open_clip"])
def test_weights_by_name(tmp_path: Path, layout: str) -> None:
    path = save(tmp_path / "a:b.pt", original().state_dict())
    found = load_weights(f"{layout}:{path}")
    assert (found.layout, found.path, found.model_config) == (layout, path, VIT)


def test_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "x.pt", original().state_dict())
    assert load_weights("openai:~/x.pt").path == tmp_path / "x.pt"


@pytest.mark.parametrize("name", ["", "openai", "openai:", "clip:x.pt", "x.pt"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(CheckpointError, match="does not name weights") as error:
        load_weights(name)
    assert error.value.allowed == "openai:FILE, open_clip:FILE or huggingface:FOLDER"
    assert not error.value.next_step


def test_a_file_without_its_layout(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", original().state_dict())
    with pytest.raises(CheckpointError, match="does not name weights") as error:
        load_weights(str(path))
    assert error.value.next_step.startswith(f"openai:{path}")


def test_what_is_assumed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Weights do not tell QuickGELU from GELU, and with the wrong one every feature is."""
    path = save(tmp_path / "x.pt", original().state_dict())
    load_weights(f"openai:{path}")
    assert not caplog.text
    load_weights(f"open_clip:{path}")
    assert "QuickGELU" in caplog.text
