"""Initial inputs of the fuzzer: `python -m tests.fuzz.seeds` writes them into corpus/."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
from PIL import Image

from lakeclip.lake.images import image_suffixes
from tests.fuzz import archives

CORPUS = Path(__file__).with_name("corpus")


def main() -> None:
    """Write every seed."""
    for target, make in (
        ("images", images),
        ("tars", tars),
        ("captions", captions),
        ("tables", tables),
        ("recipes", recipes),
        ("checkpoints", checkpoints),
    ):
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in make():
            (folder / f"seed-{name}").write_bytes(data)


def images() -> Iterator[tuple[str, bytes]]:
    """Generate an image of 8 × 9 pixels in every format and mode that Pillow writes."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 9, 4), dtype=np.uint8)
    drawing = Image.fromarray(pixels)
    modes = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGBA", "P", "I", "LA", "1"), "TIFF": ("RGB", "F", "CMYK")}
    for kind in sorted(set(image_suffixes().values())):
        for mode in modes.get(kind, ("RGB", "L", "1")):
            buffer = io.BytesIO()
            try:
                drawing.convert("RGB").convert(mode).save(buffer, kind)
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if buffer.tell() > 20_000:
                break
            yield f"{kind.lower()}-{mode.lower()}", (b"+" if kind == "PNG" else b"") + buffer.getvalue()
            if kind not in modes:
                break
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    drawing.convert("RGB").save(buffer, "JPEG", exif=exif, progressive=True)
    yield "jpeg-exif", buffer.getvalue()
    buffer = io.BytesIO()
    frames = [Image.new("P", (4, 4), colour) for colour in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], transparency=1)
    yield "gif-animation", buffer.getvalue()


