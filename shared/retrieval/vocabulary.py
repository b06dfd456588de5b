"""The words of a catalog: how they are typed, which products have them, which are nearly alike.

A word is what is left of a token once it is folded and cut at punctuation: "t-shirt" has two. Two
tables are built of them, by numpy on numbers of words:

    postings    which products have which word
    neighbours  words and beginnings of words within one or two edits of a misspelt one

Two texts that a shopper would take for one, "T-Shirts" and "t shirt", are known by their likeness.
"""

import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA
from rapidfuzz.process import cdist

from shared.retrieval.phrases import BREAK, HAS_UNSPACED, Tokens, distinct, script_runs
from shared.retrieval.rules import PUNCTUATION, normalize_query

ONE_EDIT_LETTERS, TWO_EDIT_LETTERS, LONGEST_RESPELT = 4, 8, 24

_ACCENTS = re.compile("[\u0300-\u036f]")


@dataclass(frozen=True)
class Postings:
    """Which products have which word.

    Attributes:
        words: W of them, folded and sorted.
        spellings: how each is mostly written.
        starts: where each word's products begin, (W + 1,).
        rows: product rows, word after word, (P,).
        num_rows: products in all.
    """

    words: list[str]
    spellings: list[str]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    num_rows: int

    @classmethod
    def build(cls, tokens: Tokens, names: Iterable[Sequence[str]], *, num_rows: int) -> "Postings":
        """Postings of every word in texts and in names.

        Args:
            tokens: of the texts.
            names: columns of names, e.g. brands and categories; one a product, N each.
            num_rows: products in all, N.

        Returns:
            A table of all their words; it holds no reference to the arguments.
        """
        numbers_of: dict[str, int] = {}
        spellings: list[Counter[str]] = []
        pairs = [_word_pairs(tokens, numbers_of, spellings)]
        for column in names:
            pairs.append(_word_pairs(Tokens.build(column), numbers_of, spellings))
        words = sorted(numbers_of)
        order = np.fromiter((numbers_of[word] for word in words), np.int64, len(words))
        rank = np.empty(len(words), np.int64)
        rank[order] = np.arange(len(words))
        codes = distinct(np.concatenate([rank[word] * num_rows + row for word, row in pairs]))
        starts = np.searchsorted(codes, np.arange(len(words) + 1) * num_rows)
        return cls(
            words=words,
            spellings=[spellings[number].most_common(1)[0][0] for number in order.tolist()],
            starts=starts,
            rows=(codes % max(1, num_rows)).astype(np.int32),
            num_rows=num_rows,
        )

    def find(self, word: str) -> int:
        """A word's number.

        Args:
            word: folded.

        Returns:
            Its place in `words`, -1 where no product has it.
        """
        number = bisect_left(self.words, word)
        return number if number < len(self.words) and self.words[number] == word else -1

    def num_products(self, number: int) -> int:
        """How many products have a word.

        Args:
            number: of the word.

        Returns:
            At least 1.
        """
        return int(self.starts[number + 1] - self.starts[number])

    def having(self, words: Iterable[str]) -> NDArray[np.bool_]:
        """Products that have all these words, each in singular or plural.

        Args:
            words: folded; where there are none, every product has them.

        Returns:
            Whether each product has them, (N,).
        """
        mask = np.ones(self.num_rows, np.bool_)
        for word in words:
            one = np.zeros(self.num_rows, np.bool_)
            for number in filter(lambda n: n >= 0, map(self.find, both_numbers(word))):
                one[self.rows[self.starts[number] : self.starts[number + 1]]] = True
            mask &= one
            if not mask.any():
                break
        return mask

    def starting_with(
        self, prefix: str, among: NDArray[np.bool_], limit: int
    ) -> Iterator[tuple[int, int]]:
        """Words that most of some products have.

        Args:
            prefix: folded; what the words begin with.
            among: whether each product is one of those asked about, (N,).
            limit: >= 1; at most so many.

        Returns:
            Number of the word and how many of those products have it, most first.
        """
        start, stop = prefix_range(self.words, prefix)
        starts = self.starts[start : stop + 1]
        if start == stop or not among.any():
            return
        hits = among[self.rows[starts[0] : starts[-1]]]
        counts = np.add.reduceat(hits, starts[:-1] - starts[0], dtype=np.int64)  # none is empty
        for row in largest(counts, limit):
            if counts[row]:
                yield start + row, int(counts[row])


@dataclass(frozen=True)
class Neighbours:
    """Strings within a few edits of another.

    Attributes:
        strings: sorted, by their length.
        letters: the bit set of each, (n,), by their length.

    An edit changes a string's set of letters by at most two, so all but a few are ruled out by
    comparing bit sets; the rest are measured (OSA: a swap of two neighbours is one edit).
    """

    strings: dict[int, list[str]]
    letters: dict[int, NDArray[np.uint64]]

    @classmethod
    def build(cls, strings: Iterable[str]) -> "Neighbours":
        """Sort strings by what `within` compares.

        Args:
            strings: in any order; repeated ones count once.

        Returns:
            A table of them.
        """
        by_length: dict[int, list[str]] = {}
        for string in sorted(set(strings)):
            by_length.setdefault(len(string), []).append(string)
        sets = {
            length: np.fromiter(map(_letter_set, some), np.uint64, len(some))
            for length, some in by_length.items()
        }
        return cls(by_length, sets)

    def within(self, string: str, edits: int) -> list[tuple[str, int]]:
        """Strings at most so many edits away.

        Args:
            string: need not be one of them.
            edits: letters added, left out, changed, or swapped with the next one.

        Returns:
            Strings with their distances in edits, by length and then sorted.
        """
        wanted = np.uint64(_letter_set(string))
        found: list[tuple[str, int]] = []
        for length in range(len(string) - edits, len(string) + edits + 1):
            if length not in self.strings:
                continue
            apart = np.bitwise_count(self.letters[length] ^ wanted)
            near = [self.strings[length][i] for i in np.flatnonzero(apart <= 2 * edits).tolist()]
            if near:
                distances = cdist([string], near, scorer=OSA.distance, score_cutoff=edits)[0]
                found += [(near[i], int(distances[i])) for i in np.flatnonzero(distances <= edits)]
        return found


