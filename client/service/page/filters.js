// Filters: plain data in (`{category: [..], price: {ge, le}, ..}`), new plain data out, and the panel
// and chips drawn from it. The names and the meaning are those of the service's messages.

import { element, icon } from "./draw.js";
import { locale, number, price, say } from "./words.js";

const SHORT = 8;  // values shown before "show all"
const RATINGS = [4, 3, 2];
const ATTRIBUTE = "attributes.";

const unfolded = new Set();  // facets whose values are all shown

/** What to send: no empty field. */
export function request(filters) {
  const range = ({ ge = null, le = null } = {}) => (ge === null && le === null ? undefined : { ge, le });
  const lists = (values) => (values?.length ? values : undefined);
  const attributes = Object.fromEntries(Object.entries(filters.attributes ?? {}).filter(([, values]) => values.length));
  const sent = {
    category: lists(filters.category), brand: lists(filters.brand), price: range(filters.price),
    rating: range(filters.rating), in_stock: filters.in_stock ?? undefined,
    attributes: Object.keys(attributes).length ? attributes : undefined,
  };
  return Object.fromEntries(Object.entries(sent).filter(([, value]) => value !== undefined));
}

function valuesOf(filters, name) {
  return (name.startsWith(ATTRIBUTE) ? filters.attributes?.[name.slice(ATTRIBUTE.length)] : filters[name]) ?? [];
}

function withValues(filters, name, values) {
  if (!name.startsWith(ATTRIBUTE)) return { ...filters, [name]: values };
  return { ...filters, attributes: { ...filters.attributes, [name.slice(ATTRIBUTE.length)]: values } };
}

function withValue(filters, name, value, wanted) {
  const without = valuesOf(filters, name).filter((one) => one !== value);
  return withValues(filters, name, wanted ? [...without, value] : without);
}

/** A facet's name as people read it; an attribute's key is the region's own word. */
export function nameOf(name) {
  if (!name.startsWith(ATTRIBUTE)) return ["category", "brand", "price", "rating", "in_stock"].includes(name) ? say(name) : name;
  const key = name.slice(ATTRIBUTE.length);
  return key.charAt(0).toLocaleUpperCase(locale) + key.slice(1);
}

/** Every active condition, with its words and the filters without it. */
export function active(filters, currency) {
  const sent = request(filters);
  const listed = [["category", sent.category], ["brand", sent.brand],
    ...Object.entries(sent.attributes ?? {}).map(([key, values]) => [ATTRIBUTE + key, values])];
  const chips = listed.flatMap(([name, values]) => (values ?? []).map((value) => (
    { name, text: `${nameOf(name)}: ${value}`, without: withValue(filters, name, value, false) })));
  if (sent.price) chips.push({ name: "price", text: `${nameOf("price")}: ${span(sent.price, currency)}`, without: { ...filters, price: undefined } });
  if (sent.rating) chips.push({ name: "rating", text: `${nameOf("rating")}: ${say("at_least", { n: sent.rating.ge })}`, without: { ...filters, rating: undefined } });
  if (sent.in_stock) chips.push({ name: "in_stock", text: say("in_stock"), without: { ...filters, in_stock: undefined } });
  return chips;
}

function span({ ge, le }, currency) {
  if (ge === null) return say("to_price", { price: price(le, currency) });
  if (le === null) return say("from_price", { price: price(ge, currency) });
  return `${price(ge, currency)} – ${price(le, currency)}`;
}

export function chips(filters, currency, onchange) {
  const found = active(filters, currency);
  const drawn = found.map(({ text, without }) => element("button", {
    type: "button", class: "chip", "aria-label": say("remove", { name: text }), onclick: () => onchange(without),
  }, text, icon("close")));
  if (found.length > 1) {
    drawn.push(element("button", { type: "button", class: "link", onclick: () => onchange({}) }, say("clear_all")));
  }
  return drawn;
}

/**
 * The panel. Every control has a lasting id, so that focus finds its place after a new answer.
 * `onchange` is told how filters change, not what they become: until the next answer the panel is
 * the one drawn before the latest change.
 */
export function panel(facets, filters, { currency, onchange }) {
  const draw = { price: priceRange, rating: ratings, in_stock: stock };
  return facets.map((facet) => (draw[facet.name] ?? values)(facet, filters, { currency, onchange })).filter(Boolean);
}

const idOf = (...parts) => `facet-${parts.map((part) => encodeURIComponent(part)).join("-")}`;

