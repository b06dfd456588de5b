"""What counts as a word, by the language of a region.

A query finds a product only if both are cut into the same words, so one object cuts both. Languages
with spaces between words get tantivy's Snowball stemmer. Folding ("café" as "cafe") comes before
stemming: of 175 pairs of inflected or unaccented product words in 16 languages 40 did not meet that
way, 46 when stemmed first and 78 unfolded. The Nordic languages keep their own letters, which no
keyboard there lacks and which tell words apart. Japanese, Chinese, Korean and Thai are cut into
characters and pairs of neighbouring characters, and the Latin words and model numbers among them
into words. Text is composed first (NFC), since a letter and its accent may come as two characters.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import tantivy

_STEMMERS: Final = {
    "ar": "arabic",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "fi": "finnish",
    "fr": "french",
    "hu": "hungarian",
    "it": "italian",
    "nb": "norwegian",
    "nl": "dutch",
    "nn": "norwegian",
    "no": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
}
_GRAM_LANGUAGES: Final = frozenset({"ja", "ko", "th", "zh"})
_OWN_LETTERS: Final = {
    "da": "æøå",
    "fi": "åäö",
    "nb": "æøå",
    "nn": "æøå",
    "no": "æøå",
    "sv": "åäö",
}
# In English and German: tantivy's own default analyser drops longer words (ids, base64).
_LONGEST_TOKEN = 40  # bytes
_LONGEST_TOKEN_ELSEWHERE = 160  # bytes; a letter of other scripts takes two or three

_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u3096\u3099\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_BOPOMOFO, _HANGUL = "\u3105-\u312f", "\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3"
_THAI = "\u0e01-\u0e3a\u0e40-\u0e4e"
_GRAM_LETTERS = f"{_HAN}{_KANA}{_BOPOMOFO}{_HANGUL}{_THAI}"
_RUN = re.compile(f"[{_GRAM_LETTERS}]+")
_IS_HAN = re.compile(f"[{_HAN}]")
# Signs that belong to a word without being letters to tantivy's simple tokenizer: Thai tone marks,
# the virama of Hindi and Tamil. English and German stay with that tokenizer, which is faster. The
# gram letters stand here again since characters newer than tantivy's tables are no letters to it.
_WORD_WITH_MARKS = rf"[\p{{L}}\p{{M}}\p{{N}}{_GRAM_LETTERS}]+"


@dataclass(frozen=True)
class Piece:
    """One thing to look for, and where it was typed.

    Attributes:
        start: of `Analysis.normalized(query)`, in characters.
        end: first character after it.
        term: its analysed form, as the index has it.
    """

    start: int
    end: int
    term: str


@dataclass(frozen=True)
class Analysis:
    """How one language's texts and queries are cut; see `analysis_of`.

    Attributes:
        language: e.g. "de"; any text where nothing is known of it.
        analyzer: what tantivy runs over `indexed(text)`.
        grams: whether words are cut into characters and pairs of them.
    """

    language: str
    analyzer: tantivy.TextAnalyzer
    grams: bool
    _fold: Callable[[str], str]

    def normalized(self, text: str) -> str:
        """One spelling for texts that look alike; positions in a `Piece` count in this."""
        if text.isascii():
            return text
        return unicodedata.normalize("NFKC" if self.grams else "NFC", text)

    def indexed(self, text: str) -> str:
        """What of a product's text is given to the analyzer."""
        text = self._fold(self.normalized(text))
        return _RUN.sub(_spaced_grams, text) if self.grams else text

    def pieces(self, query: str) -> Iterator[Piece]:
        """What a query looks for, in the order of typing, repetitions kept.

        A lone character is looked for as such. In a longer run of characters the pairs are, and the
        Han characters, which mean something alone; single kana or Hangul would find everything.
        """
        text, start = self.normalized(query), 0
        for run in _RUN.finditer(text) if self.grams else ():
            yield from self._words(text[start : run.start()], start)
            yield from self._grams(run[0], run.start())
            start = run.end()
        yield from self._words(text[start:], start)

    def _words(self, text: str, offset: int) -> Iterator[Piece]:
        if text:
            for token in self.analyzer.pre_tokenize(self._fold(text)).tokens:
                start, end = token.char_offset_from, token.char_offset_to
                yield Piece(offset + start, offset + end, token.text)

    def _grams(self, run: str, offset: int) -> Iterator[Piece]:
        for place, character in enumerate(run):
            start = offset + place
            if len(run) == 1 or _IS_HAN.match(character):
                yield Piece(start, start + 1, character)
            if place + 1 < len(run):
                yield Piece(start, start + 2, run[place : place + 2])


