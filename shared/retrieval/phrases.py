"""A catalog's texts as tokens, and the phrases that are frequent in them.

A token is a word as it stands in a text, "t-shirt" or "men's"; scripts without spaces are cut where
the script changes, Han characters one by one. A phrase is up to three tokens, or six characters of
scripts without spaces, that no punctuation parts and no function word begins or ends. It is grown a
token at a time, and only what enough products have is made longer. Of "men red shoes" the part "men
red" is as frequent, so what counts is how often a phrase ends there. All is counted in products, by
numpy on numbers of tokens; a hundred thousand titles take seconds.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.retrieval.rules import UNSPACED

MAX_TEXT_CHARS = 2000  # of a product, read for its words
MAX_TEXT_TOKENS = 40  # of a product, read for its phrases: the title, and how a description begins
MAX_PHRASE_WORDS = 3
MAX_PHRASE_CHARACTERS = 6  # in scripts without spaces
# Share of its occurrences after which no further word follows: "red shoes" stands at the end of
# titles, "men red" almost never does and would be half a phrase. Phrases count only those.
MIN_ENDING = 0.1
WHOLE_SHARE = 0.8  # a run of characters that is so often part of one longer run is part of a word

BREAK: Final = 0  # number of the token that no phrase crosses
HAS_UNSPACED: Final = re.compile(rf"[{UNSPACED}]")  # a character of a script without spaces
# With and without their accents: compared with words as they are written and as they are typed.
FUNCTION_WORDS: Final = {
    language: frozenset(words.split())
    for language, words in {
        "en": "a an and are as at be by for from has in into is it its not of off on or our out per"
        " pc pcs so than that the their this to up was will with without you your & +",
        "de": "ab als am an auf aus bei bis das dem den der des die ein eine einem einen einer"
        " eines für fur im in inkl ist mit nicht oder ohne pro sowie und vom von zu zum zur & +",
        "fr": "a à au aux avec ce d dans de des du en et l la le les ou par pour sans sur un une &"
        " +",
        "es": "a al con de del e el en la las los o para por sin su un una y & +",
        "it": "a al alla con da dal dei del della di e gli i il in la le lo o per senza su un una &"
        " +",
        "nl": "aan bij de den een en het in met of om op te tot uit van voor zonder & +",
        "ja": "の は が を に で と も へ や",
        "zh": "的 和 与 與",
    }.items()
}
ALL_FUNCTION_WORDS = frozenset(chain.from_iterable(FUNCTION_WORDS.values()))
# After these a phrase goes on: "pack of" tells nothing about "pack".
_BINDING: Final = frozenset({"&", "+", "and", "of", "und", "von", "et", "de", "y", "e", "di"})

_BREAK_NAME: Final = "|"
_KANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_SCRIPT_RUN = re.compile(rf"[{_KANA}]+|[\u3041-\u309f]+|[{UNSPACED}]|[^{UNSPACED}]+")
_JOINERS = "-'.&+"  # inside a token: t-shirt, men's, u.s, h&m, c++
_TRADEMARKS = dict.fromkeys(map(ord, "®™©℠"))
_SPELLED_ALIKE = {0x2019: "'", 0x2018: "'", 0x2010: "-", 0x2011: "-"}


class _TokenTable(dict[int, int | str | None]):
    """For `str.translate`: what is neither word nor joiner becomes a break; filled as needed."""

    def __missing__(self, code: int) -> int | str | None:
        character = chr(code)
        category = unicodedata.category(character)
        is_word = character in _JOINERS or category[0] in "LMN" or character.isspace()
        unseen = None if category == "Cf" else f" {_BREAK_NAME} "  # Cf: soft hyphens, joiners
        self[code] = code if is_word else unseen
        return self[code]


_TOKEN_TABLE = _TokenTable(_SPELLED_ALIKE)


@dataclass(frozen=True)
class Tokens:
    """Every text as numbers of its tokens, one text after the other, each closed by a break.

    Attributes:
        names: how each token is written, by its number, V; that of `BREAK` is "|".
        numbers: token numbers, (T,).
        products: row of each token's product, (T,).
    """

    names: list[str]
    numbers: NDArray[np.int64]
    products: NDArray[np.int64]

    @classmethod
    def build(cls, texts: Sequence[str]) -> "Tokens":
        """Cut the texts of a catalog.

        Args:
            texts: one a product; the first `MAX_TEXT_CHARS` of each are read.

        Returns:
            Their tokens, numbered from 1 as they turn up.
        """
        numbers_of: dict[str, int] = {_BREAK_NAME: BREAK}
        numbers: list[int] = []
        lengths = np.zeros(len(texts), np.int64)
        for row, text in enumerate(texts):
            before = len(numbers)
            for token in _tokens_of(text):
                numbers.append(numbers_of.setdefault(token, len(numbers_of)))
            numbers.append(BREAK)
            lengths[row] = len(numbers) - before
        products = np.repeat(np.arange(len(texts)), lengths)
        return cls(list(numbers_of), np.array(numbers, np.int64), products)


def mine_phrases(
    tokens: Tokens, stops: frozenset[str], *, min_products: int
) -> Iterator[tuple[str, int]]:
    """Frequent phrases, shortest first: a phrase can only be as frequent as what it begins with.

    Args:
        tokens: of a catalog's texts.
        stops: function words; no phrase begins or ends with one.
        min_products: >= 1; fewer do not make a phrase.

    Returns:
        Each as it is written, and how many products have it whole, not as half of a longer one.
    """
    kinds = _TokenKinds.of(tokens.names, stops)
    phrases = _single_words(tokens, kinds)
    for length in range(1, max(MAX_PHRASE_WORDS, MAX_PHRASE_CHARACTERS) + 1):
        longer = _extend(phrases, tokens, kinds, length, min_products)
        whole = _whole_products(phrases, longer, kinds, tokens, length)
        for number in np.flatnonzero((whole > 0) & (phrases.num_products >= min_products)).tolist():
            first = phrases.first[number]
            names = [tokens.names[n] for n in tokens.numbers[first : first + length].tolist()]
            yield _join(names), int(whole[number])
        phrases = longer


def plain(text: str) -> str:
    """How something is written: NFKC in lower case, its accents and punctuation kept.

    Args:
        text: any text.

    Returns:
        The text without trademark signs, which would become letters.
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text.translate(_TRADEMARKS)).lower()


