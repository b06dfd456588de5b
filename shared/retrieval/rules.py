"""What a search team decides by hand: synonyms, pinned and blocked products, in one small file.

No ranking knows that a shop's "jumper" is its shoppers' "sweater", or that a recalled product must
not be shown tonight. The file is TOML, `serve.rules` in region.toml names it:

    synonyms = [["trainers", "sneakers"], ["jumper", "sweater", "pullover"]]

    [[one_way]]
    from = "laptop"
    to = ["notebook"]

    [[pin]]
    query = "gift card"
    products = ["P1", "P2"]

    [[block]]
    products = ["P9"]

It is read once; looking something up is a few dictionary accesses whatever its size.
"""

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shared.errors import ConfigError

MAX_FILE_BYTES = 8 * 2**20
MAX_GROUPS = 1000
MAX_GROUP_PHRASES = 50
MAX_PINNED_QUERIES = 10_000
MAX_PINS = 100  # for one query
MAX_BLOCKS = 10_000
MAX_BLOCKED = 10_000  # in one [[block]]
MAX_SYNONYMS = 64  # added to one query: a pasted page must not become thousands of clauses

# Scripts written without spaces: each of their characters counts as a word of its own.
UNSPACED = (  # Hiragana, Katakana, Han
    "\u3041-\u309f\u30a0-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORDS = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")

_Phrases = tuple[tuple[str, ...], ...]


class _PunctuationToSpace(dict[int, int | None]):
    """A table for `str.translate`, filled as characters turn up: Unicode has 1.1 million."""

    def __missing__(self, code: int) -> int | None:
        category = unicodedata.category(chr(code))
        mapped = 0x20 if category[0] == "P" or category == "Cc" else code
        self[code] = None if category == "Cf" else mapped  # soft hyphens and joiners are not seen
        return self[code]


PUNCTUATION: Final = _PunctuationToSpace()


def normalize_query(query: str) -> str:
    """One spelling for queries that a search team means as one.

    Args:
        query: any text.

    Returns:
        NFKC, case-folded, punctuation as spaces, single spaces; the words keep their order.
    """
    folded = unicodedata.normalize("NFKC", query).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).translate(PUNCTUATION).split())


