"""Odd image files, from `lakeclip ingest` to the pixels of a batch."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lakeclip.cli.app import main
from lakeclip.data.decode import decode_image
from lakeclip.data.transforms import EvalTransform, TrainTransform
from lakeclip.lake.dataset import open_lake
from tests.unit.lake.odd_images import png, png_chunk
from tests.unit.lake.sample_files import picture, write_files, write_tar
from tests.unit.lake.test_pillow import broken_tiff, stereo


def test_odd_images_become_the_right_pixels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ingest X-rays of 12 bits, transparent greys, a stereo photo and pictures whose suffix is wrong."""
    xray = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
    hidden = np.where(xray > 2000, 4095, xray)
    files = {
        "xray.png": png(xray),
        "hidden.png": png(hidden, chunks=png_chunk(b"tRNS", b"\x0f\xff")),
        "stereo.mpo": stereo("red", "blue"),
        "really_jpeg.png": picture(1),
        "really_png.jpg": picture(2, "PNG"),
        "broken.tif": broken_tiff(),
        "code.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "really_eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    }
    captions = {f"{name.partition('.')[0]}.txt": name for name in files}
    write_files(tmp_path / "in", {**files, **captions})
    main(["ingest", str(tmp_path / "in"), str(tmp_path / "lake")])
    output, errors = capfd.readouterr()
    assert errors == ""
    assert re.search(r"broken image +1", output)
    assert re.search(r"not an image +1", output)
    assert re.search(r"other files +1 +1 \.eps", output)
    lake = open_lake(tmp_path / "lake")
    rows = {row.captions[0]: row.image for row in lake.read(range(len(lake)))}
    assert rows == {name: files[name] for name in rows}
    assert rows.keys() == files.keys() - {"broken.tif", "code.eps", "really_eps.jpg"}
    assert dict(zip(lake.column("text"), lake.column("format"), strict=True)) == {
        "xray.png": "png",
        "hidden.png": "png",
        "stereo.mpo": "jpeg",
        "really_jpeg.png": "jpeg",
        "really_png.jpg": "png",
    }
    whole = EvalTransform(64)(rows["xray.png"])
    assert np.array_equal(whole[0].numpy(), np.rint(xray * (255 / 4095)))
    crop = TrainTransform(32, 0.3)(rows["xray.png"], np.array([0.0, 0.0, 0.0]))
    assert int(crop.max()) < 200, "the range is that of the whole image, not of the crop"
    assert (EvalTransform(64)(rows["hidden.png"])[:, hidden == 4095] == 255).all()
    assert (EvalTransform(64)(rows["hidden.png"])[:, :8] < 60).all()
    assert EvalTransform(8)(rows["stereo.mpo"])[0].min() > 250


def test_stereo_photos_in_tars_and_tables(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.mpo", stereo("lime", "red")), ("0.txt", "a stereo photo")])
    write_files(tmp_path, {"t/1.mpo": stereo("lime", "red"), "t/table.csv": "image,caption\n1.mpo,a stereo photo\n"})
    for source, lake in ((tmp_path / "a.tar", "tar.lake"), (tmp_path / "t" / "table.csv", "csv.lake")):
        main(["ingest", str(source), str(tmp_path / lake)])
        rows = open_lake(tmp_path / lake)
        assert len(rows) == 1
        pixels = decode_image(rows.images([0])[0])
        first = np.asarray(Image.open(io.BytesIO(stereo("lime", "red"))).convert("RGB"))
        assert np.array_equal(pixels, first)
