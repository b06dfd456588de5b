"""The dashboard in a real browser: how it looks, how it refreshes, and what it lets through."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browsing import CONTRASTS, Visit, chromium
from busy_headquarters import busy_headquarters, empty_headquarters, record

from server.headquarters import Headquarters
from server.training import trainings
from shared.audit import AuditLog

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)>"
SERVE = """
import sys
from pathlib import Path
from server.dashboard import serve_dashboard
serve_dashboard(Path(sys.argv[1]), port=0, on_ready=lambda url: print(url, flush=True))
"""


browser = pytest.fixture(scope="module")(chromium)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The dashboard as a process of its own, ended as a person ends it; yields its URL."""
    command = [sys.executable, "-c", SERVE, str(folder)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
        assert (process.returncode, complaints) == (0, "")
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[str]:
    """A dashboard to look at."""
    hq = busy_headquarters(tmp_path_factory.mktemp("busy") / "hq", tiny_base)
    with serving(hq.folder) as found:
        yield found


@pytest.fixture
def own(tmp_path: Path, tiny_base: Path) -> Headquarters:
    """A headquarters to change."""
    return busy_headquarters(tmp_path / "hq", tiny_base)


@pytest.fixture
def own_url(own: Headquarters) -> Iterator[str]:
    with serving(own.folder) as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_can_be_read(browser: Any, url: str, width: int, scheme: str) -> None:
    visit = Visit(browser, url, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = visit.page
    assert visit.width() == width
    for summary in page.locator("summary").all():
        summary.click()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 200
    assert [found for found in contrasts if found[0] < 4.5] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(246, 245, 242)", "dark": "rgb(20, 22, 26)"}[scheme]
    assert page.locator("svg.forest:visible").count() == 1
    assert page.locator("#training svg.chart:visible").count() == 2
    assert visit.wrong() == []


def test_an_empty_headquarters_in_a_browser(browser: Any, tmp_path: Path, tiny_base: Path) -> None:
    with serving(empty_headquarters(tmp_path / "hq", tiny_base).folder) as url:
        visit = Visit(browser, url, viewport={"width": 390, "height": 800})
        assert visit.page.locator(".empty").count() == 6
        assert visit.page.get_by_text("fedshelf server invite REGION").is_visible()
        assert visit.width() == 390
        assert visit.wrong() == []


def test_what_a_screen_reader_finds(browser: Any, url: str) -> None:
    page = Visit(browser, url, viewport={"width": 390, "height": 900}).page
    for name in ("Regions", "Training 4", "Gate of training 3", "Releases", "Audit"):
        assert page.get_by_role("heading", name=name, exact=True).is_visible()
    regions = page.get_by_role("table", name="What each region last said").first
    assert regions.get_by_role("rowheader").count() == 6  # also where rows are drawn as cards
    assert page.get_by_role("img", name="Forest plot").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the figures"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_other_peoples_text_runs_nothing(browser: Any, own: Headquarters, own_url: str) -> None:
    history = trainings(own.trainings)[-1].history
    history.note_regions({}, [{"region": NASTY, "reason": NASTY}])
    extra = record(6, 0.04)
    extra.cohort.append(NASTY)
    extra.validation[NASTY] = {"ndcg@10": 0.5}
    extra.rejected.append({"region": NASTY, "reason": NASTY})
    history.append(extra, {})
    AuditLog(own.audit).append("region.invited", region=NASTY)
    visit = Visit(browser, own_url)
    assert visit.page.locator("#regions th").filter(has_text=NASTY).count() == 1
    assert visit.page.locator("#regions .reason").get_by_text(NASTY, exact=True).count() == 1
    visit.page.locator("#audit").get_by_text(NASTY).wait_for()
    with visit.page.expect_response(own_url, timeout=30_000):
        pass  # the page refreshes itself, which must not run it either
    assert visit.page.locator("main script, main img").count() == 0
    assert visit.wrong() == []


def test_news_arrives_without_losing_the_place(
    browser: Any, own: Headquarters, own_url: str
) -> None:
    visit = Visit(browser, own_url, viewport={"width": 390, "height": 700})
    page = visit.page
    page.locator("#all-trainings summary").click()
    page.locator("#rounds-scroll").focus()
    page.evaluate("document.getElementById('rounds-scroll').scrollLeft = 40")
    place = page.evaluate("window.scrollY")
    assert place > 500
    trainings(own.trainings)[-1].history.append(record(6, 0.04), {})
    page.get_by_text("Round 7 of 8").wait_for(timeout=30_000)
    assert page.evaluate("document.getElementById('rounds-scroll').scrollLeft") == 40
    assert page.evaluate("document.activeElement.id") == "rounds-scroll"
    assert page.locator("#all-trainings").get_attribute("open") is not None
    assert abs(page.evaluate("window.scrollY") - place) < 60  # a row more stands above
    assert visit.wrong() == []


def test_it_works_without_scripts(browser: Any, url: str) -> None:
    visit = Visit(browser, url, java_script_enabled=False)
    assert visit.page.locator("#releases").get_by_text("in use", exact=True).is_visible()
    with visit.page.expect_navigation(timeout=40_000):
        pass
    assert visit.wrong() == []


def test_a_dashboard_that_stops_is_said(browser: Any, own: Headquarters) -> None:
    with serving(own.folder) as url:
        page = Visit(browser, url).page
        assert not page.locator("#stale").is_visible()
    page.locator("#stale").wait_for(timeout=30_000)
    assert "Not up to date" in page.locator("#stale").inner_text()


def test_a_name_that_points_here_by_trick_is_refused(url: str) -> None:
    port = int(url.rstrip("/").rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /api/snapshot HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 421 ")
