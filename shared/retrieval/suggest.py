"""What a shopper may be about to type, and how it is spelled, from the catalog alone.

Suggestions made of what others typed would show one shopper's words to another. Product texts,
brands and categories belong to the shop, every shopper may see them, and whatever they make up
finds something. Three tables answer:

    entries     frequent phrases, brands and categories, sorted by how they are typed
    postings    which products have which word: completes a word beside words typed before it
    neighbours  words and beginnings of words within one or two edits of a misspelt one

Everything is counted in products, by numpy on numbers of words; building a hundred thousand titles
takes seconds. It is built with an index and, like it, never changed: what is added live is
suggested from the next build on.
"""

import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA
from rapidfuzz.process import cdist

from shared.retrieval.rules import PUNCTUATION, UNSPACED, normalize_query

Kind = Literal["phrase", "brand", "category"]

MAX_TYPED_WORDS = 16  # whoever pastes more does not want it completed
MAX_TEXT_CHARS = 2000  # of a product, read for its words
MAX_TEXT_TOKENS = 40  # of a product, read for its phrases: the title, and how a description begins
MAX_PHRASE_WORDS = 3
MAX_PHRASE_CHARACTERS = 6  # in scripts without spaces
MIN_PRODUCTS = 3  # that have a phrase; fewer in a catalog of less than 200
# Share of its occurrences after which no further word follows: "red shoes" stands at the end of
# titles, "men red" almost never does and would be half a phrase. Phrases count only those.
MIN_ENDING = 0.1
WHOLE_SHARE = 0.8  # a run of characters that is so often part of one longer run is part of a word
MAX_RESPELLINGS = 5
ONE_EDIT_LETTERS, TWO_EDIT_LETTERS, LONGEST_RESPELT = 4, 8, 24