def script_runs(chunk: str) -> list[str]:
    """A text without spaces, cut where the script changes.

    Args:
        chunk: a token, or a word of it.

    Returns:
        Runs of Katakana, of Hiragana and of scripts with spaces; Han characters one by one.
    """
    return [chunk] if chunk.isascii() else _SCRIPT_RUN.findall(chunk)


def distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers sorted, each once.

    Args:
        numbers: (N,), none negative.

    Returns:
        Those of `np.unique`, which hashes where it gives no indices: ten times slower here.
    """
    ordered = np.sort(numbers)
    once: NDArray[np.int64] = ordered[np.diff(ordered, prepend=-1) != 0]
    return once


@dataclass(frozen=True)
class _Phrases:
    """Sequences of n tokens and how often they occur; F occurrences of G phrases.

    Attributes:
        starts: position of each occurrence in the tokens, (F,).
        phrase: its phrase, (F,).
        first: position of each phrase's first occurrence, (G,).
        num_products: that have it, (G,).
        ending: share of occurrences after which no word follows, (G,).
    """

    starts: NDArray[np.int64]
    phrase: NDArray[np.int64]
    first: NDArray[np.int64]
    num_products: NDArray[np.int64]
    ending: NDArray[np.float64]


@dataclass(frozen=True)
class _TokenKinds:
    """What each token number is, (V,) each; the break is none of them."""

    is_function: NDArray[np.bool_]
    is_unspaced: NDArray[np.bool_]  # of a script without spaces
    is_name: NDArray[np.bool_]  # has a letter and more than one character
    is_edge: NDArray[np.bool_]  # may begin or end a phrase
    ends: NDArray[np.bool_]  # a phrase before it is whole: breaks, numbers, function words

    @classmethod
    def of(cls, names: Sequence[str], stops: frozenset[str]) -> "_TokenKinds":
        def flags(values: Iterable[bool]) -> NDArray[np.bool_]:
            return np.fromiter(values, np.bool_, len(names))

        is_function = flags(name in stops for name in names)
        has_digit = flags(any(c.isdigit() for c in name) for name in names)
        has_letter = flags(any(c.isalpha() for c in name) for name in names)
        is_long = flags(len(name) > 1 for name in names)
        is_unspaced = flags(HAS_UNSPACED.search(name) is not None for name in names)
        ends = (is_function & ~flags(name in _BINDING for name in names)) | has_digit
        ends[BREAK] = True
        return cls(
            is_function=is_function,
            is_unspaced=is_unspaced,
            is_name=has_letter & is_long,
            is_edge=~is_function & (is_long | is_unspaced | has_digit),
            ends=ends,
        )


def _tokens_of(text: str) -> Iterator[str]:
    """Words as they are written, and a break wherever a phrase ends."""
    after_unspaced = False
    for chunk in plain(text[:MAX_TEXT_CHARS]).translate(_TOKEN_TABLE).split():
        word = chunk.strip(_JOINERS)
        if word.isascii():
            after_unspaced = False
            yield word or (chunk if chunk == "&" else _BREAK_NAME)
            continue
        if after_unspaced:  # where words are not spaced, a space is more than one
            yield _BREAK_NAME
        yield from script_runs(word)
        after_unspaced = HAS_UNSPACED.search(word[-1]) is not None


def _single_words(tokens: Tokens, kinds: _TokenKinds) -> _Phrases:
    position = np.arange(len(tokens.numbers))
    text_starts = np.searchsorted(tokens.products, tokens.products)  # (T,)
    starts = np.flatnonzero((tokens.numbers != BREAK) & (position - text_starts < MAX_TEXT_TOKENS))
    return _count(starts, tokens.numbers[starts], tokens, kinds, length=1)


def _extend(
    phrases: _Phrases, tokens: Tokens, kinds: _TokenKinds, length: int, min_products: int
) -> _Phrases:
    """Phrases one token longer, made of those frequent enough."""
    starts, following = phrases.starts, tokens.numbers[phrases.starts + length]
    keep = (following != BREAK) & (phrases.num_products[phrases.phrase] >= min_products)
    last = kinds.is_unspaced[tokens.numbers[starts + length - 1]]
    if length >= MAX_PHRASE_WORDS:
        keep &= last & kinds.is_unspaced[following]
    codes = phrases.phrase * len(tokens.names) + following
    return _count(starts[keep], codes[keep], tokens, kinds, length=length + 1)


def _count(
    starts: NDArray[np.int64],
    codes: NDArray[np.int64],
    tokens: Tokens,
    kinds: _TokenKinds,
    *,
    length: int,
) -> _Phrases:
    """Number the occurrences' codes and count their products, each once."""
    _, first, phrase = np.unique(codes, return_index=True, return_inverse=True)
    num_rows = int(tokens.products[-1]) + 1 if len(tokens.products) else 1
    pairs = distinct(phrase * num_rows + tokens.products[starts])
    ended = kinds.ends[tokens.numbers[starts + length]]  # every text is closed by a break
    occurrences = np.bincount(phrase, minlength=len(first))
    return _Phrases(
        starts=starts,
        phrase=phrase,
        first=starts[first],
        num_products=np.bincount(pairs // num_rows, minlength=len(first)),
        ending=np.bincount(phrase, weights=ended, minlength=len(first)) / occurrences,
    )


def _whole_products(
    phrases: _Phrases, longer: _Phrases, kinds: _TokenKinds, tokens: Tokens, length: int
) -> NDArray[np.int64]:
    """Products in which a phrase is not half of a longer one, (G,); 0 for what nobody types."""
    first = tokens.numbers[phrases.first]
    last = tokens.numbers[phrases.first + length - 1]
    if length == 1:
        sound = kinds.is_edge[first] & kinds.is_name[first]
        return np.where(sound, phrases.num_products, 0)
    inside = _largest_extension(phrases, longer, len(tokens.numbers))
    part = inside >= WHOLE_SHARE * phrases.num_products
    characters = np.where(part, 0, phrases.num_products)
    ended = np.rint(phrases.num_products * phrases.ending).astype(np.int64)
    words = np.where((phrases.ending >= MIN_ENDING) & (first != last), ended, 0)
    named = kinds.is_name[first] | kinds.is_name[last] | kinds.is_unspaced[last]
    sound = kinds.is_edge[first] & kinds.is_edge[last] & named
    return np.where(sound, np.where(kinds.is_unspaced[last], characters, words), 0)


def _largest_extension(phrases: _Phrases, longer: _Phrases, num_tokens: int) -> NDArray[np.int64]:
    """Products that have the most frequent phrase one token longer on either side, (G,)."""
    phrase_at = np.full(num_tokens + 1, -1, np.int64)
    phrase_at[phrases.starts] = phrases.phrase
    counts = longer.num_products[longer.phrase]
    largest = np.zeros(len(phrases.first), np.int64)
    for shift in (0, 1):  # the longer one begins with it, or ends with it
        inner = phrase_at[longer.starts + shift]
        np.maximum.at(largest, inner[inner >= 0], counts[inner >= 0])
    return largest


def _join(names: Sequence[str]) -> str:
    """Tokens as a phrase is written: no space between characters of scripts that have none."""
    text = names[0]
    for former, name in pairwise(names):
        glued = HAS_UNSPACED.search(former) and HAS_UNSPACED.search(name)
        text += name if glued else f" {name}"
    return text
