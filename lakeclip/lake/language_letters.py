"""Letters of languages and the encodings that their texts had before UTF-8, for `encodings.detect`.

Detection by the tables of charset-normalizer alone reads "café – naïve" as cp775 and a Russian caption in KOI8-R as
Shift-JIS: captions are short. These tables rank the candidates by how likely their characters are in a language.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

#: Marks that occur in texts of any language.
_MARKS = "„‚«»°©®™€£§·•½¼¾²³×´±¡¿\xa0"
_FREQUENT_MARKS = "“”‘’–—…"
_CJK_MARKS = "　、。，．：；？！（）「」『』【】〈〉《》〔〕〜～・…—“”‘’％＋－＝／０１２３４５６７８９ＡＢＣａｂｃ々ー"
#: Log-probability of a character that a language does not have.
_RARE = -13.0


class Language(NamedTuple):
    """Letters of a language outside ASCII.

    Attributes:
        encodings: encodings of its texts; the most frequent first.
        letters: its lower-case letters, without the rare ones.
        rare: its rare letters.
        share: share of `letters` among its characters outside ASCII.
        is_alphabet: whether it does not mix with Latin letters within a word.
    """

    encodings: tuple[str, ...]
    letters: str
    rare: str = ""
    share: float = 0.85
    is_alphabet: bool = False


_WEST = ("cp1252", "mac_roman", "cp850")
_CENTRAL = ("cp1250", "iso8859_2", "cp852")
_CYRILLIC = ("cp1251", "koi8_r", "koi8_u", "iso8859_5", "cp866", "mac_cyrillic")
_CYRILLIC_LETTERS = "абвгдежзийклмнопрстуфхцчшщъыьэюя"

LANGUAGES: tuple[Language, ...] = (
    Language(_WEST, "éèàêç", "âîôûùëïüœæÿ"),
    Language(_WEST, "äöüß", "éàè"),
    Language(_WEST, "áéíóúñ", "ü"),
    Language(_WEST, "ãçáéíóõêâú", "àôü"),
    Language(_WEST, "àèéìòù", "î"),
    Language(_WEST, "åäö", "éüà"),
    Language(_WEST, "æøå", "éèòô"),
    Language(_WEST, "áéíóúýþæöð"),
    Language(_WEST, "éëïóè", "öüáê"),
    Language(_CENTRAL, "ąćęłńóśźż"),
    Language(_CENTRAL, "áčďéěíňóřšťúůýž"),
    Language(_CENTRAL, "áäčďéíľĺňóôšťúýž"),
    Language(_CENTRAL, "áéíóöőúüű"),
    Language(_CENTRAL, "čćđšž"),
    Language(("cp1250", "iso8859_16", "iso8859_2"), "ăâîşţșț"),
    Language(("cp1257", "iso8859_13"), "ąčęėįšųūžāēģīķļņõäöü"),
    Language(("cp1254",), "çğıöşü", "âîİ"),
    Language(("cp1258",), "ăâđêôơưáàảãạéèíìóòúùý"),
    Language(_CYRILLIC, _CYRILLIC_LETTERS.replace("ъ", ""), "ёъ", 0.97, True),
    Language(("cp1251", "koi8_u", "cp866"), "абвгдежзийклмнопрстуфхцчшщьюяіїєґ", "", 0.97, True),
    Language(("cp1251",), "абвгдђежзијклљмнњопрстћуфхцчџшѓќѕ", "", 0.97, True),
    Language(("cp1253", "iso8859_7", "cp737"), "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώ", "ϊϋΐΰ", 0.97, True),
    Language(("cp1255", "iso8859_8"), "אבגדהוזחטיכלמנסעפצקרשתךםןףץ", "", 0.97, True),
    Language(("cp1256", "iso8859_6"), "ابتثجحخدذرزسشصضطظعغفقكلمنهويةىءأإآؤئ", "ًٌٍَُِّْپچژگ،؛؟ـ", 0.97, True),
    Language(("cp874",), "".join(map(chr, (*range(0xE01, 0xE3B), *range(0xE40, 0xE4F)))), "", 0.97, True),
)

#: Multi-byte encodings: codec, and the share and number of characters in each range of lead bytes (and, for the
#: half-width letters of Shift-JIS, single bytes).
_KANA = 169
MULTIBYTE: dict[str, tuple[tuple[range, float, int], ...]] = {
    "gb18030": ((range(0xB0, 0xD8), 0.93, 3755), (range(0xD8, 0xF8), 0.02, 3008), (range(0xA4, 0xA6), 0.001, _KANA)),
    "big5hkscs": ((range(0xA4, 0xC7), 0.93, 5401), (range(0xC9, 0xFA), 0.03, 7652)),
    "euc_kr": ((range(0xB0, 0xC9), 0.97, 2350), (range(0xCA, 0xFE), 0.005, 4888)),
    "euc_jp": (
        (range(0xA4, 0xA6), 0.6, _KANA),
        (range(0xB0, 0xD0), 0.33, 2965),
        (range(0xD0, 0xF5), 0.01, 3390),
    ),
    "cp932": (
        (range(0x82, 0x84), 0.6, _KANA + 62),
        (range(0x88, 0x98), 0.33, 2965),
        (range(0x98, 0xA0), 0.01, 1000),
        (range(0xE0, 0xEB), 0.01, 2390),
    ),
}
#: Codec → codec that reads more of the characters that programs write under that name.
SUPERSETS = {"euc_kr": "cp949"}


@cache
def letter_scores(language: Language) -> dict[str, float]:
    """Return character → log-probability among the characters of a language outside ASCII."""
    scores = dict.fromkeys(_MARKS, math.log(0.04 / len(_MARKS))) | dict.fromkeys(_FREQUENT_MARKS, math.log(0.02))
    scores |= dict.fromkeys(language.rare.upper(), math.log(0.001))
    upper = language.letters.upper().replace("SS", "")
    scores |= dict.fromkeys(upper, math.log(max(0.93 - language.share, 0.02) / max(len(upper), 1)))
    scores |= dict.fromkeys(language.rare, math.log(0.06 / max(len(language.rare), 1)))
    return scores | dict.fromkeys(language.letters, math.log(language.share / len(language.letters)))


@cache
def multibyte_scores(encoding: str) -> dict[int, float]:
    """Return lead byte → log-probability of each character that begins with it."""
    return {lead: math.log(share / size) for leads, share, size in MULTIBYTE[encoding] for lead in leads}


def score(text: str, language: Language) -> float:
    """Return the log-probability of a text's characters outside ASCII in a language."""
    letters = letter_scores(language)
    total, before = 0.0, ""
    for char in text:
        if char > "\x7f":
            total += letters.get(char, _RARE)
            if before.isalpha() and char.isalpha():
                if before.islower() and char.isupper():
                    total -= 3.0
                if language.is_alphabet and before.isascii():
                    total -= 5.0
            elif before.isalpha() and char in "²³×´±½¼¾¡¿°£":
                total -= 2.0
        elif language.is_alphabet and char.isalpha() and before > "\x7f" and before.isalpha():
            total -= 5.0
        before = char
    return total


def score_multibyte(text: str, encoding: str) -> float:
    """Return the log-probability of a text's characters outside ASCII in the language of a multi-byte encoding."""
    leads = multibyte_scores(encoding)
    mark = math.log(0.05 / len(_CJK_MARKS))
    total = 0.0
    for char in text:
        if char <= "\x7f":
            continue
        if char in _CJK_MARKS:
            total += mark
            continue
        data = char.encode(encoding, "ignore")
        total += leads.get(data[0], _RARE) if len(data) == 2 else _RARE
    return total
