// The case on screen: load it, show it, keep every stroke, ask SAM for a mask.

import { Stage } from "/canvas.js";
import { markLine, refresh } from "/list.js";
import { failed, hush, outbox } from "/messages.js";
import { Refusal, ask, readMask, writeMask } from "/server.js";
import { $, MARKS, otherWindows, page, verdictOf } from "/state.js";

const AHEAD = 3; // cases that are loaded before the person opens them
const HELD = 12; // cases whose pixels stay in memory
const HINTS = {
  brush: "Draw to add to your mask",
  eraser: "Draw to remove from your mask",
  sam: "Click the object; Shift or right click marks background",
  pan: "Drag to move, wheel to zoom",
};

export const stage = new Stage($("canvas"), { stroke: changed, click: clickSam });

/** Image and masks of a case, from memory or from the server. */
export function load(id) {
  const { pixels } = page;
  if (!pixels.has(id)) {
    const { round, image: digest } = page.cases.get(id);
    const path = `/api/cases/${id}`;
    const mask = (name) => ask(`${path}/${name}`).then(readMask);
    const parts = [
      ask(`${path}/${round}/image.png`).then((answer) => answer.blob()).then(createImageBitmap),
      ...["label", "unet", "sam"].map((name) => mask(`${round}/${name}.png`)),
      mask(`drafts/${page.window}`), mask("accepted.png"),
    ];
    const loading = Promise.all(parts).then(([image, label, unet, sam, strokes, accepted]) => (
      { image, label, unet, sam, mine: strokes || accepted, round, digest }));
    loading.catch(() => pixels.delete(id));
    pixels.set(id, loading);
    for (const old of pixels.keys()) {
      if (pixels.size <= HELD) break;
      if (old !== id && old !== page.current) pixels.delete(old);
    }
  }
  return pixels.get(id);
}

export async function open(id) {
  const { cases } = page;
  if (!cases.has(id)) return;
  const asked = performance.now();
  page.current = id;
  hush("case");
  markLine(id);
  described();
  let found;
  const late = setTimeout(() => stage.clear(), 100); // do not show the previous image under this name
  try {
    found = await load(id);
    clearTimeout(late);
  } catch (error) {
    clearTimeout(late);
    if (page.current !== id) return;
    stage.clear();
    const newer = error instanceof Refusal && error.status === 410; // a round ended meanwhile
    if (newer) await refresh().catch(failed); else failed(error);
    setTimeout(() => page.current === id && !stage.image && open(id), newer ? 100 : 2000);
    return;
  }
  if (page.current !== id) return; // another case was opened meanwhile
  const one = cases.get(id);
  if (!one) return;
  const { image, label, unet, sam } = found;
  stage.id = id;
  stage.start = label; // the mask before the person changed it
  stage.of = { round: found.round, image: found.digest }; // what a decision is about
  stage.show(one.width, one.height, image, { label, unet, sam }, page.unsaved.get(id) || found.mine || label);
  counted();
  requestAnimationFrame(() => setTimeout(() => {
    document.body.dataset.shown = id;
    document.body.dataset.shownMs = (performance.now() - asked).toFixed(1);
  }));
  const at = page.order.indexOf(id);
  for (const next of page.order.slice(at + 1, at + 1 + AHEAD)) load(next).catch(() => {});
}

/** Show the figures and the decision of the case on screen. */
export function described() {
  const one = page.cases.get(page.current);
  const verdict = verdictOf(one);
  $("case-id").textContent = one.case_id;
  $("where").textContent = `${one.site}, round ${one.round}`;
  $("quality").textContent = one.quality.toFixed(2);
  $("disagreement").textContent = one.disagreement === null ? "SAM not used" : one.disagreement.toFixed(2);
  $("used").textContent = one.used ? "yes" : "no, quality too low";
  $("verdict").className = verdict || "soft";
  $("verdict").textContent = verdict
    ? `${MARKS[verdict]} ${verdict} by a ${one.decision.role}, ${new Date(one.decision.when).toLocaleTimeString()}`
    : one.lost || "not decided";
  const others = otherWindows(one);
  $("others").hidden = !others.length;
  $("others-text").textContent = others.length === 1
    ? "Strokes of another window are kept here. It may be closed."
    : `Strokes of ${others.length} other windows are kept here.`;
}