def tars() -> Iterator[tuple[str, bytes]]:
    """Generate tar files in each dialect, with unusual members between the samples."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    files = {"a.png": buffer.getvalue(), "a.txt": b"a cat\n", "a.json": b'{"caption": "a", "n": 1}', "b.cls": b"3"}
    for number, dialect in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        for compression in (0, 1, 2, 3):
            if compression > 1 and number:
                continue
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=dialect) as tar:
                for name, data in files.items():
                    name = f"{'long' * 30}/{name}" if number else name
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    info.pax_headers = {"comment": "é"} if number == 2 else {}
                    tar.addfile(info, io.BytesIO(data))
                for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
                    info = tarfile.TarInfo("../../c.jpg")
                    info.type, info.linkname = kind, "/etc/hostname"
                    tar.addfile(info)
            yield (
                f"dialect{number}-{compression}",
                bytes([compression | 4]) + buffer.getvalue().rstrip(b"\0") + bytes(1024),
            )
    sparse = tarfile.TarInfo("a.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    yield "sparse", bytes([4]) + sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1536)


def captions() -> Iterator[tuple[str, bytes]]:
    """Generate captions as lines and as lists, in several encodings."""
    yield "lines", b"a cat on a mat\r\n\r\n a dog's day \n"
    yield "utf16", "ein Käfer, 日本語 😀\n".encode("utf-16")
    yield "utf8", "\ufeffÄpfel &amp; &lt;Birnen&gt; ﬁ \N{ZERO WIDTH JOINER}\n".encode()
    yield "cp1252", "“naïve”\n".encode("cp1252")
    yield "json", json.dumps(["a cat", "two\ncats", "é\ud800"]).encode()
    yield "nested", b"[" * 40 + b"]" * 40
    yield "special", b"<start_of_text> a <end_of_text> <|endoftext|> 's 't 123 ### \x00\x1b[31m"
    yield "mojibake", "schÃ¶n â€œquotedâ€\x9d".encode()


def tables() -> Iterator[tuple[str, bytes]]:
    """Generate tables in every format; the first byte selects the format."""
    yield "csv", b'\x00url,caption,n\r\nhttps://a.example/1.jpg,"a, ""cat""\n",1\r\nb.jpg,x,2.5\r\n'
    yield "semicolons", b"\x00filepath;title\nx.jpg;a\ny.png;b\n"
    yield "cc3m", b'\x01a "cat\thttps://a.example/1.jpg\n'
    yield "jsonl", b'\x02{"url": "https://a.example/1.jpg", "caption": ["a", "b"], "n": null}\n[1]\n{"url": 3}\n{'
    yield "csv-gz", b"\x03url,caption\nhttps://a.example/1.jpg,a\n"
    yield "jsonl-gz", b'\x04{"image": "aGk=", "caption": "a"}\n'
    yield "gz-itself", b"\x08" + archives.compressed(b"url,caption\nhttps://a.example/1.jpg,a\n", 1)
    yield "utf16", b"\x00" + "url,caption\nhttps://a.example/1.jpg,é\n".encode("utf-16")


def recipes() -> Iterator[tuple[str, bytes]]:
    """Generate run settings, a model configuration, and unusual YAML."""
    yield (
        "run",
        b"model: RN50\nepochs: 3\ndata: {lake: x, query: 'width > 2'}\noptimizer:\n  lr: 5e-4\n  betas: [0.9, .98]\n",
    )
    yield "finetune", b"image_encoder: lakeclip:RN50\ntext_encoder: hf:x\ndata:\n  folder: y\n"
    yield (
        "model",
        (
            b"x:\n  embed_dim: 32\n  image_resolution: 32\n  vision_layers: [1, 1, 1, 1]\n  vision_width: 16\n"
            b"  vision_patch_size: null\n  context_length: 77\n  vocab_size: 49408\n  transformer_width: 64\n"
            b"  transformer_heads: 1\n  transformer_layers: 2\n"
        ),
    )
    yield "anchors", b"a: &a [x, x]\nb: &b [*a, *a]\nmodel: *b\n<<: {epochs: 2}\n"
    yield "tags", b"model: !!python/object/apply:os.getcwd []\nepochs: !!int '1'\nseed: !!binary aGk=\n"
    yield (
        "scalars",
        b"a: 2001-12-14t21:59:43.10-05:00\nb: 190:20:30\nc: 0o14\nd: .inf\ne: ~\nf: 2001-02-03\ng: !!bool yes\n",
    )
    yield "blocks", b"model: |\n  x\nseed: >-\n  1\n? [a]\n: 'b'\n--- \n"


def checkpoints() -> Iterator[tuple[str, bytes]]:
    """Generate pickles, safetensors and configurations; the first byte selects the kind."""
    native = archives.small_pickle()
    yield "native", b"\x01" + native
    yield "openai", b"\x01" + archives.plain_pickle()
    yield "torchscript", b"\x02" + _torchscript_pickle()
    tensors = {
        "a": archives.small_model().logit_scale.detach()[None],
        "b": archives.small_model().ln_final.weight.detach(),
    }
    yield "safetensors", b"\x03" + safetensors.torch.save(tensors)
    yield (
        "huggingface",
        b"\x04"
        + json.dumps(
            {
                "model_type": "clip",
                "text_config": {"num_attention_heads": 1, "hidden_act": "quick_gelu"},
                "vision_config": {},
            }
        ).encode(),
    )
    yield "plain", b"\x01" + pickle.dumps({"lakeclip": {"format": 1}, "state_dict": {"a": [1, (2.5, None)]}}, 2)
    yield "zip", b"\x00PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18)
    yield "legacy", b"\x00" + pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)


def _torchscript_pickle() -> bytes:
    """Return the data.pkl of two nested TorchScript modules with one tensor."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00))\x89ccollections\nOrderedDict\n)RtR"
    inner = b"c__torch__.m\nInner\n)\x81}X\x01\x00\x00\x00w" + tensor + b"sb"
    return b"\x80\x02c__torch__.m\nOuter\n)\x81}(X\x01\x00\x00\x00a" + inner + b"X\x01\x00\x00\x00b" + tensor + b"ub."


if __name__ == "__main__":
    main()
