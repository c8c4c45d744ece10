// Decide on cases: show the next one at once, deliver in the background, settle conflicts.

import { counted, keep, load, open, stage } from "/case.js";
import { listed } from "/list.js";
import { failed, outbox } from "/messages.js";
import { Refusal, asBase64, ask, readMask, writeMask } from "/server.js";
import { $, hex, isDecided, isLabel, page, verdictOf } from "/state.js";

const conflicts = []; // decisions refused because another window had decided; settled one by one
let lastDecided = null; // id of the case that this page decided on last

export async function decide(verdict) {
  const { cases, unsaved, pixels } = page;
  if (verdict === "skipped" && (!stage.image || isDecided(cases.get(page.current)))) return next();
  // Before its image is shown, the person has not seen the case: the previous one may be on screen.
  if (!stage.image || stage.id !== page.current) return;
  const id = page.current, one = cases.get(id);
  let kind = verdict;
  if (verdict === "accepted" && stage.mask.some((value, i) => value !== stage.start[i])) kind = "corrected";
  const before = one.decision;
  const decision = { id: hex(8), verdict: kind, ...stage.of };
  const drawn = { mask: stage.mask.slice(), width: stage.width, height: stage.height };
  if (isLabel(kind)) {
    unsaved.set(id, drawn.mask);
    pixels.get(id)?.then((held) => { held.mine = drawn.mask; });
  }
  if (kind !== "skipped") lastDecided = id;
  // The next case is shown at once; the decision stays in this page until the server has it.
  expect(id, decision);
  next();
  await deliver(id, decision, before, drawn);
}

/** Take back the last decision of this page, or the one on the case on screen. */
export async function withdraw() {
  const { cases } = page;
  const id = lastDecided && isDecided(cases.get(lastDecided)) ? lastDecided : page.current;
  if (!id || !verdictOf(cases.get(id))) return;
  const one = cases.get(id), before = one.decision;
  lastDecided = null;
  const held = await load(id);
  const decision = { id: hex(8), verdict: "withdrawn", round: held.round, image: held.digest };
  expect(id, decision);
  const drawn = { mask: held.mine || held.label, width: one.width, height: one.height };
  const delivered = deliver(id, decision, before, drawn);
  await open(id);
  await delivered;
}

/** Open the next case without a decision, or the previous case if `step` is -1. */
export function next(step = 1) {
  const { cases, order, current } = page;
  const at = order.indexOf(current);
  let to = order[at + step];
  if (step > 0) to = order.slice(at + 1).find((id) => !isDecided(cases.get(id))) || order.find((id) => id !== current && !isDecided(cases.get(id))) || to;
  if (to) open(to);
}

/** Show a decision that the server does not have yet. */
function expect(id, { id: decisionId, verdict }) {
  const shown = { id: decisionId, verdict, role: $("role").textContent, when: new Date().toISOString() };
  page.pending.set(id, shown);
  page.cases.get(id).decision = shown;
  page.cases.get(id).lost = null;
  listed();
}

/** Send a decision. before: the last decision that the person knew about; drawn: the mask. */
async function deliver(id, decision, before, drawn) {
  const { unsaved } = page;
  try {
    const mask = isLabel(decision.verdict)
      ? writeMask(drawn.mask, drawn.width, drawn.height).then(asBase64) : Promise.resolve(null);
    // The page chooses the id: if the answer is lost and the decision is sent again, it counts once.
    const body = { ...decision, window: page.window, seen: before?.id ?? null };
    const options = mask.then((mask) => ({ method: "POST", body: JSON.stringify({ ...body, mask }) }));
    const answer = await (await outbox.send(null, `/api/cases/${id}/decision`, options)).json();
    settled(id, answer.decision);
    if (unsaved.get(id) === drawn.mask) unsaved.delete(id);
  } catch (error) {
    settled(id, before);
    if (unsaved.get(id) === drawn.mask) {
      unsaved.delete(id);
      if (decision.verdict === "corrected") keep(id, drawn.mask, drawn.width, drawn.height);
    }
    if (error instanceof Refusal && error.status === 409) {
      conflicts.push({ id, decision, drawn, other: error.decision, text: error.message });
      showConflict();
    } else { open(id); failed(error); }
  }
}

function settled(id, decision) {
  page.pending.delete(id);
  page.settledAt.set(id, performance.now());
  const one = page.cases.get(id);
  if (one) one.decision = decision;
  listed();
}

// ---------------------------------------------------------------------------- conflicts

/** One question at a time; Esc keeps the strokes and decides nothing. */
function showConflict() {
  const dialog = $("conflict");
  if (dialog.open || !conflicts.length) return;
  const { id, decision, text } = conflicts[0];
  $("conflict-text").textContent = `${page.cases.get(id)?.case_id ?? "A case"}: ${text}. Your decision: ${decision.verdict}.`;
  dialog.returnValue = "";
  dialog.showModal();
}

$("conflict").addEventListener("close", async () => {
  const chosen = $("conflict").returnValue;
  const { id, decision, drawn, other } = conflicts.shift();
  if (chosen === "mine") {
    expect(id, decision);
    deliver(id, decision, other, drawn);
  } else {
    settled(id, other);
    if (chosen === "other") await showOther(id);
  }
  showConflict();
});

/** Show the other window's mask. Undo brings the own mask back, and the own one stays saved. */
async function showOther(id) {
  try {
    await open(id);
    const mask = await ask(`/api/cases/${id}/accepted.png`).then(readMask);
    if (!mask || stage.id !== id || !stage.image) return;
    stage.remember();
    stage.replace(mask);
    counted();
  } catch (error) { failed(error); }
}

for (const choice of ["keep", "other", "mine"]) $(`conflict-${choice}`).addEventListener("click", () => $("conflict").close(choice));