/** Copy the strokes of another window; they stay there until they are discarded. */
export async function useOthers() {
  const id = stage.id, others = otherWindows(page.cases.get(id));
  if (!stage.image || id !== page.current || !others.length) return;
  try {
    const mask = await ask(`/api/cases/${id}/drafts/${others[0]}`).then(readMask);
    if (stage.id === id && stage.image) put(mask);
  } catch (error) { failed(error); }
}

export async function discardOthers() {
  const id = page.current, others = otherWindows(page.cases.get(id));
  if (!others.length) return;
  try {
    await ask(`/api/cases/${id}/drafts/${others[0]}`, { method: "DELETE" });
    await refresh();
  } catch (error) { failed(error); }
}

// ---------------------------------------------------------------------------- the own mask

/** Show how much is marked and whether undo and redo are possible. */
export function counted() {
  let sum = 0;
  for (const value of stage.mask) sum += value;
  $("marked").textContent = sum ? `${((100 * sum) / stage.mask.length).toFixed(1)} % of the image` : "nothing";
  $("undo").disabled = !stage.past.length;
  $("redo").disabled = !stage.future.length;
}

/** The mask on screen changed: save it before anything else happens. */
export function changed() {
  counted();
  return keep(stage.id, stage.mask.slice(), stage.width, stage.height);
}

/** Save a mask as this window's strokes. */
export async function keep(id, mask, width, height) {
  const { unsaved, pixels } = page;
  unsaved.set(id, mask);
  const options = writeMask(mask, width, height).then((body) => ({ method: "PUT", body }));
  try {
    await outbox.send(`draft ${id}`, `/api/cases/${id}/drafts/${page.window}`, options);
    if (unsaved.get(id) !== mask) return;
    if (pixels.has(id)) (await load(id)).mine = mask;
    unsaved.delete(id);
  } catch (error) { failed(error); }
}

/** Replace the mask on screen, so that undo brings the old one back. */
export function put(mask) {
  if (!stage.image || !mask) return;
  stage.remember();
  stage.forgetClicks();
  stage.replace(mask);
  changed();
}

/** Replace the mask on screen by one of the models' masks. */
export async function useMask(name) {
  const id = stage.id;
  if (!stage.image) return;
  const mask = (await load(id))[name]?.slice();
  if (stage.id === id) put(mask);
}

// ---------------------------------------------------------------------------- SAM

let clickNumber = 0;
async function clickSam(x, y, inside) {
  const id = stage.id, number = ++clickNumber;
  const base = stage.clicks.base || stage.mask.slice();
  const points = [...stage.clicks.points, { x, y, inside }];
  $("hint").textContent = "SAM is working…";
  const asked = performance.now();
  try {
    const answer = await ask(`/api/cases/${id}/sam`, {
      method: "POST",
      body: JSON.stringify({ image: stage.of.image, clicks: points.map((point) => [point.x, point.y, point.inside]) }),
    });
    const found = await readMask(answer);
    if (stage.id !== id || number !== clickNumber) return;
    if ($("add").checked) for (let i = 0; i < found.length; i++) found[i] |= base[i];
    stage.remember();
    stage.clicks = { points, base };
    stage.replace(found);
    document.body.dataset.samMs = (performance.now() - asked).toFixed(1);
    changed();
  } catch (error) { failed(error); } finally { if (number === clickNumber) hinted(); }
}

/** Say what the chosen tool does. */
export function hinted() { $("hint").textContent = HINTS[stage.tool]; }
