// What the page draws with. Texts become text nodes and nothing else, so a product's title can hold
// any character; the policy of the page forbids markup from strings besides.

import { fixed, locale, number, price, say } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

/** An element; attributes that are null, undefined or false are left out, on… are listeners. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function icon(name) {
  const drawn = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  drawn.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  drawn.append(use);
  return drawn;
}

export const unseen = (text) => element("span", { class: "unseen" }, text);

/** A product's photo in a frame of fixed shape; where there is none, or it is broken, a bag. */
export function photo({ image, title }) {
  const frame = element("div", { class: "photo" });
  const none = () => frame.replaceChildren(icon("bag"));
  if (!image) none();
  else frame.append(element("img", { src: image, alt: title, loading: "lazy", decoding: "async", onerror: none }));
  return frame;
}

export function stars({ rating, review_count }) {
  if (rating === null || rating === undefined) return null;
  const bar = element("span", { class: "stars", role: "img", "aria-label": say("stars", { n: rating }) });
  bar.style.setProperty("--share", `${Math.max(0, Math.min(5, rating)) * 20}%`);
  const count = review_count ? element("span", { class: "soft", "aria-label": say("reviews", { n: review_count }), role: "img" }, `(${number(review_count)})`) : null;
  return element("p", { class: "rating" }, bar, element("span", { class: "figure", "aria-hidden": "true" }, fixed(rating, 1)), count);
}

export function cost(hit) {
  if (hit.price === null || hit.price === undefined) return null;
  return element("p", { class: "price" }, price(hit.price, hit.currency));
}

/** A product of the grid. The title's button covers the card, so that all of it can be tapped. */
export function card(hit, { open, similar }) {
  const gone = hit.in_stock === false;
  const title = element("button", { type: "button", class: "open", lang: locale, onclick: () => open(hit) }, hit.title);
  const notes = [
    gone ? element("span", { class: "tag out" }, say("out_of_stock")) : null,
    hit.variants?.length ? element("span", { class: "tag" }, say("variants", { n: hit.variants.length })) : null,
  ];
  return element("li", { class: gone ? "card gone" : "card", "data-product": hit.product_id },
    photo(hit),
    element("div", { class: "facts" },
      hit.brand ? element("p", { class: "maker", lang: locale }, hit.brand) : null,
      element("h2", { class: "title" }, title),
      stars(hit), cost(hit),
      element("p", { class: "tags" }, notes)),
    similar ? element("button", {
      type: "button", class: "like-this", onclick: () => similar(hit), title: say("similar"),
      "aria-label": say("similar_to", { title: hit.title }),
    }, icon("similar"), element("span", {}, say("similar"))) : null);
}

/** A product of a strip: smaller, and a button as a whole. */
export function tile(hit, open) {
  return element("li", {},
    element("button", { type: "button", class: "tile", lang: locale, "data-product": hit.product_id, onclick: () => open(hit) },
      photo({ ...hit, title: "" }), element("span", { class: "title" }, hit.title),
      hit.price === null || hit.price === undefined ? null : element("span", { class: "price" }, price(hit.price, hit.currency))));
}

export function skeletons(count) {
  const one = () => element("li", { class: "card skeleton" },
    element("div", { class: "photo" }), element("div", { class: "facts" }, element("i"), element("i"), element("i")));
  return element("ul", { class: "grid", "aria-hidden": "true" }, Array.from({ length: count }, one));
}
