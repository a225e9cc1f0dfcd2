"use strict";
/* One pane: an image in tiles, spots and outlines over it, its name and its legend. */

(function (M) {
  class Pane {
    /** choice: what is shown (image, mode, table, quantity, gene, map, low, high, opacity). */
    constructor(element, choice) {
      this.element = element;
      this.choice = choice;
      this.chip = element.querySelector(".chip");
      this.legend = element.querySelector(".legend");
      this.values = null;
      this.viewer = OpenSeadragon({
        element: element.querySelector(".osd"),
        drawer: "canvas",
        showNavigationControl: false,
        showNavigator: element.id === "pane-a",
        navigatorPosition: "TOP_RIGHT",
        navigatorSizeRatio: 0.16,
        navigatorMaintainSizeRatio: false,
        animationTime: 0.35,
        springStiffness: 9,
        zoomPerScroll: 1.35,
        visibilityRatio: 0.4,
        minZoomImageRatio: 0.6,
        maxZoomPixelRatio: 12,
        gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
        gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true, pinchRotate: false },
        imageLoaderLimit: 5,
        maxImageCacheCount: 500,
        immediateRender: false,
        placeholderFillStyle: null,
        preserveImageSizeOnResize: true,
      });
      this.canvas = M.make("canvas", { className: "overlay" });
      this.canvas.setAttribute("aria-hidden", "true");
      this.viewer.canvas.append(this.canvas);
      this.viewer.addHandler("update-viewport", () => this.draw());
      this.viewer.addHandler("resize", () => this.draw());
      this.viewer.addHandler("canvas-key", (event) => {
        if (/^[rRfF]$/.test(event.originalEvent.key)) event.preventDefaultAction = true; // nothing is turned or flipped
      });
      this.viewer.addHandler("tile-load-failed", () => M.say("Some of this image cannot be read.", 6000));
    }

    get image() {
      return M.view.layers[this.choice.image];
    }

    get table() {
      return this.choice.table === null ? null : M.view.layers[this.choice.table];
    }

    /** Show the image that is chosen, where the pane looks already. */
    showImage() {
      const layer = this.image;
      this.label();
      if (!layer) return Promise.resolve();
      const { mode } = this.choice;
      const { id, width, height, tile, levels, type, place } = layer;
      const region = M.view.region;
      const source = {
        width,
        height,
        tileSize: tile,
        minLevel: 0,
        maxLevel: levels - 1,
        getTileUrl: (level, x, y) => `tiles/${id}/${mode}/${level}/${x}_${y}.${type}`,
      };
      if (region)
        source.tileExists = (level, x, y) => {
          const side = tile * 2 ** (levels - 1 - level) * place[0];
          return x >= 0 && y >= 0 && x * side < region[0] + region[2] && (x + 1) * side > region[0] && y * side < region[1] + region[3] && (y + 1) * side > region[1];
        };
      return new Promise((resolve) => {
        this.viewer.addTiledImage({
          tileSource: source,
          index: 0,
          replace: this.viewer.world.getItemCount() > 0,
          x: place[1] / M.view.width,
          y: place[2] / M.view.width,
          width: (width * place[0]) / M.view.width,
          success: ({ item }) => {
            if (region) {
              const s = place[0];
              item.setClip(new OpenSeadragon.Rect(region[0] / s, region[1] / s, region[2] / s, region[3] / s));
            }
            resolve();
          },
          error: () => resolve(),
        });
      });
    }

    /** Load what the choice of spots asks for, and draw it. */
    async showSpots() {
      const { table } = this;
      const choice = this.choice;
      const asked = (this.asked = {});
      this.values = null;
      if (table) {
        try {
          this.spots = await M.Spots.load(table);
          const values = await M.numbers(M.valuesPath(choice));
          if (asked !== this.asked) return; // something else was chosen meanwhile
          this.values = values;
          this.usual = M.limits(values);
          this.recolour();
        } catch (error) {
          if (asked === this.asked) M.say(`${M.titleOf(choice)}: ${error.message}`, 5000);
        }
      }
      this.label();
      this.draw();
    }

    get limits() {
      const { low, high } = this.choice;
      const [a, b] = this.usual || [0, 1];
      const [x, y] = [low ?? a, high ?? b];
      return y > x ? [x, y] : [x, x + 1e-6];
    }

    get categories() {
      const { quantity } = this.choice;
      return this.table && quantity < 0 ? this.table.labels[-1 - quantity].categories : [];
    }

    recolour() {
      if (!this.values) return;
      const { map, opacity } = this.choice;
      this.shown = M.coloured(this.values, { map, opacity, limits: this.limits, categories: this.categories });
      this.label();
      this.draw();
    }

    /** Where the pane looks: world pixel of its corner, CSS pixels per world pixel, size. */
    frame() {
      const bounds = this.viewer.viewport.getBounds(true);
      const size = this.viewer.viewport.getContainerSize();
      return {
        x: bounds.x * M.view.width,
        y: bounds.y * M.view.width,
        scale: size.x / (bounds.width * M.view.width),
        width: size.x,
        height: size.y,
        ratio: window.devicePixelRatio || 1,
      };
    }

    draw() {
      const frame = this.frame();
      if (!frame.width || !Number.isFinite(frame.scale)) return;
      const { canvas } = this;
      const [width, height] = [Math.round(frame.width * frame.ratio), Math.round(frame.height * frame.ratio)];
      if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
      const context = canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, width, height);
      context.setTransform(frame.ratio, 0, 0, frame.ratio, 0, 0);
      if (this.table && this.values && this.shown) this.spots.draw(context, frame, this.shown);
      for (const { outlines, style } of M.shownOutlines()) outlines.draw(context, frame, style);
      M.regions.draw(context, frame);
    }

    /** The name above the image, and the legend of the spots. */
    label() {
      const { table, image } = this;
      const mode = image && image.modes.indexOf(this.choice.mode) > 0 ? ` · ${this.choice.mode}` : "";
      const parts = [image ? image.name + mode : ""];
      if (image && image.notes["made by"]) parts.push(image.notes["made by"]);
      this.chip.replaceChildren(
        M.make("b", {}, parts[0]),
        ...(parts[1] ? [M.make("small", {}, parts[1])] : []),
      );
      this.legend.hidden = !(table && this.values);
      if (this.legend.hidden) return this.legendOfClasses();
      const title = M.make("p", {}, M.titleOf(this.choice));
      const names = this.categories;
      if (names.length) {
        const rows = names.slice(0, 16).map((name, k) => swatch(M.PALETTE[k % M.PALETTE.length], name));
        return this.legend.replaceChildren(title, M.make("ul", {}, ...rows));
      }
      const bar = M.make("canvas", { width: 256, height: 1, className: "bar" });
      const context = bar.getContext("2d");
      for (let k = 0; k < 256; k++) {
        context.fillStyle = `rgb(${M.colour(this.choice.map, k)})`;
        context.fillRect(k, 0, 1, 1);
      }
      const [low, high] = this.limits;
      const ends = M.make("div", { className: "ends" }, M.make("span", {}, M.number(low)), M.make("span", {}, M.number(high)));
      this.legend.replaceChildren(title, bar, ends);
    }

    legendOfClasses() {
      const classes = this.image ? this.image.classes : [];
      this.legend.hidden = !classes.length;
      const rows = classes.slice(0, 16).map(({ name, colour }) => swatch(colour, name));
      this.legend.replaceChildren(M.make("ul", {}, ...rows));
    }

    /** What is at a place of the world, in words; image values come later, through `then`. */
    async read(x, y) {
      const words = [];
      if (this.image && !M.view.static) {
        const [scale, dx, dy] = this.image.place;
        const at = `at/${this.image.id}/${this.choice.mode}/${Math.floor((x - dx) / scale)}/${Math.floor((y - dy) / scale)}.json`;
        const found = await M.json(at).catch(() => ({}));
        const unit = this.image.notes.unit ? ` (${this.image.notes.unit})` : "";
        if (found.class !== undefined) words.push(found.class);
        if (found.value !== undefined) words.push(`${found.value}${unit}`);
        if (found.density !== undefined) words.push(`${this.choice.mode} OD ${M.number(found.density)}`);
        if (found.rgb) words.push(`RGB ${found.rgb.join(" ")}`);
      }
      if (this.table && this.values && this.spots) {
        const k = this.spots.at(x, y);
        if (k >= 0) {
          const value = this.categories.length ? this.categories[this.values[k]] || "–" : M.number(this.values[k]);
          words.push(`${M.titleOf(this.choice)}: ${value}`);
        }
      }
      return words.join(" · ");
    }
  }

  function swatch(colour, name) {
    const dot = M.make("i", {});
    dot.style.background = colour;
    return M.make("li", {}, dot, name);
  }

  /** Where the numbers of a choice lie; negative quantities are columns of the table of spots. */
  M.valuesPath = ({ table, quantity, gene }) =>
    quantity < 0 ? `labels/${table}/${-1 - quantity}.f32` : `values/${table}/${quantity}/${gene}.f32`;

  M.titleOf = function ({ table, quantity, gene }) {
    const layer = M.view.layers[table];
    if (!layer) return "";
    if (quantity < 0) return layer.labels[-1 - quantity].name;
    return `${layer.genes[gene]}, ${layer.quantities[quantity].title}`;
  };

  M.Pane = Pane;
})(Morphogen);
