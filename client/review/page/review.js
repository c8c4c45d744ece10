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

const cases = new Map(); // by id, as the server tells them
let now = ""; // what the server told last; it then tells only what is new
let wanted = true; // whether the list has to be put in order again
let order = []; // ids, in the list's order
let sorting = "quality";
let current = null; // id of the case on screen
let start = null; // the mask that the case on screen began with
let lastDecided = null;
const items = new Map(); // id -> its line in the list
const pixels = new Map(); // id -> promise of what is drawn, and of which round and image it is
const unsaved = new Map(); // id -> mask, newer than what the server has said it holds
const own = new Map(); // id -> our word that is still on its way
const settledAt = new Map(); // id -> when the server said what our word came to
const conflicts = []; // decisions that met another's, to be asked about one by one
let me = ""; // this window: its strokes are no other's

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
  const asked = performance.now();
  const told = await (await ask(`/api/review?since=${now}`)).json();
  $("title").textContent = told.title;
  $("role").textContent = told.role;
  $("going").hidden = !told.going;
  const before = new Map(cases);
  if (told.whole) { cases.clear(); wanted = true; }
  for (const id of told.gone) { cases.delete(id); wanted = true; }
  for (const one of told.cases) {
    const known = before.get(one.id);
    cases.set(one.id, one);
    if (own.has(one.id)) one.decision = own.get(one.id);
    else if (settledAt.get(one.id) > asked) one.decision = known?.decision ?? one.decision;
    if (known?.round !== one.round || known?.image !== one.image) {
      wanted = true;
      if (one.id !== current) pixels.delete(one.id);
    }
  }
  now = told.now;
  if (!outbox.waiting) hush("server");
  if (told.whole || told.gone.length || told.cases.length) listed();
}

function listed() {
  if (wanted) inOrder();
  wanted = false;
  let decided = 0;
  for (const id of order) {
    const one = cases.get(id);
    if (isDecided(one)) decided++;
    lineOf(items.get(id), one);
  }
  $("progress-text").textContent = `${decided} of ${order.length} decided`;
  $("progress").max = Math.max(1, order.length);
  $("progress").value = decided;
  if (current && cases.has(current)) described();
}

function inOrder() {
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
  for (const id of [...items.keys()]) if (!cases.has(id)) items.delete(id);
  const all = document.createDocumentFragment();
  for (const id of order) {
    if (!items.has(id)) items.set(id, listItem(id));
    all.append(items.get(id));
  }
  $("list").replaceChildren(all);
  if (focused) $("list").querySelector(`[data-id="${focused}"]`)?.focus();
}

