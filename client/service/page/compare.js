// The same search answered in two ways, side by side: two releases, two rankers, or both. It is for
// whoever runs the shop, so nothing of it is logged and no click is sent: it must not train a model.

import { element, photo } from "./draw.js";
import { Failure, find } from "./service.js";
import { locale, price, say } from "./words.js";

export const DEPTH = 20;
const RANKERS = ["hybrid", "dense", "lexical"];

/** What to compare first: this release with the one before, or the two rankers of the mix. */
export function firstPair(releases) {
  if (releases.length > 1) return releases.slice(0, 2).map((release) => ({ release, ranker: "hybrid" }));
  return [{ release: null, ranker: "hybrid" }, { release: null, ranker: "lexical" }];
}

/** Ids in order -> for each id, how it moved against the other list: a number, or null if only here. */
export function moves(mine, others) {
  const place = new Map(others.map((id, at) => [id, at]));
  return new Map(mine.map((id, at) => [id, place.has(id) ? place.get(id) - at : null]));
}

/** Both answers; a way that fails is its Failure, so that the other one can still be read. */
export function askBoth(asked, pair, { signal }) {
  const ways = pair.map((way) => find({ ...asked, ...way, k: DEPTH, facets: true, log: false }, { signal }));
  return Promise.all(ways.map((way) => way.catch((error) => {
    if (error instanceof Failure) return error;
    throw error;
  })));
}

/** `onpair` is told how the pair changes: until the next answer the columns show the one before. */
export function columns({ pair, answers, releases, onpair, onopen }) {
  const ids = answers.map((answer) => (answer?.hits ?? []).map((hit) => hit.product_id));
  const complete = answers.every((answer) => answer?.hits);
  const both = ids[0].filter((id) => ids[1].includes(id)).length;
  const list = element("div", { class: "columns" }, pair.map((way, at) => column({
    way, answer: answers[at], releases, onopen, name: at ? "right" : "left",
    moved: complete ? moves(ids[at], ids[1 - at]) : null,
    onway: (changes) => onpair((now) => now.map((other, place) => (place === at ? { ...other, ...changes } : other))),
  })));
  linkRows(list);
  return element("section", { class: "compare", "aria-labelledby": "compare-title" },
    element("h2", { id: "compare-title" }, say("side_by_side")),
    element("p", { class: "soft" }, say("side_lead")),
    complete ? element("p", { class: "overlap" }, say("overlap", { n: both, of: Math.max(ids[0].length, ids[1].length) })) : null,
    list);
}

function column({ way, answer, releases, moved, onway, onopen, name }) {
  return element("section", { class: "column", "aria-label": say(name) },
    element("div", { class: "ways" },
      choice(`${name}-release`, "which_release", releases.map((release, at) => [release, releaseName(release, at === 0)]),
        way.release ?? releases[0], (value) => onway({ release: Number(value) })),
      choice(`${name}-ranker`, "which_ranker", RANKERS.map((ranker) => [ranker, say(ranker)]),
        way.ranker, (ranker) => onway({ ranker }))),
    body(answer, moved, (hit) => onopen(hit, way)));
}

function releaseName(release, isCurrent) {
  const plain = release === 0 ? say("base_release") : String(release);
  return isCurrent ? say("current", { release: plain }) : plain;
}

function choice(id, word, options, chosen, onchange) {
  return element("label", { for: id }, element("span", {}, say(word)),
    element("select", { id, onchange: (event) => onchange(event.target.value) },
      options.map(([value, text]) => element("option", { value, selected: value === chosen }, text))));
}

function body(answer, moved, onopen) {
  if (!answer) return element("p", { class: "soft" }, say("loading"));
  if (answer instanceof Failure) return element("p", { class: "notice bad" }, answer.text || say("failed"));
  if (!answer.hits.length) return element("p", { class: "soft" }, say("none"));
  return [
    element("p", { class: "soft meta" }, `${answer.encoder_digest.slice(0, 12)} · ${say("took", { n: Math.round(answer.took_ms) })}`),
    element("ol", { class: "ranking" }, answer.hits.map((hit, at) => row(hit, at, moved?.get(hit.product_id), onopen))),
  ];
}

function row(hit, at, change, onopen) {
  return element("li", { "data-product": hit.product_id },
    element("div", { class: "place" }, element("span", { class: "rank", "aria-label": say("rank", { n: at + 1 }), role: "img" }, String(at + 1)), mark(change)),
    photo({ ...hit, title: "" }),
    element("div", { class: "facts" },
      element("button", { type: "button", class: "open", lang: locale, onclick: () => onopen(hit) }, hit.title),
      element("p", { class: "soft" }, [hit.brand, hit.price === null || hit.price === undefined ? null : price(hit.price, hit.currency)].filter(Boolean).join(" · "))));
}

/** How a product moved against the other column: a sign to see, words to hear. */
function mark(change) {
  if (change === undefined) return null;
  if (change === null) return element("span", { class: "move only" }, say("only_here"));
  const [kind, sign] = change > 0 ? ["up", "▲"] : change < 0 ? ["down", "▼"] : ["same", "="];
  const words = say(kind, { n: Math.abs(change) });
  return element("span", { class: `move ${kind}`, role: "img", "aria-label": words, title: words }, change ? `${sign} ${Math.abs(change)}` : sign);
}

/** Pointing at a product shows where it is in the other column. */
function linkRows(list) {
  const show = (on) => (event) => {
    const id = event.target.closest("[data-product]")?.dataset.product;
    for (const one of list.querySelectorAll("[data-product]")) one.classList.toggle("same-product", on && one.dataset.product === id);
  };
  for (const name of ["mouseover", "focusin"]) list.addEventListener(name, show(true));
  for (const name of ["mouseleave", "focusout"]) list.addEventListener(name, show(false));
}
