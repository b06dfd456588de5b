"""Real fashion products ("Fashion Product Images", P. Aggarwal), brought to a `Source`.

Colour, type and gender decide what is relevant, so no method may read them: a product's text is its
display name alone, and the rest has to be learned from clicks and seen in photos. With them in the
text an untrained BM25 finds nearly everything and nothing is measured.
"""

import csv
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from shared.errors import DataError
from shared.schema import CATALOG_COLUMNS
from simulations.datasets.source import Query, Source
from simulations.queries import share_of

TABLE = "styles.csv"
_COLUMNS = ("id", "gender", "articleType", "baseColour", "productDisplayName")
_NEEDED = {"id": "id", "productDisplayName": "title", "articleType": "type"}
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # it names a file
_DECODE_SIZE = (64, 64)

# What shoppers type where the shop's own word is not one.
_COLOURS = {"Multi": "multicolour", "Skin": "skin colour"}
_GENDERS = {
    "Men": ("men", "men's"),
    "Women": ("women", "women's"),
    "Boys": ("boys", "boys'"),
    "Girls": ("girls", "girls'"),
    "Unisex": ("men and women", "unisex"),
}
_TEMPLATES = (
    "{colour} {type} for {who}",
    "{colour} {type} {who}",
    "{whose} {colour} {type}",
    "{colour} {whose} {type}",
    "{whose} {type} in {colour}",
)


def load_fashion(folder: Path, *, seed: int, public_share: float = 0.3) -> Source:
    """Read products and photos and make up what shoppers ask for.

    Args:
        folder: holds `styles.csv` and `images/ID.jpg`.
        seed: chooses the public slice.
        public_share: share of the titles whose products belong to no region and align the image
            tower; products of one title are on one side.

    Returns:
        The source; broken rows and photos are left out and named in `problems`. One query for
        every type, colour and gender that occur together.

    Raises:
        DataError: no such folder or file, a column is missing, or no row is usable.
    """
    problems: list[str] = []
    rows = list(_read_rows(folder / TABLE, problems))
    images = _check_images([folder / "images" / f"{row['id']}.jpg" for row in rows], problems)
    table = _tidy(rows, images)
    public = _in_public(table["title"], seed, public_share)
    products = table.filter(~public)
    if products.is_empty():
        raise DataError(f"{folder / TABLE}: no usable product; see that its rows are whole")
    problems += _lost(int(table.filter(public)["image"].null_count()))
    return Source(
        name="fashion",
        products=products.select(*CATALOG_COLUMNS),
        queries=make_queries(products),
        public=table.filter(public).drop_nulls("image").select("title", "image"),
        problems=problems,
    )


def make_queries(products: pl.DataFrame) -> list[Query]:
    """Make one query for each type, colour and gender that occur together.

    Args:
        products: columns category (the type), colour and gender; empty text for unknown.

    Returns:
        Queries by type, colour and gender: grade 3 where all three match, 2 type and gender, 1
        type. What is asked grows with the square root of what there is to find.
    """
    table = products.select("category", "colour", "gender")
    intents = table.filter(pl.all_horizontal(pl.all() != "")).unique().sort(pl.all()).rows()
    columns = {name: table[name].to_numpy() for name in table.columns}
    by_type = {kind: np.flatnonzero(columns["category"] == kind) for kind, _, _ in intents}
    return [
        _make_query(kind, colour, gender, by_type[kind], columns)
        for kind, colour, gender in intents
    ]


def _make_query(
    kind: str,
    colour: str,
    gender: str,
    rows: NDArray[np.int64],
    columns: dict[str, NDArray[np.object_]],
) -> Query:
    same_gender = columns["gender"][rows] == gender
    same_colour = columns["colour"][rows] == colour
    grades = (1 + same_gender + (same_gender & same_colour)).astype(np.int8)
    popularity = float(np.sqrt((grades == 3).sum()))
    return Query(phrase(kind, colour, gender), rows, grades, popularity=popularity)


def phrase(kind: str, colour: str, gender: str) -> str:
    """Put an intent into the words a shopper would type, always the same for one intent.

    Args:
        kind: of article, as "Casual Shoes".
        colour: as "Navy Blue".
        gender: as "Men".

    Returns:
        For example "men's navy blue casual shoes".
    """
    digest = sha256(f"{kind}\0{colour}\0{gender}".encode()).digest()
    who, whose = _GENDERS.get(gender, (gender.lower(), gender.lower()))
    template = _TEMPLATES[digest[0] % len(_TEMPLATES)]
    shade = _COLOURS.get(colour, colour.lower())
    return template.format(type=kind.lower(), colour=shade, who=who, whose=whose)


