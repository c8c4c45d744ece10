// The review's page: which case is shown, what its keys do, and that no stroke is lost.

import { Stage } from "/canvas.js";
import { Outbox, Refusal, Unreachable, ask, asBase64, readMask, writeMask } from "/server.js";

const $ = (id) => document.getElementById(id);
const MARKS = { accepted: "✓", corrected: "✎", rejected: "✕", skipped: "–" };
const HINTS = {
  brush: "Draw to add to your mask",
  eraser: "Draw to take away from your mask",
  sam: "Click the object; Shift or right click: not here",
  pan: "Drag to move, wheel to zoom",
};
const AHEAD = 3; // cases that are loaded before they are asked for
const HELD = 12; // cases whose pixels stay in memory

let cases = new Map(); // by id, as the server tells them
let order = []; // ids, in the list's order
let sorting = "quality";
let current = null; // id of the case on screen
let start = null; // the mask that the case on screen began with
let lastDecided = null;
const pixels = new Map(); // id -> promise of what is drawn
const unsaved = new Map(); // id -> mask, newer than what the server has said it holds

const outbox = new Outbox((waiting, error) => {
  $("saved").textContent = waiting ? "saving…" : "all saved";
  $("saved").dataset.waiting = waiting;
  if (!error) return hush("server");
  if (error instanceof Refusal && error.status === 403) {
    alarm("server", "The review was started again. Open the address that it printed in this browser; this page then goes on. Nothing is lost.");
  } else if (error instanceof Refusal) alarm("server", `${error.message}.`);
  else alarm("server", "The review's server does not answer. Start it again and open its address; your work waits in this page.");
});

const stage = new Stage($("canvas"), { stroke: changed, click: askSam });

// ---------------------------------------------------------------------------- messages

let alarmed = "";
function alarm(kind, text) { alarmed = kind; $("alert").textContent = text; $("alert").hidden = false; }
function hush(kind) { if (alarmed === kind) { alarmed = ""; $("alert").hidden = true; } }
function failed(error) {
  if (error instanceof Refusal && error.status !== 403) alarm("case", `${error.message}.`);
  else if (error instanceof Refusal || error instanceof Unreachable) outbox.tell(outbox.waiting, error);
  else { alarm("case", "A mistake of ours; load the page again. Your strokes are kept."); console.error(error); }
}

// ---------------------------------------------------------------------------- the list

async function refresh() {
  const told = await (await ask("/api/review")).json();
  $("title").textContent = told.title;
  $("role").textContent = told.role;
  $("going").hidden = !told.going;
  const waiting = outbox.waiting > 0;
  const known = cases;
  cases = new Map(told.cases.map((one) => [one.id, one]));
  for (const [id, one] of known) {
    const now = cases.get(id);
    if (!now) continue;
    if (waiting) now.decision = one.decision; // our own word is still on its way
    if (now.round !== one.round && id !== current) pixels.delete(id);
  }
  if (!waiting) hush("server");
  listed();
}

function listed() {
  const key = sorting === "quality"
    ? (a, b) => a.quality - b.quality
    : (a, b) => b.worth - a.worth;
  order = [...cases.values()].sort((a, b) => key(a, b) || (a.id < b.id ? -1 : 1)).map((one) => one.id);
  $("order-quality").setAttribute("aria-pressed", sorting === "quality");
  $("order-worth").setAttribute("aria-pressed", sorting === "worth");
  $("order-note").textContent = sorting === "quality"
    ? "By judged quality, 0 to 1."
    : "Badly judged, and the models disagree: a label teaches most here.";
  const focused = document.activeElement?.dataset?.id;
  $("list").replaceChildren(...order.map(listItem));
  if (focused) $("list").querySelector(`[data-id="${focused}"]`)?.focus();
  const decided = order.filter((id) => isDecided(cases.get(id))).length;
  $("progress-text").textContent = `${decided} of ${order.length} decided`;
  $("progress").max = Math.max(1, order.length);
  $("progress").value = decided;
  if (current && cases.has(current)) described();
}