# With and without their accents: compared with words as they are written and as they are typed.
_FUNCTION_WORDS: Final = {
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
# After these a phrase goes on: "pack of" tells nothing about "pack".
_BINDING: Final = frozenset({"&", "+", "and", "of", "und", "von", "et", "de", "y", "e", "di"})
_ALL_FUNCTION_WORDS = frozenset(chain.from_iterable(_FUNCTION_WORDS.values()))

_KANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_SCRIPT_RUN = re.compile(rf"[{_KANA}]+|[\u3041-\u309f]+|[{UNSPACED}]|[^{UNSPACED}]+")
_HAS_UNSPACED = re.compile(rf"[{UNSPACED}]")
_JOINERS = "-'.&+"  # inside a token: t-shirt, men's, u.s, h&m, c++
_BREAK: Final = 0  # number of the token that no phrase crosses
_BREAK_NAME: Final = "|"
_TRADEMARKS = dict.fromkeys(map(ord, "®™©℠"))
_SPELLED_ALIKE = {0x2019: "'", 0x2018: "'", 0x2010: "-", 0x2011: "-"}
_LETTERS = re.compile(r"[^\W\d_]+")
_ACCENTS = re.compile("[\u0300-\u036f]")


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
class Suggestion:
    """One way to go on typing.

    Attributes:
        text: to search for; a brand or category exactly as the catalog has it.
        kind: what it is a name of.
    """

    text: str
    kind: Kind


@dataclass(frozen=True)
class _Entry:
    key: str  # folded: how it is typed
    text: str
    kind: Kind
    num_products: int


@dataclass(frozen=True)
class _Found:
    """A candidate; fewest edits come first, then what most products have."""

    text: str
    kind: Kind
    num_products: int
    edits: int = 0


@dataclass(frozen=True)
class _Tokens:
    """Every text as numbers of its tokens, one text after the other, each closed by a break."""

    names: list[str]  # token number -> how it is written; the break is "|"
    numbers: NDArray[np.int64]  # (T,)
    products: NDArray[np.int64]  # (T,) row of each token's product


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
class _Entries:
    """Phrases, brands and categories, found by a prefix of what is typed.

    Attributes:
        keys: sorted; a brand or category has one for each of its words.
        entries: entry of each key.
        num_products: of each entry, (E,).
    """

    keys: list[str]
    entries: list[_Entry]
    num_products: NDArray[np.int64]

    @classmethod
    def build(cls, entries: Iterable[_Entry], stops: frozenset[str]) -> "_Entries":
        rows = sorted(
            ((key, entry) for entry in entries for key in _keys_of(entry, stops)),
            key=lambda row: (row[0], -row[1].num_products, row[1].text),
        )
        counts = np.array([entry.num_products for _, entry in rows], np.int64)
        return cls([key for key, _ in rows], [entry for _, entry in rows], counts)

    def starting_with(self, prefix: str, limit: int) -> list[_Entry]:
        """Entries most products have, at most `limit`."""
        start, stop = _prefix_range(self.keys, prefix)
        best = _largest(self.num_products[start:stop], limit)
        return [self.entries[start + row] for row in best]


@dataclass(frozen=True)
class _Postings:
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

    def find(self, word: str) -> int:
        """A word's number, or -1."""
        number = bisect_left(self.words, word)
        return number if number < len(self.words) and self.words[number] == word else -1

    def num_products(self, number: int) -> int:
        """How many products have a word."""
        return int(self.starts[number + 1] - self.starts[number])

    def having(self, words: Iterable[str]) -> NDArray[np.bool_]:
        """Products that have all these words, each in singular or plural, (N,)."""
        mask = np.ones(self.num_rows, np.bool_)
        for word in words:
            one = np.zeros(self.num_rows, np.bool_)
            for number in filter(lambda n: n >= 0, map(self.find, _both_numbers(word))):
                one[self.rows[self.starts[number] : self.starts[number + 1]]] = True
            mask &= one
            if not mask.any():
                break
        return mask

    def starting_with(
        self, prefix: str, among: NDArray[np.bool_], limit: int
    ) -> Iterator[tuple[int, int]]:
        """Words most of some products have: number of the word, number of products."""
        start, stop = _prefix_range(self.words, prefix)
        starts = self.starts[start : stop + 1]
        if start == stop or not among.any():
            return
        hits = among[self.rows[starts[0] : starts[-1]]]
        counts = np.add.reduceat(hits, starts[:-1] - starts[0], dtype=np.int64)  # none is empty
        for row in _largest(counts, limit):
            if counts[row]:
                yield start + row, int(counts[row])


@dataclass(frozen=True)
class _Neighbours:
    """Strings within a few edits of another.

    An edit changes a string's set of letters by at most two, so all but a few are ruled out by
    comparing bit sets; the rest are measured (OSA: a swap of two neighbours is one edit).
    """

    strings: dict[int, list[str]]  # by length
    letters: dict[int, NDArray[np.uint64]]  # the bit set of each, (n,)

    @classmethod
    def build(cls, strings: Iterable[str]) -> "_Neighbours":
        by_length: dict[int, list[str]] = {}
        for string in sorted(set(strings)):
            by_length.setdefault(len(string), []).append(string)
        sets = {
            length: np.fromiter(map(_letter_set, some), np.uint64, len(some))
            for length, some in by_length.items()
        }
        return cls(by_length, sets)

    def within(self, string: str, edits: int) -> list[tuple[str, int]]:
        """Strings at most so many edits away, each with its distance."""
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


@dataclass(frozen=True)
class Suggester:
    """Completion and spelling for one catalog; built once, never changed, safe to share."""

    _entries: _Entries
    _postings: _Postings
    _words: _Neighbours
    _beginnings: _Neighbours
    _function_words: frozenset[str]
    _min_products: int

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        brands: Sequence[str | None],
        categories: Sequence[str | None],
        *,
        locale: str,
    ) -> "Suggester":
        """Count the words and phrases of a catalog.

        Args:
            texts: one a product, N; its title comes first.
            brands: of each product, N; None or blank where it has none.
            categories: of each product, N.
            locale: e.g. "de-AT"; whose function words do not begin or end a phrase.

        Returns:
            A suggester; it holds no reference to the arguments.
        """
        assert len(texts) == len(brands) == len(categories), "one of each a product"
        stops = _FUNCTION_WORDS.get(locale.lower()[:2], _FUNCTION_WORDS["en"])
        min_products = min(MIN_PRODUCTS, 1 + len(texts) // 100)
        tokens = _tokenize(texts)
        names = {"brand": _tidy(brands), "category": _tidy(categories)}
        entries = [
            *_mine_phrases(tokens, stops, min_products=min_products),
            *_count_names(names["brand"], "brand"),
            *_count_names(names["category"], "category"),
        ]
        postings = _post(tokens, list(names.values()), num_rows=len(texts))
        words = [word for word in postings.words if _is_respellable(word, at_least=3)]
        return cls(
            _Entries.build(_merge(entries), stops),
            postings,
            _Neighbours.build(words),
            _Neighbours.build(_beginnings_of(words)),
            stops,
            min_products,
        )

    def suggest(self, prefix: str, limit: int) -> list[Suggestion]:
        """Ways to go on typing.

        The last word is completed; those before it are taken as typed, or corrected where no
        product has them. Misspelt beginnings are looked for only where nothing begins as typed.

        Args:
            prefix: as typed so far; blank suggests nothing, a space at its end begins a new word.
            limit: at most so many.

        Returns:
            What most products have comes first; singular and plural of one thing count as one.
        """
        chunks = _plain(prefix).split()[: MAX_TYPED_WORDS + 1]
        if limit < 1 or len(chunks) > MAX_TYPED_WORDS or not any(map(_index_words, chunks)):
            return []
        context = [self._respell_chunk(chunk) for chunk in chunks]
        found = self._complete(context, "", limit) if prefix[-1].isspace() else []
        last = _fold(chunks[-1])
        for rare in (False, True):
            found = found or self._complete(context[:-1], last, limit, rare=rare)
            found = found or self._complete_misspelt(context[:-1], last, limit, rare=rare)
        return _best(found, limit)

    def correct(self, query: str) -> str:
        """A query with its misspelt words put right.

        Args:
            query: as typed; one of more than 16 words is left alone.

        Returns:
            The query with each word that no product has replaced by the nearest that some have
            (of equally near ones, what most have); words with digits and those under four letters
            stay. "" where nothing changes.
        """
        chunks = unicodedata.normalize("NFKC", query).split()
        if len(chunks) > MAX_TYPED_WORDS:
            return ""
        corrected = [self._respell_chunk(chunk) for chunk in chunks]
        return " ".join(corrected) if corrected != chunks else ""

    def _complete(
        self, context: list[str], last: str, limit: int, *, rare: bool = False
    ) -> list[_Found]:
        """Entries that begin with all of it, and words that products have beside the context."""
        key = " ".join([*(_fold(chunk) for chunk in context), last]).lstrip()
        entries = self._entries.starting_with(key, 4 * limit) if key else []
        found = [_Found(entry.text, entry.kind, entry.num_products) for entry in entries]
        if (found and not last) or not (context or rare):
            return found
        return found + list(self._complete_word(context, last, 4 * limit, rare=rare))

    def _complete_word(
        self, context: list[str], last: str, limit: int, *, rare: bool
    ) -> Iterator[_Found]:
        *inside, last = _index_words(last) or [""]  # "t-sh" has "t" and begins "sh"
        if inside and _HAS_UNSPACED.search(last):
            return  # of such scripts the entries know more
        known = [*(word for chunk in context for word in _index_words(chunk)), *inside]
        asked = [w for w in known if w != "s" and w not in self._function_words]  # of "men's"
        repeated = {form for word in asked for form in _both_numbers(word)} | self._function_words
        among = self._postings.having(asked)
        for number, count in self._postings.starting_with(last, among, limit):
            word, spelling = self._postings.words[number], self._postings.spellings[number]
            if (
                word not in repeated
                and _is_worth_typing(word, last)
                and (rare or count >= self._min_products)
            ):
                text = " ".join([*context, "-".join([*inside, spelling])])
                yield _Found(text, "phrase", count)

    def _complete_misspelt(
        self, context: list[str], last: str, limit: int, *, rare: bool
    ) -> list[_Found]:
        """Completions of the nearest beginnings; two edits only where one leads nowhere."""
        found: list[_Found] = []
        for beginning, edits in self._nearest_beginnings(last):
            if found and edits > found[-1].edits:
                break
            found += [
                replace(near, edits=edits)
                for near in self._complete(context, beginning, limit, rare=rare)
            ]
        return found

    def _nearest_beginnings(self, word: str) -> list[tuple[str, int]]:
        """Beginnings of words near a word; those of the most frequent words, with their edits."""
        if not _is_respellable(word):
            return []
        near = self._beginnings.within(word, _allowed_edits(word))
        frequent = sorted(near, key=lambda pair: (pair[1], -self._begun(pair[0]), pair[0]))
        return frequent[:MAX_RESPELLINGS]

    def _begun(self, beginning: str) -> int:
        start, stop = _prefix_range(self._postings.words, beginning)
        return int(self._postings.starts[stop] - self._postings.starts[start])

    def _respell_chunk(self, chunk: str) -> str:
        """What stands between two spaces, corrected word by word, its punctuation kept."""
        if any(unicodedata.category(character)[0] in "NM" for character in chunk):
            return chunk  # a model number, or a script whose words are not only letters
        return _LETTERS.sub(lambda match: self._respell(match.group()), chunk)

    def _respell(self, written: str) -> str:
        word = _fold(written)
        if not _is_respellable(word) or self._is_known(word):
            return written
        near = self._words.within(word, _allowed_edits(word))
        ranked = [
            (edits, -self._postings.num_products(number), number)
            for neighbour, edits in near
            for number in [self._postings.find(neighbour)]
        ]
        return self._postings.spellings[min(ranked)[2]] if ranked else written

    def _is_known(self, word: str) -> bool:
        if word in _ALL_FUNCTION_WORDS:
            return True
        return any(self._postings.find(form) >= 0 for form in _both_numbers(word))


def _fold(text: str) -> str:
    """How something is typed: normalized, and without accents, which many leave out."""
    normalized = normalize_query(text)
    if normalized.isascii():
        return normalized
    # Not the marks of other scripts: without them a Japanese word is another word.
    bare = _ACCENTS.sub("", unicodedata.normalize("NFD", normalized))
    return unicodedata.normalize("NFC", bare)


def _plain(text: str) -> str:
    """NFKC in lower case, without trademark signs, which would become letters."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text.translate(_TRADEMARKS)).lower()


def _script_runs(chunk: str) -> list[str]:
    return [chunk] if chunk.isascii() else _SCRIPT_RUN.findall(chunk)


def _index_words(token: str) -> list[str]:
    """The folded words of a token: "t-shirt" has two."""
    return [run for word in _fold(token).split() for run in _script_runs(word)]


def _singular(word: str) -> str:
    """A word without the plural ending that is easily seen; never shorter than three letters."""
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss"):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "xes", "sses")) else word[:-1]


def _both_numbers(word: str) -> set[str]:
    """A word with its singular and plural as far as they are easily seen."""
    if not word.isalpha() or len(word) < 3:
        return {word}
    return {word, _singular(word), word + "s", word + "es", word.removesuffix("y") + "ies"}


def _likeness(text: str) -> str:
    """Equal for texts that differ in hyphens, spaces or a plural alone."""
    return "".join(map(_singular, _fold(text).split()))


def _is_respellable(word: str, at_least: int = ONE_EDIT_LETTERS) -> bool:
    long_enough = at_least <= len(word) <= LONGEST_RESPELT
    return long_enough and word.isalpha() and not _HAS_UNSPACED.search(word)


def _is_worth_typing(word: str, typed: str) -> bool:
    """Numbers and model numbers only for those who have begun to type one."""
    with_digits = any(character.isdigit() for character in typed)
    return len(word) > 2 and (word.isalpha() or with_digits)


def _allowed_edits(word: str) -> int:
    return 2 if len(word) >= TWO_EDIT_LETTERS else 1


def _letter_set(string: str) -> int:
    bits = 0
    for character in string:
        bits |= 1 << (ord(character) & 63)
    return bits


def _beginnings_of(words: Iterable[str]) -> Iterator[str]:
    return (word[:length] for word in words for length in range(3, len(word) + 1))


def _prefix_range(strings: list[str], prefix: str) -> tuple[int, int]:
    """Where those with a prefix begin and end in a sorted list."""
    start = bisect_left(strings, prefix)
    return start, bisect_left(strings, prefix + "\U0010ffff", lo=start)


def _largest(counts: NDArray[np.int64], limit: int) -> list[int]:
    """Positions of the largest counts, largest first; equal ones in order."""
    if len(counts) > 4 * limit:
        least = np.partition(counts, len(counts) - limit)[len(counts) - limit]
        some = np.flatnonzero(counts >= least)
    else:
        some = np.arange(len(counts))
    best: list[int] = some[np.argsort(-counts[some], kind="stable")[:limit]].tolist()
    return best


def _rank(one: _Found) -> tuple[int, int, bool, int, str]:
    return one.edits, -one.num_products, one.kind == "phrase", len(one.text), one.text


def _best(found: Iterable[_Found], limit: int) -> list[Suggestion]:
    """The first of each kind of likeness, in order."""
    ranked = sorted(found, key=_rank)
    chosen: dict[str, Suggestion] = {}
    for one in ranked:
        chosen.setdefault(_likeness(one.text), Suggestion(one.text, one.kind))
        if len(chosen) == limit:
            break
    return list(chosen.values())


def _tidy(names: Iterable[str | None]) -> list[str]:
    return [" ".join(name.split()) if name else "" for name in names]


def _count_names(names: Iterable[str], kind: Kind) -> Iterator[_Entry]:
    """Brands or categories as most products spell them."""
    spellings: dict[str, list[tuple[str, int]]] = {}
    for name, count in Counter(names).most_common():
        spellings.setdefault(_fold(name), []).append((name, count))
    for key, some in spellings.items():
        if key:
            yield _Entry(key, some[0][0], kind, sum(count for _, count in some))


def _merge(entries: Iterable[_Entry]) -> Iterable[_Entry]:
    """One entry a key: a category or a brand before a phrase of the same words."""
    merged: dict[str, _Entry] = {}
    for entry in entries:
        former = merged.get(entry.key)
        count = max(entry.num_products, former.num_products if former else 0)
        chosen = former if former and former.kind == entry.kind == "phrase" else entry
        merged[entry.key] = _Entry(entry.key, chosen.text, chosen.kind, count)
    return merged.values()


def _keys_of(entry: _Entry, stops: frozenset[str]) -> Iterator[str]:
    """A phrase by its beginning; a brand or category by each of its words ("benetton")."""
    yield entry.key
    if entry.kind != "phrase":
        words = entry.key.split()
        for start in range(1, len(words)):
            if words[start] not in stops and len(words[start]) > 1:
                yield " ".join(words[start:])


def _tokenize(texts: Sequence[str]) -> _Tokens:
    numbers_of: dict[str, int] = {_BREAK_NAME: _BREAK}
    numbers: list[int] = []
    lengths = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        before = len(numbers)
        for token in _tokens_of(text):
            numbers.append(numbers_of.setdefault(token, len(numbers_of)))
        numbers.append(_BREAK)
        lengths[row] = len(numbers) - before
    products = np.repeat(np.arange(len(texts)), lengths)
    return _Tokens(list(numbers_of), np.array(numbers, np.int64), products)


def _tokens_of(text: str) -> Iterator[str]:
    """Words as they are written, and a break wherever a phrase ends."""
    after_unspaced = False
    for chunk in _plain(text[:MAX_TEXT_CHARS]).translate(_TOKEN_TABLE).split():
        word = chunk.strip(_JOINERS)
        if word.isascii():
            after_unspaced = False
            yield word or (chunk if chunk == "&" else _BREAK_NAME)
            continue
        if after_unspaced:  # where words are not spaced, a space is more than one
            yield _BREAK_NAME
        yield from _script_runs(word)
        after_unspaced = _HAS_UNSPACED.search(word[-1]) is not None


def _mine_phrases(tokens: _Tokens, stops: frozenset[str], *, min_products: int) -> Iterator[_Entry]:
    """Frequent phrases, shortest first: a phrase can only be as frequent as what it begins with."""
    kinds = _TokenKinds.of(tokens.names, stops)
    phrases = _single_words(tokens, kinds)
    for length in range(1, max(MAX_PHRASE_WORDS, MAX_PHRASE_CHARACTERS) + 1):
        longer = _extend(phrases, tokens, kinds, length, min_products)
        whole = _whole_products(phrases, longer, kinds, tokens, length)
        for number in np.flatnonzero((whole > 0) & (phrases.num_products >= min_products)).tolist():
            first = phrases.first[number]
            names = [tokens.names[n] for n in tokens.numbers[first : first + length].tolist()]
            text = _join(names)
            yield _Entry(_fold(text), text, "phrase", int(whole[number]))
        phrases = longer


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
        is_unspaced = flags(_HAS_UNSPACED.search(name) is not None for name in names)
        ends = (is_function & ~flags(name in _BINDING for name in names)) | has_digit
        ends[_BREAK] = True
        return cls(
            is_function=is_function,
            is_unspaced=is_unspaced,
            is_name=has_letter & is_long,
            is_edge=~is_function & (is_long | is_unspaced | has_digit),
            ends=ends,
        )


def _single_words(tokens: _Tokens, kinds: _TokenKinds) -> _Phrases:
    position = np.arange(len(tokens.numbers))
    text_starts = np.searchsorted(tokens.products, tokens.products)  # (T,)
    starts = np.flatnonzero((tokens.numbers != _BREAK) & (position - text_starts < MAX_TEXT_TOKENS))
    return _count(starts, tokens.numbers[starts], tokens, kinds, length=1)


def _extend(
    phrases: _Phrases, tokens: _Tokens, kinds: _TokenKinds, length: int, min_products: int
) -> _Phrases:
    """Phrases one token longer, made of those frequent enough."""
    starts, following = phrases.starts, tokens.numbers[phrases.starts + length]
    keep = (following != _BREAK) & (phrases.num_products[phrases.phrase] >= min_products)
    last = kinds.is_unspaced[tokens.numbers[starts + length - 1]]
    if length >= MAX_PHRASE_WORDS:
        keep &= last & kinds.is_unspaced[following]
    codes = phrases.phrase * len(tokens.names) + following
    return _count(starts[keep], codes[keep], tokens, kinds, length=length + 1)


def _count(
    starts: NDArray[np.int64],
    codes: NDArray[np.int64],
    tokens: _Tokens,
    kinds: _TokenKinds,
    *,
    length: int,
) -> _Phrases:
    """Number the occurrences' codes and count their products, each once."""
    _, first, phrase = np.unique(codes, return_index=True, return_inverse=True)
    num_rows = int(tokens.products[-1]) + 1 if len(tokens.products) else 1
    pairs = _distinct(phrase * num_rows + tokens.products[starts])
    ended = kinds.ends[tokens.numbers[starts + length]]  # every text is closed by a break
    occurrences = np.bincount(phrase, minlength=len(first))
    return _Phrases(
        starts=starts,
        phrase=phrase,
        first=starts[first],
        num_products=np.bincount(pairs // num_rows, minlength=len(first)),
        ending=np.bincount(phrase, weights=ended, minlength=len(first)) / occurrences,
    )


def _distinct(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted, each once. `np.unique` hashes where it gives no indices: ten times slower here."""
    ordered = np.sort(numbers)
    distinct: NDArray[np.int64] = ordered[np.diff(ordered, prepend=-1) != 0]  # none is negative
    return distinct


def _whole_products(
    phrases: _Phrases, longer: _Phrases, kinds: _TokenKinds, tokens: _Tokens, length: int
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
        glued = _HAS_UNSPACED.search(former) and _HAS_UNSPACED.search(name)
        text += name if glued else f" {name}"
    return text


def _post(tokens: _Tokens, names: Sequence[Sequence[str]], *, num_rows: int) -> _Postings:
    """Postings of every word in texts and in names of brands and categories."""
    numbers_of: dict[str, int] = {}
    spellings: list[Counter[str]] = []
    pairs = [_word_pairs(tokens, numbers_of, spellings)]
    for column in names:
        pairs.append(_word_pairs(_tokenize(column), numbers_of, spellings))
    words = sorted(numbers_of)
    order = np.fromiter((numbers_of[word] for word in words), np.int64, len(words))
    rank = np.empty(len(words), np.int64)
    rank[order] = np.arange(len(words))
    codes = _distinct(np.concatenate([rank[word] * num_rows + row for word, row in pairs]))
    starts = np.searchsorted(codes, np.arange(len(words) + 1) * num_rows)
    return _Postings(
        words=words,
        spellings=[spellings[number].most_common(1)[0][0] for number in order.tolist()],
        starts=starts,
        rows=(codes % max(1, num_rows)).astype(np.int32),
        num_rows=num_rows,
    )


def _word_pairs(
    tokens: _Tokens, numbers_of: dict[str, int], spellings: list[Counter[str]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every word of every token with its product's row; new words are given numbers."""
    counts = np.bincount(tokens.numbers, minlength=len(tokens.names)).tolist()
    words: list[int] = []
    lengths = np.zeros(len(tokens.names), np.int64)
    for token, (name, count) in enumerate(zip(tokens.names, counts, strict=True)):
        parts = name.translate(PUNCTUATION).split() if token != _BREAK else []
        pieces = [run for part in parts for run in _script_runs(part) if _fold(run)]
        for piece in pieces:
            number = numbers_of.setdefault(_fold(piece), len(numbers_of))
            if number == len(spellings):
                spellings.append(Counter())
            spellings[number][piece] += count
            words.append(number)
        lengths[token] = len(pieces)
    ends = np.cumsum(lengths)
    repeats = lengths[tokens.numbers]  # (T,) words of each token
    offsets = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    found = np.repeat((ends - lengths)[tokens.numbers], repeats) + offsets
    return np.array(words, np.int64)[found], np.repeat(tokens.products, repeats)