def fold(text: str) -> str:
    """How something is typed: normalized, and without accents, which many leave out.

    Args:
        text: any text.

    Returns:
        What `normalize_query` makes of it, without combining accents (U+0300 to U+036F).
    """
    normalized = normalize_query(text)
    if normalized.isascii():
        return normalized
    # Not the marks of other scripts: without them a Japanese word is another word.
    bare = _ACCENTS.sub("", unicodedata.normalize("NFD", normalized))
    return unicodedata.normalize("NFC", bare)


def index_words(token: str) -> list[str]:
    """The words of a token, as `Postings` has them.

    Args:
        token: a text without spaces, folded or not.

    Returns:
        Folded words in order: "t-shirt" has two, "?!" none.
    """
    return [run for word in fold(token).split() for run in script_runs(word)]


def both_numbers(word: str) -> set[str]:
    """A word with its singular and plural as far as they are easily seen.

    Args:
        word: folded.

    Returns:
        The word and forms it may have, most of which are no words: "boxs" beside "boxes".
    """
    if not word.isalpha() or len(word) < 3:
        return {word}
    return {word, _singular(word), word + "s", word + "es", word.removesuffix("y") + "ies"}


def likeness(text: str) -> str:
    """Equal for texts that differ in hyphens, spaces or a plural alone.

    Args:
        text: any text.

    Returns:
        Its folded words in the singular, without spaces; to be compared, not shown.
    """
    return "".join(map(_singular, fold(text).split()))


def is_respellable(word: str, at_least: int = ONE_EDIT_LETTERS) -> bool:
    """Whether a word is of letters alone and long enough to tell a slip from another word.

    Args:
        word: folded.
        at_least: letters of the shortest that will do.

    Returns:
        False also for what is too long to be a word, and for scripts without spaces.
    """
    long_enough = at_least <= len(word) <= LONGEST_RESPELT
    return long_enough and word.isalpha() and not HAS_UNSPACED.search(word)


def allowed_edits(word: str) -> int:
    """Edits at which another spelling may still mean a word.

    Args:
        word: folded.

    Returns:
        1, or 2 from `TWO_EDIT_LETTERS` letters on.
    """
    return 2 if len(word) >= TWO_EDIT_LETTERS else 1


def prefix_range(strings: list[str], prefix: str) -> tuple[int, int]:
    """Where those with a prefix stand in a sorted list.

    Args:
        strings: sorted.
        prefix: "" is the prefix of all.

    Returns:
        Position of the first and of the first after them; equal where there is none.
    """
    start = bisect_left(strings, prefix)
    return start, bisect_left(strings, prefix + "\U0010ffff", lo=start)


def largest(counts: NDArray[np.int64], limit: int) -> list[int]:
    """Positions of the largest counts.

    Args:
        counts: (N,).
        limit: >= 1; at most so many.

    Returns:
        Largest first; equal ones in order.
    """
    if len(counts) > 4 * limit:
        least = np.partition(counts, len(counts) - limit)[len(counts) - limit]
        some = np.flatnonzero(counts >= least)
    else:
        some = np.arange(len(counts))
    best: list[int] = some[np.argsort(-counts[some], kind="stable")[:limit]].tolist()
    return best


def _singular(word: str) -> str:
    """A word without the plural ending that is easily seen; never shorter than three letters."""
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "xes", "sses")) else word[:-1]


def _word_pairs(
    tokens: Tokens, numbers_of: dict[str, int], spellings: list[Counter[str]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every word of every token with its product's row; new words are given numbers."""
    words, lengths = _number_words(tokens, numbers_of, spellings)
    begins = np.cumsum(lengths) - lengths  # (V,) where each token number's words begin
    repeats = lengths[tokens.numbers]  # (T,) words of each token
    offsets = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    found = np.repeat(begins[tokens.numbers], repeats) + offsets
    return words[found], np.repeat(tokens.products, repeats)


def _number_words(
    tokens: Tokens, numbers_of: dict[str, int], spellings: list[Counter[str]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The words of each token number, one after the other, and how many each has, (V,)."""
    counts = np.bincount(tokens.numbers, minlength=len(tokens.names)).tolist()
    words: list[int] = []
    lengths = np.zeros(len(tokens.names), np.int64)
    for token, (name, count) in enumerate(zip(tokens.names, counts, strict=True)):
        parts = name.translate(PUNCTUATION).split() if token != BREAK else []
        pieces = [run for part in parts for run in script_runs(part) if fold(run)]
        for piece in pieces:
            number = numbers_of.setdefault(fold(piece), len(numbers_of))
            if number == len(spellings):
                spellings.append(Counter())
            spellings[number][piece] += count
            words.append(number)
        lengths[token] = len(pieces)
    return np.array(words, np.int64), lengths


def _letter_set(string: str) -> int:
    bits = 0
    for character in string:
        bits |= 1 << (ord(character) & 63)
    return bits
