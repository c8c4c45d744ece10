// Draw the image with its masks; zoom, pan, brush and eraser. No cases and no server here.

const COLOURS = { unet: [34, 211, 238], sam: [250, 204, 21], label: [74, 222, 128], mine: [244, 114, 182] };
const FILL = 64; // alpha of a mask's inside, so that the tissue stays visible
const NO_CLICKS = { points: [], base: null };
const KEPT = 60; // strokes that can be undone

export class Stage {
  /** canvas: fills its parent. events: stroke(), click(x, y, inside). */
  constructor(canvas, events) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.events = events;
    this.shown = { mine: true, label: false, unet: false, sam: false };
    this.hidden = false;
    this.tool = "brush";
    this.radius = 12;
    this.clicks = NO_CLICKS; // the clicks on one object, and the mask before the first click
    this.pointer = null;
    this.image = null;
    this.view = { scale: 1, x: 0, y: 0 };
    new ResizeObserver(() => this.#resize()).observe(canvas.parentElement);
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", (event) => this.#up(event));
    canvas.addEventListener("pointerleave", () => { if (!this.drag) { this.pointer = null; this.draw(); } });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const [x, y] = this.#place(event);
      this.zoom(Math.exp(-event.deltaY * 0.0015), x, y);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Show a case. image and masks: width x height each; mask: the one that the person edits. */
  show(width, height, image, masks, mask) {
    const other = !this.image || width !== this.width || height !== this.height;
    Object.assign(this, { width, height, image, mask: mask.slice(), past: [], future: [], clicks: NO_CLICKS });
    this.drag = null;
    this.layers = {};
    this.edge = Math.max(1, Math.round(Math.max(width, height) / 420));
    for (const [name, pixels] of Object.entries(masks)) {
      if (pixels) this.layers[name] = this.#tinted(pixels, COLOURS[name]);
    }
    this.layers.mine = this.#tinted(this.mask, COLOURS.mine);
    if (other || !this.zoomed) this.fit(); else this.draw();
  }

  clear() { this.image = null; this.draw(); }

  /** Call before the mask changes, so that undo can bring it back. */
  remember() {
    this.past.push({ mask: this.mask.slice(), clicks: this.clicks });
    if (this.past.length > KEPT) this.past.shift();
    this.future = [];
  }

  replace(mask) {
    this.mask = mask;
    this.layers.mine = this.#tinted(this.mask, COLOURS.mine);
    this.draw();
  }

  /** The next SAM click starts another object. */
  forgetClicks() { this.clicks = NO_CLICKS; this.draw(); }

  undo() { return this.#travel(this.past, this.future); }
  redo() { return this.#travel(this.future, this.past); }

  fit() {
    if (!this.image) return;
    const { clientWidth, clientHeight } = this.canvas;
    const scale = Math.min((clientWidth - 24) / this.width, (clientHeight - 24) / this.height);
    this.view = { scale, x: (clientWidth - scale * this.width) / 2, y: (clientHeight - scale * this.height) / 2 };
    this.zoomed = false;
    this.draw();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (!this.image) return;
    const before = this.view.scale;
    const scale = Math.min(60, Math.max(0.05, before * factor));
    this.view = {
      scale,
      x: x - (x - this.view.x) * (scale / before),
      y: y - (y - this.view.y) * (scale / before),
    };
    this.zoomed = true;
    this.draw();
  }

  /** Draw once in the next frame, however often this is called. */
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.#paint(); });
  }

  #paint() {
    const { context, canvas, view } = this;
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    if (!this.image) return;
    context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
    context.imageSmoothingEnabled = view.scale < 4;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.image, 0, 0, this.width, this.height);
    if (!this.hidden) {
      for (const name of ["label", "unet", "sam", "mine"]) {
        if (this.shown[name] && this.layers[name]) context.drawImage(this.layers[name], 0, 0);
      }
    }
    context.lineWidth = 1.5 / view.scale;
    for (const { x, y, inside } of this.clicks.points) {
      context.beginPath();
      context.arc(x + 0.5, y + 0.5, 6 / view.scale, 0, 7);
      context.fillStyle = inside ? "#4ade80" : "#f87171";
      context.fill();
      context.strokeStyle = "#05070a";
      context.stroke();
    }
    if (this.pointer) this.#cursor();
  }

  #cursor() {
    const { context, view, pointer: [x, y] } = this;
    const arm = 9 / view.scale;
    for (const [colour, width] of [["#05070a", 3.5], ["#fff", 1.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width / view.scale;
      context.beginPath();
      if (this.tool === "brush" || this.tool === "eraser") context.arc(x, y, this.radius, 0, 7);
      else if (this.tool === "sam") {
        context.moveTo(x - arm, y); context.lineTo(x + arm, y);
        context.moveTo(x, y - arm); context.lineTo(x, y + arm);
      }
      context.stroke();
    }
  }

  #down(event) {
    if (!this.image) return;
    const [x, y] = this.#place(event);
    const [u, v] = this.#pixel(x, y);
    if (this.tool === "pan" || event.button === 1) this.drag = { kind: "pan", x, y };
    else if (this.tool === "sam") {
      this.drag = null;
      this.#click(u, v, event.button !== 2 && !event.shiftKey);
      return;
    } else if (event.button === 0) {
      this.remember();
      this.drag = { kind: "stroke", u, v };
      this.#stroke(u, v, u, v);
    } else return;
    this.canvas.setPointerCapture(event.pointerId);
  }

