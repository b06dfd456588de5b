"""A browser to look at our pages with, and what is measured there."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Every text with its own colour and the first background behind it; a canvas reads any notation.
CONTRASTS = """() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    return pen.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = rgba(getComputedStyle(element).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.closest("title, noscript, symbol")) continue;
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(rgba(ink)), light(behind(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), element.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""
# What axe would say first; an empty list is what we want.
FAULTS = """() => {
  const faults = [];
  const seen = (node) => node.checkVisibility();
  const named = (node) => Boolean(
    node.getAttribute("aria-label")?.trim() || node.labels?.[0]?.textContent.trim() ||
    (node.getAttribute("aria-labelledby") ?? "").split(" ").some(
      (id) => document.getElementById(id)?.textContent.trim()) ||
    (node.matches("button, a") &&
      (node.textContent.trim() || node.querySelector("img[alt]")?.alt)));
  const control = "input, select, textarea, button, a, dialog[open], section, [role=group]";
  for (const node of document.querySelectorAll(control)) {
    if (seen(node) && !named(node)) faults.push(`no name: ${node.outerHTML.slice(0, 80)}`);
  }
  for (const image of document.querySelectorAll("img")) {
    if (!image.hasAttribute("alt")) faults.push(`no alt: ${image.src}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push(`twice: #${id}`);
  for (const name of ["aria-controls", "aria-labelledby", "aria-describedby", "for"]) {
    for (const node of document.querySelectorAll(`[${name}]`)) {
      const missing = node.getAttribute(name).split(" ").find((id) => !ids.includes(id));
      if (missing && seen(node)) faults.push(`${name}: no #${missing}`);
    }
  }
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].filter(seen);
  if (levels.filter((node) => node.tagName === "H1").length !== 1) faults.push("not one h1");
  for (const mark of ["header", "main", "[role=search]"]) {
    if (document.querySelectorAll(mark).length !== 1) faults.push(`not one ${mark}`);
  }
  if (!document.documentElement.lang) faults.push("no lang");
  if (document.querySelector("[tabindex]:not([tabindex='0']):not([tabindex='-1'])")) {
    faults.push("tabindex above 0");
  }
  return faults;
}"""
# Whatever can be tapped and is smaller than a fingertip; a label's own box counts for its input.
SMALL_TARGETS = """() => {
  const small = [];
  for (const node of document.querySelectorAll("button, a, input, select, [role=option]")) {
    if (!node.checkVisibility() || node.closest(".unseen") || node.matches(".skip, .unseen")) {
      continue;
    }
    const behind = node.matches(".open") ? node.closest("li") : node.closest(".option") ?? node;
    const { width, height } = behind.getBoundingClientRect();
    if (Math.round(width) < 44 || Math.round(height) < 44) {
      small.push([node.outerHTML.slice(0, 80), width, height]);
    }
  }
  return small;
}"""


def chromium() -> Iterator[Any]:
    """Chromium as the system has it; nothing is downloaded."""
    path = shutil.which("chromium")
    if path is None:
        must = bool(os.environ.get("CI") or os.environ.get("FEDSHELF_MUST_RUN"))
        (pytest.fail if must else pytest.skip)("no chromium on PATH; install the system's package")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield started
        started.close()


class Visit:
    """One page, and everything that must not happen on it.

    Attributes:
        refusals: answers of the service that the test asked for; the browser logs each.
        urls: everything that was asked for.
    """

    def __init__(self, browser: Any, url: str, *, refusals: int = 0, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.refusals = refusals
        self.urls: list[str] = []
        self._wrong: list[str] = []
        self._logged: list[str] = []
        self.page.on("console", lambda message: self._console(message.text))
        self.page.on("pageerror", lambda error: self._wrong.append(f"error: {error}"))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self._request(request.url, url))
        answer = self.page.goto(url)
        assert answer is not None and answer.status == 200

    def _console(self, text: str) -> None:
        (self._logged if text.startswith("Failed to load") else self._wrong).append(text)

    def _dialog(self, dialog: Any) -> None:
        self._wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()  # or the page would wait for an answer

    def _request(self, wanted: str, url: str) -> None:
        self.urls.append(wanted)
        if not wanted.startswith((url, "data:", "blob:")):
            self._wrong.append(f"request: {wanted}")

    def wrong(self) -> list[str]:
        """What must not have happened; a refusal more or less than expected is part of it."""
        unexpected = len(self._logged) != self.refusals
        return self._wrong + (self._logged or ["no refusal"] if unexpected else [])

    def width(self) -> int:
        """How wide the page is, CSS pixels; more than the window means a scroll bar."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))
