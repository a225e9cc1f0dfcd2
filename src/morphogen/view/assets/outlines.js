"use strict";
/* Outlines of a GeoJSON file, and regions, on a canvas. */

(function (M) {
  class Outlines {
    constructor(layer, features) {
      const [scale, dx, dy] = layer.place;
      this.layer = layer;
      this.items = features.map((feature) => {
        const rings = feature.rings.map((ring) => ring.map((v, i) => v * scale + (i % 2 ? dy : dx)));
        const path = new Path2D();
        let box = [Infinity, Infinity, -Infinity, -Infinity];
        for (const ring of rings) {
          for (let i = 0; i < ring.length; i += 2) {
            path[i ? "lineTo" : "moveTo"](ring[i], ring[i + 1]);
            box = [Math.min(box[0], ring[i]), Math.min(box[1], ring[i + 1]), Math.max(box[2], ring[i]), Math.max(box[3], ring[i + 1])];
          }
          if (feature.closed) path.closePath();
          if (ring.length === 2) path.arc(ring[0], ring[1], 4 * scale, 0, 7);
        }
        return { ...feature, rings, path, box };
      });
      this.limits = {};
    }

    static load(layer) {
      if (!layer.outlines)
        layer.outlines = M.json(`outlines/${layer.id}.json`).then((features) => new Outlines(layer, features));
      return layer.outlines;
    }

    colour(item, value, map) {
      if (value) {
        if (!this.limits[value]) this.limits[value] = M.limits(this.items.map((each) => each.values[value] ?? NaN));
        const [low, high] = this.limits[value];
        const number = item.values[value];
        return Number.isFinite(number) ? `rgb(${M.colour(map, ((number - low) / (high - low)) * 255)})` : null;
      }
      const at = this.layer.classes.indexOf(item.class);
      return M.PALETTE[Math.max(0, at) % M.PALETTE.length];
    }

    draw(context, frame, { opacity, value, map }) {
      context.save();
      context.scale(frame.scale, frame.scale);
      context.translate(-frame.x, -frame.y);
      const [right, bottom] = [frame.x + frame.width / frame.scale, frame.y + frame.height / frame.scale];
      const least = 0.7 / frame.scale;
      for (const item of this.items) {
        const [x0, y0, x1, y1] = item.box;
        if (x1 < frame.x || y1 < frame.y || x0 > right || y0 > bottom) continue;
        const colour = this.colour(item, value, map);
        if (!colour) continue;
        context.strokeStyle = context.fillStyle = colour;
        if (x1 - x0 < least && y1 - y0 < least) {
          context.globalAlpha = opacity;
          context.fillRect(x0, y0, least, least);
          continue;
        }
        context.globalAlpha = opacity * (value ? 0.9 : 0.25);
        if (item.closed) context.fill(item.path, "evenodd");
        context.globalAlpha = opacity;
        context.lineWidth = 1.6 / frame.scale;
        if (!value) context.stroke(item.path);
      }
      context.restore();
    }

    /** The last drawn, smallest outline at a place, or undefined. */
    at(x, y) {
      const size = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
      return this.items
        .filter(({ box, closed }) => closed && x >= box[0] && x <= box[2] && y >= box[1] && y <= box[3])
        .sort((a, b) => size(a) - size(b))
        .find((item) => M.inside(item.rings, x, y));
    }
  }

  M.Outlines = Outlines;
})(Morphogen);