  #move(event) {
    if (!this.image) return;
    const [x, y] = this.#place(event);
    const [u, v] = this.#pixel(x, y);
    this.pointer = [u, v];
    if (this.drag?.kind === "pan") {
      this.view.x += x - this.drag.x;
      this.view.y += y - this.drag.y;
      this.zoomed = true;
      Object.assign(this.drag, { x, y });
    } else if (this.drag?.kind === "stroke") {
      this.#stroke(this.drag.u, this.drag.v, u, v);
      Object.assign(this.drag, { u, v });
    }
    this.draw();
  }

  #up() {
    const kind = this.drag?.kind;
    this.drag = null;
    if (kind === "stroke") this.events.stroke();
  }

  #key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!this.image || event.ctrlKey || event.metaKey || event.altKey) return;
    const [u, v] = this.pointer || [this.width / 2, this.height / 2];
    if (moves[event.key]) {
      const step = event.shiftKey ? 1 : Math.max(2, Math.round(Math.max(this.width, this.height) / 64));
      const [du, dv] = moves[event.key];
      this.pointer = [
        Math.min(this.width - 0.5, Math.max(0.5, u + step * du)),
        Math.min(this.height - 0.5, Math.max(0.5, v + step * dv)),
      ];
    } else if (event.key === " ") {
      this.pointer = [u, v];
      if (this.tool === "sam") this.#click(u, v, !event.shiftKey);
      else if (this.tool !== "pan") { this.remember(); this.#stroke(u, v, u, v); this.events.stroke(); }
    } else return;
    event.preventDefault();
    this.draw();
  }

  #click(u, v, inside) {
    if (u < 0 || v < 0 || u >= this.width || v >= this.height) return;
    this.events.click(Math.floor(u), Math.floor(v), inside);
  }

  /** Draw discs along a line, cut at the border of the image. */
  #stroke(u0, v0, u1, v1) {
    const r = this.radius, value = this.tool === "brush" ? 1 : 0;
    const steps = Math.max(1, Math.ceil(Math.hypot(u1 - u0, v1 - v0) / Math.max(1, r / 3)));
    for (let i = 0; i <= steps; i++) {
      const u = u0 + ((u1 - u0) * i) / steps, v = v0 + ((v1 - v0) * i) / steps;
      const top = Math.max(0, Math.floor(v - r)), bottom = Math.min(this.height - 1, Math.ceil(v + r));
      for (let row = top; row <= bottom; row++) {
        const half = Math.sqrt(Math.max(0, r * r - (row + 0.5 - v) ** 2));
        const from = Math.max(0, Math.round(u - half)), to = Math.min(this.width, Math.round(u + half));
        if (to > from) this.mask.fill(value, row * this.width + from, row * this.width + to);
      }
    }
    const pad = r + this.edge + 2;
    this.#tint(this.layers.mine.getContext("2d"), this.mask, COLOURS.mine,
      Math.min(u0, u1) - pad, Math.min(v0, v1) - pad, Math.max(u0, u1) + pad, Math.max(v0, v1) + pad);
    this.draw();
  }

  #travel(from, to) {
    if (!from?.length) return false;
    to.push({ mask: this.mask, clicks: this.clicks });
    const { mask, clicks } = from.pop();
    this.clicks = clicks;
    this.replace(mask);
    return true;
  }

  #tinted(mask, colour) {
    const layer = new OffscreenCanvas(this.width, this.height);
    this.#tint(layer.getContext("2d"), mask, colour, 0, 0, this.width, this.height);
    return layer;
  }

  /** Colour a mask between two corners of a layer: a transparent inside and an opaque edge. */
  #tint(context, mask, [r, g, b], u0, v0, u1, v1) {
    const { width, height, edge } = this;
    const left = Math.max(0, Math.floor(u0)), top = Math.max(0, Math.floor(v0));
    const right = Math.min(width, Math.ceil(u1)), bottom = Math.min(height, Math.ceil(v1));
    if (right <= left || bottom <= top) return;
    const pixels = new ImageData(right - left, bottom - top);
    const words = new Uint32Array(pixels.data.buffer);
    const colour = (b << 16) | (g << 8) | r;
    const inner = (colour | (FILL << 24)) >>> 0, outer = (colour | (255 << 24)) >>> 0;
    let at = 0;
    for (let row = top; row < bottom; row++) {
      const up = Math.max(0, row - edge) * width, down = Math.min(height - 1, row + edge) * width;
      const here = row * width;
      for (let column = left; column < right; column++, at++) {
        if (!mask[here + column]) continue;
        const whole = mask[up + column] && mask[down + column]
          && mask[here + Math.max(0, column - edge)] && mask[here + Math.min(width - 1, column + edge)];
        words[at] = whole ? inner : outer;
      }
    }
    context.putImageData(pixels, left, top);
  }

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #pixel(x, y) { return [(x - this.view.x) / this.view.scale, (y - this.view.y) / this.view.scale]; }

  #resize() {
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.canvas.clientWidth * ratio);
    this.canvas.height = Math.round(this.canvas.clientHeight * ratio);
    if (this.zoomed) this.draw(); else this.fit();
    this.#paint();
  }
}
