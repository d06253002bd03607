"""Detection of encodings: captions of many languages in the encodings that people have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakeclip.lake.encodings import Encoding, TextDecoder, count_utf8, decode, detect, find_mark, is_utf8

CAPTIONS = {
    "zh": ["一只红色的鸟在树枝上", "两个孩子在公园里踢足球", "厨房桌子上的一盘水果和一杯咖啡"],
    "zh-tw": ["一隻紅色的鳥在樹枝上", "兩個孩子在公園裡踢足球", "廚房桌上的一盤水果和一杯咖啡"],
    "ja": ["赤い鳥が枝にとまっています", "公園でサッカーをしている子供たち", "台所のテーブルの上の果物"],
    "ko": ["나뭇가지에 앉은 빨간 새", "공원에서 축구를 하는 아이들", "부엌 식탁 위의 과일 접시"],
    "ru": ["красная птица на ветке", "Двое детей играют в футбол в парке", "Тарелка с фруктами на кухонном столе"],
    "uk": ["червона пташка на гілці", "двоє дітей грають у футбол"],
    "de": ["ein grüner Vogel", "zwei Kinder spielen Fußball", "Träume über Äpfel in der Küche"],
    "fr": ["un café – naïve “x”", "deux enfants jouent à la balle", "une assiette de fruits sur la table dépliée"],
    "es": ["el niño está aquí", "una señora con un paraguas en la montaña"],
    "pl": ["czerwony ptak na gałęzi", "dwoje dzieci grających w piłkę nożną", "talerz owoców na stole"],
    "cs": ["červený pták na větvi", "dvě děti hrají fotbal v parku, žluté květiny"],
    "el": ["ένα κόκκινο πουλί", "δύο παιδιά παίζουν ποδόσφαιρο στο πάρκο"],
    "tr": ["kırmızı bir kuş dalda", "parkta futbol oynayan iki çocuk ışık"],
    "he": ["ציפור אדומה על ענף", "שני ילדים משחקים כדורגל בפארק"],
    "ar": ["طائر أحمر على غصن", "طفلان يلعبان كرة القدم في الحديقة"],
    "th": ["นกสีแดงบนกิ่งไม้", "เด็กสองคนกำลังเล่นฟุตบอล"],
}
ENCODINGS = [
    ("zh", "gbk"),
    ("zh", "gb18030"),
    ("zh-tw", "big5"),
    ("ja", "shift_jis"),
    ("ja", "euc_jp"),
    ("ja", "iso2022_jp"),
    ("ko", "euc_kr"),
    ("ru", "cp1251"),
    ("ru", "koi8_r"),
    ("ru", "cp866"),
    ("uk", "cp1251"),
    ("de", "latin-1"),
    ("de", "mac_roman"),
    ("fr", "cp1252"),
    ("es", "latin-1"),
    ("pl", "cp1250"),
    ("pl", "iso8859_2"),
    ("cs", "cp1250"),
    ("el", "cp1253"),
    ("tr", "cp1254"),
    ("he", "cp1255"),
    ("ar", "cp1256"),
    ("th", "cp874"),
]


def table(language: str, repeat: int = 1) -> str:
    return "".join(f"p{i}.jpg,{text}\n" for i, text in enumerate(CAPTIONS[language] * repeat))


@pytest.mark.parametrize(("language", "name"), ENCODINGS)
@pytest.mark.parametrize("repeat", [1, 20])
def test_two_or_three_captions_are_enough(language: str, name: str, repeat: int) -> None:
    text = table(language, repeat)
    found = detect(text.encode(name))
    assert decode(text.encode(name), found) == text
    assert found.source == "detected"
    if repeat > 1:
        assert found.is_sure
        assert "(detected); --encoding decides" in found.describe()


@pytest.mark.parametrize(("language", "name"), ENCODINGS)
def test_a_wrong_detection_is_never_sure(language: str, name: str) -> None:
    """Single words may be ambiguous, but then the message says so."""
    for caption in CAPTIONS[language]:
        for text in (caption, *(word for word in caption.split() if not word.isascii())):
            found = detect(text.encode(name))
            assert not found.is_sure or decode(text.encode(name), found) == text, (text, found)


def test_an_unsure_detection_says_so() -> None:
    found = detect("caffè".encode("latin-1"))
    assert not found.is_sure
    assert "which is a guess: it may be" in found.describe()
    assert "--encoding decides" in found.describe()


@pytest.mark.parametrize("name", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("language", ["zh", "ru", "fr"])
def test_unicode_with_and_without_a_mark(language: str, name: str) -> None:
    text = table(language)
    found = find_mark(text.encode(name))
    assert found is not None
    assert decode(text.encode(name), found) == text


def test_zero_bytes_do_not_make_a_text_utf16() -> None:
    assert find_mark(b"image,caption\na.jpg,a \0 cat\n") is None
    assert find_mark(b"image,caption\n") is None
    assert find_mark(b"") is None


def test_utf8_with_broken_bytes_stays_utf8() -> None:
    data = table("zh").encode() + "ein Käfer\n".encode("latin-1")
    assert detect(data).name == "utf-8"
    assert count_utf8(data)[1] == 1


def test_a_few_foreign_bytes_do_not_change_the_encoding() -> None:
    data = table("zh", 10).encode("gbk") + b"p.jpg,\xff\x80\n"
    found = detect(data)
    assert found.name == "gb18030"
    assert decode(data, found).startswith(table("zh", 10))


def test_small_texts_share_their_encoding() -> None:
    """The words "é" and "è" alone say little; a hundred captions say enough."""
    texts = [word.encode("cp1250") for caption in CAPTIONS["pl"] for word in caption.split()]
    decoder = TextDecoder()
    decoder.learn(texts)
    assert " ".join(map(decoder.decode, texts)) == " ".join(CAPTIONS["pl"])
    (note,) = decoder.notes("caption files")
    assert "caption files read as Windows-1250" in note
    mixed = TextDecoder()
    assert mixed.decode("träume".encode()) == "träume"
    assert mixed.decode("猫".encode("utf-16")) == "猫"
    assert mixed.decode("träume".encode("latin-1")) == "träume"
    chosen = TextDecoder("koi8_r")
    assert chosen.decode("птица".encode("koi8_r")) == "птица"
    assert chosen.notes("files") == []


@given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=40))
@settings(max_examples=200)
def test_valid_utf8_is_read_as_utf8(text: str) -> None:
    data = text.encode()
    assert is_utf8(data)
    if "\x1b" not in text and "\0" not in text and not text.startswith("\ufeff"):
        assert decode(data, find_mark(data) or detect(data)) == text


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_any_bytes_can_be_decoded(data: bytes) -> None:
    found = find_mark(data) or detect(data)
    assert isinstance(found, Encoding)
    assert isinstance(decode(data, found), str)
    assert isinstance(TextDecoder().decode(data), str)
