"""Queries for the electronics catalog, made of titles and attributes and of nothing else.

What a product is called there hides in its title ("networking cable"), in an attribute ("Notebook")
or nowhere: "HP LaserJet Enterprise M611dn 1200 x 1200 DPI" is a printer only by the kind of
attributes it has. So kinds are mined from titles, names that mostly come together count for one
another, and what bears no name gets that of the products whose attributes look like its own.
Relevance then follows the kind, also where the words differ, which clicks can teach.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from simulations.datasets.source import Query
from simulations.queries import normalize, share_of

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Row = Mapping[str, Any]

MAX_QUERIES = 3000

_TYPE = "attr_t_product_type"
# Attributes in whose values shoppers look for a word of theirs.
_SPECS = (
    "attr_t_product_colour", "attr_t_printing_colours", "attr_t_cable_colour",
    "attr_t_print_technology", "attr_t_cable_standard", "attr_t_connectivity_technology",
    "attr_t_interface", "attr_t_hd_type", "attr_t_internal_memory_type", "attr_t_battery_type",
    "attr_t_processor_family", "attr_t_connector_1", "attr_t_material", "attr_t_form_factor",
)  # fmt: skip
_MIN_KIND = 5  # titles that must use a name, from two suppliers, before it is one
_MIN_TYPE = 3  # products that must state a product type
_MIN_HEAD = 3  # longer names that must end in a word before it is a name: "printer"
_MAX_WORDS = 4
_IMPLIES = 0.5  # share of one name's products that bear another, for the first to count as it
_LIKE = 0.65  # cosine of attribute profiles above which an unnamed product is of a kind
_MIN_LIKE = 10  # products a kind must have before others are compared with them
_MIN_KEY = 20  # products that must have an attribute before it is part of a profile
_MIN_FACET = 3  # products that a query with a brand or a spec must find
_MAX_FACET_SHARE = 0.6  # a word that nearly all of a kind have tells nothing
_BRANDS, _WORDS, _PAIRS = 8, 12, 5  # facet queries of one kind
_SERIES = 800
_MAX_SERIES = 150  # products; above it two words are no series but a habit of speech

# Words of measure, grammar and colour, and a few that the mining takes for names; they end a name.
_GRAMMAR = frozenset((
    "a", "an", "and", "as", "at", "by", "com", "each", "fits", "for", "from", "in", "into",
    "not", "of", "on", "or", "over", "plus", "select", "the", "to", "up", "use", "via", "w/",
    "w/o", "with", "without",
))  # fmt: skip
_MEASURES = frozenset((
    "bit", "blank", "business", "buttons", "categorized", "category", "channels", "class", "cm",
    "compatible", "component", "cps", "day", "dot", "dots", "dpi", "ft", "g", "gb", "gen",
    "ghz", "hz", "imaging", "inch", "indoor", "integrated", "kg", "kva", "lumens", "m", "mb",
    "mbps", "mhz", "ml", "mm", "multifunctional", "nm", "opaque", "optic", "original",
    "outdoor", "outlet", "outlets", "output", "pack", "page", "pages", "pc", "pcs", "piece",
    "pieces", "pin", "pixel", "pixels", "port", "ports", "ppm", "quality", "round", "row",
    "rows", "rpm", "series", "sheet", "sheets", "steel", "tb", "thermal", "type", "va", "volt",
    "watt", "year", "years",
))  # fmt: skip
_COLOURS = frozenset((
    "beige", "black", "blue", "brown", "color", "colour", "coloured", "cyan", "gloss", "glossy",
    "gold", "gray", "green", "grey", "magenta", "matt", "matte", "orange", "pink", "purple",
    "red", "silver", "transparent", "white", "yellow",
))  # fmt: skip
_NO_NAME = _GRAMMAR | _MEASURES | _COLOURS
# Heads of names that say nothing by themselves.
_HOLLOW = frozenset((
    "accessory", "component", "device", "frame", "kit", "machine", "maker", "module", "part", "set",
    "supply", "system", "unit",
))  # fmt: skip
_ALWAYS_PLURAL = ("ss", "us", "is", "lens", "headphones")
_LOWER = re.compile(r"[a-z][a-z/-]*[a-z]")
_WORD = re.compile(r"[a-z0-9][a-z0-9/.+-]*[a-z0-9+]")
_SPEC_WORD = re.compile(r"(?=.*[a-z])[a-z0-9][a-z0-9.+-]+")
_SERIES_WORD = re.compile(r"[A-Za-z][A-Za-z0-9-]*[A-Za-z0-9]")
_AFTER_NAME = re.compile(r"\b(?:for|with|w/)\b.*", re.IGNORECASE)  # what it goes with, not is


@dataclass(frozen=True)
class _Catalog:
    """What queries are made from.

    Attributes:
        kinds: names, K of them.
        bears: which product counts as which kind, (N, K).
        suppliers: as a shopper types them, one a product, (N,).
        words: rows of each word in titles, descriptions and specs.
        titles: the words of each title.
    """

    kinds: list[str]
    bears: BoolArray
    suppliers: NDArray[np.str_]
    words: dict[str, IntArray]
    titles: list[frozenset[str]]


def make_queries(rows: Sequence[Row], *, seed: int, limit: int = MAX_QUERIES) -> list[Query]:
    """Make queries of kinds, of kinds with brand, colour or spec, and of series names.

    Args:
        rows: products as in products.jsonl.gz.
        seed: chooses among more candidates than `limit`.
        limit: at most so many.

    Returns:
        Queries of different normalized text, each with a product of grade 3. With a kind and
        facets, grade 3 has all; a missing brand costs two grades, a missing spec one, but the
        kind alone keeps grade 1. Asking grows with the square root of what there is to find.
    """
    catalog = _read(rows)
    series = _series_queries(rows, catalog, seed)
    distinct: dict[str, Query] = {}
    for query in chain(_kind_queries(catalog), _facet_queries(catalog, seed), series):
        distinct.setdefault(normalize(query.text), query)
    chosen = sorted(distinct, key=lambda text: share_of(text, salt=f"icecat {seed}"))[:limit]
    return [distinct[text] for text in sorted(chosen)]


def _read(rows: Sequence[Row]) -> _Catalog:
    kinds = _mine_kinds(rows)
    return _Catalog(
        kinds=kinds,
        bears=_spread(_named(rows, kinds), kinds, rows),
        suppliers=np.array([row["supplier"].strip().lower() for row in rows]),
        words=_invert(_words_of(row) for row in rows),
        titles=[frozenset(_WORD.findall(row["title"].lower())) for row in rows],
    )


# Kinds: what products are called.


def _mine_kinds(rows: Sequence[Row]) -> list[str]:
    """Names that titles of several suppliers use, and product types; sorted."""
    users: dict[str, list[str]] = {}
    for row in rows:
        for run in set(_runs(row["title"])):
            users.setdefault(run, []).append(row["supplier"])
    mined = {name for name, who in users.items() if len(who) >= _MIN_KIND and len(set(who)) > 1}
    types = Counter(_product_type(row) for row in rows)
    stated = {name for name, count in types.items() if count >= _MIN_TYPE}
    heads = Counter(name.split()[-1] for name in mined if " " in name)
    general = {head for head, count in heads.items() if count >= _MIN_HEAD}
    return sorted((mined | stated | general) - _HOLLOW - {""})


def _runs(title: str) -> Iterator[str]:
    """Stretches of lower-case words in a title: there the data set states the category."""
    run: list[str] = []
    for word in [*re.split(r"\s+|(?=[,(])", title), ""]:
        if _LOWER.fullmatch(word) and word not in _NO_NAME:
            run.append(word)
            continue
        if 0 < len(run) <= _MAX_WORDS:
            yield _singular(" ".join(run))
        run = []


def _singular(name: str) -> str:
    if len(name) < 4 or not name.endswith("s") or name.endswith(_ALWAYS_PLURAL):
        return name
    return f"{name[:-3]}y" if name.endswith("ies") else name[:-1]


def _product_type(row: Row) -> str:
    name = _singular(str(row.get(_TYPE, "")).strip().lower())
    words = name.split()
    plain = all(_LOWER.fullmatch(word) and word not in _NO_NAME for word in words)
    return name if plain and len(words) <= _MAX_WORDS else ""


def _named(rows: Sequence[Row], kinds: Sequence[str]) -> BoolArray:
    """Which names each product bears by its type, title or, failing these, description, (N, K)."""
    number = {name: at for at, name in enumerate(kinds)}
    named = np.zeros((len(rows), len(kinds)), dtype=np.bool_)
    for at, row in enumerate(rows):
        named[at, [number[name] for name in _names_of(row, number)]] = True
    return named


def _names_of(row: Row, number: Mapping[str, int]) -> set[str]:
    stated = {_product_type(row), *_runs(row["title"])} & number.keys()
    if stated:
        return stated
    found = _longest(row["title"], number) or _longest(str(row.get("short_description")), number)
    return {found} if found else set()


def _longest(text: str, number: Mapping[str, int]) -> str:
    """The longest name in a text in any case, the last of several; names end a noun phrase."""
    words = _WORD.findall(_AFTER_NAME.sub("", text).lower())
    for size in range(_MAX_WORDS, 0, -1):
        for start in range(len(words) - size, -1, -1):
            name = _singular(" ".join(words[start : start + size]))
            if name in number:
                return name
    return ""


def _spread(named: BoolArray, kinds: Sequence[str], rows: Sequence[Row]) -> BoolArray:
    """Let names that mean one thing count for one another, and name the nameless, (N, K)."""
    implied = _implied(named, kinds)
    bears: BoolArray = named.astype(np.float32) @ implied.astype(np.float32) > 0
    nameless = np.flatnonzero(~bears.any(axis=1))
    profiles = _profiles(rows)  # (N, F)
    centres = _unit(bears.T.astype(np.float32) @ profiles)  # (K, F)
    centres[bears.sum(axis=0) < _MIN_LIKE] = 0.0
    likeness = profiles[nameless] @ centres.T
    best = likeness.argmax(axis=1)
    near = likeness[np.arange(len(nameless)), best] >= _LIKE
    bears[nameless[near]] = implied[best[near]]
    return bears


def _implied(named: BoolArray, kinds: Sequence[str]) -> BoolArray:
    """Whether who bears one name bears another: they come together or end alike, (K, K)."""
    together = named.T.astype(np.float32) @ named.astype(np.float32)  # counts, exact below 2**24
    often = together >= _IMPLIES * np.maximum(1, together.diagonal())[:, None]
    ends = [[name.endswith(f" {other}") for other in kinds] for name in kinds]
    implied: BoolArray = often | np.array(ends, dtype=np.bool_) | np.eye(len(kinds), dtype=np.bool_)
    return implied


def _profiles(rows: Sequence[Row]) -> NDArray[np.float32]:
    """Which attributes a product has, rare ones weighing more, unit rows, (N, F)."""
    counts = Counter(key for row in rows for key in row if key.startswith("attr_"))
    keys = sorted(key for key, count in counts.items() if count >= _MIN_KEY)
    number = {key: at for at, key in enumerate(keys)}
    profiles = np.zeros((len(rows), len(keys)), dtype=np.float32)
    for at, row in enumerate(rows):
        profiles[at, [number[key] for key in row if key in number]] = 1.0
    rarity = np.log(len(rows) / np.array([counts[key] for key in keys], dtype=np.float32))
    return _unit(profiles * rarity)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(length, 1e-6)
    return unit


# Queries: what shoppers type.


def _kind_queries(catalog: _Catalog) -> Iterator[Query]:
    """The kind alone; another kind with the same head noun has grade 1."""
    heads = np.array([name.split()[-1] for name in catalog.kinds])
    for at, name in enumerate(catalog.kinds):
        akin = catalog.bears[:, heads == heads[at]].any(axis=1)
        grades = np.where(catalog.bears[:, at], 3, akin.astype(np.int64))
        for text in dict.fromkeys(_spoken(name)):
            yield from _query(text, grades)


def _spoken(name: str) -> list[str]:
    """Ways to say "headphones/headset": nobody types the stroke."""
    words = [word.split("/") for word in name.split()]
    ways = max(len(word) for word in words)
    return [" ".join(word[way % len(word)] for word in words) for way in range(ways)]


def _facet_queries(catalog: _Catalog, seed: int) -> Iterator[Query]:
    """A kind with a brand, with a word of its titles, and with both."""
    for at, name in enumerate(catalog.kinds):
        kind = catalog.bears[:, at]
        ways = _spoken(name)
        brands = _pick(_brands(catalog, kind), _BRANDS, f"{seed} {name}")
        words = _pick(_spec_words(catalog, kind, name), _WORDS, f"{seed} {name}")
        pairs = _pick(_pairs(catalog, kind, brands, words), _PAIRS, f"{seed} {name}")
        facets = [*((brand, "") for brand in brands), *(("", word) for word in words), *pairs]
        for number, (brand, word) in enumerate(facets):
            grades = _facet_grades(catalog, kind, brand, word)
            yield from _query(
                " ".join(f"{brand} {word} {ways[number % len(ways)]}".split()), grades
            )


def _brands(catalog: _Catalog, kind: BoolArray) -> Counter[str]:
    return Counter(catalog.suppliers[kind].tolist())


def _spec_words(catalog: _Catalog, kind: BoolArray, name: str) -> Counter[str]:
    """How many titles of a kind have each word that could narrow it."""
    rows = np.flatnonzero(kind)
    brands = {word for brand in catalog.suppliers[rows] for word in brand.split()}
    barred = _GRAMMAR | _MEASURES | brands | set(re.split(r"[ /]", name))
    counts = Counter(chain.from_iterable(catalog.titles[row] for row in rows))
    return Counter(
        {
            word: count
            for word, count in counts.items()
            if count <= _MAX_FACET_SHARE * len(rows)
            and word not in barred
            and _singular(word) not in barred
            and _SPEC_WORD.fullmatch(word)
        }
    )


def _pairs(
    catalog: _Catalog, kind: BoolArray, brands: Iterable[str], words: Iterable[str]
) -> Counter[tuple[str, str]]:
    return Counter(
        {
            (brand, word): int((_facet_grades(catalog, kind, brand, word) == 3).sum())
            for brand, word in product(brands, words)
        }
    )


def _facet_grades(catalog: _Catalog, kind: BoolArray, brand: str, word: str) -> IntArray:
    """Relevance to a kind with a brand and a word; empty ones are not asked for, (N,)."""
    cost = np.zeros(len(kind), dtype=np.int64)
    if brand:
        cost += 2 * (catalog.suppliers != brand)
    if word:
        cost += 1
        cost[catalog.words[word]] -= 1
    return np.where(kind, np.maximum(1, 3 - cost), 0)


Facet = TypeVar("Facet", str, tuple[str, str])


def _pick(counts: Counter[Facet], number: int, salt: str) -> list[Facet]:
    """A seeded choice that prefers what many products have, rather than the top alone."""
    enough = [facet for facet, count in counts.items() if count >= _MIN_FACET]
    return sorted(enough, key=lambda f: -counts[f] * share_of(" ".join(f), salt=salt))[:number]


def _series_queries(rows: Sequence[Row], catalog: _Catalog, seed: int) -> Iterator[Query]:
    """Two words that stand together in titles, as "galaxy tab": grade 3 together, else 2."""
    places: dict[tuple[str, str], list[int]] = {}
    for at, row in enumerate(rows):
        for pair in set(_neighbours(row["title"])):
            places.setdefault(pair, []).append(at)
    counts = Counter({pair: len(at) for pair, at in places.items() if len(at) <= _MAX_SERIES})
    for first, second in _pick(counts, _SERIES, f"{seed} series"):
        grades = np.zeros(len(rows), dtype=np.int64)
        nowhere = np.empty(0, np.int64)
        some, other = (catalog.words.get(word, nowhere) for word in (first, second))
        grades[np.intersect1d(some, other)] = 2
        grades[places[first, second]] = 3
        yield from _query(f"{first} {second}", grades)


def _neighbours(title: str) -> Iterator[tuple[str, str]]:
    """Adjacent capitalized words of a title: what makers call things."""
    words = title.split()
    for first, second in pairwise(words):
        plain = _SERIES_WORD.fullmatch(first) and _SERIES_WORD.fullmatch(second)
        pair = (first.lower(), second.lower())
        if plain and pair[0] != first and pair[1] != second and not _NO_NAME & set(pair):
            yield pair


def _query(text: str, grades: IntArray) -> Iterator[Query]:
    """A query with its relevance, or none if too little answers it fully."""
    full = int((grades == 3).sum())
    if full >= _MIN_FACET:
        rows = np.flatnonzero(grades)
        yield Query(text, rows, grades[rows].astype(np.int8), popularity=math.sqrt(full))


def _words_of(row: Row) -> set[str]:
    texts = (row["title"], row.get("short_description") or "", *(row.get(key) for key in _SPECS))
    return set(_WORD.findall(" ".join(text for text in texts if isinstance(text, str)).lower()))


def _invert(texts: Iterable[set[str]]) -> dict[str, IntArray]:
    places: dict[str, list[int]] = {}
    for at, words in enumerate(texts):
        for word in words:
            places.setdefault(word, []).append(at)
    return {word: np.array(rows, dtype=np.int64) for word, rows in places.items()}
