// The search page. What was asked is one plain object, `asked`; everything on the page is drawn from
// it and from the service's answer to it. It lives in the history's state and in this tab's session,
// never in the address: an address is copied, bookmarked, and written into logs of others, and what
// somebody looks for is nobody else's business.

import { askBoth, columns, firstPair } from "./compare.js";
import { details } from "./detail.js";
import { card, element, icon, skeletons, tile } from "./draw.js";
import { active, chips, nameOf, panel, request } from "./filters.js";
import { blobOf, readPhoto, takePhotos } from "./photo.js";
import { Failure, alike, find, forYou, info } from "./service.js";
import { clicked, flush, keepPhoto, photoAddress, recent } from "./session.js";
import { suggestions } from "./suggest.js";
import { pieces, say, translate } from "./words.js";

const PAGE = 24;
const RETRY_S = { busy: 3, starting: 3, unreachable: 4 };  // where the service names no time itself
const MAX_RETRY_S = 60;
const START = { query: "", like: null, filters: {}, sort: "relevance", pair: null };

const at = (id) => document.getElementById(id);
const input = at("query");
const products = at("products");

let asked = START;
let answer = null;  // the latest page of results
let hits = [];  // all pages of it
let releases = [];
let running = new AbortController();
let retry = { timer: 0, count: 0 };

const dialog = details({ dialog: at("detail"), onopen: clicked, onsimilar: similarTo, onvariant: lookUp });
const combobox = suggestions({ input, list: at("suggestions"), status: announce, onpick: submit });

// --- asking ---------------------------------------------------------------------------------------

function messageOf({ query, like, filters, sort }) {
  return { query, like: withPhoto(like), filters: request(filters), sort, k: PAGE, facets: true, explain: true, details: true };
}

/** In the state a photo is a key only; its bytes come from the session. */
function withPhoto(like) {
  return like?.kind === "photo" ? { ...like, blob: blobOf(photoAddress(like.key)) } : like;
}

/** Ask something new: it gets its own place in the history. */
function go(changes, { focus = null } = {}) {
  const next = { ...asked, ...changes };
  const same = JSON.stringify(next) === JSON.stringify(asked);
  history[same ? "replaceState" : "pushState"](next, "");
  asked = next;
  return search({ focus });
}

/** Answer `asked`. `note` is said above the results; `focus` is given focus when they are there. */
async function search({ note = "", focus = null } = {}) {
  stop();
  const { signal } = running = new AbortController();
  drawAsked();
  drawWaiting();
  try {
    await (asked.pair ? searchBoth(signal) : searchOne(signal, note));
    retry.count = 0;
    focus?.()?.focus({ preventScroll: true });
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof Failure)) throw error;
    drawFailure(error);
  } finally {
    if (!signal.aborted) products.setAttribute("aria-busy", "false");
  }
}

async function searchOne(signal, note) {
  const found = await find(messageOf(asked), { signal });
  if (signal.aborted) return;
  answer = found;
  hits = [];
  drawResults(note);
  drawForYou(signal);
}

async function searchBoth(signal) {
  const answers = await askBoth(messageOf(asked), asked.pair, { signal });
  if (signal.aborted) return;
  const told = answers.find((one) => one.hits);
  if (!told) throw answers[0];
  answer = told;
  drawAround();
  drawColumns(answers);
}

async function more(button) {
  const { signal } = running;
  button.disabled = true;
  button.textContent = say("loading");
  try {
    const found = await find({ ...messageOf(asked), cursor: answer.next_cursor }, { signal });
    if (signal.aborted) return;
    answer = { ...found, facets: answer.facets };
    const first = append();
    first?.focus({ preventScroll: true });
  } catch (error) {
    if (signal.aborted || !(error instanceof Failure)) return;
    if (error.kind === "expired") return search({ note: say("expired"), focus: () => products });
    drawMore(error);
  }
}

function stop() {
  running.abort();
  clearInterval(retry.timer);
}

