"""What a shop answers, over a real shelf, store and overlay; only the encoder is small."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from words_shop import (
    COLOURS,
    KINDS,
    WordEncoder,
    WordsShop,
    export,
    ids,
    killed,
    product,
    small_catalog,
    write_shop_region,
)

from client.region import open_region
from client.service.encoding import Edition
from client.service.failures import RequestError
from client.service.messages import (
    DeleteRequest,
    Event,
    EventsRequest,
    ForYouRequest,
    ImageSearchRequest,
    SearchRequest,
    SearchResponse,
    SimilarRequest,
    SuggestRequest,
    UpsertRequest,
)
from client.service.shop import RECENT_DECAY, Opened
from shared.errors import RetrievalError
from shared.retrieval.filters import Filters, Range
from shared.schema import ExperimentConfig

CATALOG = {row["product_id"]: row for row in small_catalog()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shop_region(tmp_path / "north")


@pytest.fixture
def open_shop(folder: Path) -> Iterator[WordsShop]:
    with WordsShop(folder, 2, 1) as opened:
        yield opened


def asked(query: str = "", **options: Any) -> SearchRequest:
    return SearchRequest(query=query, **{"k": 100, **options})


def by_colour(colour: str) -> set[str]:
    return {one for one, row in CATALOG.items() if row["title"].startswith(colour)}


def photo(colour: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (9, 7), COLOURS[colour]).save(file, "PNG")
    return file.getvalue()


def all_pages(open_shop: WordsShop, request: Any, between: Any = None) -> list[SearchResponse]:
    """Every page of an answer; something may happen between each two."""
    pages = [open_shop.shop.search(request)]
    while pages[-1].next_cursor is not None:
        if between is not None:
            between()
        pages.append(
            open_shop.shop.search(request.model_copy(update={"cursor": pages[-1].next_cursor}))
        )
    return pages


def refused(code: str, call: Any, *arguments: Any, match: str | None = None) -> None:
    with pytest.raises(RequestError, match=match) as failed:
        call(*arguments)
    assert failed.value.code == code


# -- finding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranker", ["dense", "lexical", None])
def test_words_find_their_products(open_shop: WordsShop, ranker: Any) -> None:
    found = open_shop.shop.search(asked("red hat", k=3, ranker=ranker))
    assert found.hits[0].title == "red hat no10"
    assert found.ranker == (ranker or "hybrid")
    assert (found.region, found.release, found.fallback) == ("north", 2, "")
    hit = found.hits[0]
    assert (hit.brand, hit.category, hit.price, hit.currency) == ("Bell", "hat", 20.0, "EUR")
    assert (hit.rating, hit.review_count, hit.in_stock) == (1.0, 100, True)
    assert hit.image == "/v1/photos/p10"


def test_a_hit_has_details_only_on_request(open_shop: WordsShop) -> None:
    plain = open_shop.shop.search(asked("red hat", k=1)).hits[0]
    full = open_shop.shop.search(asked("red hat", k=1, details=True)).hits[0]
    assert plain.attributes == {}
    assert full.attributes == {"colour": "red", "ean": "40123450" + "0010" + "9"}


def test_no_words_show_what_is_popular(open_shop: WordsShop) -> None:
    found = open_shop.shop.search(asked("  "))
    assert found.ranker == "popular" and found.fallback == ""
    assert set(ids(found)) == set(CATALOG)
    assert [hit.in_stock for hit in found.hits] == [True] * 22 + [False] * 8


def test_variants_of_one_model_are_one_hit(tmp_path: Path) -> None:
    grouping = '[serve]\ngroup_attribute = "model"\n'
    with WordsShop(write_shop_region(tmp_path / "n", toml=grouping), 1) as open_shop:
        found = open_shop.shop.search(asked("blue boots"))
        [boots] = [hit for hit in found.hits if hit.category == "boots"]
        assert (boots.product_id, boots.position) == ("p02", 1)
        assert set(boots.variants) == {"p00", "p01", "p03", "p04"}
        assert found.total == len(CATALOG) - 4


def test_filters_sorts_and_facets_hold_together(open_shop: WordsShop) -> None:
    filters = Filters(category=("hat", "bag"), in_stock=True, price=Range(le=36.0))
    wanted = {
        one
        for one, row in CATALOG.items()
        if row["category"] in ("hat", "bag") and row["in_stock"] and row["price"] <= 36
    }
    found = open_shop.shop.search(asked("red", filters=filters, sort="price_desc", facets=True))
    assert set(ids(found)) == wanted
    prices = [hit.price for hit in found.hits]
    assert prices == sorted(prices, reverse=True)
    assert found.ranker == "price_desc"
    category = next(facet for facet in found.facets if facet.name == "category")
    # Counted as if category were not filtered by, so that another one can be chosen.
    others = {
        kind: sum(
            row["category"] == kind and row["in_stock"] and row["price"] <= 36
            for row in CATALOG.values()
        )
        for kind in KINDS
    }
    assert {one.value: one.count for one in category.values} == {
        kind: count for kind, count in others.items() if count
    }
    assert {one.value for one in category.values if one.selected} == {"hat", "bag"}


def test_filters_that_nothing_satisfies_are_dropped_and_named(open_shop: WordsShop) -> None:
    found = open_shop.shop.search(
        asked("red", filters=Filters(brand=("Acme",), price=Range(ge=1000)))
    )
    assert (found.fallback, found.relaxed) == ("relaxed", ("price",))
    assert {hit.brand for hit in found.hits} == {"Acme"}


def test_words_that_nothing_has_show_what_is_popular(open_shop: WordsShop) -> None:
    found = open_shop.shop.search(asked("zzzz qqqq", ranker="lexical"))
    assert (found.fallback, found.ranker) == ("popular", "popular")
    assert found.hits


def test_a_misspelt_word_is_put_right(open_shop: WordsShop) -> None:
    assert open_shop.shop.search(asked("red jaket")).correction == "red jacket"
    assert open_shop.shop.search(asked("red jacket")).correction == ""


def test_an_article_number_comes_first(open_shop: WordsShop) -> None:
    for text in ("4012345000129", "p12", "P12"):
        found = open_shop.shop.search(asked(text, explain=True))
        assert found.hits[0].product_id == "p12"
        assert found.hits[0].explanation and found.hits[0].explanation.rule == "first"


def test_explained_figures_are_the_rankers_own(open_shop: WordsShop) -> None:
    query, encoder = "green bag", WordEncoder(2)
    explained = open_shop.shop.search(asked(query, explain=True))
    shelf = open_shop.shop._opened[0].shelf
    rows, scores = shelf.lexical.search(query, 300)
    words = {shelf.products.product(int(row))["product_id"]: row for row in rows}
    by_row = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    q = encoder.encode_queries([query], [None])[0]
    region = open_region(open_shop.folder)
    matrix = encoder.encode_products(region.texts, region.image_paths)
    cosine = dict(zip(region.catalog["product_id"], (matrix @ q).tolist(), strict=True))
    in_order = sorted(cosine.values(), reverse=True)
    for hit in explained.hits:
        said = hit.explanation
        assert said is not None and said.dense_score is not None
        assert said.dense_score == pytest.approx(cosine[hit.product_id], abs=1e-5)
        assert in_order[said.dense_rank - 1] == pytest.approx(said.dense_score, abs=1e-5)  # type: ignore[operator]
        if hit.product_id in words:
            assert said.lexical_score == pytest.approx(by_row[words[hit.product_id]])
            assert said.words == tuple(w for w in ("green", "bag") if w in hit.title.split())
        else:
            assert said.lexical_score is None and said.lexical_rank is None and said.words == ()
        top = max(scores.tolist())
        mix = 0.6 * (cosine[hit.product_id] + 1) / (in_order[0] + 1)
        mix += 0.4 * (said.lexical_score or 0.0) / top
        assert hit.score == pytest.approx(mix, abs=1e-5)
    assert explained.hits[0].explanation.dense_weight == 0.6  # type: ignore[union-attr]


def test_a_photo_finds_its_colour_and_words_bend_it(open_shop: WordsShop) -> None:
    search = open_shop.shop.search_by_image
    found = search(ImageSearchRequest(image=photo("blue"), k=6))
    assert all(hit.title.startswith("blue") for hit in found.hits)
    bent = search(ImageSearchRequest(image=photo("blue"), query="scarf", k=1))
    assert bent.hits[0].title.startswith("blue scarf")
    refused("invalid", search, ImageSearchRequest(image=b"no photo"))


def test_similar_ones_leave_the_product_itself_out(open_shop: WordsShop) -> None:
    found = open_shop.shop.similar(SimilarRequest(product_id="p10", k=100))
    assert "p10" not in ids(found) and len(found.hits) == len(CATALOG) - 1
    assert ids(found) == _nearest(open_shop, _vectors(open_shop)["p10"], without={"p10"})
    bent = open_shop.shop.similar(SimilarRequest(product_id="p10", query="green", k=100))
    green = WordEncoder(2).encode_queries(["green"], [None])[0]
    wanted = _vectors(open_shop)["p10"] + green
    assert ids(bent) == _nearest(open_shop, wanted, without={"p10"}) != ids(found)
    refused("not_found", open_shop.shop.similar, SimilarRequest(product_id="nobody"))


def test_for_you_weighs_the_latest_most_and_passes_over_the_unknown(open_shop: WordsShop) -> None:
    recent = ("p05", "gone", "p10", "p10")
    found = open_shop.shop.for_you(ForYouRequest(recent=recent, k=100))
    assert not {"p05", "p10"} & set(ids(found))
    vectors, latest_first = _vectors(open_shop), ["p10", "p10", "p05"]
    taste = sum(RECENT_DECAY**age * vectors[one] for age, one in enumerate(latest_first))
    assert ids(found) == _nearest(open_shop, taste, without={"p05", "p10"})


def test_for_you_of_products_that_are_gone_is_what_is_popular(open_shop: WordsShop) -> None:
    open_shop.shop.delete(DeleteRequest(product_ids=("p10",)))
    found = open_shop.shop.for_you(ForYouRequest(recent=("p10", "never"), k=5))
    assert found.ranker == "popular" and len(found.hits) == 5 and "p10" not in ids(found)


def test_suggestions_are_of_the_catalog(open_shop: WordsShop) -> None:
    texts = [one.text for one in open_shop.shop.suggest(SuggestRequest(prefix="gree")).suggestions]
    assert texts and all(text.startswith("green") for text in texts)
    assert open_shop.shop.suggest(SuggestRequest(prefix="")).suggestions == ()


def test_photos_are_files_of_the_region(open_shop: WordsShop) -> None:
    assert open_shop.shop.photo("p10") == open_shop.folder / "images" / "red.png"
    refused("not_found", open_shop.shop.photo, "p11")  # has none
    refused("not_found", open_shop.shop.photo, "../../etc/passwd")


def test_before_there_is_an_index_it_says_so(folder: Path) -> None:
    with WordsShop(folder) as closed:
        shop = closed.shop
        assert not shop.ready and shop.index == "" and not shop.wants_rebuild
        refused("unavailable", shop.search, asked("red"), match="no index yet")
        refused("unavailable", shop.upsert, UpsertRequest(products=(product("a", "b"),)))
        refused("unavailable", shop.delete, DeleteRequest(product_ids=("p10",)))
        refused("unavailable", shop.info)
        assert closed.overlay.changes()[1] == []  # nothing was kept of what was refused


def _nearest(open_shop: WordsShop, vector: Any, *, without: set[str]) -> list[str]:
    cosine = {one: float(of @ vector) for one, of in _vectors(open_shop).items()}
    return sorted(cosine.keys() - without, key=lambda one: -cosine[one])


def _vectors(open_shop: WordsShop) -> dict[str, Any]:
    region = open_region(open_shop.folder)
    matrix = WordEncoder(2).encode_products(region.texts, region.image_paths)
    return dict(zip(region.catalog["product_id"], matrix, strict=True))


# -- pages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sort", ["relevance", "price_asc"])
@pytest.mark.parametrize("query", ["red hat", ""])
def test_pages_hold_every_product_once(open_shop: WordsShop, query: str, sort: Any) -> None:
    whole = open_shop.shop.search(asked(query, sort=sort))
    pages = all_pages(open_shop, asked(query, sort=sort, k=7))
    assert [one for page in pages for one in ids(page)] == ids(whole)
    positions = [hit.position for page in pages for hit in page.hits]
    assert positions == list(range(1, len(CATALOG) + 1))
    assert len({page.request_id for page in pages}) == 1
    assert {page.total for page in pages} == {len(CATALOG)}


def test_the_size_of_a_page_may_change_on_the_way(open_shop: WordsShop) -> None:
    first = open_shop.shop.search(asked("red", k=4))
    rest = open_shop.shop.search(asked("red", k=100, cursor=first.next_cursor))
    assert len(set(ids(first) + ids(rest))) == len(CATALOG)
    assert rest.next_cursor is None and rest.facets == ()


@pytest.mark.parametrize("change", ["swap", "rebuild", "upsert", "delete", "replace"])
def test_pages_stay_those_of_one_answer(open_shop: WordsShop, change: str) -> None:
    whole = ids(open_shop.shop.search(asked("red hat")))
    number = iter(range(100))

    def swap() -> None:
        open_shop.use(*((1, 2) if next(number) % 2 else (2, 1)))

    def upsert() -> None:
        new = product(f"new{next(number)}", "red hat")
        open_shop.shop.upsert(UpsertRequest(products=(new,)))

    def replace_one() -> None:
        same = product("p10", f"blue bag {next(number)}")
        open_shop.shop.upsert(UpsertRequest(products=(same,)))

    def delete() -> None:
        open_shop.shop.delete(DeleteRequest(product_ids=("p07",)))

    between = {
        "swap": swap,
        "rebuild": lambda: open_shop.use(2, 1, rebuild=True),
        "upsert": upsert,
        "delete": delete,
        "replace": replace_one,
    }[change]
    pages = all_pages(open_shop, asked("red hat", k=5), between)
    seen = [one for page in pages for one in ids(page)]
    if change == "delete":  # it was on a later page, and does not come back on one
        assert whole.index("p07") >= 5
        whole.remove("p07")
    assert seen == whole
    assert len({(page.release, page.encoder_digest) for page in pages}) == 1


def test_a_cursor_is_of_one_request_and_of_its_time(open_shop: WordsShop) -> None:
    shop = open_shop.shop
    cursor = shop.search(asked("red", k=5)).next_cursor
    assert cursor is not None
    unknown = f"{'0' * 32}.5"
    refused("gone", shop.search, asked("red", cursor=unknown), match="search again")
    for garbage in ("", "x", "5", ".", f"{cursor}x", f"{cursor[:-1]}-5", cursor[:-1] + "\u0665"):
        refused("invalid", shop.search, asked("red", cursor=garbage), match="cursor")
    refused("invalid", shop.search, asked("blue", cursor=cursor), match="another request")
    other = Filters(brand=("Acme",))
    refused("invalid", shop.search, asked("red", cursor=cursor, filters=other))
    refused("invalid", shop.for_you, ForYouRequest(recent=("p1",), cursor=cursor))
    past_the_end = cursor.partition(".")[0] + ".999999"
    assert shop.search(asked("red", cursor=past_the_end)).hits == ()


# -- releases --------------------------------------------------------------------------------------


def test_the_former_release_answers_by_name(open_shop: WordsShop) -> None:
    answers = {n: open_shop.shop.search(asked("red hat", release=n, explain=True)) for n in (1, 2)}
    for release, answer in answers.items():
        assert answer.release == release
        assert answer.encoder_digest == WordEncoder(release).digest
        assert_of_one_release(answer, "red hat", _texts(open_shop))
    scores = [[hit.score for hit in answer.hits] for answer in answers.values()]
    assert scores[0] != scores[1]
    assert open_shop.shop.search(asked("red hat")).release == 2
    refused("not_found", open_shop.shop.search, asked("red", release=3), match="there is: 2, 1")


def test_info_says_what_answers(open_shop: WordsShop) -> None:
    open_shop.shop.delete(DeleteRequest(product_ids=("p10", "never")))
    open_shop.shop.upsert(UpsertRequest(products=(product("new", "tent"),)))
    info = open_shop.shop.info()
    assert (info.region, info.locale, info.releases) == ("north", "en", (2, 1))
    assert info.encoder_digest == WordEncoder(2).digest
    assert info.index == open_shop.indexes[2].folder.name == open_shop.shop.index
    assert (info.num_products, info.num_changes) == (30, 2)


def mismatched(open_shop: WordsShop) -> Opened:
    """The shelf of one release with the encoder of the other, as must never be."""
    [current, former] = open_shop.shop._opened
    return Opened(current.shelf, former.edition)


@pytest.mark.parametrize("call", ["search", "search_by_image", "similar"])
def test_an_edition_of_another_digest_answers_nothing(open_shop: WordsShop, call: str) -> None:
    open_shop.shop._opened = (mismatched(open_shop),)
    requests: dict[str, Any] = {
        "search": asked("red hat"),
        "search_by_image": ImageSearchRequest(image=photo("red")),
        "similar": SimilarRequest(product_id="p10", query="red"),
    }
    before = open_shop.tables().requests.height
    with pytest.raises(RetrievalError, match="start the service again"):
        getattr(open_shop.shop, call)(requests[call])
    assert open_shop.tables().requests.height == before


def test_products_of_another_digest_are_not_taken_in(open_shop: WordsShop) -> None:
    with pytest.raises(RetrievalError, match="start the service again"):
        open_shop.shop.put_in_use([mismatched(open_shop)], open_region(open_shop.folder))
    assert open_shop.shop.search(asked("red hat")).release == 2  # what was in use goes on
    open_shop.shop._opened = (mismatched(open_shop),)
    with pytest.raises(RetrievalError, match="start the service again"):
        open_shop.shop.upsert(UpsertRequest(products=(product("new", "red hat"),)))
    assert open_shop.overlay.changes()[0].height == 0


# -- changing --------------------------------------------------------------------------------------


def test_a_change_is_found_by_the_next_search_and_outlives_everything(
    open_shop: WordsShop, tmp_path: Path
) -> None:
    shop = open_shop.shop
    new = product("new", "purple tent", price=5.0, attributes={"colour": "purple"}, image="red.png")
    assert shop.upsert(UpsertRequest(products=(new,))).changed == 1
    assert shop.delete(DeleteRequest(product_ids=("p10", "p10", "never"))).changed == 1
    as_now = product("p11", "golden hat")
    assert shop.upsert(UpsertRequest(products=(product("p11", "old words"), as_now))).changed == 1
    copy = killed(open_shop.folder, tmp_path / "copy")

    def holds(now: WordsShop) -> None:
        for release in now.shop.info().releases:
            tent = now.shop.search(asked("purple tent", release=release))
            assert ids(tent)[0] == "new" and tent.hits[0].price == 5.0
            assert tent.hits[0].image == "/v1/photos/new"
            assert "p10" not in ids(tent) and len(set(ids(tent))) == len(CATALOG)
            gold = now.shop.search(asked("golden hat", release=release, ranker="lexical"))
            assert ids(gold)[0] == "p11" and gold.hits[0].title == "golden hat"
            assert ids(now.shop.search(asked("p10", release=release)))[0] != "p10"

    holds(open_shop)
    open_shop.use(1, 2)  # a swap, on a region that is opened anew
    holds(open_shop)
    open_shop.use(2, 1, rebuild=True)
    holds(open_shop)
    with WordsShop(copy, 2) as restarted:
        holds(restarted)


def test_a_product_with_a_bad_photo_is_refused_whole(open_shop: WordsShop) -> None:
    sound, spoilt = product("a", "tent", image="red.png"), product("b", "tent", image="no.png")
    for name in ("no.png", "../region.toml", "/etc/passwd"):
        bad = spoilt.model_copy(update={"image": name})
        refused(
            "invalid",
            open_shop.shop.upsert,
            UpsertRequest(products=(sound, bad)),
            match=r"products\.1\.image",
        )
    assert open_shop.overlay.changes()[0].height == 0
    assert open_shop.shop.info().num_changes == 0


def test_a_large_upsert_lets_searches_through(folder: Path) -> None:
    """Products are encoded on the thread of the queries, so never many of them at once."""
    encoded: list[int] = []

    class Noting(WordEncoder):
        def encode_products(self, texts: Any, images: Any) -> Any:
            encoded.append(len(texts))
            return super().encode_queries(texts, images)

    with WordsShop(folder, 1) as open_shop:
        [current] = open_shop.shop._opened
        noting = Opened(current.shelf, Edition(current.edition.digest, Noting(1)))
        open_shop.shop.put_in_use([noting], open_region(folder))
        many = tuple(product(f"n{number}", f"tent {number}") for number in range(200))
        open_shop.shop.upsert(UpsertRequest(products=many))
    assert sum(encoded) == 200 and max(encoded) <= 16


def test_many_changes_ask_for_a_new_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.service.shop.MIN_CHANGES", 3)
    with WordsShop(folder, 1) as open_shop:
        for number in range(4):
            assert not open_shop.shop.wants_rebuild
            open_shop.shop.upsert(UpsertRequest(products=(product(f"n{number}", "tent"),)))
        assert open_shop.shop.wants_rebuild
        open_shop.use(1, rebuild=True)
        assert not open_shop.shop.wants_rebuild and open_shop.shop.info().num_changes == 0


# -- what is on record -----------------------------------------------------------------------------


def test_what_was_shown_is_on_record_as_it_was_shown(open_shop: WordsShop) -> None:
    first = open_shop.shop.search(asked(" red   hat ", k=4, user_key="u1"))
    second = open_shop.shop.search(
        asked(" red   hat ", k=4, user_key="u1", cursor=first.next_cursor)
    )
    tables = open_shop.tables()
    [request] = tables.requests.to_dicts()
    assert request["request_id"] == first.request_id
    assert (request["query"], request["kind"], request["user_key"]) == ("red hat", "text", "u1")
    assert (request["ranker"], request["release"]) == ("hybrid", 2)
    shown = [(hit.product_id, hit.position, hit.propensity) for hit in (*first.hits, *second.hits)]
    columns = ("product_id", "position", "propensity")
    assert tables.impressions.sort("position").select(columns).rows() == shown
    assert [p for *_, p in shown] == pytest.approx([n**-0.7 for n in range(1, 9)])
    assert set(tables.impressions["team"]) == {""} and not tables.impressions["explored"].any()


@pytest.mark.parametrize(
    ("call", "request_of", "kind"),
    [
        ("search_by_image", lambda **o: ImageSearchRequest(image=photo("red"), **o), "image"),
        ("similar", lambda **o: SimilarRequest(product_id="p10", **o), "similar"),
        ("for_you", lambda **o: ForYouRequest(recent=("p10",), **o), "for_you"),
        ("search", lambda **o: SearchRequest(query="red", **o), "text"),
    ],
)
def test_every_kind_is_on_record_unless_it_shall_not_be(
    open_shop: WordsShop, call: str, request_of: Any, kind: str
) -> None:
    getattr(open_shop.shop, call)(request_of(log=False))
    assert open_shop.tables().requests.height == 0
    found = getattr(open_shop.shop, call)(request_of(k=3))
    tables = open_shop.tables()
    assert tables.requests["kind"].to_list() == [kind]
    assert tables.impressions.sort("position")["product_id"].to_list() == ids(found)


def test_events_are_kept_once(open_shop: WordsShop) -> None:
    found = open_shop.shop.search(asked("red", k=3))
    event = Event(event_id="e", request_id=found.request_id, product_id=ids(found)[1], type="click")
    stray = Event(event_id="f", request_id="nobody's", product_id="p10", type="cart")
    first = open_shop.shop.log_events(EventsRequest(events=(event, stray)))
    assert (first.accepted, first.repeated, first.unknown) == (2, 0, 1)
    again = open_shop.shop.log_events(EventsRequest(events=(event, stray)))
    assert (again.accepted, again.repeated, again.unknown) == (0, 2, 0)


def test_interleaved_answers_name_the_team_of_every_place(folder: Path) -> None:
    experiment = ExperimentConfig(a="lexical", b="dense")
    with WordsShop(folder, 2, experiment=experiment) as open_shop:
        answers = [open_shop.shop.search(asked("white bag", k=8)) for _ in range(30)]
        tables = open_shop.tables()
        compared = open_shop.shop.search(asked("white bag", ranker="dense"))
    assert compared.ranker == "dense"
    rankers = {answer.ranker for answer in answers}
    assert rankers == {"interleaved:lexical|dense"} == set(tables.requests["ranker"])
    for answer in answers:
        assert len(set(ids(answer))) == 8
    teams = tables.impressions.sort("request", "position").group_by("request", maintain_order=True)
    splits = [Counter(group["team"]) for _, group in teams]
    assert all(split["a"] == split["b"] == 4 for split in splits)
    assert len({tuple(ids(answer)) for answer in answers}) > 1  # coins are tossed


@pytest.mark.parametrize(
    ("a", "b"), [("hybrid", "lexical"), ("lexical", "hybrid"), ("lexical", "dense")]
)
def test_a_way_that_would_drop_a_filter_brings_nothing(folder: Path, a: str, b: str) -> None:
    """No hat is called a scarf: words alone find one only without the filter."""
    hats = Filters(category=("hat",))
    experiment = ExperimentConfig(a=a, b=b)
    with WordsShop(folder, 2, experiment=experiment, exploration=0.2) as open_shop:
        plain = open_shop.shop.search(asked("scarf", filters=hats, ranker="hybrid"))
        words = open_shop.shop.search(asked("scarf", filters=hats, ranker="lexical"))
        answers = [open_shop.shop.search(asked("scarf", filters=hats, k=3)) for _ in range(20)]
    assert (plain.fallback, words.fallback) == ("", "relaxed")
    for answer in answers:
        assert {hit.category for hit in answer.hits} == {"hat"} and len(answer.hits) == 3
        same = (answer.fallback, answer.relaxed, answer.total)
        assert same == ("", (), plain.total)


@pytest.mark.parametrize("fallback", ["relaxed", "popular"])
def test_an_answer_that_is_not_what_was_asked_for_is_left_as_it_is(
    folder: Path, fallback: str
) -> None:
    experiment = ExperimentConfig(a="lexical", b="dense")
    with WordsShop(folder, 2, experiment=experiment, exploration=0.2) as open_shop:
        query, filters = "red", Filters(brand=("Acme",), price=Range(ge=1000))
        if fallback == "popular":
            query, filters = "zzzz qqqq", Filters()
            [current] = open_shop.shop._opened
            stern = replace(current, shelf=replace(current.shelf, dense_floor=1.0))
            open_shop.shop.put_in_use([stern], open_region(folder))
        plain = open_shop.shop.search(asked(query, filters=filters, k=4, ranker="hybrid"))
        answers = [
            open_shop.shop.search(asked(query, filters=filters, k=4, user_key="u"))
            for _ in range(20)
        ]
        tables = open_shop.tables()
    assert plain.fallback == fallback
    changing = {"request_id", "next_cursor", "took_ms"}
    for answer in answers:
        assert answer.model_dump(exclude=changing) == plain.model_dump(exclude=changing)
    wanted = "popular" if fallback == "popular" else "hybrid"
    assert set(tables.requests["ranker"]) == {wanted}
    assert set(tables.impressions["team"]) == {""} and not tables.impressions["explored"].any()


def test_interleaving_with_the_former_release_stays_one_answer(folder: Path) -> None:
    with WordsShop(folder, 2, 1, experiment=ExperimentConfig()) as open_shop:
        pages = all_pages(open_shop, asked("white bag", k=7))
        assert len({one for page in pages for one in ids(page)}) == len(CATALOG)
        assert {page.release for page in pages} == {2}
        assert {page.encoder_digest for page in pages} == {WordEncoder(2).digest}


def test_a_wild_card_is_on_record_as_one(folder: Path) -> None:
    with WordsShop(folder, 2, exploration=0.2) as open_shop:
        plain = ids(open_shop.shop.search(asked("white bag", ranker="hybrid")))
        answers = [open_shop.shop.search(asked("white bag", k=5)) for _ in range(100)]
        tables = open_shop.tables()
    wild = tables.impressions.filter("explored")
    assert 5 <= wild.height <= 45  # twenty of a hundred are expected
    number_of = dict(tables.requests.select("request_id", "number").rows())
    by_request = {row["request"]: row for row in wild.to_dicts()}
    for answer in answers:
        card = by_request.get(number_of[answer.request_id])
        if card is None:
            assert ids(answer) == plain[:5]
        else:
            assert card["product_id"] in plain[5:]
            assert answer.hits[card["position"] - 1].product_id == card["product_id"]
            assert [one for one in ids(answer) if one != card["product_id"]] == plain[:4]


# -- all at once -----------------------------------------------------------------------------------


def _texts(open_shop: WordsShop) -> dict[str, tuple[str, Path | None]]:
    region = open_region(open_shop.folder)
    pairs = zip(region.texts, region.image_paths, strict=True)
    return dict(zip(region.catalog["product_id"], pairs, strict=True))


def assert_of_one_release(
    answer: SearchResponse, query: str, texts: dict[str, tuple[str, Path | None]]
) -> None:
    """Every figure of an explained answer is that of the encoder that it names."""
    encoder = WordEncoder(answer.release)
    assert answer.encoder_digest == encoder.digest
    found = [texts.get(hit.product_id, (hit.title, None)) for hit in answer.hits]
    matrix = encoder.encode_products([text for text, _ in found], [image for _, image in found])
    cosines = matrix @ encoder.encode_queries([query], [None])[0]
    said = [hit.explanation.dense_score for hit in answer.hits if hit.explanation]
    assert said == pytest.approx(cosines.tolist(), abs=1e-5)


def test_swaps_and_changes_under_load_fail_nothing_and_mix_nothing(folder: Path) -> None:
    """Three threads search; one swaps two releases, one upserts, finds, deletes and looks again."""
    queries = ["red hat", "white boots", "green scarf no16", "black"]
    gone: set[str] = set()
    done = threading.Event()

    with WordsShop(folder, 1, 2) as open_shop, ThreadPoolExecutor(5) as pool:
        texts = _texts(open_shop)
        alone: dict[tuple[int, str], list[str]] = {}
        only = Filters(category=KINDS)  # not those that come and go
        for query in queries:
            for release in (1, 2):
                request = asked(query, release=release, ranker="dense", filters=only)
                alone[release, query] = ids(open_shop.shop.search(request))

        def search(seed: int) -> int:
            rng, count = np.random.default_rng(seed), 0
            while not done.is_set():
                query, before = queries[rng.integers(len(queries))], set(gone)
                mixed = open_shop.shop.search(asked(query, explain=True))
                assert_of_one_release(mixed, query, texts)
                assert not before & set(ids(mixed))
                dense = open_shop.shop.search(asked(query, ranker="dense", filters=only))
                assert ids(dense) == alone[dense.release, query]
                count += 1
            return count

        def swap() -> None:
            for number in range(6):
                open_shop.use(*((1, 2), (2, 1))[number % 2])

        def change() -> None:
            for number in range(15):
                new = product(f"new{number}", f"yellow tent {number}")
                open_shop.shop.upsert(UpsertRequest(products=(new,)))
                found = open_shop.shop.search(asked(new.title))
                assert ids(found)[0] == new.product_id
                open_shop.shop.delete(DeleteRequest(product_ids=(new.product_id,)))
                gone.add(new.product_id)
                assert new.product_id not in ids(open_shop.shop.search(asked(new.title)))

        searchers = [pool.submit(search, seed) for seed in range(3)]
        changers = [pool.submit(swap), pool.submit(change)]
        try:
            for changer in changers:
                changer.result(timeout=120)
        finally:
            done.set()
        assert all(searcher.result(timeout=60) > 0 for searcher in searchers)


def test_pages_under_load_hold_every_product_once(folder: Path) -> None:
    with WordsShop(folder, 1, 2) as open_shop, ThreadPoolExecutor(2) as pool:

        def change(number: int) -> None:
            open_shop.use(*((1, 2), (2, 1))[number % 2])
            open_shop.shop.upsert(UpsertRequest(products=(product(f"n{number}", "red hat"),)))

        busy = [pool.submit(change, number) for number in range(8)]
        for _ in range(5):
            pages = all_pages(open_shop, asked("red hat", k=3))
            seen = [one for page in pages for one in ids(page)]
            assert len(seen) == len(set(seen)) == pages[0].total
            assert set(CATALOG) <= set(seen)
        for one in busy:
            one.result()


def test_a_late_query_is_told_so(open_shop: WordsShop) -> None:
    with pytest.raises(RequestError, match=r"time|long") as failed:
        open_shop.shop.search(asked("a query nobody has asked"), deadline=0.0)
    assert failed.value.code == "deadline"


def test_a_newer_export_wins_and_the_overlay_forgets_what_it_holds(open_shop: WordsShop) -> None:
    later = datetime(2100, 1, 1, tzinfo=UTC)
    open_shop.shop.upsert(UpsertRequest(products=(product("p10", "golden hat"),)))
    rows = [{**row, "updated_at": None} for row in small_catalog()]
    export(open_shop.folder, rows)  # as it was: older than the change
    open_shop.use(2)
    assert open_shop.shop.search(asked("p10")).hits[0].title == "golden hat"
    export(open_shop.folder, [{**row, "updated_at": later} for row in rows])
    open_shop.use(2)
    assert open_shop.shop.search(asked("p10")).hits[0].title == "red hat no10"
    assert open_shop.overlay.changes()[0].height == 0


def test_a_blocked_product_is_shown_nowhere_and_a_pin_is_first(tmp_path: Path) -> None:
    folder = write_shop_region(tmp_path / "n", toml='[serve]\nrules = "rules.toml"\n')
    (folder / "rules.toml").write_text(
        'synonyms = [["cap", "hat"]]\n[[pin]]\nquery = "Red!"\nproducts = ["p29"]\n'
        '[[block]]\nproducts = ["p10"]\n',
        encoding="utf-8",
    )
    with WordsShop(folder, 1) as open_shop:
        found = open_shop.shop.search(asked("red", explain=True))
        assert ids(found)[0] == "p29" and found.hits[0].explanation.rule == "first"  # type: ignore[union-attr]
        assert {
            hit.category for hit in open_shop.shop.search(asked("cap", ranker="lexical")).hits
        } == {"hat"}
        shown = [
            found,
            open_shop.shop.search(asked("p10")),
            open_shop.shop.search(asked("")),
            open_shop.shop.similar(SimilarRequest(product_id="p11", k=100)),
            open_shop.shop.for_you(ForYouRequest(recent=("p11",), k=100)),
            open_shop.shop.search_by_image(ImageSearchRequest(image=photo("red"), k=100)),
        ]
        assert all("p10" not in ids(one) for one in shown)
