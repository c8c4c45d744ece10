// The list of cases: fetch what changed, sort it, draw one line a case.

import { described, open } from "/case.js";
import { hush, outbox } from "/messages.js";
import { ask } from "/server.js";
import { $, MARKS, isDecided, page, verdictOf } from "/state.js";

const NOTES = {
  quality: "By estimated quality (predicted Dice), 0 to 1.",
  worth: "Low estimated quality plus disagreement of the models: labels help most here.",
};
const items = new Map(); // id -> its line in the list
let now = ""; // the server's mark of the last answer; it then sends only what is new
let unsorted = true; // whether the list must be sorted again
let sorting = "quality";

/** Fetch what changed since the last call and draw it. */
export async function refresh() {
  const { cases } = page, asked = performance.now();
  const answer = await (await ask(`/api/review?since=${now}`)).json();
  $("title").textContent = answer.title;
  $("role").textContent = answer.role;
  $("running").hidden = !answer.running;
  const before = new Map(cases);
  if (answer.whole) { cases.clear(); unsorted = true; }
  for (const id of answer.gone) { cases.delete(id); unsorted = true; }
  for (const one of answer.cases) {
    const known = before.get(one.id);
    cases.set(one.id, one);
    // The answer may be older than an own decision.
    if (page.pending.has(one.id)) one.decision = page.pending.get(one.id);
    else if (page.settledAt.get(one.id) > asked) one.decision = known?.decision ?? one.decision;
    if (known?.round !== one.round || known?.image !== one.image) {
      unsorted = true;
      if (one.id !== page.current) page.pixels.delete(one.id);
    }
  }
  now = answer.now;
  if (!outbox.waiting) hush("server");
  if (answer.whole || answer.gone.length || answer.cases.length) listed();
}

export function sortBy(by) { sorting = by; unsorted = true; listed(); }

/** Draw the list and the progress. */
export function listed() {
  const { cases } = page;
  if (unsorted) sort();
  unsorted = false;
  let decided = 0;
  for (const id of page.order) {
    const one = cases.get(id);
    if (isDecided(one)) decided++;
    drawLine(items.get(id), one);
  }
  $("progress-text").textContent = `${decided} of ${page.order.length} decided`;
  $("progress").max = Math.max(1, page.order.length);
  $("progress").value = decided;
  if (page.current && cases.has(page.current)) described();
}

function sort() {
  const { cases } = page;
  const key = sorting === "quality" ? (a, b) => a.quality - b.quality : (a, b) => b.worth - a.worth;
  page.order = [...cases.values()].sort((a, b) => key(a, b) || (a.id < b.id ? -1 : 1)).map((one) => one.id);
  for (const by of ["quality", "worth"]) $(`order-${by}`).setAttribute("aria-pressed", sorting === by);
  $("order-note").textContent = NOTES[sorting];
  const focused = document.activeElement?.dataset?.id;
  for (const id of [...items.keys()]) if (!cases.has(id)) items.delete(id);
  const all = document.createDocumentFragment();
  for (const id of page.order) {
    if (!items.has(id)) items.set(id, newLine(id));
    all.append(items.get(id));
  }
  $("list").replaceChildren(all);
  if (focused) $("list").querySelector(`[data-id="${focused}"]`)?.focus();
}

function newLine(id) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.id = id;
  for (const [tag, name] of [["span", "mark"], ["b", ""], ["span", "number"], ["span", "soft"]]) {
    const part = document.createElement(tag);
    part.className = name;
    button.append(part);
  }
  button.addEventListener("click", () => open(id));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

/** Update a line of the list; a line without a change is not touched. */
function drawLine(item, one) {
  const verdict = verdictOf(one), button = item.firstChild;
  const number = (sorting === "quality" ? one.quality : one.worth).toFixed(2);
  const line = [verdict, one.case_id, number, one.site, one.round].join("|");
  if (item.line !== line) {
    item.line = line;
    const [mark, name, figure, about] = button.children;
    mark.className = `mark ${verdict}`;
    mark.textContent = MARKS[verdict] || "";
    name.textContent = one.case_id;
    figure.textContent = number;
    about.textContent = `${one.site} · round ${one.round}${verdict ? ` · ${verdict}` : ""}`;
  }
}

/** Mark the line of the case on screen. */
export function markLine(id) {
  $("list").querySelector("[aria-current]")?.removeAttribute("aria-current");
  const button = items.get(id)?.firstChild;
  button?.setAttribute("aria-current", "true");
  button?.scrollIntoView({ block: "nearest" });
}