function submit() {
  combobox.close();
  const query = input.value.trim();
  const filters = query === asked.query ? asked.filters : {};  // other words, other filters
  go({ query, filters });
  scrollTo({ top: 0 });
  if (matchMedia("(pointer: coarse)").matches) input.blur();  // the keyboard would hide the results
}

async function withFile(file) {
  combobox.close();
  const photo = await readPhoto(file);
  if (!photo) return drawNotices([element("p", { class: "notice bad", role: "alert" }, say("bad_photo"))]);
  go({ like: { kind: "photo", key: keepPhoto(photo.address) }, filters: {}, query: input.value.trim() });
  input.focus();
}

function similarTo({ product_id, title, image }) {
  go({ ...START, pair: asked.pair, like: { kind: "product", product_id, title, image } }, { focus: () => at("heading") });
  scrollTo({ top: 0 });
}

/** A variant is found by its id, which the service takes for a product's exact code. */
function lookUp(query) {
  go({ ...START, pair: asked.pair, query }, { focus: () => at("heading") });
  scrollTo({ top: 0 });
}

// --- drawing what was asked -----------------------------------------------------------------------

function drawAsked() {
  input.value = asked.query;
  input.placeholder = say(asked.like ? "placeholder_like" : "placeholder");
  at("clear").hidden = !asked.query;
  at("sort").value = asked.sort;
  at("compare").setAttribute("aria-pressed", String(Boolean(asked.pair)));
  at("like").replaceChildren(...likeChip(asked.like));
  at("heading").textContent = heading();
  drawChips();
}

function likeChip(like) {
  if (!like) return [];
  const image = like.kind === "photo" ? photoAddress(like.key) : like.image;
  const name = like.kind === "photo" ? say("your_photo") : like.title;
  return [element("button", {
    type: "button", class: "chip", title: name, "aria-label": `${say(like.kind === "photo" ? "remove_photo" : "remove_product")}: ${name}`,
    onclick: () => { go({ like: null, query: input.value.trim() }); input.focus(); },
  }, image ? element("img", { src: image, alt: name }) : element("span", { class: "name" }, name), icon("close"))];
}

function heading() {
  const { like, query } = asked;
  if (!like) return query ? say("results_for", { query }) : isStart() ? say("popular") : say("all");
  const what = like.kind === "photo" ? say("results_photo") : say("results_product", { title: like.title });
  return query ? say("with_words", { what, query }) : what;
}

/** Whether the answer is what is popular, because nothing was found. */
const isInstead = () => answer.fallback === "popular" && !isStart() && answer.hits.length > 0;

const isStart = () => !asked.query && !asked.like && !active(asked.filters).length;

function drawChips() {
  const drawn = chips(asked.filters, currency(), (filters) => go({ filters }, {
    focus: () => at("chips").querySelector("button") ?? at("heading"),
  }));
  at("chips").replaceChildren(...drawn);
  at("chips").hidden = !drawn.length;
  const n = active(asked.filters).length;
  at("open-filters-text").textContent = n ? say("filters_n", { n }) : say("filters");
}

const currency = () => hits.find(({ hit }) => hit.currency)?.hit.currency ?? answer?.hits.find((hit) => hit.currency)?.currency;

function drawWaiting() {
  at("failure").replaceChildren();
  drawNotices([]);
  products.setAttribute("aria-busy", "true");
  if (!products.querySelector(".card, .columns")) products.replaceChildren(skeletons(12));
  if (!answer) at("total").textContent = say("loading");
  announce(say("loading"));
}

// --- drawing the answer ---------------------------------------------------------------------------

/** What stands around the products: heading, total, filters, badge, notices. */
function drawAround(note = "") {
  drawChips();
  drawFacets();
  drawBadge();
  const total = say("total", { n: answer.total });
  const lead = isStart() ? ` · ${say("start_lead")}` : "";
  if (isInstead() && !asked.pair) at("heading").textContent = say("popular");
  at("total").textContent = asked.pair || isInstead() ? "" : total + lead;
  drawNotices([
    note ? element("p", { class: "notice" }, note) : null,
    answer.correction ? element("p", { class: "notice" }, pieces("did_you_mean", { correction: correction() })) : null,
    answer.fallback === "relaxed" ? element("p", { class: "notice warn" }, say("relaxed", { names: answer.relaxed.map(nameOf).join(", ") })) : null,
    isInstead() ? element("p", { class: "notice warn" }, say("fell_back")) : null,
  ].filter(Boolean));
}

