// What the page knows: the cases, the one on screen, and what the server does not have yet.

export const $ = (id) => document.getElementById(id);
export const MARKS = { accepted: "✓", corrected: "✎", rejected: "✕", skipped: "–" };

export const page = {
  window: "", // this window's name; each window has strokes of its own
  cases: new Map(), // id -> case, as the server describes it
  order: [], // ids in the order of the list
  current: null, // id of the case on screen
  pixels: new Map(), // id -> promise of image and masks, with their round and the image's digest
  unsaved: new Map(), // id -> mask that the server does not have yet
  pending: new Map(), // id -> own decision that is on its way to the server
  settledAt: new Map(), // id -> time of the server's answer to an own decision
};

/** The decision that counts on a case, as a word; "" if there is none. */
export function verdictOf(one) {
  const verdict = one.lost ? "" : one.decision?.verdict;
  return verdict && verdict !== "withdrawn" ? verdict : "";
}

export function isDecided(one) { return ["accepted", "corrected", "rejected"].includes(verdictOf(one)); }
export function isLabel(verdict) { return verdict === "accepted" || verdict === "corrected"; }

/** Windows other than this one that have strokes on a case. */
export function otherWindows(one) { return one?.drafts.filter((window) => window !== page.window) ?? []; }

export function hex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (one) => one.toString(16).padStart(2, "0")).join("");
}
