// How the page asks the region's service: one function a message, and one kind of error. Everything
// goes to the address the page came from; queries travel in bodies, never in addresses, because
// addresses end up in the logs of proxies and in browser histories.

const TIMEOUT_MS = 30_000;

/** A request that was not answered; `kind` is what the page can say about it. */
export class Failure extends Error {
  constructor(kind, { text = "", requestId = "", retryAfterS = null } = {}) {
    super(text || kind);
    Object.assign(this, { kind, text, requestId, retryAfterS });
  }
}

const KINDS = {
  400: "refused", 401: "denied", 403: "denied", 404: "missing", 410: "expired", 413: "too_large",
  429: "busy", 503: "starting", 504: "slow",
};

async function ask(path, { body, type, signal }) {
  const late = AbortSignal.timeout(TIMEOUT_MS);
  const headers = type ? { "Content-Type": type } : {};
  const stop = signal ? AbortSignal.any([signal, late]) : late;
  try {
    const answer = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal: stop });
    if (!answer.ok) throw await failure(answer);
    return await answer.json();
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    if (error.name === "TimeoutError") throw new Failure("slow");
    throw new Failure(navigator.onLine ? "unreachable" : "offline");
  }
}

async function failure(answer) {
  const { error = {} } = await answer.json().catch(() => ({}));
  const retryAfterS = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
  return new Failure(KINDS[answer.status] ?? "failed", {
    text: error.message, requestId: error.request_id,
    retryAfterS: Number.isFinite(retryAfterS) ? retryAfterS : null,
  });
}

const post = (path, message, signal) =>
  ask(path, { body: JSON.stringify(message), type: "application/json", signal });

/**
 * Products for words, for a photo, or like another product; `like` says which.
 * Fields that are null or undefined are left out, so that the service's own defaults hold.
 */
export function find({ query, like, ...paged }, { signal } = {}) {
  const request = Object.fromEntries(
    Object.entries({ query, ...paged }).filter(([, value]) => value !== null && value !== undefined));
  if (like?.kind === "product") {
    return post("/v1/similar", { ...request, product_id: like.product_id }, signal);
  }
  if (like?.kind === "photo") {
    const body = new FormData();
    body.append("image", like.blob, "photo.jpg");
    body.append("request", JSON.stringify(request));
    return ask("/v1/search-by-image", { body, signal });
  }
  return post("/v1/search", request, signal);
}

/** Products that are like what was asked for; none where popular ones were found in their place. */
export const alike = ({ ranker, hits }) => (ranker === "popular" ? [] : hits);

export const forYou = (recent, { signal } = {}) => post("/v1/for-you", { recent, k: 12, explain: true, details: true }, signal);
export const suggest = (prefix, { signal } = {}) => post("/v1/suggest", { prefix, limit: 8 }, signal);
export const info = () => ask("/v1/info", {});

/** Send events; answers whether they need not be sent again. The page may be on its way out. */
export async function sendEvents(events) {
  try {
    const answer = await fetch("/v1/events", {
      method: "POST", keepalive: true, body: JSON.stringify({ events }),
      headers: { "Content-Type": "application/json" },
    });
    return answer.ok || answer.status === 400;
  } catch {
    return false;
  }
}
