"""The search page in a real browser: what a shopper can do with it, and what it must never do."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import CONTRASTS, FAULTS, SMALL_TARGETS, Visit, chromium
from PIL import Image
from playwright.sync_api import expect
from small_shop import Shop, drawn_photo, open_shop, small_shop

from client.service.failures import RequestError
from client.service.messages import Product, SearchRequest

pytestmark = pytest.mark.e2e

NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)> \u202e{query} 🩳"
FOCUS_SEEN = """(node) => {
  const framed = node.closest(".card, li:has(> .facts), .box") ?? node;
  return [node, framed].some((one) => {
    const { outlineStyle, boxShadow } = getComputedStyle(one);
    return outlineStyle !== "none" || boxShadow !== "none";
  });
}"""
DROP = """async ([bytes, name, type]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  for (const kind of ["dragover", "drop"]) {
    document.body.dispatchEvent(
      new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
    if (kind === "dragover" && document.getElementById("drop").hidden) return "no curtain";
  }
}"""
PHOTOS_LOADED = """() => Promise.all(Array.from(document.images, (one) =>
  one.complete || new Promise((done) => one.addEventListener("load", done))))"""
PASTE = """([bytes, name, type]) => {
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([new Uint8Array(bytes)], name, { type }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
}"""


browser = pytest.fixture(scope="module")(chromium)


@pytest.fixture
def shop() -> Shop:
    return small_shop()


@pytest.fixture
def url(shop: Shop) -> Iterator[str]:
    with open_shop(shop) as found:
        yield found


def loaded(page: Any) -> None:
    """The products asked for last are there."""
    page.locator("#products[aria-busy=false]").wait_for()


def search(page: Any, query: str) -> None:
    page.locator("#query").fill(query)
    page.locator("#query").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(query)
    loaded(page)


def asks(**wanted: Any) -> Callable[[Any], bool]:
    """Whether a request is a search with these values."""

    def does(request: Any) -> bool:
        if not request.url.endswith("/v1/search"):
            return False
        return all(request.post_data_json.get(key) == value for key, value in wanted.items())

    return does


def titles(page: Any) -> list[str]:
    return [str(title) for title in page.locator(".card .open").all_inner_texts()]


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.id || document.activeElement.className"))


def test_the_start_page_shows_what_is_popular(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    loaded(visit.page)
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Popular right now")
    best = sorted(shop.products, key=lambda p: -(p.sales or 0))
    assert titles(visit.page) == [product.title for product in best[:24]]
    first = visit.page.locator(".card").first
    assert first.get_by_role("img", name=best[0].title).count() == 1
    expect(visit.page.locator("#total")).to_contain_text("90 products")
    assert shop.count("/v1/for-you") == 0
    assert visit.wrong() == []


def test_a_card_says_price_rating_stock_and_variants(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    search(visit.page, "northlight red sneakers")
    card = visit.page.locator("[data-product=p0]")
    expect(card.locator(".price")).to_have_text("€59.00")
    expect(card).to_contain_text("Out of stock")
    assert card.locator(".stars").count() == 0  # this one has no rating, and says nothing of it
    rated = visit.page.locator("[data-product=p1]")
    assert rated.get_by_role("img", name="3 of 5 stars").count() == 1
    expect(rated).to_contain_text("3 more variants")
    search(visit.page, "quiet mile green sneakers")
    assert visit.page.locator("[data-product=p5] .photo img").count() == 0  # a drawn bag instead
    assert visit.page.locator("[data-product=p5] .photo svg").count() == 1


def test_a_photo_that_is_gone_leaves_no_hole(browser: Any, shop: Shop, url: str) -> None:
    del shop.photos["p30"]
    visit = Visit(browser, url, refusals=1)
    search(visit.page, "quiet mile jacket")
    search(visit.page, "northlight yellow boots")
    expect(visit.page.locator("[data-product=p30] .photo svg")).to_have_count(1)
    assert visit.wrong() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 640, 390, 320])  # 640: 1280 at a zoom of 200 %
def test_the_page_fits_and_can_be_read(browser: Any, url: str, width: int, scheme: str) -> None:
    visit = Visit(browser, url, viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = visit.page
    loaded(page)

    def looks_right(least: int) -> None:
        assert visit.width() == width
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > least
        assert [found for found in contrasts if found[0] < 4.5] == []
        assert page.evaluate(FAULTS) == []

    looks_right(50)
    search(page, "red sneekers")
    if width < 960:
        page.get_by_role("button", name="Filters").click()
    page.get_by_role("checkbox", name="Boots").check()
    page.locator("#chips button").wait_for()
    looks_right(50)
    page.locator(".card .open").first.click()
    page.locator(".detail .tile").first.wait_for()
    looks_right(50)
    page.keyboard.press("Escape")
    page.locator("#compare").click()
    page.locator(".ranking").nth(1).wait_for()
    looks_right(50)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(251, 250, 248)", "dark": "rgb(20, 22, 26)"}[scheme]
    assert visit.wrong() == []


def test_on_a_phone_everything_is_as_large_as_a_fingertip(browser: Any, url: str) -> None:
    page = Visit(
        browser, url, viewport={"width": 320, "height": 640}, has_touch=True, is_mobile=True
    ).page
    search(page, "red boots")
    page.get_by_role("button", name="Filters").tap()
    page.get_by_role("checkbox", name="Northlight").check()
    page.locator("#chips button").wait_for()
    assert page.evaluate(SMALL_TARGETS) == []
    page.locator(".card .open").first.tap()
    page.locator(".detail .tile").first.wait_for()
    assert page.evaluate(SMALL_TARGETS) == []
    page.get_by_role("button", name="Close").tap()
    page.locator("#compare").tap()
    page.locator(".ranking").nth(1).wait_for()
    assert page.evaluate(SMALL_TARGETS) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_a_journey_with_the_keyboard_alone(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page, keyboard = visit.page, visit.page.keyboard
    loaded(page)
    keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    keyboard.press("Enter")
    expect(page.locator("#products")).to_be_focused()
    page.locator("#home").focus()
    keyboard.press("Tab")
    expect(page.locator("#query")).to_be_focused()
    keyboard.type("qui")
    page.locator("#suggestions [role=option]").first.wait_for()
    keyboard.press("ArrowDown")
    keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “Quiet Mile”")
    loaded(page)
    order = []
    while not order or order[-1] != "open":  # from the box to the first product, in order
        keyboard.press("Tab")
        order.append(focused(page))
        assert page.evaluate_handle("document.activeElement").evaluate(FOCUS_SEEN), order[-1]
    kept = [name for name in order if not name.startswith("facet-") and name != "link"]
    assert kept == ["clear", "photo", "go", "badge", "sort", "compare", "open"]
    assert order.index("compare") + 1 < order.index("open") - 1  # the filters are between
    name = page.evaluate("document.activeElement.textContent")
    keyboard.press("Enter")
    expect(page.get_by_role("dialog", name=name)).to_be_visible()
    page.locator(".detail .tile").first.wait_for()
    for _ in range(30):  # focus never leaves the dialog for the page behind it
        keyboard.press("Tab")
        inside = page.evaluate(
            "document.activeElement === document.body || "
            "Boolean(document.activeElement.closest('dialog'))"
        )
        assert inside
    keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert page.evaluate("document.activeElement.textContent") == name
    assert visit.wrong() == []


def test_suggestions_are_a_combobox(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    box = page.get_by_role("combobox", name="Search for products")
    expect(box).to_have_attribute("aria-expanded", "false")
    box.press_sequentially("bo")
    options = page.locator("#suggestions [role=option]")
    expect(options).to_have_count(1)
    expect(options).to_have_text("Bootscategory")
    expect(box).to_have_attribute("aria-expanded", "true")
    expect(page.locator("#status")).to_have_text("1 suggestion")
    assert box.get_attribute("aria-activedescendant") is None
    box.press("ArrowDown")
    expect(options).to_have_attribute("aria-selected", "true")
    expect(box).to_have_attribute("aria-activedescendant", str(options.get_attribute("id")))
    box.press("ArrowDown")  # past the end is the input again
    assert box.get_attribute("aria-activedescendant") is None
    box.press("ArrowUp")
    box.press("Escape")
    expect(options).to_be_hidden()
    expect(box).to_have_attribute("aria-expanded", "false")
    expect(box).to_have_value("bo")
    expect(box).to_be_focused()
    box.press("ArrowDown")
    options.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “Boots”")
    expect(page.locator("#suggestions")).to_be_hidden()
    assert visit.wrong() == []


def test_suggestions_wait_for_a_pause_and_stale_ones_are_dropped(
    browser: Any, shop: Shop, url: str
) -> None:
    visit = Visit(browser, url)
    page = visit.page
    loaded(page)
    held: list[Any] = []

    def hold(route: Any) -> None:
        if '"prefix":"b"' in route.request.post_data:
            held.append(route)  # this answer is late
        else:
            route.continue_()

    page.route("**/v1/suggest", hold)
    with page.expect_request("**/v1/suggest"):
        page.locator("#query").press("b")
    page.locator("#query").press_sequentially("acKp", delay=5)
    expect(page.locator("#suggestions [role=option]")).to_have_text("Backpackcategory")
    for route in held:
        route.fulfill(json={"suggestions": [{"text": "too late", "kind": "phrase"}]})
    page.locator("#query").press("Enter")
    loaded(page)
    assert [one["prefix"] for path, one in shop.asked if path == "/v1/suggest"] == ["bacKp"]
    assert page.get_by_text("too late").count() == 0
    assert len(held) == 1


def test_a_photo_finds_its_colour_and_takes_words(
    browser: Any, shop: Shop, url: str, tmp_path: Path
) -> None:
    visit = Visit(browser, url)
    page = visit.page
    picked = tmp_path / "picked.png"
    picked.write_bytes(drawn_photo("Boots", "red"))
    page.locator("#file").set_input_files(picked)
    expect(page.get_by_role("heading", level=1)).to_have_text("Products like your photo")
    loaded(page)
    assert all(" red " in title for title in titles(page)[:12])
    expect(page.locator("#like").get_by_role("img", name="Your photo")).to_be_visible()
    expect(page.locator("#query")).to_have_attribute("placeholder", "Add words: “but in red”")
    page.locator("#query").fill("backpack")
    page.locator("#query").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "Products like your photo, “backpack”"
    )
    loaded(page)
    assert titles(page)[0].endswith("red backpack")
    assert shop.last("/v1/search-by-image")["query"] == "backpack"
    page.reload()  # the photo is still there: the session keeps it
    expect(page.get_by_role("heading", level=1)).to_have_text(
        "Products like your photo, “backpack”"
    )
    page.get_by_role("button", name="Remove the photo: Your photo").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “backpack”")
    expect(page.locator("#query")).to_be_focused()
    assert visit.wrong() == []


@pytest.mark.parametrize("way", [DROP, PASTE], ids=["drop", "paste"])
def test_a_photo_can_be_dropped_and_pasted(browser: Any, shop: Shop, url: str, way: str) -> None:
    visit = Visit(browser, url)
    large = io.BytesIO()
    Image.new("RGB", (3000, 1500), (200, 40, 45)).save(large, "PNG")
    assert visit.page.evaluate(way, [list(large.getvalue()), "a.png", "image/png"]) is None
    expect(visit.page.get_by_role("heading", level=1)).to_have_text("Products like your photo")
    loaded(visit.page)
    with Image.open(io.BytesIO(shop.last("/v1/search-by-image")["image"])) as sent:
        assert (sent.format, sent.size) == ("JPEG", (1024, 512))  # made small before it was sent
        assert not sent.getexif()
    expect(visit.page.locator("#drop")).to_be_hidden()
    assert visit.wrong() == []


def test_a_file_that_is_no_photo_is_said(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    loaded(visit.page)
    visit.page.evaluate(DROP, [[1, 2, 3], "a.txt", "text/plain"])
    expect(visit.page.get_by_role("alert")).to_contain_text("cannot be read as a photo")
    assert shop.count("/v1/search-by-image") == 0
    assert visit.wrong() == []


def test_filters_narrow_and_let_go(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    search(page, "boots")
    box = page.get_by_role("checkbox", name="Boots")
    box.focus()
    page.keyboard.press("Space")
    expect(page.locator("#total")).to_have_text("18 products")
    expect(box).to_be_checked()
    expect(box).to_be_focused()  # the panel was drawn anew around it
    page.get_by_role("checkbox", name="red").check()
    expect(page.locator("#total")).to_have_text("3 products")
    page.get_by_label("Highest price").fill("130")
    page.get_by_label("Highest price").press("Enter")
    page.get_by_role("button", name="Remove filter Price: up to €130.00").wait_for()
    page.get_by_role("radio", name="2 and more").check()
    page.get_by_role("checkbox", name="In stock only").check()
    page.get_by_role("button", name="Remove filter In stock").wait_for()
    loaded(page)
    assert shop.last("/v1/search")["filters"] == {
        "category": ("Boots",),
        "brand": (),
        "price": {"ge": None, "le": 130.0},
        "rating": {"ge": 2.0, "le": None},
        "in_stock": True,
        "attributes": {"colour": ("red",)},
    }
    page.get_by_role("button", name="Remove filter Colour: red").click()
    expect(page.get_by_role("button", name="Remove filter Category: Boots")).to_be_focused()
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator("#chips")).to_be_hidden()
    loaded(page)
    assert focused(page) == "heading"
    assert visit.wrong() == []


def test_filters_chosen_before_the_answer_add_up(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    search(page, "boots")
    page.route("**/v1/search", lambda _: None)  # no answer before there is no such route
    page.get_by_label("Highest price").fill("130")
    page.get_by_label("Highest price").press("Enter")
    page.get_by_role("radio", name="2 and more").check()
    box = page.get_by_role("checkbox", name="red")
    box.check()
    page.get_by_role("button", name="Remove filter Colour: red").click()
    box.uncheck()  # of a panel that is older than the chip's click
    page.get_by_role("checkbox", name="Boots").check()
    filters = {
        "category": ["Boots"],
        "price": {"ge": None, "le": 130},
        "rating": {"ge": 2, "le": None},
        "in_stock": True,
    }
    with page.expect_request(asks(filters=filters)):
        page.get_by_role("checkbox", name="In stock only").check()
    page.unroute("**/v1/search")
    loaded(page)
    expect(page.get_by_label("Highest price")).to_have_value("130")
    assert visit.wrong() == []


def test_price_bounds_in_the_wrong_order_are_turned(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    loaded(page)
    page.get_by_label("Lowest price").fill("100")
    page.get_by_label("Highest price").fill("20")
    page.get_by_label("Highest price").press("Enter")
    page.get_by_role("button", name="Remove filter Price: €20.00 \u2013 €100.00").wait_for()
    loaded(page)
    assert shop.last("/v1/search")["filters"]["price"] == {"ge": 20.0, "le": 100.0}
    assert visit.wrong() == []


def test_sorting_and_paging_keep_their_place(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    loaded(page)
    page.get_by_label("Sort").select_option("price_asc")
    expect(page.locator(".price").first).to_have_text("€19.50")
    loaded(page)
    assert shop.last("/v1/search")["sort"] == "price_asc"
    first = titles(page)
    page.get_by_role("button", name="Show more").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(48)
    assert titles(page)[:24] == first
    assert (
        page.locator(".card")
        .nth(24)
        .locator(".open")
        .evaluate("node => node === document.activeElement")
    )
    expect(page.locator("#status")).to_have_text("48 of 90 products shown")
    for count in (72, 90):
        page.get_by_role("button", name="Show more").click()
        expect(page.locator(".card")).to_have_count(count)
    assert page.get_by_role("button", name="Show more").count() == 0
    assert (
        len(set(page.locator(".card").evaluate_all("all => all.map(o => o.dataset.product)"))) == 90
    )
    assert visit.wrong() == []


def test_a_list_that_is_gone_is_asked_for_again(browser: Any, shop: Shop, url: str) -> None:
    shop.expired.add("24")
    visit = Visit(browser, url, refusals=1)
    page = visit.page
    loaded(page)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("#notices")).to_contain_text("here it is from the start")
    expect(page.locator(".card")).to_have_count(24)
    expect(page.locator("#products")).to_be_focused()
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".card")).to_have_count(48)
    assert visit.wrong() == []


def test_corrections_and_fallbacks_are_said(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    search(page, "red sneekers")
    expect(page.locator("#notices")).to_have_text("Did you mean red sneakers?")
    page.get_by_role("button", name="red sneakers", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “red sneakers”")
    loaded(page)
    page.get_by_role("checkbox", name="Northlight").check()
    page.locator("#chips button").wait_for()
    page.get_by_label("Lowest price").fill("5000")
    page.get_by_label("Lowest price").press("Enter")
    expect(page.locator("#notices")).to_have_text(
        "Nothing matches all filters. Showing results without: Brand, Price."
    )
    page.locator("#query").fill("§§§")
    page.locator("#query").press("Enter")
    expect(page.locator("#notices")).to_contain_text("Here is what is popular")
    expect(page.locator("#status")).to_contain_text("Here is what is popular")
    assert visit.wrong() == []


@pytest.mark.parametrize(
    ("locale", "results_for", "popular"),
    [
        ("en-IE", "Results for", "Popular right now"),
        ("de-AT", "Ergebnisse für", "Gerade beliebt"),
        ("fr-FR", "Résultats pour", "Populaire en ce moment"),
        ("es-ES", "Resultados para", "Popular ahora mismo"),
    ],
)
def test_where_nothing_is_found_the_page_counts_nothing(
    browser: Any, locale: str, results_for: str, popular: str
) -> None:
    with open_shop(small_shop(locale=locale)) as url:
        visit = Visit(browser, url)
        page = visit.page
        loaded(page)
        page.locator("#query").fill("§§§")
        page.locator("#query").press("Enter")
        page.locator("#notices .warn").wait_for()
        expect(page.get_by_role("heading", level=1)).to_have_text(popular)
        expect(page.locator("#total")).to_have_text("")
        expect(page.locator("#status")).to_have_text(page.locator("#notices").inner_text())
        expect(page.locator("#query")).to_have_value("§§§")
        search(page, "boots")  # what is found next is called by its name and counted again
        expect(page.get_by_role("heading", level=1)).to_contain_text(results_for)
        expect(page.locator("#total")).to_contain_text("18")
        assert visit.wrong() == []


def test_what_is_popular_is_not_called_similar(browser: Any, shop: Shop, url: str) -> None:
    """Nothing is like the product; or what was looked at is gone, and nothing is said of it."""
    visit = Visit(browser, url)
    page = visit.page

    def popular(route: Any) -> None:
        fallback = "popular" if "similar" in route.request.url else ""
        told = {**route.fetch().json(), "ranker": "popular", "fallback": fallback}
        route.fulfill(json=told)

    page.route(re.compile("/v1/(similar|for-you)$"), popular)
    search(page, "green backpack")
    page.locator(".card .open").first.click()
    expect(page.locator(".detail .strip")).to_contain_text("Nothing similar was found.")
    expect(page.locator(".detail .tile")).to_have_count(0)
    page.keyboard.press("Escape")
    with page.expect_response("**/v1/for-you"):
        page.locator("#home").click()
    loaded(page)
    page.evaluate("() => new Promise((done) => setTimeout(done))")  # the answer has been read
    expect(page.locator("#for-you")).to_be_hidden()
    page.unroute_all()
    page.reload()  # and where there is something like it, that is shown
    expect(page.locator("#for-you .tile").first).to_be_visible()
    assert visit.wrong() == []


def test_an_empty_catalog_is_no_error(browser: Any) -> None:
    with open_shop(Shop([], {})) as url:
        visit = Visit(browser, url)
        expect(visit.page.get_by_role("heading", name="Nothing found")).to_be_visible()
        assert visit.page.evaluate(FAULTS) == []
        assert visit.wrong() == []


def test_while_it_loads_there_are_skeletons(browser: Any, shop: Shop, url: str) -> None:
    held: list[Any] = []
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.route("**/v1/search", lambda route: held.append(route))
    page.goto(url)
    expect(page.locator(".skeleton")).to_have_count(12)
    assert page.locator("#products").get_attribute("aria-busy") == "true"
    assert (
        page.locator(".skeleton i").first.evaluate("o => getComputedStyle(o).animationName")
        == "none"
    )
    held[0].continue_()
    expect(page.locator(".skeleton")).to_have_count(0)
    expect(page.locator(".card")).to_have_count(24)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("overloaded", "Many people are searching just now"),
        ("unavailable", "The search is starting up"),
    ],
)
def test_a_service_that_is_not_ready_is_asked_again(
    browser: Any, shop: Shop, url: str, code: Any, said: str
) -> None:
    visit = Visit(browser, url, refusals=1)
    page = visit.page
    loaded(page)
    shop.failures.append(("/v1/search", RequestError(code, "because")))
    page.locator("#query").fill("boots")
    page.locator("#query").press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(said)
    expect(alert).to_contain_text("Trying again in 3 seconds")
    expect(alert).to_contain_text(re.compile("Reference: [0-9a-f]{32}"))
    expect(page.locator(".card:not(.skeleton)")).to_have_count(18, timeout=20_000)
    expect(page.locator("#failure")).to_be_empty()
    assert visit.wrong() == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RequestError("invalid", "because"), "This search was not accepted"),
        (RequestError("unauthenticated", "because"), "This search asks for a token"),
        (RequestError("too_large", "because"), "That photo is too large"),
        (ValueError("because"), "Something went wrong"),
        (RequestError("deadline", "because"), "That took too long"),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
def test_every_refusal_has_its_words(
    browser: Any, shop: Shop, url: str, error: Exception, said: str
) -> None:
    visit = Visit(browser, url, refusals=1)
    page = visit.page
    loaded(page)
    shop.failures.append(("/v1/search", error))
    page.locator("#query").fill("boots")
    page.locator("#query").press("Enter")
    expect(page.get_by_role("alert").get_by_role("heading")).to_have_text(said)
    assert page.evaluate(FAULTS) == []
    if getattr(error, "code", "") != "unauthenticated":
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".card:not(.skeleton)")).to_have_count(18)
    assert visit.wrong() == []


def test_without_a_connection_the_page_waits_for_it(browser: Any, shop: Shop, url: str) -> None:
    tall = {"width": 1280, "height": 4000}  # so that every photo is loaded, and none is cut off
    visit = Visit(browser, url, refusals=2, viewport=tall)  # the suggestions were not answered too
    page = visit.page
    loaded(page)
    page.evaluate(PHOTOS_LOADED)
    visit.context.set_offline(True)
    with page.expect_event("requestfailed", lambda request: "suggest" in request.url):
        page.locator("#query").fill("boots")  # at once: one pause, and so one request
    page.locator("#query").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("You are offline")
    visit.context.set_offline(False)
    expect(page.locator(".card:not(.skeleton)")).to_have_count(18)
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “boots”")
    assert visit.wrong() == []


def test_side_by_side_marks_what_moved(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    search(page, "quiet red jacket")
    before = shop.count("/v1/search")
    page.get_by_role("button", name="Compare").click()
    page.locator(".ranking").nth(1).wait_for()
    asked = [request for path, request in shop.asked if path == "/v1/search"][before:]
    assert sorted((one["release"], one["ranker"], one["log"]) for one in asked) == [
        (11, "hybrid", False),
        (12, "hybrid", False),
    ]
    page.get_by_label("Ranker").nth(1).focus()
    page.get_by_label("Ranker").nth(1).select_option("lexical")
    expect(page.locator(".ranking")).to_have_count(2)
    expect(page.get_by_label("Ranker").nth(1)).to_be_focused()
    expect(page.get_by_label("Ranker").nth(1)).to_have_value("lexical")
    loaded(page)

    def ids(release: int, ranker: Any) -> list[str]:
        wanted = SearchRequest(query="quiet red jacket", k=20, release=release, ranker=ranker)
        return [hit.product_id for hit in shop.answer(wanted).hits]

    left, right = ids(12, "hybrid"), ids(11, "lexical")
    for name, mine, others in (("Left", left, right), ("Right", right, left)):
        column = page.get_by_role("region", name=name)
        shown = column.locator(".ranking li").evaluate_all("all => all.map(o => o.dataset.product)")
        assert shown == mine
        for at, product_id in enumerate(mine):
            moved = others.index(product_id) - at if product_id in others else None
            mark = column.locator(".ranking li").nth(at).locator(".move")
            words = (
                "only here"
                if moved is None
                else "same place"
                if moved == 0
                else f"{abs(moved)} {'up' if moved > 0 else 'down'}"
            )
            said = mark.inner_text() if moved is None else mark.get_attribute("aria-label")
            assert said == words
    both = len(set(left) & set(right))
    assert 0 < both < 20  # or the test would see no product that is in one column only
    expect(page.locator(".overlap")).to_have_text(f"{both} of the first 20 are in both lists.")
    page.get_by_role("region", name="Left").locator(".open").first.click()
    page.locator(".detail .tile").first.wait_for()
    assert not shop.last("/v1/similar")["log"]
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".card")).to_have_count(24)
    assert shop.events == []  # looking at rankings is no shopping
    assert visit.wrong() == []


def test_ways_chosen_before_the_answers_add_up(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    search(page, "quiet red jacket")
    page.get_by_role("button", name="Compare").click()
    page.locator(".ranking").nth(1).wait_for()
    page.route("**/v1/search", lambda _: None)  # no answer before there is no such route
    page.get_by_label("Release").nth(0).select_option("11")
    page.get_by_label("Ranker").nth(0).select_option("dense")
    left, right = asks(release=11, ranker="dense"), asks(release=11, ranker="lexical")
    with page.expect_request(left), page.expect_request(right):
        page.get_by_label("Ranker").nth(1).select_option("lexical")
    page.unroute("**/v1/search")
    loaded(page)
    assert visit.wrong() == []


def test_a_release_that_is_gone_leaves_the_other_column(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url, refusals=1)
    page = visit.page
    loaded(page)
    shop.failures.append(("/v1/search", RequestError("not_found", "no index of that release")))
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".column .notice")).to_have_text("no index of that release")
    expect(page.locator(".ranking")).to_have_count(1)
    assert page.locator(".move").count() == 0
    assert visit.wrong() == []


def test_clicks_are_told_and_lead_to_what_is_for_you(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    search(page, "green backpack")
    request_id = f"r{len(shop.asked)}"
    with page.expect_response("**/v1/events"):
        page.locator(".card .open").first.click()
    title = page.locator("#detail-title").inner_text()
    (event,) = shop.events
    product = next(one for one in shop.products if one.title == title)
    told = (event["request_id"], event["product_id"], event["type"], event["user_key"])
    assert told == (request_id, product.product_id, "click", "")
    assert event["event_id"].count("-") == 4 and event["event_id"][14] == "4"
    page.get_by_role("region", name="Why it is here").get_by_text("backpack").wait_for()
    expect(page.locator(".why .gauge.meaning")).to_be_visible()
    expect(page.locator(".why")).to_contain_text("No. 1 by words")
    with page.expect_response("**/v1/events"):
        page.locator(".detail .tile").first.click()  # a similar one, in the same panel
    other = page.locator("#detail-title").inner_text()
    assert other != title and len({one["event_id"] for one in shop.events}) == 2
    page.keyboard.press("Escape")
    page.locator("#home").click()
    expect(page.locator("#for-you h2")).to_have_text(f"Because you looked at {other}")
    assert list(shop.last("/v1/for-you")["recent"]) == [one["product_id"] for one in shop.events]
    stored = page.evaluate("[localStorage.length, document.cookie, sessionStorage.length > 0]")
    assert stored == [0, "", True]
    assert visit.wrong() == []


def test_a_click_that_could_not_be_sent_is_sent_later(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url, refusals=1)
    page = visit.page
    loaded(page)
    shop.failures.append(("/v1/events", RequestError("unavailable", "stopping")))
    with page.expect_response("**/v1/events"):
        page.locator(".card .open").first.click()
    page.keyboard.press("Escape")
    assert shop.events == []
    with page.expect_response("**/v1/events"):
        page.locator(".card .open").nth(1).click()
    assert [one["product_id"] for one in shop.events] == page.locator(".card").evaluate_all(
        "all => all.slice(0, 2).map(o => o.dataset.product)"
    )
    assert visit.wrong() == []


def test_a_product_tells_what_it_is(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    search(page, "alder & co red sneakers")
    page.locator("[data-product=p1] .open").click()
    told = page.locator(".told")
    expect(told.locator(".description")).to_have_text("Sneakers by Alder & Co.\nMade to last.")
    assert told.locator("dt").all_inner_texts() == ["Colour", "Sizes"]
    assert told.locator("dd").all_inner_texts() == ["red", "S, M, L"]
    with page.expect_response("**/v1/similar"):
        page.locator(".detail .tile").first.click()  # one of another answer tells as much
    expect(page.locator(".told dt").first).to_have_text("Colour")
    page.keyboard.press("Escape")
    page.locator("#home").click()
    page.locator("#for-you .tile").first.click()
    expect(page.locator(".told dt").first).to_have_text("Colour")
    assert visit.wrong() == []


def test_a_variant_can_be_looked_up(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    search(page, "alder & co red sneakers")
    page.locator("[data-product=p1] .open").click()
    page.get_by_role("button", name="p20", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “p20”")
    expect(page.get_by_role("dialog")).to_have_count(0)
    loaded(page)
    assert titles(page) == [shop.by_id["p20"].title]
    page.locator(".card .open").click()
    expect(page.locator(".why")).to_contain_text("Put first: it is just what was asked for")
    assert visit.wrong() == []


def test_a_mix_of_one_ranker_does_not_name_the_other(browser: Any, shop: Shop, url: str) -> None:
    page = Visit(browser, url).page
    mixes = page.evaluate(
        """async () => {
          const { mix } = await import("/assets/detail.js");
          return [0, 0.25, 1].map((weight) => mix(weight).querySelector(".mix").innerText);
        }"""
    )
    assert mixes == ["Words 100%", "Meaning 25%Words 75%", "Meaning 100%"]


def test_on_a_phone_filters_lead_back_to_what_they_leave(
    browser: Any, shop: Shop, url: str
) -> None:
    visit = Visit(browser, url, viewport={"width": 390, "height": 700}, has_touch=True)
    page = visit.page
    search(page, "boots")
    back = page.locator("#close-filters")
    expect(back).to_be_hidden()
    page.get_by_role("button", name="Filters").tap()
    expect(back).to_have_text("Show 18 products")
    expect(back).to_be_in_viewport()  # however long the panel is
    page.get_by_role("checkbox", name="Northlight").check()
    expect(back).to_have_text("Show 6 products")
    back.tap()
    expect(back).to_be_hidden()
    expect(page.locator("#heading")).to_be_focused()
    expect(page.locator(".card").first).to_be_in_viewport()
    expect(page.locator("#open-filters")).to_have_attribute("aria-expanded", "false")
    assert visit.wrong() == []


def test_a_suggestion_shows_what_it_adds(browser: Any, url: str) -> None:
    page = Visit(browser, url).page
    loaded(page)
    texts = ["Booties", "ankle boots", "a shoebox"]
    found = [{"text": text, "kind": "phrase"} for text in texts]
    page.route("**/v1/suggest", lambda route: route.fulfill(json={"suggestions": found}))
    page.locator("#query").press_sequentially("bo")
    options = page.locator("#suggestions .text")
    expect(options).to_have_text(texts)
    assert [one.locator("b").all_inner_texts() for one in options.all()] == [
        ["oties"],
        ["ankle ", "ots"],
        ["a shoebox"],
    ]


def test_similar_products_take_words_too(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    search(page, "northlight red sneakers")
    card = page.locator(".card").first
    card.hover()
    card.get_by_role("button", name="Similar products to").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Similar to Northlight red sneakers")
    loaded(page)
    assert shop.last("/v1/similar")["product_id"] == "p0"
    page.locator("#query").fill("blue")
    page.locator("#query").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("“blue”")
    loaded(page)
    assert shop.last("/v1/similar")["query"] == "blue"
    page.get_by_role("button", name="Remove the product: Northlight red sneakers").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “blue”")
    assert visit.wrong() == []


def test_the_way_back_is_kept_without_any_address(browser: Any, shop: Shop, url: str) -> None:
    visit = Visit(browser, url)
    page = visit.page
    search(page, "boots")
    search(page, "jacket")
    page.get_by_role("checkbox", name="Jacket").check()
    page.locator("#chips button").wait_for()
    page.go_back()
    expect(page.locator("#chips")).to_be_hidden()
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “jacket”")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “boots”")
    expect(page.locator("#query")).to_have_value("boots")
    page.go_forward()
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “jacket”")
    loaded(page)
    assert page.url == url
    assert len(visit.urls) > 20
    assert not [one for one in visit.urls if "boots" in one or "jacket" in one or "?" in one]
    assert page.title() == "Product search · harbour"
    assert visit.wrong() == []


def test_the_badge_names_region_release_and_encoder(browser: Any, shop: Shop, url: str) -> None:
    page = Visit(browser, url).page
    loaded(page)
    badge = page.locator("#badge")
    digest = "cccc3f2a91cc" + "07de3f2a91cc" * 4 + "07de"
    assert badge.locator("span, code").all_inner_texts() == ["harbour", "Release 12", digest[:12]]
    expect(page.locator("#digest")).to_be_hidden()
    badge.focus()
    expect(page.locator("#digest")).to_be_visible()
    expect(page.locator("#digest code")).to_have_text(digest)
    assert badge.get_attribute("aria-describedby") == "digest"


def test_other_peoples_text_runs_nothing(browser: Any) -> None:
    product = Product(
        product_id="a/b?c#d", title=NASTY, brand=NASTY, category=NASTY, attributes={NASTY: NASTY}
    )
    with open_shop(Shop([product, product.model_copy(update={"product_id": "2"})], {})) as url:
        visit = Visit(browser, url)
        page = visit.page
        expect(page.locator(".card .open").first).to_have_text(NASTY)
        page.locator(".card .open").first.click()
        expect(page.locator("#detail-title")).to_have_text(NASTY)
        page.keyboard.press("Escape")
        page.get_by_role("checkbox").first.check()
        page.locator("#chips button").wait_for()
        search(page, NASTY.strip())
        page.get_by_role("button", name="Compare").click()
        page.locator(".ranking").first.wait_for()
        assert page.locator("script:not([src]), img[src=x]").count() == 0
        assert visit.wrong() == []


def test_the_page_speaks_the_regions_language(browser: Any) -> None:
    with open_shop(small_shop(locale="de-AT")) as url:
        visit = Visit(browser, url)
        page = visit.page
        expect(page.get_by_role("heading", level=1)).to_have_text("Gerade beliebt")
        loaded(page)
        assert page.evaluate("document.documentElement.lang") == "de"
        assert page.locator(".card .open").first.get_attribute("lang") == "de-AT"
        price = page.locator(".price").first.inner_text()
        assert price.startswith("€") and "," in price  # as Austria writes it, not Germany
        expect(page.get_by_role("button", name="Vergleichen")).to_be_visible()
        assert visit.wrong() == []


def test_a_language_without_words_gets_english_ones_and_its_own_numbers(browser: Any) -> None:
    with open_shop(small_shop(locale="ja")) as url:
        visit = Visit(browser, url)
        expect(visit.page.get_by_role("heading", level=1)).to_have_text("Popular right now")
        assert visit.page.evaluate("document.documentElement.lang") == "en"
        expect(visit.page.locator(".card .open").first).to_have_attribute("lang", "ja")
        assert visit.wrong() == []


def test_every_language_says_everything(browser: Any, url: str) -> None:
    page = Visit(browser, url).page
    languages = page.evaluate("import('/assets/words.js').then((words) => words.LANGUAGES)")

    def shape(word: Any) -> Any:
        forms = word.values() if isinstance(word, dict) else [word]
        return sorted({part.split("}")[0] for form in forms for part in form.split("{")[1:]})

    expected = {key: shape(word) for key, word in languages["en"].items()}
    assert len(languages) == 4 and len(expected) > 100
    for name, words in languages.items():
        assert {key: shape(word) for key, word in words.items()} == expected, name
