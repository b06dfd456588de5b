// Keeps the page fresh without losing the reader's place: fetches it again, and replaces only the
// parts that changed. Open details, scroll positions and the keyboard's focus stay as they are.
(() => {
  "use strict";
  const every = 1000 * Number(document.documentElement.dataset.refreshS);
  const stale = document.getElementById("stale");
  const news = document.getElementById("news");

  function reading() {
    const selection = document.getSelection();
    return document.hidden || (selection !== null && !selection.isCollapsed);
  }

  function replace(part, fresh) {
    for (const open of part.querySelectorAll("details[id]")) {
      const next = fresh.querySelector("#" + CSS.escape(open.id));
      if (next) next.open = open.open;
    }
    if (part.isEqualNode(fresh)) return;
    const places = [...part.querySelectorAll(".scroll[id]")].map((box) => [box.id, box.scrollLeft, box.scrollTop]);
    const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
    part.replaceWith(fresh);
    for (const [id, left, top] of places) document.getElementById(id)?.scrollTo({ left, top, behavior: "instant" });
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }

  async function refresh() {
    const response = await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(60000) });
    if (!response.ok) throw new Error(String(response.status));
    const next = new DOMParser().parseFromString(await response.text(), "text/html");
    if (reading()) return;
    for (const part of document.querySelectorAll("[data-part]")) {
      const fresh = next.getElementById(part.id);
      if (fresh) replace(part, document.adoptNode(fresh));
    }
    document.title = next.title;
    const said = next.getElementById("news").textContent;
    if (news.textContent !== said) news.textContent = said;
  }

  async function tick() {
    if (!reading()) {
      try {
        await refresh();
        stale.hidden = true;
      } catch {
        stale.hidden = false;
      }
    }
    setTimeout(tick, every);
  }

  setTimeout(tick, every);
})();
