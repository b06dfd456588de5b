"""What a shopper may be about to type, and how it is spelled, from the catalog alone.

Suggestions made of what others typed would show one shopper's words to another. Product texts,
brands and categories belong to the shop, every shopper may see them, and whatever they make up
finds something. Three tables answer:

    entries     frequent phrases, brands and categories, sorted by how they are typed
    postings    which products have which word: completes a word beside words typed before it
    neighbours  words and beginnings of words within one or two edits of a misspelt one

`shared.retrieval.phrases` mines the phrases, `shared.retrieval.vocabulary` has the other two. They
are built with an index and, like it, never changed: what is added live is suggested from the next
build on.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shared.retrieval.phrases import (
    ALL_FUNCTION_WORDS,
    FUNCTION_WORDS,
    HAS_UNSPACED,
    Tokens,
    mine_phrases,
    plain,
)
from shared.retrieval.vocabulary import (
    Neighbours,
    Postings,
    allowed_edits,
    both_numbers,
    fold,
    index_words,
    is_respellable,
    largest,
    likeness,
    prefix_range,
)

Kind = Literal["phrase", "brand", "category"]

MAX_TYPED_WORDS = 16  # whoever pastes more does not want it completed
MIN_PRODUCTS = 3  # that have a phrase; fewer in a catalog of less than 200
MAX_RESPELLINGS = 5

_LETTERS = re.compile(r"[^\W\d_]+")


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
        start, stop = prefix_range(self.keys, prefix)
        best = largest(self.num_products[start:stop], limit)
        return [self.entries[start + row] for row in best]


@dataclass(frozen=True)
class Suggester:
    """Completion and spelling for one catalog; built once, never changed, safe to share."""

    _entries: _Entries
    _postings: Postings
    _words: Neighbours
    _beginnings: Neighbours
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
        stops = FUNCTION_WORDS.get(locale.lower()[:2], FUNCTION_WORDS["en"])
        min_products = min(MIN_PRODUCTS, 1 + len(texts) // 100)
        tokens = Tokens.build(texts)
        names = {"brand": _tidy(brands), "category": _tidy(categories)}
        entries = [
            *_count_phrases(tokens, stops, min_products),
            *_count_names(names["brand"], "brand"),
            *_count_names(names["category"], "category"),
        ]
        postings = Postings.build(tokens, names.values(), num_rows=len(texts))
        words = [word for word in postings.words if is_respellable(word, at_least=3)]
        return cls(
            _Entries.build(_merge(entries), stops),
            postings,
            Neighbours.build(words),
            Neighbours.build(_beginnings_of(words)),
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
        chunks = plain(prefix).split()[: MAX_TYPED_WORDS + 1]
        if limit < 1 or len(chunks) > MAX_TYPED_WORDS or not any(map(index_words, chunks)):
            return []
        context = [self._respell_chunk(chunk) for chunk in chunks]
        found = self._complete(context, "", limit) if prefix[-1].isspace() else []
        last = fold(chunks[-1])
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
        key = " ".join([*(fold(chunk) for chunk in context), last]).lstrip()
        entries = self._entries.starting_with(key, 4 * limit) if key else []
        found = [_Found(entry.text, entry.kind, entry.num_products) for entry in entries]
        if (found and not last) or not (context or rare):
            return found
        return found + list(self._complete_word(context, last, 4 * limit, rare=rare))

    def _complete_word(
        self, context: list[str], last: str, limit: int, *, rare: bool
    ) -> Iterator[_Found]:
        *inside, last = index_words(last) or [""]  # "t-sh" has "t" and begins "sh"
        if inside and HAS_UNSPACED.search(last):
            return  # of such scripts the entries know more
        known = [*(word for chunk in context for word in index_words(chunk)), *inside]
        asked = [w for w in known if w != "s" and w not in self._function_words]  # of "men's"
        repeated = {form for word in asked for form in both_numbers(word)} | self._function_words
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
        if not is_respellable(word):
            return []
        near = self._beginnings.within(word, allowed_edits(word))
        frequent = sorted(near, key=lambda pair: (pair[1], -self._begun(pair[0]), pair[0]))
        return frequent[:MAX_RESPELLINGS]

    def _begun(self, beginning: str) -> int:
        start, stop = prefix_range(self._postings.words, beginning)
        return int(self._postings.starts[stop] - self._postings.starts[start])

    def _respell_chunk(self, chunk: str) -> str:
        """What stands between two spaces, corrected word by word, its punctuation kept."""
        if any(unicodedata.category(character)[0] in "NM" for character in chunk):
            return chunk  # a model number, or a script whose words are not only letters
        return _LETTERS.sub(lambda match: self._respell(match.group()), chunk)

    def _respell(self, written: str) -> str:
        word = fold(written)
        if not is_respellable(word) or self._is_known(word):
            return written
        near = self._words.within(word, allowed_edits(word))
        ranked = [
            (edits, -self._postings.num_products(number), number)
            for neighbour, edits in near
            for number in [self._postings.find(neighbour)]
        ]
        return self._postings.spellings[min(ranked)[2]] if ranked else written

    def _is_known(self, word: str) -> bool:
        if word in ALL_FUNCTION_WORDS:
            return True
        return any(self._postings.find(form) >= 0 for form in both_numbers(word))


def _is_worth_typing(word: str, typed: str) -> bool:
    """Numbers and model numbers only for those who have begun to type one."""
    with_digits = any(character.isdigit() for character in typed)
    return len(word) > 2 and (word.isalpha() or with_digits)


def _beginnings_of(words: Iterable[str]) -> Iterator[str]:
    return (word[:length] for word in words for length in range(3, len(word) + 1))


def _rank(one: _Found) -> tuple[int, int, bool, int, str]:
    return one.edits, -one.num_products, one.kind == "phrase", len(one.text), one.text


def _best(found: Iterable[_Found], limit: int) -> list[Suggestion]:
    """The first of each kind of likeness, in order."""
    ranked = sorted(found, key=_rank)
    chosen: dict[str, Suggestion] = {}
    for one in ranked:
        chosen.setdefault(likeness(one.text), Suggestion(one.text, one.kind))
        if len(chosen) == limit:
            break
    return list(chosen.values())


def _tidy(names: Iterable[str | None]) -> list[str]:
    return [" ".join(name.split()) if name else "" for name in names]


def _count_phrases(tokens: Tokens, stops: frozenset[str], min_products: int) -> Iterator[_Entry]:
    for text, num_products in mine_phrases(tokens, stops, min_products=min_products):
        yield _Entry(fold(text), text, "phrase", num_products)


def _count_names(names: Iterable[str], kind: Kind) -> Iterator[_Entry]:
    """Brands or categories as most products spell them."""
    spellings: dict[str, list[tuple[str, int]]] = {}
    for name, count in Counter(names).most_common():
        spellings.setdefault(fold(name), []).append((name, count))
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