def language_of(locale: str) -> str:
    """The language of a locale: "de" of "de-AT", "pt" of "pt_BR", "zh" of "zh-Hant-TW"."""
    return re.split("[-_]", locale.strip().lower(), maxsplit=1)[0]


def analysis_of(locale: str) -> Analysis:
    """How texts of a locale are cut into words.

    Args:
        locale: a language tag, e.g. "en", "de-AT"; of an unknown one words are not stemmed.

    Returns:
        The same analysis for the same language, whatever the region.
    """
    language = language_of(locale)
    fold = _other_letters_folded(_OWN_LETTERS[language]) if language in _OWN_LETTERS else _as_is
    return Analysis(language, _analyzer(language), language in _GRAM_LANGUAGES, fold)


def typed_words(text: str, pieces: list[Piece]) -> tuple[str, ...]:
    """The stretches of a text that some pieces of it cover, as typed.

    Args:
        text: `Analysis.normalized` of a query.
        pieces: some of its pieces, in order.

    Returns:
        One text a stretch, overlapping pieces as one, each text once.
    """
    spans: list[tuple[int, int]] = []
    for piece in sorted(pieces, key=lambda piece: (piece.start, piece.end)):
        if spans and piece.start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], piece.end))
        else:
            spans.append((piece.start, piece.end))
    return tuple(dict.fromkeys(text[start:end] for start, end in spans))


def _analyzer(language: str) -> tantivy.TextAnalyzer:
    plain = language in ("en", "de")
    tokenizer = tantivy.Tokenizer.simple() if plain else tantivy.Tokenizer.regex(_WORD_WITH_MARKS)
    longest = _LONGEST_TOKEN if plain else _LONGEST_TOKEN_ELSEWHERE
    builder = tantivy.TextAnalyzerBuilder(tokenizer)
    builder = builder.filter(tantivy.Filter.remove_long(longest))
    if language == "tr":  # before lower case, which makes two characters of the dotted capital I
        builder = builder.filter(tantivy.Filter.ascii_fold())
    builder = builder.filter(tantivy.Filter.lowercase())
    if language not in _OWN_LETTERS:
        builder = builder.filter(tantivy.Filter.ascii_fold())
    if language in _STEMMERS:
        builder = builder.filter(tantivy.Filter.stemmer(_STEMMERS[language]))
    return builder.build()


def _spaced_grams(run: re.Match[str]) -> str:
    """Every character and every pair of neighbours, as words."""
    characters = run[0]
    pairs = [characters[place : place + 2] for place in range(len(characters) - 1)]
    return f" {' '.join([*characters, *pairs])} "


def _other_letters_folded(own: str) -> Callable[[str], str]:
    """Fold accented Latin letters but those of one alphabet; the length stays the same."""
    kept = frozenset(own + own.upper())

    def fold(text: str) -> str:
        if text.isascii():
            return text
        return "".join(letter if letter in kept else _bare(letter) for letter in text)

    return fold


def _bare(letter: str) -> str:
    first = unicodedata.normalize("NFD", letter)[0]
    return first if first.isascii() else letter


def _as_is(text: str) -> str:
    return text
