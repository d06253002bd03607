"""Encodings of text files: detection, and decoding that counts what does not fit.

A mark at the start decides (UTF-8, UTF-16, UTF-32); then zero bytes, which only UTF-16 and UTF-32 have; then UTF-8, if
the bytes are valid. Everything else is detected by the letters of languages and by charset-normalizer.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from lakeclip.lake.language_letters import LANGUAGES, MULTIBYTE, SUPERSETS, score, score_multibyte

#: Limit on the bytes that are examined.
MAX_SAMPLE = 2**16
#: A detection is sure if the second best one is e^6 = 400 times less likely.
_SURE = 6.0
#: A text whose characters are less likely than this, on average, fits no language that is known here.
_FITS = -9.5

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DISPLAY = {
    "utf-8-sig": "UTF-8",
    "cp932": "Shift-JIS",
    "big5hkscs": "Big5",
    "cp949": "EUC-KR",
    "euc_jp": "EUC-JP",
    "cp874": "TIS-620",
}
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")


class Encoding(NamedTuple):
    """The encoding of a text.

    Attributes:
        name: name of Python's codec.
        source: how it is known: by a mark, by the user's choice, because the text is valid UTF-8, or by detection.
        is_sure: whether no other encoding is about as likely.
        other: what else the text may be, if that is not sure.
    """

    name: str
    source: Literal["mark", "chosen", "valid", "detected"]
    is_sure: bool = True
    other: str = ""

    @property
    def is_wide(self) -> bool:
        """Return True if a character takes two or four bytes, so that lines cannot be found in the bytes."""
        return self.name.startswith(("utf-16", "utf-32"))

    @property
    def display_name(self) -> str:
        """The name for messages: "GB18030", "Windows-1251"."""
        return display_name(self.name)

    def describe(self) -> str:
        """Return how the text is read, for a message; "" if it is UTF-8 as usual, or as the user has chosen."""
        if self.source == "chosen" or (self.name in ("utf-8", "utf-8-sig") and self.source != "detected"):
            return ""
        if self.source == "mark":
            return f"read as {self.display_name} (by its mark)"
        if self.is_sure:
            return f"read as {self.display_name} (detected); --encoding decides"
        other = f": it may be {display_name(self.other)}" if self.other else ""
        return f"read as {self.display_name}, which is a guess{other}; check the captions, --encoding decides"


def display_name(name: str) -> str:
    """Return the usual name of an encoding."""
    if name in _DISPLAY:
        return _DISPLAY[name]
    if match := re.fullmatch(r"cp125(\d)", name):
        return f"Windows-125{match[1]}"
    return name.upper().replace("_", "-").replace("ISO8859", "ISO-8859")


def find_mark(start: bytes) -> Encoding | None:
    """Return the encoding that a mark at the start of a text, or the zero bytes in it, say; None if there are none."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return Encoding(name, "mark")
    return _without_mark(start)


