// Tell the person what went wrong and whether everything is saved; send work to the server.

import { Outbox, Refusal, Unreachable } from "/server.js";
import { $ } from "/state.js";

let alarmed = ""; // the kind of the message on screen

export const outbox = new Outbox((waiting, error) => {
  $("saved").textContent = waiting ? "saving…" : "all saved";
  $("saved").dataset.waiting = waiting;
  if (!error) return hush("server");
  if (error instanceof Refusal && error.status === 403) {
    alarm("server", "The review was started again. Open the address that it printed in this browser, and this page continues. Nothing is lost.");
  } else if (error instanceof Refusal) alarm("server", `${error.message}.`);
  else alarm("server", "The review's server does not answer. Start it again and open its address. Your work is kept in this page.");
});

/** Show a message; the next one of any kind replaces it. */
export function alarm(kind, text) { alarmed = kind; $("alert").textContent = text; $("alert").hidden = false; }

/** Hide the message if it is of this kind. */
export function hush(kind) { if (alarmed === kind) { alarmed = ""; $("alert").hidden = true; } }

export function failed(error) {
  if (error instanceof Refusal && error.status !== 403) alarm("case", `${error.message}.`);
  else if (error instanceof Refusal || error instanceof Unreachable) outbox.tell(outbox.waiting, error);
  else { alarm("case", "This page has a bug; load it again. Your strokes are kept."); console.error(error); }
}