function listItem(id) {
  const one = cases.get(id);
  const verdict = verdictOf(one);
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.id = id;
  if (id === current) button.setAttribute("aria-current", "true");
  const parts = [["span", MARKS[verdict] || "", `mark ${verdict}`], ["b", one.stem, ""],
    ["span", (sorting === "quality" ? one.quality : one.worth).toFixed(2), "number"],
    ["span", `${one.site} · round ${one.round}${verdict ? ` · ${verdict}` : ""}`, "soft"]];
  for (const [tag, text, name] of parts) {
    const part = document.createElement(tag);
    part.textContent = text;
    part.className = name;
    button.append(part);
  }
  button.addEventListener("click", () => open(id));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function verdictOf(one) {
  const verdict = one.decision?.verdict;
  return verdict && verdict !== "withdrawn" ? verdict : "";
}
function isDecided(one) { return ["accepted", "corrected", "rejected"].includes(verdictOf(one)); }

// ---------------------------------------------------------------------------- one case

function load(id) {
  if (!pixels.has(id)) {
    const path = `/api/cases/${id}`;
    const parts = [
      ask(`${path}/image.png`).then((answer) => answer.blob()).then(createImageBitmap),
      ...["label", "unet", "sam", "mine"].map((name) => ask(`${path}/${name}.png`).then(readMask)),
    ];
    const loading = Promise.all(parts)
      .then(([image, label, unet, sam, mine]) => ({ image, label, unet, sam, mine }));
    loading.catch(() => pixels.delete(id));
    pixels.set(id, loading);
    for (const old of pixels.keys()) {
      if (pixels.size <= HELD) break;
      if (old !== id && old !== current) pixels.delete(old);
    }
  }
  return pixels.get(id);
}

async function open(id) {
  if (!cases.has(id)) return;
  const asked = performance.now();
  current = id;
  hush("case");
  for (const button of $("list").querySelectorAll("button")) {
    if (button.dataset.id === id) {
      button.setAttribute("aria-current", "true");
      button.scrollIntoView({ block: "nearest" });
    } else button.removeAttribute("aria-current");
  }
  described();
  let found;
  const late = setTimeout(() => stage.clear(), 100); // the image before is no longer the case named
  try {
    found = await load(id);
    clearTimeout(late);
  } catch (error) {
    clearTimeout(late);
    if (current === id) { stage.clear(); failed(error); setTimeout(() => current === id && !stage.image && open(id), 2000); }
    return;
  }
  if (current !== id) return; // another was asked for meanwhile
  const one = cases.get(id);
  start = found.label;
  const { image, label, unet, sam } = found;
  stage.id = id;
  stage.show(one.width, one.height, image, { label, unet, sam }, unsaved.get(id) || found.mine || found.label);
  counted();
  requestAnimationFrame(() => setTimeout(() => {
    document.body.dataset.shown = id;
    document.body.dataset.shownMs = (performance.now() - asked).toFixed(1);
  }));
  const at = order.indexOf(id);
  for (const next of order.slice(at + 1, at + 1 + AHEAD)) load(next).catch(() => {});
}

function described() {
  const one = cases.get(current);
  const verdict = verdictOf(one);
  $("stem").textContent = one.stem;
  $("where").textContent = `${one.site}, round ${one.round}`;
  $("quality").textContent = one.quality.toFixed(2);
  $("disagreement").textContent = one.disagreement === null ? "SAM not asked" : one.disagreement.toFixed(2);
  $("used").textContent = one.used ? "yes" : "no, too doubtful";
  $("verdict").className = verdict || "soft";
  $("verdict").textContent = verdict
    ? `${MARKS[verdict]} ${verdict} by a ${one.decision.role}, ${new Date(one.decision.when).toLocaleTimeString()}`
    : "not decided";
}

function counted() {
  let sum = 0;
  for (const value of stage.mask) sum += value;
  $("marked").textContent = sum ? `${((100 * sum) / stage.mask.length).toFixed(1)} % of the image` : "nothing";
  $("undo").disabled = !stage.past.length;
  $("redo").disabled = !stage.future.length;
}

/** The mask on screen changed: keep it at the server, before anything else can happen. */
async function changed() {
  counted();
  const id = stage.id, { width, height } = stage;
  const mask = stage.mask.slice();
  unsaved.set(id, mask);
  const options = writeMask(mask, width, height).then((body) => ({ method: "PUT", body }));
  try {
    await outbox.send(`draft ${id}`, `/api/cases/${id}/draft`, options);
    if (unsaved.get(id) !== mask) return;
    if (pixels.has(id)) (await load(id)).mine = mask;
    unsaved.delete(id);
  } catch (error) { failed(error); }
}

// ---------------------------------------------------------------------------- SAM

let question = 0;
async function askSam(x, y, inside) {
  const id = stage.id, number = ++question;
  const base = stage.asked.base || stage.mask.slice();
  const points = [...stage.asked.points, { x, y, inside }];
  $("hint").textContent = "SAM is looking…";
  const asked = performance.now();
  try {
    const answer = await ask(`/api/cases/${id}/sam`, {
      method: "POST",
      body: JSON.stringify({ clicks: points.map((point) => [point.x, point.y, point.inside]) }),
    });
    const found = await readMask(answer);
    if (stage.id !== id || number !== question) return;
    if ($("add").checked) for (let i = 0; i < found.length; i++) found[i] |= base[i];
    stage.remember();
    stage.asked = { points, base };
    stage.replace(found);
    document.body.dataset.samMs = (performance.now() - asked).toFixed(1);
    changed();
  } catch (error) { failed(error); } finally { if (number === question) hinted(); }
}

// ---------------------------------------------------------------------------- decisions

async function decide(verdict) {
  if (verdict === "skipped" && (!stage.image || isDecided(cases.get(current)))) return next();
  // Until its image has come, nobody has seen the case; what is on screen may be the one before.
  if (!stage.image || stage.id !== current) return;
  const id = current, one = cases.get(id);
  let kind = verdict;
  if (verdict === "accepted" && stage.mask.some((value, i) => value !== start[i])) kind = "corrected";
  const before = one.decision;
  const mask = stage.mask.slice(), { width, height } = stage;
  if (kind === "accepted" || kind === "corrected") pixels.get(id)?.then((held) => { held.mine = mask; });
  if (kind !== "skipped") { unsaved.delete(id); lastDecided = id; }
  // The next case comes at once; the decision is kept here until the server has it.
  one.decision = { id: null, verdict: kind, role: $("role").textContent, when: new Date().toISOString() };
  listed();
  next();
  await deliver(id, kind, before?.id ?? null, before, mask, width, height);
}

async function deliver(id, verdict, seen, before, mask, width, height) {
  const label = verdict === "accepted" || verdict === "corrected";
  try {
    const drawn = label ? writeMask(mask, width, height).then(asBase64) : Promise.resolve(null);
    const options = drawn.then((drawn) => (
      { method: "POST", body: JSON.stringify({ verdict, seen, mask: drawn }) }));
    const answer = await outbox.send(null, `/api/cases/${id}/decision`, options);
    const told = await answer.json();
    cases.get(id).decision = told.decision;
    listed();
  } catch (error) {
    cases.get(id).decision = before;
    listed();
    if (error instanceof Refusal && error.status === 409) conflict(error, id, verdict, mask, width, height);
    else { unsaved.set(id, mask); open(id); failed(error); }
  }
}

function conflict(error, id, verdict, mask, width, height) {
  const theirs = error.decision;
  const own = verdict === theirs.verdict && cases.get(id)?.decision?.id === theirs.id;
  if (own) return;
  $("conflict-text").textContent = `${cases.get(id).stem}: ${error.message}. You said: ${verdict}.`;
  $("conflict-theirs").onclick = () => {
    $("conflict").close();
    cases.get(id).decision = theirs;
    unsaved.delete(id);
    pixels.delete(id);
    listed();
    open(id);
  };
  $("conflict-mine").onclick = () => {
    $("conflict").close();
    deliver(id, verdict, theirs.id, theirs, mask, width, height);
  };
  $("conflict").showModal();
}

/** Take the last decision of this page back, or that on the case on screen. */
async function withdraw() {
  const id = lastDecided && isDecided(cases.get(lastDecided)) ? lastDecided : current;
  if (!id || !verdictOf(cases.get(id))) return;
  const one = cases.get(id), before = one.decision;
  if (before.id === null) return alarm("case", "That decision is still being saved; try again in a moment.");
  lastDecided = null;
  const held = await load(id);
  one.decision = null;
  listed();
  await open(id);
  deliver(id, "withdrawn", before.id, before, held.mine || held.label, one.width, one.height);
}

function next(step = 1) {
  const at = order.indexOf(current);
  let to = order[at + step];
  if (step > 0) to = order.slice(at + 1).find((id) => !isDecided(cases.get(id))) || order.find((id) => id !== current && !isDecided(cases.get(id))) || to;
  if (to) open(to);
}

// ---------------------------------------------------------------------------- tools and keys

function use(tool) {
  stage.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
  $("size-label").hidden = tool === "sam" || tool === "pan";
  $("add-label").hidden = tool !== "sam";
  $("canvas").style.cursor = tool === "pan" ? "grab" : tool === "sam" ? "crosshair" : "none";
  stage.forgetClicks();
  hinted();
}

function hinted() { $("hint").textContent = HINTS[stage.tool]; }
function resize(px) { stage.radius = Math.min(120, Math.max(1, px)); $("size").value = stage.radius; stage.draw(); }
function see(name, on = !stage.shown[name]) { stage.shown[name] = on; $(`show-${name}`).checked = on; stage.draw(); }
function travel(how) { if (stage.image && stage[how]()) changed(); }
function put(mask) {
  if (!stage.image || !mask) return;
  stage.remember();
  stage.forgetClicks();
  stage.replace(mask);
  changed();
}
async function takeOver(name) {
  const id = stage.id;
  if (!stage.image) return;
  const mask = (await load(id))[name]?.slice();
  if (stage.id === id) put(mask);
}

const KEYS = {
  a: () => decide("accepted"), r: () => decide("rejected"), s: () => decide("skipped"), u: withdraw,
  n: () => next(), p: () => next(-1),
  b: () => use("brush"), e: () => use("eraser"), c: () => use("sam"), v: () => use("pan"),
  "[": () => resize(Math.floor(stage.radius / 1.2)), "]": () => resize(Math.ceil(stage.radius * 1.2)),
  z: () => travel("undo"), y: () => travel("redo"), x: () => put(new Uint8Array(stage.width * stage.height)),
  1: () => see("mine"), 2: () => see("label"), 3: () => see("unet"), 4: () => see("sam"),
  "+": () => stage.zoom(1.25), "=": () => stage.zoom(1.25), "-": () => stage.zoom(0.8), 0: () => stage.fit(),
  "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.altKey) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    travel(key === "y" || event.shiftKey ? "redo" : "undo");
  } else if (key === "h" && !event.repeat) { stage.hidden = true; stage.draw(); }
  else if (KEYS[key] && !(event.repeat && "arsu".includes(key))) { event.preventDefault(); KEYS[key](); }
});
document.addEventListener("keyup", (event) => {
  if (event.key.toLowerCase() === "h") { stage.hidden = false; stage.draw(); }
});