def _read_rows(path: Path, problems: list[str]) -> Iterator[dict[str, str]]:
    """Yield usable rows; each line is parsed by itself, so an open quote spoils one row only."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise DataError(f"{path}: {reason}; --data fashion:DIR needs {TABLE} in DIR") from None
    lines = text.split("\n")
    header = _header(path, lines[0])
    seen: set[str] = set()
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        row, reason = _parse(header, line.rstrip("\r"), seen)
        if reason:
            problems.append(f"{path.name} line {number}: {reason}; row left out")
        else:
            seen.add(row["id"])
            yield row


def _header(path: Path, line: str) -> list[str]:
    header = next(csv.reader([line.rstrip("\r")]), [])
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        found = ", ".join(header)[:200] or "nothing"
        raise DataError(f"{path}: column {', '.join(missing)} missing; line 1 has {found}")
    return header


def _parse(header: Sequence[str], line: str, seen: set[str]) -> tuple[dict[str, str], str]:
    """One line as a row and, if it is not usable, the reason."""
    try:
        fields = next(csv.reader([line], strict=True))
    except csv.Error as error:
        return {}, str(error)
    if len(fields) != len(header):
        return {}, f"{len(fields)} fields, expected {len(header)} (a comma without quotes?)"
    row = {name: field.strip() for name, field in zip(header, fields, strict=True)}
    return row, _fault(row, seen)


def _fault(row: dict[str, str], seen: set[str]) -> str:
    """Why a row cannot be used, empty if it can."""
    empty = [name for name in _NEEDED if not row[name]]
    if empty:
        return f"{', '.join(empty)} empty"
    if not _SAFE_ID.fullmatch(row["id"]):
        return "id is not made of letters, digits, - and _"
    if row["id"] in seen:
        return "id occurs before"
    return "not UTF-8" if any("\ufffd" in field for field in row.values()) else ""


def _check_images(paths: Sequence[Path], problems: list[str]) -> list[str | None]:
    """Absolute path of each readable photo, else None with a line in problems."""
    with ThreadPoolExecutor(max_workers=2) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        faults = list(pool.map(_image_fault, paths))
    problems += [
        f"images/{path.name}: {fault}; product kept without photo"
        for path, fault in zip(paths, faults, strict=True)
        if fault
    ]
    resolved = zip(paths, faults, strict=True)
    return [None if fault else str(path.absolute()) for path, fault in resolved]


def _image_fault(path: Path) -> str:
    """Why a photo cannot be used, empty if it can; decoded small, so thousands take seconds."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", _DECODE_SIZE)
            image.load()
    except FileNotFoundError:
        return "no such file"
    except UnidentifiedImageError:
        return "not an image"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"cannot be decoded ({type(error).__name__})"
    return ""


def _tidy(rows: Sequence[dict[str, str]], images: Sequence[str | None]) -> pl.DataFrame:
    """Rows in `CATALOG_COLUMNS`, with colour and gender beside them for the queries."""
    columns: dict[str, Sequence[object]] = {
        "product_id": [row["id"] for row in rows],
        "title": [row["productDisplayName"] for row in rows],
        "category": [row["articleType"] for row in rows],
        "attributes": [_attributes(row) for row in rows],
        "in_stock": [True] * len(rows),
        "image": images,
        "locale": ["en"] * len(rows),
        "colour": [row["baseColour"] for row in rows],
        "gender": [row["gender"] for row in rows],
    }
    schema = {**CATALOG_COLUMNS, "colour": pl.String(), "gender": pl.String()}
    return pl.DataFrame(
        [
            pl.Series(name, columns.get(name, [None] * len(rows)), dtype=dtype, strict=False)
            for name, dtype in schema.items()
        ]
    )


def _attributes(row: dict[str, str]) -> list[dict[str, str]]:
    named = (("colour", row["baseColour"]), ("gender", row["gender"]))
    return [{"key": key, "value": value} for key, value in named if value]


def _in_public(titles: pl.Series, seed: int, share: float) -> pl.Series:
    salt = f"fedshelf public {seed}"
    return pl.Series([share_of(title, salt=salt) < share for title in titles], dtype=pl.Boolean)


def _lost(number: int) -> list[str]:
    """The public slice aligns photos, so its products without one serve nobody: say how many."""
    return [f"{TABLE}: {number} products of the public slice have no photo; left out"] * (
        number > 0
    )