def _without_mark(start: bytes) -> Encoding | None:
    """Recognize UTF-16 and UTF-32 without a mark by where the zero bytes of their ASCII characters are."""
    length = len(start) // 4 * 4
    if not length and len(start) == 2 and 0 in start:
        return Encoding("utf-16-le" if not start[1] else "utf-16-be", "detected")
    zeros = [start[offset:length:4].count(0) / max(length // 4, 1) for offset in range(4)]
    if not any(zeros):
        return None
    if min(zeros[2:]) > 0.9 and zeros[0] < 0.1:
        return _if_valid(start[:length], "utf-32-le")
    if min(zeros[:2]) > 0.9 and zeros[3] < 0.1:
        return _if_valid(start[:length], "utf-32-be")
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    # Bytes of ASCII alone are UTF-16 only if every second one is zero; those of Chinese have all values.
    least = 0.6 if not _BEYOND_ASCII.search(start) else 0.1
    if odd > least and odd > 4 * even:
        return _if_valid(start[:length], "utf-16-le")
    if even > least and even > 4 * odd:
        return _if_valid(start[:length], "utf-16-be")
    return None


def _if_valid(data: bytes, name: str) -> Encoding | None:
    text = codecs.getincrementaldecoder(name)("replace").decode(data)
    odd = sum(char == "\ufffd" or (char < " " and char not in "\t\r\n\f\v") for char in text)
    return Encoding(name, "detected") if odd <= len(text) // 100 else None


def is_utf8(data: bytes) -> bool:
    """Return whether bytes are valid UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def detect(sample: bytes) -> Encoding:
    """Return the encoding of a text that has no mark, from a sample of its lines that are not ASCII.

    Args:
        sample: complete lines; more than `MAX_SAMPLE` bytes are not examined.
    """
    sample = sample[:MAX_SAMPLE]
    if not _BEYOND_ASCII.search(sample):
        if re.search(rb"\x1b\$[@B]", sample):
            return Encoding("iso2022_jp_2", "detected")
        return Encoding("utf-8", "valid")
    if is_mostly_utf8(count_lines(sample)):
        return Encoding("utf-8", "valid")
    ranked = _rank(sample)
    best, (_, text, name) = ranked[0][0], ranked[0]
    characters = len(text) - len(text.encode("ascii", "ignore"))
    rival = next(((points, other) for points, decoded, other in ranked[1:] if decoded != text), None)
    if best / max(characters, 1) < _FITS and (guess := _guess(sample)):
        return Encoding(guess, "detected", False, name if guess != name else "")
    is_sure = rival is None or best - rival[0] >= _SURE
    name = SUPERSETS.get(name, name)
    return Encoding(name, "detected", is_sure, "" if is_sure or rival is None else SUPERSETS.get(rival[1], rival[1]))


def count_utf8(data: bytes) -> tuple[int, int]:
    """Return the number of characters beyond ASCII that are valid UTF-8, and of errors."""
    errors = 0 if is_utf8(data) else data.decode("utf-8", "replace").count("\ufffd") - data.count(b"\xef\xbf\xbd")
    text = data.decode("utf-8", "ignore")
    return len(text) - len(text.encode("ascii", "ignore")), errors


def _rank(sample: bytes) -> list[tuple[float, str, str]]:
    """Return the log-probability, text and name of each candidate, best first; the first of equals is most frequent."""
    ranked = []
    texts: dict[str, str] = {}
    for number, language in enumerate(LANGUAGES):
        for order, name in enumerate(language.encodings):
            if name not in texts:
                texts[name] = sample.decode(name, "replace")
            # Windows' encodings are far more frequent than the others, and so are western ones.
            prior = -1.0 * (name.startswith("cp125") is False) * 3 - 0.5 * order - 0.02 * number
            prior += 2.0 if name == "cp1252" else 0.0
            ranked.append((score(texts[name], language) + prior, texts[name], name))
    for name in MULTIBYTE:
        text = sample.decode(name, "replace")
        ranked.append((score_multibyte(text, name), text, name))
    return sorted(ranked, key=lambda entry: -entry[0])


def _guess(sample: bytes) -> str | None:
    """Return what charset-normalizer makes of a sample; None if it finds nothing."""
    from charset_normalizer import from_bytes

    best = from_bytes(sample[: 2**14]).best()
    return None if best is None or best.encoding.startswith(("utf_16", "utf_32")) else best.encoding


class Utf8Counts(NamedTuple):
    """Counts by which a text is recognized as UTF-8 but for some broken bytes.

    Attributes:
        whole: characters beyond ASCII in lines that are valid UTF-8.
        broken: the same in lines that are not.
        errors: errors in the latter.
    """

    whole: int
    broken: int
    errors: int


def count_lines(data: bytes) -> Utf8Counts:
    """Count the characters and errors of a text, if it is read as UTF-8."""
    counts = [(count_utf8(line), is_utf8(line)) for line in data.split(b"\n") if not line.isascii()]
    return Utf8Counts(
        sum(characters for (characters, _), is_valid in counts if is_valid),
        sum(characters for (characters, _), is_valid in counts if not is_valid),
        sum(errors for (_, errors), _ in counts),
    )


def is_mostly_utf8(counts: Utf8Counts) -> bool:
    """Return whether a text is UTF-8. Pairs of bytes of East Asian encodings may be valid, whole lines hardly ever."""
    return counts.whole > counts.errors or counts.whole + counts.broken > 4 * counts.errors


def sample_lines(data: bytes, limit: int = MAX_SAMPLE) -> bytes:
    """Return the lines of a text that are not ASCII, up to a number of bytes."""
    lines, size = [], 0
    for line in data.split(b"\n"):
        if _BEYOND_ASCII.search(line) or b"\x1b$" in line:
            lines.append(line[:4096])
            size += len(lines[-1])
            if size >= limit:
                break
    return b"\n".join(lines)


def decode(data: bytes, encoding: Encoding) -> str:
    """Decode a text. Bytes that the encoding does not have become U+FFFD."""
    text = data.decode(encoding.name, "replace")
    return text.removeprefix("\ufeff")


class TextDecoder:
    """Decoder of many small texts, such as the caption files of a folder, which share an encoding.

    A text with a mark, or valid UTF-8, is read as that. The others are too short to detect the encoding of each, so a
    sample of all of them decides.

    Args:
        encoding: the user's choice; detected by default.

    Attributes:
        counts: encoding → number of texts that were read so, without UTF-8.
        num_damaged: number of texts with bytes that their encoding does not have.
    """

    def __init__(self, encoding: str | None = None) -> None:
        self._chosen = Encoding(encoding, "chosen") if encoding else None
        self._detected: Encoding | None = None
        self.counts: Counter[Encoding] = Counter()
        self.num_damaged = 0

    def prepare(self, data: bytes, others: Callable[[], Iterable[bytes]]) -> None:
        """Detect the encoding, if this text needs it and it is not known yet.

        Args:
            data: the text that is to be decoded next.
            others: function that reads further texts; the first thousands are enough.
        """
        if self._chosen is None and self._detected is None and not self.is_plain(data):
            self.learn(itertools.chain([data], others()))

    def learn(self, texts: Iterable[bytes]) -> None:
        """Detect the encoding from those texts that are not UTF-8."""
        lines: list[bytes] = []
        size = 0
        for data in texts:
            if not self.is_plain(data):
                lines.append(sample_lines(data, 4096))
                size += len(lines[-1])
                if size >= MAX_SAMPLE:
                    break
        self._detected = detect(b"\n".join(lines)) if lines else None

    @staticmethod
    def is_plain(data: bytes) -> bool:
        """Return whether the encoding of a text is evident: by a mark, or because it is UTF-8."""
        return find_mark(data[:4096]) is not None or (b"\x1b$" not in data and is_utf8(data))

    def decode(self, data: bytes) -> str:
        """Decode a text."""
        encoding = self._chosen or find_mark(data[:4096])
        if encoding is None:
            if b"\x1b$" not in data and is_utf8(data):
                return data.decode()
            if self._detected is None:
                self.learn([data])
            encoding = self._detected or Encoding("utf-8", "valid")
        text = decode(data, encoding)
        if "\ufffd" in text and not (encoding.name.startswith("utf-8") and b"\xef\xbf\xbd" in data):
            self.num_damaged += 1
        if encoding.describe():
            self.counts[encoding] += 1
        return text

    def notes(self, kind: str) -> list[str]:
        """Describe how the texts were read.

        Args:
            kind: what a text is, in the plural: "caption files".
        """
        notes = [f"{count:,} {kind} {encoding.describe()}" for encoding, count in self.counts.items()]
        if self.num_damaged:
            notes.append(f"{self.num_damaged:,} {kind} have bytes that their encoding lacks, replaced by U+FFFD")
        return notes
