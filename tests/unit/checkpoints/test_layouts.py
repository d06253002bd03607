from __future__ import annotations

from pathlib import Path

import pytest

from lakeclip.checkpoints.layouts import load_weights
from lakeclip.errors import CheckpointError
from tests.unit.checkpoints.weights import VIT, random_clip, save


@pytest.mark.parametrize("layout", ["openai", "open_clip"])
def test_weights_by_name(tmp_path: Path, layout: str) -> None:
    path = save(tmp_path / "a:b.pt", random_clip().state_dict())
    pretrained = load_weights(f"{layout}:{path}")
    assert (pretrained.layout, pretrained.path, pretrained.model_config) == (layout, path, VIT)


def test_a_path_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "x.pt", random_clip().state_dict())
    assert load_weights("openai:~/x.pt").path == tmp_path / "x.pt"


@pytest.mark.parametrize("name", ["", "openai", "openai:", "clip:x.pt", "x.pt"])
def test_invalid_names_raise(name: str) -> None:
    with pytest.raises(CheckpointError, match="does not name weights") as error:
        load_weights(name)
    assert error.value.allowed == "openai:FILE, open_clip:FILE or huggingface:FOLDER"
    assert not error.value.next_step


def test_a_file_without_its_layout(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", random_clip().state_dict())
    with pytest.raises(CheckpointError, match="does not name weights") as error:
        load_weights(str(path))
    assert error.value.next_step.startswith(f"openai:{path}")


def test_assumptions_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Check the warning: weights do not distinguish QuickGELU from GELU, and the wrong one changes every feature."""
    path = save(tmp_path / "x.pt", random_clip().state_dict())
    load_weights(f"openai:{path}")
    assert not caplog.text
    load_weights(f"open_clip:{path}")
    assert "QuickGELU" in caplog.text