function drawResults(note) {
  drawAround(note);
  if (!answer.hits.length) products.replaceChildren(empty());
  else {
    products.replaceChildren(element("ul", { class: "grid" }), element("div", { class: "more" }));
    append();
  }
  announce([isInstead() ? "" : total(), note, ...Array.from(at("notices").children, (one) => one.textContent)].filter(Boolean).join(". "));
}

/** Put the answer's hits under those already there; answers the first new one's button. */
function append() {
  const { request_id } = answer;
  const grid = products.querySelector(".grid");
  const drawn = answer.hits.map((hit) => card(hit, { open: (one) => dialog.show(one, request_id, foundBy("hybrid")), similar: similarTo }));
  hits.push(...answer.hits.map((hit) => ({ hit, request_id })));
  grid.append(...drawn);
  drawMore();
  announce(total());
  return drawn[0]?.querySelector("button.open");
}

const foundBy = (ranker) => ({ meaning: ranker !== "lexical", words: Boolean(asked.query) && ranker !== "dense" });

function total() {
  const n = answer.total;
  return n > hits.length ? say("shown", { n, shown: hits.length }) : say("total", { n });
}

function drawMore(failure = null) {
  const place = products.querySelector(".more");
  const button = element("button", { type: "button", class: "plain wide", onclick: () => more(button) }, say(failure ? "again" : "more"));
  place.replaceChildren(
    failure ? element("p", { class: "notice bad", role: "alert" }, title(failure)) : "",
    ...(answer.next_cursor ? [element("p", { class: "soft" }, total()), button] : []));
  if (failure) button.focus();
}

function drawFacets() {
  const focused = document.activeElement?.closest("#facets") ? document.activeElement.id : null;
  const onchange = (change) => go({ filters: change(asked.filters) });
  at("facets").replaceChildren(...panel(answer.facets, asked.filters, { currency: currency(), onchange }));
  if (focused) (at(focused) ?? at("heading")).focus({ preventScroll: true });
  at("close-filters").textContent = say("show_found", { n: answer.total });
  document.body.classList.toggle("no-facets", !answer.facets.length);
}

function correction() {
  return element("button", { type: "button", class: "link", onclick: () => go({ query: answer.correction, filters: {} }, { focus: () => at("heading") }) }, answer.correction);
}

function drawNotices(drawn) {
  at("notices").replaceChildren(...drawn);
}

function empty() {
  return element("div", { class: "empty" }, icon("search"), element("h2", {}, say("none")), element("p", {}, say("none_text")),
    active(asked.filters).length ? element("button", { type: "button", class: "plain", onclick: () => go({ filters: {} }, { focus: () => at("heading") }) }, say("clear_all")) : null);
}

function drawBadge() {
  const { region, release, encoder_digest } = answer;
  const name = release === 0 ? say("base_release") : say("release", { n: String(release) });
  at("badge").hidden = false;
  at("badge").replaceChildren(element("span", {}, region), element("span", {}, name), element("code", {}, encoder_digest.slice(0, 12)));
  at("digest").replaceChildren(element("span", {}, say("digest")), element("code", {}, encoder_digest));
  document.title = `${say("title")} · ${region}`;
}

async function drawForYou(signal) {
  const strip = at("for-you");
  const seen = recent();
  strip.hidden = true;
  if (!isStart() || asked.pair || !seen.length) return;
  const found = await forYou(seen.map((one) => one.product_id), { signal }).catch(() => null);
  const liked = found ? alike(found) : [];
  if (!liked.length || signal.aborted) return;
  strip.replaceChildren(
    element("h2", { id: "for-you-title" }, say("because", { title: seen.at(-1).title })),
    element("ul", { class: "tiles", tabindex: 0, "aria-labelledby": "for-you-title" }, liked.map((hit) => tile(hit, (one) => dialog.show(one, found.request_id)))));
  strip.hidden = false;
}