function option({ id, type = "checkbox", group, checked, text, count, onchange, lang }) {
  return element("label", { class: "option", for: id },
    element("input", { id, type, checked, onchange, ...(group ? { name: group } : {}) }),
    element("span", { class: "text", lang }, text),
    count === undefined ? null : element("span", { class: "count" }, number(count)));
}

function fieldset(name, ...children) {
  return element("fieldset", { class: "facet", "data-facet": name }, element("legend", {}, nameOf(name)), ...children);
}

function values(facet, filters, { onchange }) {
  if (!facet.values.length) return null;
  const chosen = valuesOf(filters, facet.name);
  const options = facet.values.map(({ value, count, selected }, at) => {
    const drawn = option({
      id: idOf(facet.name, value), checked: selected || chosen.includes(value), text: value, count, lang: locale,
      onchange: (event) => onchange((now) => withValue(now, facet.name, value, event.target.checked)),
    });
    drawn.hidden = at >= SHORT && !unfolded.has(facet.name) && !chosen.includes(value);
    return drawn;
  });
  return fieldset(facet.name, options, options.length > SHORT ? unfold(facet, options, chosen) : null);
}

function unfold(facet, options, chosen) {
  const button = element("button", { type: "button", class: "link", id: idOf(facet.name, "unfold") });
  const label = () => {
    const open = unfolded.has(facet.name);
    button.textContent = open ? say("show_fewer") : say("show_all", { n: options.length });
    button.setAttribute("aria-expanded", String(open));
    button.setAttribute("aria-label", `${nameOf(facet.name)}: ${button.textContent}`);
  };
  button.addEventListener("click", () => {
    if (!unfolded.delete(facet.name)) unfolded.add(facet.name);
    options.forEach((one, at) => {
      one.hidden = at >= SHORT && !unfolded.has(facet.name) && !chosen.includes(facet.values[at].value);
    });
    label();
  });
  label();
  return button;
}

function priceRange(facet, filters, { currency, onchange }) {
  const { ge = null, le = null } = filters.price ?? {};
  if (facet.minimum === null && ge === null && le === null) return null;
  const input = (id, word, value, hint) => element("label", { class: "bound", for: id },
    element("span", {}, say(word)),
    element("input", {
      id, type: "number", min: 0, step: "any", inputmode: "decimal", value, placeholder: hint ?? "",
      "aria-label": say(word === "from" ? "lowest" : "highest"),
      onchange: change, onkeydown: (event) => event.key === "Enter" && event.target.blur(),
    }));
  const bounds = element("div", { class: "bounds" },
    input("facet-price-from", "from", ge, facet.minimum === null ? "" : Math.floor(facet.minimum)),
    input("facet-price-to", "to", le, facet.maximum === null ? "" : Math.ceil(facet.maximum)));
  function change() {
    const [low, high] = Array.from(bounds.querySelectorAll("input"), (one) => (one.value === "" ? null : one.valueAsNumber));
    const swapped = low !== null && high !== null && low > high;
    onchange((now) => ({ ...now, price: swapped ? { ge: high, le: low } : { ge: low, le: high } }));
  }
  const unit = price(0, currency).replace(/[\d.,\s]/g, "");
  const drawn = fieldset("price", bounds);
  if (currency && unit) drawn.querySelector("legend").append(` (${unit})`);
  return drawn;
}

function ratings(facet, filters, { onchange }) {
  if (facet.maximum === null && !filters.rating) return null;
  const chosen = filters.rating?.ge ?? null;
  const choice = (least) => option({
    id: idOf("rating", least ?? "any"), type: "radio", group: "rating", checked: chosen === least,
    text: least === null ? say("any") : say("at_least", { n: least }),
    onchange: () => onchange((now) => ({ ...now, rating: least === null ? undefined : { ge: least, le: null } })),
  });
  return fieldset("rating", choice(null), RATINGS.map(choice));
}

function stock(facet, filters, { onchange }) {
  const yes = facet.values.find(({ value }) => value.toLowerCase() === "true");
  if (!yes && !filters.in_stock) return null;
  return fieldset("in_stock", option({
    id: idOf("in_stock", "true"), checked: filters.in_stock === true, text: say("in_stock_only"), count: yes?.count,
    onchange: (event) => onchange((now) => ({ ...now, in_stock: event.target.checked ? true : undefined })),
  }));
}