const onClick = {
  accept: KEYS.a, reject: KEYS.r, skip: KEYS.s, withdraw, back: KEYS.p, undo: KEYS.z, redo: KEYS.y,
  clear: KEYS.x, "zoom-in": KEYS["+"], "zoom-out": KEYS["-"], "zoom-fit": KEYS[0], "help-button": KEYS["?"],
  "help-close": () => $("help").close(),
  "order-quality": () => { sorting = "quality"; listed(); }, "order-worth": () => { sorting = "worth"; listed(); },
};
for (const [id, action] of Object.entries(onClick)) $(id).addEventListener("click", () => action());
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => use(button.dataset.tool));
for (const button of document.querySelectorAll("[data-use]")) button.addEventListener("click", () => takeOver(button.dataset.use));
for (const name of ["mine", "label", "unet", "sam"]) $(`show-${name}`).addEventListener("change", (event) => see(name, event.target.checked));
$("size").addEventListener("input", (event) => resize(Number(event.target.value)));
$("add").addEventListener("change", () => stage.forgetClicks());
window.addEventListener("beforeunload", (event) => { if (outbox.waiting || unsaved.size) event.preventDefault(); });

use("brush");
async function begin() {
  try {
    await refresh();
    const first = order.find((id) => !isDecided(cases.get(id))) || order[0];
    if (first) await open(first);
    $("canvas").focus({ preventScroll: true });
  } catch (error) { failed(error); setTimeout(begin, 2000); return; }
  setInterval(() => refresh().catch(failed), 5000);
}
begin();