function drawColumns(answers) {
  const focused = document.activeElement?.closest(".columns") ? document.activeElement.id : null;
  const drawn = columns({
    pair: asked.pair, answers, releases: releases.length ? releases : [answer.release],
    onpair: (change) => asked.pair && go({ pair: change(asked.pair) }),
    onopen: (hit, { ranker }) => dialog.show(hit, null, foundBy(ranker)),
  });
  products.replaceChildren(drawn);
  at("for-you").hidden = true;
  if (focused) at(focused)?.focus({ preventScroll: true });
  announce(drawn.querySelector(".overlap")?.textContent ?? "");
}

// --- when there is no answer ----------------------------------------------------------------------

function title({ kind }) {
  return say(kind === "missing" ? "gone_release" : kind);
}

function drawFailure(failure) {
  const { kind, text, requestId } = failure;
  const again = element("button", { type: "button", class: "primary", onclick: () => search({ focus: () => at("heading") }) }, say("again"));
  const sought = kind in RETRY_S;  // by the page itself, a little later
  const mine = ["offline", "slow", "denied", "failed"].includes(kind);
  const explained = element("p", {}, sought ? "" : mine ? say(`${kind}_text`) : text || say("failed_text"));
  products.replaceChildren();
  at("total").textContent = "";
  at("for-you").hidden = true;
  document.body.classList.add("no-facets");  // their counts were of another answer
  at("failure").replaceChildren(element("div", { class: "empty", role: "alert" },
    icon("cloud"), element("h2", {}, title(failure)), explained, kind === "denied" ? "" : again,
    requestId ? element("p", { class: "soft reference" }, say("reference", { id: requestId })) : ""));
  announce("");
  if (sought) countDown(failure, explained);
}

/** Try again by itself, later each time, so that a service that struggles is not trampled on. */
function countDown({ kind, retryAfterS }, explained) {
  let left = Math.min(MAX_RETRY_S, Math.max(retryAfterS ?? 0, RETRY_S[kind] * 2 ** retry.count));
  retry.count += 1;
  const tick = () => {
    if (left <= 0) return search();
    explained.setAttribute("aria-live", "off");  // a clock read aloud every second is a nuisance
    explained.textContent = say(`${kind}_text`, { when: say("in_s", { n: left }) });
    left -= 1;
  };
  retry.timer = setInterval(tick, 1000);
  tick();
}

function announce(text) {
  at("status").textContent = text;
}

// --- wiring ---------------------------------------------------------------------------------------

at("search").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
input.addEventListener("input", () => { at("clear").hidden = !input.value; });
at("clear").addEventListener("click", () => {
  input.value = "";
  at("clear").hidden = true;
  combobox.close();
  input.focus();
});
at("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(START, { focus: () => at("heading") });
});
at("sort").addEventListener("change", (event) => go({ sort: event.target.value }));
at("compare").addEventListener("click", () => {
  products.replaceChildren();
  go({ pair: asked.pair ? null : firstPair(releases) });
});
at("open-filters").addEventListener("click", () => openFilters(!document.body.classList.contains("filters-open")));
at("close-filters").addEventListener("click", () => {
  openFilters(false);
  at("heading").focus();
});
takePhotos({ button: at("photo"), input: at("file"), curtain: at("drop"), onfile: withFile });
addEventListener("online", () => at("failure").hasChildNodes() && search());
addEventListener("popstate", (event) => { restore(event.state); search(); });

function openFilters(open) {
  document.body.classList.toggle("filters-open", open);
  at("open-filters").setAttribute("aria-expanded", String(open));
}

function restore(state) {
  asked = { ...START, ...state };
  if (asked.like?.kind === "photo" && !photoAddress(asked.like.key)) asked = { ...asked, like: null };
}

async function start() {
  translate();
  document.title = say("title");
  restore(history.state);
  flush();
  info().then((told) => { releases = told.releases; }, () => {});
  await search();
}

start();