@dataclass(frozen=True)
class Pin:
    """Products that come first for one query.

    Attributes:
        query: normalized.
        products: in this order.
    """

    query: str
    products: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Products that are not shown.

    Attributes:
        query: normalized; None for every query.
        products: in the order of the file.
    """

    query: str | None
    products: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """One region's rules, ready to be looked up; never changed.

    Attributes:
        groups: synonyms, any for any, as normalized phrases in the order of the file.
        one_way: a phrase and those it also stands for.
        pins: as in the file.
        blocks: as in the file.
    """

    groups: _Phrases
    one_way: tuple[tuple[str, tuple[str, ...]], ...]
    pins: tuple[Pin, ...]
    blocks: tuple[Block, ...]
    _synonyms: Mapping[tuple[str, ...], tuple[str, ...]]  # words of a phrase -> other phrases
    _lengths: Mapping[str, tuple[int, ...]]  # first word -> numbers of words, longest first
    _pinned: Mapping[str, tuple[str, ...]]
    _blocked_for: Mapping[str, frozenset[str]]
    _blocked: frozenset[str]

    @classmethod
    def empty(cls) -> "Rules":
        """Rules that change nothing."""
        return _compile(_RulesFile())

    def synonyms_for(self, query: str) -> tuple[str, ...]:
        """Further words and phrases that a query may as well be answered with.

        Args:
            query: as typed.

        Returns:
            Normalized phrases that the query does not have, at most `MAX_SYNONYMS`. The longest
            phrase of the query that has synonyms comes first, and no word of it is looked up again
            by itself; synonyms of synonyms are not followed.
        """
        if not self._synonyms:
            return ()
        words = tuple(_WORDS.findall(normalize_query(query)))
        found: dict[str, None] = {}
        taken: set[int] = set()
        for start, stop in self._matches(words):
            if taken.isdisjoint(range(start, stop)):
                taken.update(range(start, stop))
                found.update(dict.fromkeys(self._synonyms[words[start:stop]]))
                if len(found) >= 2 * MAX_SYNONYMS:
                    break
        typed = f" {' '.join(words)} "
        return tuple(p for p in found if f" {_spaced(p)} " not in typed)[:MAX_SYNONYMS]

    def pinned(self, query: str) -> tuple[str, ...]:
        """Product ids that come first for a query, in this order; blocked ones are left out."""
        normalized = normalize_query(query)
        products = self._pinned.get(normalized, ())
        if not products:
            return ()
        blocked = self._blocked_for.get(normalized, frozenset())
        return tuple(p for p in products if p not in blocked and p not in self._blocked)

    def blocked(self, query: str) -> frozenset[str]:
        """Product ids that are not shown for a query."""
        only_here = self._blocked_for.get(normalize_query(query)) if self._blocked_for else None
        return self._blocked | only_here if only_here else self._blocked

    def _matches(self, words: tuple[str, ...]) -> list[tuple[int, int]]:
        """Where phrases with synonyms stand in a query: the longest first, then from the left."""
        spans = [
            (start, start + length)
            for start, word in enumerate(words)
            for length in self._lengths.get(word, ())
            if words[start : start + length] in self._synonyms
        ]
        return sorted(spans, key=lambda span: (span[0] - span[1], span[0]))


def read_rules(path: Path) -> Rules:
    """Read a region's rules.

    Args:
        path: the TOML file.

    Returns:
        The rules; what `check_rules` finds odd in them does not hinder serving.

    Raises:
        ConfigError: no such file, too large, not TOML, an unknown key or a bad value; names the
            file and the key.
    """
    return _compile(_read_file(path))


def check_rules(rules: Rules, product_ids: Collection[str]) -> list[str]:
    """Look for what a search team will not have meant.

    Args:
        rules: from `read_rules`.
        product_ids: of the catalog.

    Returns:
        One line a finding, in the order of the file: synonyms, pins, blocks.
    """
    known = frozenset(product_ids)
    return [
        *_check_groups(rules),
        *_check_one_way(rules),
        *_check_pins(rules, known),
        *_check_blocks(rules, known),
    ]


def check_rules_file(path: Path, product_ids: Collection[str]) -> tuple[list[str], list[str]]:
    """Check a rules file as an operator does before it is served.

    Args:
        path: the TOML file.
        product_ids: of the catalog.

    Returns:
        Errors, with which the file cannot be read at all, and warnings, with which it is served but
        does not do what it says. Each is one line that names the file.
    """
    try:
        rules = read_rules(path)
    except ConfigError as error:
        return [str(error)], []
    return [], [f"{path}: {finding}" for finding in check_rules(rules, product_ids)]


def _a_phrase(text: str) -> str:
    normalized = normalize_query(text)
    if not normalized:
        raise ValueError("has no letter, digit or symbol to look for")
    return normalized


_Text = Annotated[str, Field(min_length=1, max_length=100)]
_Query = Annotated[str, Field(min_length=1, max_length=1000)]
_ProductId = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _OneWay(_Strict):
    source: _Text = Field(alias="from")
    to: tuple[_Text, ...] = Field(max_length=MAX_GROUP_PHRASES)


class _Pin(_Strict):
    query: _Query
    products: tuple[_ProductId, ...] = Field(min_length=1, max_length=MAX_PINS)

    _query = field_validator("query")(_a_phrase)


class _Block(_Strict):
    query: _Query | None = None
    products: tuple[_ProductId, ...] = Field(min_length=1, max_length=MAX_BLOCKED)

    @field_validator("query")
    @classmethod
    def _normalize(cls, query: str | None) -> str | None:
        return None if query is None else _a_phrase(query)


class _RulesFile(_Strict):
    synonyms: tuple[Annotated[tuple[_Text, ...], Field(max_length=MAX_GROUP_PHRASES)], ...] = Field(
        default=(), max_length=MAX_GROUPS
    )
    one_way: tuple[_OneWay, ...] = Field(default=(), max_length=MAX_GROUPS)
    pin: tuple[_Pin, ...] = Field(default=(), max_length=MAX_PINNED_QUERIES)
    block: tuple[_Block, ...] = Field(default=(), max_length=MAX_BLOCKS)

    @field_validator("pin")
    @classmethod
    def _bound(cls, pins: tuple[_Pin, ...]) -> tuple[_Pin, ...]:
        total: Counter[str] = Counter()
        for number, pin in enumerate(pins, start=1):
            total[pin.query] += len(pin.products)
            if total[pin.query] > MAX_PINS:
                raise ValueError(
                    f"number {number} and those before it for the same query pin"
                    f" {total[pin.query]} products, {MAX_PINS} are allowed"
                )
        return pins


def _read_file(path: Path) -> _RulesFile:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: above {MAX_FILE_BYTES:,} B; keep fewer rules")
        return _RulesFile.model_validate(tomllib.loads(raw.decode("utf-8")))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: not found; make it, or correct or remove serve.rules in region.toml"
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path}: {reason}; serve.rules needs a readable file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}; correct this line") from None
    except RecursionError:  # tomllib on a thousand nested brackets
        raise ConfigError(f"{path}: not valid TOML: nested too deeply; correct it") from None
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_fault(error)}; correct or remove this key") from None


def _first_fault(error: ValidationError) -> str:
    """The first wrong key and what is wrong; tables and list items are counted from 1."""
    first = error.errors(include_input=False, include_url=False)[0]
    key = "".join(f" {p + 1}" if isinstance(p, int) else f", {p}" for p in first["loc"])
    return f"{key.removeprefix(', ')}: {first['msg'].removeprefix('Value error, ')}"


def _compile(file: _RulesFile) -> Rules:
    groups = tuple(_phrases(group) for group in file.synonyms)
    one_way = tuple((normalize_query(way.source), _phrases(way.to)) for way in file.one_way)
    blocks = tuple(Block(block.query, block.products) for block in file.block)
    pins = tuple(Pin(pin.query, pin.products) for pin in file.pin)
    pairs = [(phrase, group) for group in groups for phrase in group]
    synonyms = _synonym_table([*pairs, *one_way])
    return Rules(
        groups=groups,
        one_way=one_way,
        pins=pins,
        blocks=blocks,
        _synonyms=MappingProxyType(synonyms),
        _lengths=MappingProxyType(_lengths_by_first_word(synonyms)),
        _pinned=MappingProxyType(_merged((pin.query, pin.products) for pin in pins)),
        _blocked_for=MappingProxyType(
            {
                query: frozenset(products)
                for query, products in _merged(
                    (block.query, block.products) for block in blocks if block.query is not None
                ).items()
            }
        ),
        _blocked=frozenset(p for block in blocks if block.query is None for p in block.products),
    )


def _phrases(texts: Iterable[str]) -> tuple[str, ...]:
    """Normalized, each once; what normalizes to nothing is left out."""
    return tuple(dict.fromkeys(filter(None, map(normalize_query, texts))))


def _synonym_table(
    pairs: Iterable[tuple[str, Sequence[str]]],
) -> dict[tuple[str, ...], tuple[str, ...]]:
    merged = _merged((phrase, tuple(o for o in others if o != phrase)) for phrase, others in pairs)
    return {tuple(_WORDS.findall(phrase)): others for phrase, others in merged.items() if others}


def _merged(items: Iterable[tuple[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    """Lists of equal keys one after the other, each element once."""
    table: dict[str, dict[str, None]] = {}
    for key, values in items:
        table.setdefault(key, {}).update(dict.fromkeys(values))
    return {key: tuple(values) for key, values in table.items()}


def _lengths_by_first_word(phrases: Iterable[tuple[str, ...]]) -> dict[str, tuple[int, ...]]:
    lengths: dict[str, set[int]] = {}
    for words in filter(None, phrases):
        lengths.setdefault(words[0], set()).add(len(words))
    return {word: tuple(sorted(some, reverse=True)) for word, some in lengths.items()}


def _spaced(phrase: str) -> str:
    return phrase if phrase.isascii() else " ".join(_WORDS.findall(phrase))


def _check_groups(rules: Rules) -> Iterable[str]:
    first_group: dict[str, int] = {}
    for number, group in enumerate(rules.groups, start=1):
        if len(group) < 2:
            yield f"synonyms {number}: fewer than two different phrases; add one or remove it"
        for phrase in group:
            former = first_group.setdefault(phrase, number)
            if former != number:
                yield (
                    f'synonyms {number}: "{phrase}" is in synonyms {former} too and stands for both'
                    " groups; join them, or keep it in one"
                )


def _check_one_way(rules: Rules) -> Iterable[str]:
    for number, (source, targets) in enumerate(rules.one_way, start=1):
        if not source or not set(targets) - {source}:
            yield f"one_way {number}: leads from nothing or nowhere; add a phrase or remove it"


def _check_pins(rules: Rules, known: frozenset[str]) -> Iterable[str]:
    first_pin: dict[str, int] = {}
    for number, pin in enumerate(rules.pins, start=1):
        former = first_pin.setdefault(pin.query, number)
        if former != number:
            yield f"pin {number}: for the same query as pin {former}, which comes first; join them"
        yield from _check_ids(f"pin {number}", pin.products, known)
        shown = set(rules.pinned(pin.query))
        hidden = [product for product in pin.products if product not in shown]
        if hidden:
            yield f"pin {number}: {_some(hidden)} blocked, which wins; take it out of pin or block"


def _check_blocks(rules: Rules, known: frozenset[str]) -> Iterable[str]:
    for number, block in enumerate(rules.blocks, start=1):
        yield from _check_ids(f"block {number}", block.products, known)


def _check_ids(where: str, products: tuple[str, ...], known: frozenset[str]) -> Iterable[str]:
    unknown = [product for product in products if product not in known]
    if unknown:
        yield f"{where}: {_some(unknown)} not in the catalog; correct or remove it"
    again = [product for product, count in Counter(products).items() if count > 1]
    if again:
        yield f"{where}: {_some(again)} named twice; once is enough"


def _some(products: Sequence[str]) -> str:
    """How many products, and the first by its id; one line even for ten thousand."""
    return (
        f'1 product ("{products[0]}")'
        if len(products) == 1
        else (f'{len(products)} products (first "{products[0]}")')
    )
