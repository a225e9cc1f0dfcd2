"use strict";
/* Spots of a table on a canvas: coloured by a gene or a column, found under the pointer. */

(function (M) {
  const SMALL = 3; // px; spots of a smaller radius are written as pixels, larger ones drawn as discs

  class Spots {
    /** layer: as described; `points` in world pixels. */
    constructor(layer, points) {
      const [scale, dx, dy] = layer.place;
      this.layer = layer;
      this.points = points.slice();
      for (let i = 0; i < points.length; i += 2) {
        this.points[i] = points[i] * scale + dx;
        this.points[i + 1] = points[i + 1] * scale + dy;
      }
      this.radius = (layer.diameter * scale) / 2;
      this.grid = this.cells();
    }

    static load(layer) {
      if (!layer.spots)
        layer.spots = M.numbers(`points/${layer.id}.f32`).then((points) => new Spots(layer, points));
      return layer.spots;
    }

    /** Spots by square cells, so that the one under the pointer is found at once. */
    cells() {
      const size = Math.max(this.radius * 4, 1e-6);
      const cells = new Map();
      for (let i = 0; i < this.points.length; i += 2) {
        const key = `${Math.floor(this.points[i] / size)},${Math.floor(this.points[i + 1] / size)}`;
        if (cells.has(key)) cells.get(key).push(i / 2);
        else cells.set(key, [i / 2]);
      }
      return { size, cells };
    }

    /** Number of the spot at a place of the world, −1 for none. */
    at(x, y) {
      const { size, cells } = this.grid;
      let best = -1;
      let nearest = (this.radius * (this.layer.square ? 1.42 : 1.15)) ** 2;
      for (let i = -1; i <= 1; i++)
        for (let j = -1; j <= 1; j++)
          for (const k of cells.get(`${Math.floor(x / size) + i},${Math.floor(y / size) + j}`) || []) {
            const d = (this.points[2 * k] - x) ** 2 + (this.points[2 * k + 1] - y) ** 2;
            if (d < nearest) [best, nearest] = [k, d];
          }
      return best;
    }

    /** Draw with colours: steps (N,) uint8 of a palette of [r, g, b]; 255-step maps, or categories. */
    draw(context, frame, shown) {
      const r = this.radius * frame.scale;
      const { steps, palette, known } = shown;
      context.globalAlpha = shown.opacity;
      if (r < SMALL) this.drawPixels(context, frame, r, shown);
      else {
        const stamps = new Map();
        const side = Math.ceil(2 * r * frame.ratio) + 2;
        for (let k = 0; k < steps.length; k++) {
          if (!known[k]) continue;
          const x = (this.points[2 * k] - frame.x) * frame.scale;
          const y = (this.points[2 * k + 1] - frame.y) * frame.scale;
          if (x < -r || y < -r || x > frame.width + r || y > frame.height + r) continue;
          let stamp = stamps.get(steps[k]);
          if (!stamp) stamps.set(steps[k], (stamp = this.stamp(palette[steps[k]], r * frame.ratio, side)));
          context.drawImage(stamp, x - side / 2 / frame.ratio, y - side / 2 / frame.ratio, side / frame.ratio, side / frame.ratio);
        }
      }
      context.globalAlpha = 1;
    }

    stamp(colour, r, side) {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = side;
      const context = canvas.getContext("2d");
      context.fillStyle = `rgb(${colour})`;
      if (this.layer.square) context.fillRect(side / 2 - r, side / 2 - r, 2 * r, 2 * r);
      else {
        context.beginPath();
        context.arc(side / 2, side / 2, r, 0, 7);
        context.fill();
      }
      return canvas;
    }

    drawPixels(context, frame, r, { steps, palette, known, opacity }) {
      const [width, height] = [Math.ceil(frame.width), Math.ceil(frame.height)];
      const image = new ImageData(width, height);
      const pixels = new Uint32Array(image.data.buffer);
      const alpha = Math.round(255 * opacity) << 24;
      const colours = palette.map(([red, green, blue]) => (alpha | (blue << 16) | (green << 8) | red) >>> 0);
      const half = Math.max(0.5, r);
      for (let k = 0; k < steps.length; k++) {
        if (!known[k]) continue;
        const x = (this.points[2 * k] - frame.x) * frame.scale;
        const y = (this.points[2 * k + 1] - frame.y) * frame.scale;
        const [x0, x1] = [Math.max(0, Math.round(x - half)), Math.min(width, Math.round(x + half))];
        const [y0, y1] = [Math.max(0, Math.round(y - half)), Math.min(height, Math.round(y + half))];
        for (let row = y0; row < y1; row++) pixels.fill(colours[steps[k]], row * width + x0, row * width + Math.max(x0, x1));
      }
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [width, height];
      canvas.getContext("2d").putImageData(image, 0, 0);
      context.globalAlpha = 1;
      context.drawImage(canvas, 0, 0, width, height);
    }

    /** Mean of values over the spots within rings of the world. */
    within(rings, values) {
      let [count, sum] = [0, 0];
      for (let k = 0; k < values.length; k++)
        if (Number.isFinite(values[k]) && M.inside(rings, this.points[2 * k], this.points[2 * k + 1])) {
          count += 1;
          sum += values[k];
        }
      return { count, mean: count ? sum / count : NaN };
    }
  }

  /** Whether a point lies in flat rings, by the even-odd rule: holes count. */
  M.inside = function (rings, x, y) {
    let odd = false;
    for (const ring of rings)
      for (let i = 0, j = ring.length - 2; i < ring.length; j = i, i += 2) {
        const [x1, y1, x2, y2] = [ring[i], ring[i + 1], ring[j], ring[j + 1]];
        if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) odd = !odd;
      }
    return odd;
  };

  /** Values as steps of a palette between limits; categories keep their own numbers. */
  M.coloured = function (values, { map, limits, categories, opacity }) {
    const steps = new Uint8Array(values.length);
    const known = new Uint8Array(values.length);
    const [low, high] = limits;
    const most = categories.length || 256;
    for (let k = 0; k < values.length; k++) {
      known[k] = Number.isFinite(values[k]) ? 1 : 0;
      const step = categories.length ? values[k] : ((values[k] - low) / (high - low)) * 255;
      steps[k] = Math.max(0, Math.min(most - 1, Math.round(step)));
    }
    const hex = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
    const palette = categories.length
      ? categories.map((_, k) => hex(M.PALETTE[k % M.PALETTE.length]))
      : Array.from({ length: 256 }, (_, k) => M.colour(map, k));
    return { steps, known, palette, opacity };
  };

  M.Spots = Spots;
})(Morphogen);
