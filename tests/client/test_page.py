"""The files of the search page as they are served, and what must not stand in them."""

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers

import client.service.page.page as page
from client.service.page.page import HEADERS, page_routes
from shared.errors import ConfigError

FOLDER = Path(page.__file__).parent
SCRIPTS = sorted(FOLDER.glob("*.js"))


@dataclass(frozen=True)
class Answer:
    """What an application sent."""

    status_code: int
    headers: Headers
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()


class Client:
    """Asks an application in memory; starlette's own client warns about its imports."""

    def __init__(self, **options: Any) -> None:
        self.app = Starlette(routes=page_routes(**options))

    def get(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
    ) -> Answer:
        sent: list[Any] = []
        pairs = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "query_string": b"",
            "headers": pairs,
            "server": ("127.0.0.1", 80),
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return Answer(sent[0]["status"], Headers(raw=sent[0]["headers"]), body)


@pytest.fixture(scope="module")
def browser() -> Client:
    return Client()


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/assets/page.css", "text/css; charset=utf-8"),
        ("/assets/page.js", "text/javascript; charset=utf-8"),
        ("/assets/icon.svg", "image/svg+xml"),
    ],
)
def test_every_file_has_its_type_and_the_policy(
    browser: Client, path: str, media_type: str
) -> None:
    answer = browser.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    head = browser.get(path, method="HEAD")
    assert (head.status_code, head.headers["etag"]) == (200, answer.headers["etag"])
    assert head.headers["content-length"] == str(len(answer.content))


def test_the_policy_allows_this_service_and_picked_photos_only() -> None:
    rules = dict(rule.split(" ", 1) for rule in HEADERS["Content-Security-Policy"].split("; "))
    assert rules["default-src"] == "'self'"
    assert rules["img-src"] == "'self' blob: data:"
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert "script-src" not in rules and "style-src" not in rules  # default-src holds for them


def test_a_file_that_is_known_already_is_not_sent_again(browser: Client) -> None:
    etag = browser.get("/").headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        answer = browser.get("/", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert answer.headers["Content-Security-Policy"]
    assert browser.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert browser.get("/assets/page.css").headers["etag"] != etag


@pytest.mark.parametrize(
    "path", ["/assets/page.py", "/assets/", "/assets/../page.py", "/assets/index.html", "/x"]
)
def test_nothing_else_is_served(browser: Client, path: str) -> None:
    assert browser.get(path).status_code == 404
    assert browser.get("/", method="POST").status_code == 405


@pytest.mark.parametrize(
    ("locale", "written"), [("en", "en"), ("de_AT", "de-AT"), ("zh-Hant-TW", "zh-Hant-TW")]
)
def test_the_page_knows_the_regions_locale(locale: str, written: str) -> None:
    assert f'<html lang="en" data-locale="{written}">' in Client(locale=locale).get("/").text


@pytest.mark.parametrize("locale", ["", "d", 'de"><script>', "de-", "english please"])
def test_a_locale_that_is_none_is_refused(locale: str) -> None:
    with pytest.raises(ConfigError, match='locale: not a language tag; write it like "en"'):
        page_routes(locale=locale)


def test_everything_the_page_asks_for_is_there(browser: Client) -> None:
    wanted = set(re.findall(r'(?:href|src)="(/[^"#]*)"', browser.get("/").text)) - {"/"}
    for script in SCRIPTS:
        found = re.findall(r'from "\./([a-z]+\.js)"', script.read_text(encoding="utf-8"))
        wanted |= {f"/assets/{name}" for name in found}
    assert len(wanted) == len(SCRIPTS) + 2  # the style and the icon
    assert all(browser.get(path).status_code == 200 for path in wanted)


def test_no_file_names_an_outside_address_or_holds_what_the_policy_forbids() -> None:
    for path in [*SCRIPTS, *FOLDER.glob("*.html"), *FOLDER.glob("*.css"), *FOLDER.glob("*.svg")]:
        text = path.read_text(encoding="utf-8")
        addresses = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\"' ]*", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", html)
    assert re.findall(r"<script[^>]*>([^<]*)</script>", html) == [""]


def test_what_somebody_looks_for_can_get_into_no_address() -> None:
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<(input|select|textarea)[^>]*\sname=", html)
    for script in SCRIPTS:
        assert not re.search(
            r"URLSearchParams|location\.(hash|search|href)|localStorage|document\.cookie",
            script.read_text(encoding="utf-8"),
        )
