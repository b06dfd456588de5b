// One product, looked at closely: a modal dialog. The browser keeps focus inside it, closes it on
// Escape and gives focus back to where it came from.

import { cost, element, icon, photo, stars, tile } from "./draw.js";
import { nameOf } from "./filters.js";
import { alike, find } from "./service.js";
import { fixed, locale, number, percent, say } from "./words.js";

const NUM_SIMILAR = 8;
const DEEPEST = 1000;  // the rank at which a bar of a rank is empty, on a logarithmic scale

export function details({ dialog, onopen, onsimilar, onvariant }) {
  let asking = new AbortController();
  dialog.addEventListener("close", () => asking.abort());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  /**
   * Show a product; `requestId` is of the answer it came in, null where nothing is recorded.
   * `by` says what its list was found by; without words there is nothing to say about words.
   */
  function show(hit, requestId, by = { meaning: true, words: false }) {
    asking.abort();
    asking = new AbortController();
    if (requestId) onopen(hit, requestId);
    const similar = element("section", { class: "strip", "aria-labelledby": "detail-similar" });
    dialog.replaceChildren(element("div", { class: "sheet" }, top(hit), why(hit.explanation, by), similar));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    dialog.querySelector("#detail-title").focus({ preventScroll: true });
    fill(similar, hit, requestId !== null, asking.signal);
  }

  async function fill(section, hit, log, signal) {
    const title = element("h3", { id: "detail-similar" }, say("similar"));
    try {
      const answer = await find({ like: { kind: "product", product_id: hit.product_id }, k: NUM_SIMILAR, explain: true, details: true, log }, { signal });
      const others = alike(answer).filter((one) => one.product_id !== hit.product_id);
      const tiles = others.map((one) => tile(one, () => show(one, log ? answer.request_id : null)));
      section.replaceChildren(title, tiles.length ? element("ul", { class: "tiles", tabindex: 0, "aria-label": say("similar") }, tiles) : element("p", { class: "soft" }, say("not_now")));
    } catch (error) {
      if (error.name !== "AbortError") section.replaceChildren(title, element("p", { class: "soft" }, say("not_now")));
    }
  }

  function top(hit) {
    return element("div", { class: "top" },
      element("button", { type: "button", class: "quiet icon close", "aria-label": say("close"), onclick: () => dialog.close() }, icon("close")),
      photo(hit),
      element("div", { class: "facts" },
        hit.brand ? element("p", { class: "maker", lang: locale }, hit.brand) : null,
        element("h2", { id: "detail-title", tabindex: -1, lang: locale }, hit.title),
        stars(hit), cost(hit),
        hit.in_stock === false ? element("p", {}, element("span", { class: "tag out" }, say("out_of_stock"))) : null,
        hit.category ? element("p", { class: "soft", lang: locale }, hit.category) : null,
        element("button", { type: "button", class: "primary", onclick: () => { dialog.close(); onsimilar(hit); } }, icon("similar"), say("similar")),
        told(hit, (variant) => { dialog.close(); onvariant(variant); })));
  }

  return { show };
}

/** Description, attributes and variants, where the service tells them. */
function told({ description, attributes, variants }, onvariant) {
  const rows = Object.entries(attributes ?? {}).flatMap(([key, value]) => [element("dt", {}, nameOf(`attributes.${key}`)), element("dd", {}, value)]);
  return element("div", { class: "told" },
    description ? [element("h3", {}, say("description")), element("p", { class: "description", lang: locale }, description)] : null,
    rows.length ? [element("h3", {}, say("attributes")), element("dl", { lang: locale }, rows)] : null,
    variants?.length ? [element("h3", {}, say("also")), element("ul", { class: "ids" }, variants.map((id) => element("li", {},
      element("button", { type: "button", class: "chip", onclick: () => onvariant(id) }, id))))] : null);
}

/** Why a hit is where it is: a bar for each way of finding it, the longer the better its rank. */
function why(explanation, by) {
  const box = element("section", { class: "why", "aria-labelledby": "detail-why" }, element("h3", { id: "detail-why" }, say("why")));
  const found = explanation?.dense_rank ?? explanation?.lexical_rank ?? null;
  if (found === null && !explanation?.rule) {  // a popular product is there for no word's sake
    box.append(element("p", { class: "soft" }, say("why_none")));
    return box;
  }
  const { dense_rank, dense_score, lexical_rank, lexical_score, dense_weight, words, rule } = explanation;
  if (rule === "first") box.append(element("p", {}, say("put_first")));
  if (by.meaning && by.words) box.append(mix(dense_weight));
  if (by.meaning) box.append(part("meaning", dense_rank, dense_score, 2));
  if (by.words) box.append(part("words", lexical_rank, lexical_score, 1));
  if (words?.length) {
    box.append(element("p", { class: "shared" }, say("shared_words"), words.map((word) => element("span", { class: "tag", lang: locale }, word))));
  }
  return box;
}

export function mix(weight) {
  const meaning = percent(weight);
  const words = percent(1 - weight);
  const bar = element("div", { class: "mix", "aria-hidden": "true" },
    weight > 0 ? element("span", { class: "meaning" }, `${say("meaning")} ${meaning}`) : null,
    weight < 1 ? element("span", { class: "words" }, `${say("words")} ${words}`) : null);
  bar.style.setProperty("--meaning", weight);
  bar.style.setProperty("--words", 1 - weight);
  return element("div", {}, element("p", { class: "unseen" }, say("mix", { meaning, words })), bar);
}

function part(kind, rank, score, digits) {
  const known = rank !== null && rank !== undefined;
  const bar = element("div", { class: `gauge ${kind}`, "aria-hidden": "true" }, element("i"));
  const length = known ? Math.max(0.04, 1 - Math.log10(rank) / Math.log10(DEEPEST)) : 0;
  bar.style.setProperty("--length", length);
  const scored = score !== null && score !== undefined;
  const text = known ? say(`${kind}_rank`, { rank: number(rank) }) : say(`no_${kind}`);
  return element("div", { class: "part" },
    element("p", {}, element("b", {}, text), scored ? ` · ${say(`${kind}_score`, { score: fixed(score, digits) })}` : ""), bar);
}
