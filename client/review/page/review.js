// Start the review's page: its tools, buttons and keys, and the name of this window.

import { changed, discardOthers, hinted, open, put, stage, useMask, useOthers } from "/case.js";
import { decide, next, withdraw } from "/decide.js";
import { refresh, sortBy } from "/list.js";
import { failed, outbox } from "/messages.js";
import { $, hex, isDecided, page } from "/state.js";

function use(tool) {
  stage.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === tool);
  $("size-label").hidden = tool === "sam" || tool === "pan";
  $("add-label").hidden = tool !== "sam";
  $("canvas").style.cursor = tool === "pan" ? "grab" : tool === "sam" ? "crosshair" : "none";
  stage.forgetClicks();
  hinted();
}

function resize(px) { stage.radius = Math.min(120, Math.max(1, px)); $("size").value = stage.radius; stage.draw(); }
function show(name, on = !stage.shown[name]) { stage.shown[name] = on; $(`show-${name}`).checked = on; stage.draw(); }
function travel(how) { if (stage.image && stage[how]()) changed(); }

const KEYS = {
  a: () => decide("accepted"), r: () => decide("rejected"), s: () => decide("skipped"), u: withdraw,
  n: () => next(), p: () => next(-1),
  b: () => use("brush"), e: () => use("eraser"), c: () => use("sam"), v: () => use("pan"),
  "[": () => resize(Math.floor(stage.radius / 1.2)), "]": () => resize(Math.ceil(stage.radius * 1.2)),
  z: () => travel("undo"), y: () => travel("redo"), x: () => put(new Uint8Array(stage.width * stage.height)),
  1: () => show("mine"), 2: () => show("label"), 3: () => show("unet"), 4: () => show("sam"),
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
  "others-use": useOthers, "others-discard": discardOthers,
};
for (const [id, action] of Object.entries(onClick)) $(id).addEventListener("click", () => action());
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => use(button.dataset.tool));
for (const button of document.querySelectorAll("[data-use]")) button.addEventListener("click", () => useMask(button.dataset.use));
for (const name of ["mine", "label", "unet", "sam"]) $(`show-${name}`).addEventListener("change", (event) => show(name, event.target.checked));
$("size").addEventListener("input", (event) => resize(Number(event.target.value)));
$("add").addEventListener("change", () => stage.forgetClicks());
window.addEventListener("beforeunload", (event) => { if (outbox.waiting || page.unsaved.size) event.preventDefault(); });

/** This window's name: the same after a reload, a new one in a copy of the window. */
async function nameOfWindow() {
  const known = sessionStorage.getItem("knowmine-window");
  const names = known ? [known, hex(8)] : [hex(8)];
  for (const name of names) {
    const free = await new Promise((answer) => {
      // The lock is held while the window is open. After a reload the old one is released soon.
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

async function begin() {
  try {
    page.window ||= await nameOfWindow();
    await refresh();
    const first = page.order.find((id) => !isDecided(page.cases.get(id))) || page.order[0];
    if (first) await open(first);
    $("canvas").focus({ preventScroll: true });
  } catch (error) { failed(error); setTimeout(begin, 2000); return; }
  setInterval(() => refresh().catch(failed), 5000);
}

use("brush");
begin();
