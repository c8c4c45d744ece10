// Send requests to the review's server; keep what cannot be delivered and send it again.

/** The server answered with an error. */
export class Refusal extends Error {
  constructor(status, answer) {
    super(answer.error || `the server answered ${status}`);
    this.status = status;
    this.decision = answer.decision || null;
  }
}

/** The server did not answer. */
export class Unreachable extends Error {}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: { "x-knowmine": "review", ...(options.headers || {}) } });
  } catch (error) {
    throw new Unreachable(error.message);
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let reason = { error: text };
  try { reason = JSON.parse(text); } catch { /* plain text */ }
  throw new Refusal(answer.status, reason);
}

/** Delivers jobs in order; each one until the server accepts it or refuses it for good. */
export class Outbox {
  #jobs = [];
  #busy = false;

  /** tell(waiting, error): called when the number of waiting jobs or the error changes. */
  constructor(tell, retryMs = 1500) {
    this.tell = tell;
    this.retryMs = retryMs;
  }

  get waiting() { return this.#jobs.length; }

  /** Resolves with the answer; rejects with a Refusal that is final.
   * `options` may be a promise: a job that is still being prepared already counts as waiting. */
  send(id, path, options) {
    return new Promise((resolve, reject) => {
      // A newer job with the same id replaces one that still waits, but not the one being sent.
      const old = this.#jobs.findIndex((job, i) => (i > 0 || !this.#busy) && job.id === id);
      if (id && old >= 0) this.#jobs.splice(old, 1)[0].resolve(null);
      this.#jobs.push({ id, path, options, resolve, reject });
      this.tell(this.waiting, null);
      this.#work();
    });
  }

  async #work() {
    if (this.#busy) return;
    this.#busy = true;
    while (this.#jobs.length) {
      const job = this.#jobs[0];
      try {
        const answer = await ask(job.path, await job.options);
        this.#jobs.shift();
        job.resolve(answer);
        this.tell(this.waiting, null);
      } catch (error) {
        const final = error instanceof Refusal
          ? [404, 409, 422].includes(error.status)
          : !(error instanceof Unreachable);
        if (final) {
          this.#jobs.shift();
          job.reject(error);
          this.tell(this.waiting, null);
        } else {
          this.tell(this.waiting, error);
          await new Promise((resolve) => setTimeout(resolve, this.retryMs));
        }
      }
    }
    this.#busy = false;
  }
}

/** A mask from the server's PNG: one byte a pixel, 0 or 1; null if there is none. */
export async function readMask(answer) {
  if (answer.status === 204) return null;
  const picture = await createImageBitmap(await answer.blob());
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, picture.width, picture.height);
  const mask = new Uint8Array(picture.width * picture.height);
  for (let i = 0; i < mask.length; i++) mask[i] = data[4 * i] > 127 ? 1 : 0;
  return mask;
}

/** A mask as a PNG of 0 and 255. */
export async function writeMask(mask, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < mask.length; i++) words[i] = mask[i] ? 0xffffffff : 0xff000000;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

export async function asBase64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) {
    text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  }
  return btoa(text);
}
