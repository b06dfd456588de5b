// What the page remembers, and only until the tab is closed: products looked at, clicks that could
// not be sent yet, and the photos of this tab's searches. It sends no name for the shopper at all
// (`user_key` stays empty): what somebody looked at is known to their own browser alone.

import { sendEvents } from "./service.js";

const MAX_RECENT = 20;
const MAX_WAITING = 100;
const MAX_PHOTOS = 3;  // a few hundred kB each; a tab may keep about 5 MB

function read(key, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(key, value) {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
  } catch { /* full or forbidden: the page works without a memory */ }
}

/** Products looked at in this tab, the latest one last. */
export const recent = () => read("recent", []);

/** A version 4 UUID; crypto.randomUUID is missing where the page is not served over TLS. */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** Remember that a product was opened, and tell the service. */
export function clicked({ product_id, title }, requestId) {
  const others = recent().filter((one) => one.product_id !== product_id);
  write("recent", [...others, { product_id, title }].slice(-MAX_RECENT));
  const event = {
    event_id: uuid(), request_id: requestId, product_id, type: "click", ts: new Date().toISOString(),
  };
  write("waiting", [...read("waiting", []), event].slice(-MAX_WAITING));
  return flush();
}

/** Send what waits. An event sent twice counts once, so what is not acknowledged is kept. */
export async function flush() {
  const events = read("waiting", []);
  if (!events.length || !(await sendEvents(events))) return;
  const sent = new Set(events.map((event) => event.event_id));
  write("waiting", read("waiting", []).filter((event) => !sent.has(event.event_id)));
}

const held = new Map();  // photos of this visit, also where the session takes none

/** Keep a photo, as a data: address, so that a reload finds it again; answers its key. */
export function keepPhoto(address) {
  const key = uuid();
  held.set(key, address);
  write("photos", [...read("photos", []), { key, address }].slice(-MAX_PHOTOS));
  return key;
}

export const photoAddress = (key) => held.get(key) ?? read("photos", []).find((photo) => photo.key === key)?.address;