function listItem(id) {
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

/** Say in the list what is known of a case; lines that stay as they are cost nothing. */
function lineOf(item, one) {
  const verdict = verdictOf(one), button = item.firstChild;
  const number = (sorting === "quality" ? one.quality : one.worth).toFixed(2);
  const line = [verdict, one.stem, number, one.site, one.round].join("|");
  if (item.line !== line) {
    item.line = line;
    const [mark, stem, figure, about] = button.children;
    mark.className = `mark ${verdict}`;
    mark.textContent = MARKS[verdict] || "";
    stem.textContent = one.stem;
    figure.textContent = number;
    about.textContent = `${one.site} · round ${one.round}${verdict ? ` · ${verdict}` : ""}`;
  }
}

function marked(id) {
  $("list").querySelector("[aria-current]")?.removeAttribute("aria-current");
  const button = items.get(id)?.firstChild;
  button?.setAttribute("aria-current", "true");
  button?.scrollIntoView({ block: "nearest" });
}

function verdictOf(one) {
  const verdict = one.lost ? "" : one.decision?.verdict;
  return verdict && verdict !== "withdrawn" ? verdict : "";
}
function isDecided(one) { return ["accepted", "corrected", "rejected"].includes(verdictOf(one)); }

// ---------------------------------------------------------------------------- one case

function load(id) {
  if (!pixels.has(id)) {
    const { round, image: digest } = cases.get(id);
    const path = `/api/cases/${id}`;
    const mask = (name) => ask(`${path}/${name}`).then(readMask);
    const parts = [
      ask(`${path}/${round}/image.png`).then((answer) => answer.blob()).then(createImageBitmap),
      ...["label", "unet", "sam"].map((name) => mask(`${round}/${name}.png`)),
      mask(`drafts/${me}`), mask("accepted.png"),
    ];
    const loading = Promise.all(parts).then(([image, label, unet, sam, strokes, accepted]) => (
      { image, label, unet, sam, mine: strokes || accepted, round, digest }));
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
  marked(id);
  described();
  let found;
  const late = setTimeout(() => stage.clear(), 100); // the image before is no longer the case named
  try {
    found = await load(id);
    clearTimeout(late);
  } catch (error) {
    clearTimeout(late);
    if (current !== id) return;
    stage.clear();
    const newer = error instanceof Refusal && error.status === 410; // a round ended meanwhile
    if (newer) await refresh().catch(failed); else failed(error);
    setTimeout(() => current === id && !stage.image && open(id), newer ? 100 : 2000);
    return;
  }
  if (current !== id) return; // another was asked for meanwhile
  const one = cases.get(id);
  if (!one) return;
  start = found.label;
  const { image, label, unet, sam } = found;
  stage.id = id;
  stage.of = { round: found.round, image: found.digest }; // what a decision is about
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
    : one.lost || "not decided";
  const others = one.drafts.filter((window) => window !== me);
  $("others").hidden = !others.length;
  $("others-text").textContent = others.length === 1
    ? "Strokes of another window, or of one that was closed, wait here."
    : `Strokes of ${others.length} other windows wait here.`;
}

/** Strokes of other windows are theirs: taking them makes a copy, and only a word removes them. */
async function takeOthers() {
  const id = stage.id, others = cases.get(id)?.drafts.filter((window) => window !== me);
  if (!stage.image || id !== current || !others?.length) return;
  try {
    const mask = await ask(`/api/cases/${id}/drafts/${others[0] || "old"}`).then(readMask);
    if (stage.id === id && stage.image) put(mask);
  } catch (error) { failed(error); }
}
async function dropOthers() {
  const id = current, others = cases.get(id)?.drafts.filter((window) => window !== me);
  if (!others?.length) return;
  try {
    await ask(`/api/cases/${id}/drafts/${others[0] || "old"}`, { method: "DELETE" });
    await refresh();
  } catch (error) { failed(error); }
}

function counted() {
  let sum = 0;
  for (const value of stage.mask) sum += value;
  $("marked").textContent = sum ? `${((100 * sum) / stage.mask.length).toFixed(1)} % of the image` : "nothing";
  $("undo").disabled = !stage.past.length;
  $("redo").disabled = !stage.future.length;
}

/** The mask on screen changed: keep it at the server, before anything else can happen. */
function changed() {
  counted();
  return keep(stage.id, stage.mask.slice(), stage.width, stage.height);
}

async function keep(id, mask, width, height) {
  unsaved.set(id, mask);
  const options = writeMask(mask, width, height).then((body) => ({ method: "PUT", body }));
  try {
    await outbox.send(`draft ${id}`, `/api/cases/${id}/drafts/${me}`, options);
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
      body: JSON.stringify({ image: stage.of.image, clicks: points.map((point) => [point.x, point.y, point.inside]) }),
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
  const said = { id: hex(8), verdict: kind, ...stage.of };
  const drawn = { mask: stage.mask.slice(), width: stage.width, height: stage.height };
  if (isLabel(kind)) {
    unsaved.set(id, drawn.mask);
    pixels.get(id)?.then((held) => { held.mine = drawn.mask; });
  }
  if (kind !== "skipped") lastDecided = id;
  // The next case comes at once; the decision is kept here until the server has it.
  expected(id, said);
  next();
  await deliver(id, said, before, drawn);
}

function isLabel(verdict) { return verdict === "accepted" || verdict === "corrected"; }

/** Show a decision that the server does not have yet. */
function expected(id, said) {
  const word = { id: said.id, verdict: said.verdict, role: $("role").textContent, when: new Date().toISOString() };
  own.set(id, word);
  cases.get(id).decision = word;
  cases.get(id).lost = null;
  listed();
}

/** `before`: the decision that the person knew of. */
async function deliver(id, said, before, drawn) {
  try {
    const mask = isLabel(said.verdict)
      ? writeMask(drawn.mask, drawn.width, drawn.height).then(asBase64) : Promise.resolve(null);
    // It has its id from here: sent again because the answer was lost, it is no second decision.
    const body = { ...said, window: me, seen: before?.id ?? null };
    const options = mask.then((mask) => ({ method: "POST", body: JSON.stringify({ ...body, mask }) }));
    const told = await (await outbox.send(null, `/api/cases/${id}/decision`, options)).json();
    settled(id, told.decision);
    if (unsaved.get(id) === drawn.mask) unsaved.delete(id);
  } catch (error) {
    settled(id, before);
    if (unsaved.get(id) === drawn.mask) {
      unsaved.delete(id);
      if (said.verdict === "corrected") keep(id, drawn.mask, drawn.width, drawn.height);
    }
    if (error instanceof Refusal && error.status === 409) {
      conflicts.push({ id, said, drawn, theirs: error.decision, text: error.message });
      askConflict();
    } else { open(id); failed(error); }
  }
}

function settled(id, decision) {
  own.delete(id);
  settledAt.set(id, performance.now());
  const one = cases.get(id);
  if (one) one.decision = decision;
  listed();
}

/** One question at a time; Esc keeps the strokes and decides nothing. */
function askConflict() {
  const dialog = $("conflict");
  if (dialog.open || !conflicts.length) return;
  const { id, said, text } = conflicts[0];
  $("conflict-text").textContent = `${cases.get(id)?.stem ?? "A case"}: ${text}. You said: ${said.verdict}.`;
  dialog.returnValue = "";
  dialog.showModal();
}

$("conflict").addEventListener("close", async () => {
  const chosen = $("conflict").returnValue;
  const { id, said, drawn, theirs } = conflicts.shift();
  if (chosen === "mine") {
    expected(id, said);
    deliver(id, said, theirs, drawn);
  } else {
    settled(id, theirs);
    if (chosen === "theirs") await lookAtTheirs(id);
  }
  askConflict();
});

/** Their mask on screen; undo brings one's own back, and that is what stays kept. */
async function lookAtTheirs(id) {
  try {
    await open(id);
    const mask = await ask(`/api/cases/${id}/accepted.png`).then(readMask);
    if (!mask || stage.id !== id || !stage.image) return;
    stage.remember();
    stage.replace(mask);
    counted();
  } catch (error) { failed(error); }
}

/** Take the last decision of this page back, or that on the case on screen. */
async function withdraw() {
  const id = lastDecided && isDecided(cases.get(lastDecided)) ? lastDecided : current;
  if (!id || !verdictOf(cases.get(id))) return;
  const one = cases.get(id), before = one.decision;
  lastDecided = null;
  const held = await load(id);
  const said = { id: hex(8), verdict: "withdrawn", round: held.round, image: held.digest };
  expected(id, said);
  const drawn = { mask: held.mine || held.label, width: one.width, height: one.height };
  const delivered = deliver(id, said, before, drawn);
  await open(id);
  await delivered;
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

function sortBy(by) { sorting = by; wanted = true; listed(); }

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
  "order-quality": () => sortBy("quality"), "order-worth": () => sortBy("worth"),
  "others-take": takeOthers, "others-drop": dropOthers,
  "conflict-keep": () => $("conflict").close("keep"),
  "conflict-theirs": () => $("conflict").close("theirs"), "conflict-mine": () => $("conflict").close("mine"),
};
for (const [id, action] of Object.entries(onClick)) $(id).addEventListener("click", () => action());
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => use(button.dataset.tool));
for (const button of document.querySelectorAll("[data-use]")) button.addEventListener("click", () => takeOver(button.dataset.use));
for (const name of ["mine", "label", "unet", "sam"]) $(`show-${name}`).addEventListener("change", (event) => see(name, event.target.checked));
$("size").addEventListener("input", (event) => resize(Number(event.target.value)));
$("add").addEventListener("change", () => stage.forgetClicks());
window.addEventListener("beforeunload", (event) => { if (outbox.waiting || unsaved.size) event.preventDefault(); });

function hex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (one) => one.toString(16).padStart(2, "0")).join("");
}

/** This window's name: the same after a reload, another in a copy of the window. */
async function named() {
  const known = sessionStorage.getItem("knowmine-window");
  const names = known ? [known, hex(8)] : [hex(8)];
  for (const name of names) {
    const free = await new Promise((answer) => {
      // Held as long as the window lives. One that was just reloaded lets go in a moment.
      const patience = AbortSignal.timeout(500);
      navigator.locks.request(`knowmine-review-${name}`, { signal: patience }, () => {
        answer(true);
        return new Promise(() => {});
      }).catch(() => answer(false));
    });
    if (free) { sessionStorage.setItem("knowmine-window", name); return name; }
  }
  throw new Error("no name for this window");
}

use("brush");
async function begin() {
  try {
    me ||= await named();
    await refresh();
    const first = order.find((id) => !isDecided(cases.get(id))) || order[0];
    if (first) await open(first);
    $("canvas").focus({ preventScroll: true });
  } catch (error) { failed(error); setTimeout(begin, 2000); return; }
  setInterval(() => refresh().catch(failed), 5000);
}
begin();
