"use strict";
/* The page: how panes are laid out and linked, what is under the pointer, the scale, the link of the view. */

(function (M) {
  const view = (M.view = M.given.get("view"));
  const $ = (id) => document.getElementById(id);
  const [stage, divider, blend, drawLayer, aside] = ["stage", "divider", "blend", "draw", "controls"].map($);
  const MODES = [["one", "One"], ["side", "Side by side"], ["slider", "Slider"], ["blend", "Blend"]];
  const POWERS = [1, 2.5, 5, 10, 20, 40];
  const images = view.layers.filter(({ kind }) => kind === "image");
  const tables = view.layers.filter(({ kind }) => kind === "spots");

  // ---------------------------------------------------------------- what is shown at first

  const choice = (at) => {
    const image = images[Math.min(at, images.length - 1)];
    const table = tables.length ? tables[0] : null;
    const spread = table ? table.quantities.findIndex((each) => each.spread) : -1;
    const predicted = table ? table.quantities.findIndex(({ title }) => title === "predicted mean") : -1;
    const first = predicted >= 0 ? predicted : table && table.quantities.length ? 0 : -1;
    const second = images.length < 2 && spread >= 0 ? spread : first;
    const quantity = at ? second : first;
    return {
      image: image ? image.id : -1,
      mode: image ? image.modes[0] : "",
      table: table && images.length < 2 && (at || spread >= 0 || !image) ? table.id : null,
      quantity,
      gene: table ? (table.varied[0] ?? 0) : 0,
      map: table && quantity >= 0 && table.quantities[quantity].spread ? "viridis" : "magma",
      low: null,
      high: null,
      opacity: 0.85,
    };
  };
  const state = {
    mode: images.length > 1 || (tables.length && !tables[0].quantities.some(({ spread }) => spread)) ? "slider" : tables.length ? "side" : "one",
    split: 50,
    blend: 50,
    outlines: view.layers.filter(({ kind }) => kind === "outlines").map(({ id }) => id),
    outlineOpacity: 0.9,
    outlineValue: "",
    panes: [choice(0), choice(1)],
  };
  const start = readLink();
  const panes = [new M.Pane($("pane-a"), state.panes[0]), new M.Pane($("pane-b"), state.panes[1])];
  const [a, b] = panes;

  // ---------------------------------------------------------------- the link of the view

  function readLink() {
    const given = new URLSearchParams(location.hash.slice(1));
    const number = (key, fallback) => (given.has(key) && Number.isFinite(Number(given.get(key))) ? Number(given.get(key)) : fallback);
    if (MODES.some(([mode]) => mode === given.get("show"))) state.mode = given.get("show");
    state.split = Math.max(0, Math.min(100, number("split", state.split)));
    state.blend = Math.max(0, Math.min(100, number("blend", state.blend)));
    state.panes.forEach((pane, k) => {
      const side = k ? "b" : "a";
      const image = view.layers[number(`${side}i`, pane.image)];
      if (image && image.kind === "image") {
        pane.image = image.id;
        pane.mode = image.modes.includes(given.get(`${side}m`)) ? given.get(`${side}m`) : image.modes[0];
      }
      if (given.get(`${side}t`) === "none") pane.table = null;
      const table = view.layers[number(`${side}t`, -1)];
      if (table && table.kind === "spots") pane.table = table.id;
      const shown = view.layers[pane.table];
      if (!shown) return;
      const quantity = number(`${side}q`, pane.quantity);
      if (shown.quantities[quantity] || shown.labels[-1 - quantity]) pane.quantity = quantity;
      const gene = shown.genes.indexOf(given.get(`${side}g`));
      if (gene >= 0) pane.gene = gene;
      if (view.maps[given.get(`${side}c`)]) pane.map = given.get(`${side}c`);
      pane.low = number(`${side}l`, null);
      pane.high = number(`${side}h`, null);
      pane.opacity = Math.max(0, Math.min(1, number(`${side}o`, pane.opacity)));
    });
    if (given.has("outlines")) state.outlines = given.get("outlines").split(".").filter(Boolean).map(Number).filter((id) => view.layers[id] && view.layers[id].kind === "outlines");
    return given.has("x") ? [number("x", 0), number("y", 0), number("w", view.width)] : null;
  }

  function writeLink() {
    const { x, y, width, scale } = a.frame();
    const shown = new URLSearchParams({ show: state.mode });
    if (state.mode === "slider") shown.set("split", Math.round(state.split));
    if (state.mode === "blend") shown.set("blend", Math.round(state.blend));
    for (const [key, value] of [["x", x + width / scale / 2], ["y", y + a.frame().height / scale / 2], ["w", width / scale]]) shown.set(key, Math.round(value));
    state.panes.forEach((pane, k) => {
      const side = k ? "b" : "a";
      shown.set(`${side}i`, pane.image);
      shown.set(`${side}m`, pane.mode);
      const table = view.layers[pane.table];
      shown.set(`${side}t`, table ? pane.table : "none");
      if (!table) return;
      shown.set(`${side}q`, pane.quantity);
      shown.set(`${side}g`, table.genes[pane.gene] ?? "");
      shown.set(`${side}c`, pane.map);
      shown.set(`${side}o`, pane.opacity);
      if (pane.low !== null) shown.set(`${side}l`, pane.low);
      if (pane.high !== null) shown.set(`${side}h`, pane.high);
    });
    shown.set("outlines", state.outlines.join("."));
    history.replaceState(null, "", `#${shown}`);
  }
  const noteLink = M.debounce(writeLink, 250);

  // ---------------------------------------------------------------- outlines that are shown

  let shownOutlines = [];
  M.shownOutlines = () => shownOutlines;
  async function loadOutlines() {
    const wanted = [...state.outlines].sort((x, y) => x - y);
    const style = { opacity: state.outlineOpacity, value: state.outlineValue, map: "magma" };
    const loaded = await Promise.all(wanted.map((id) => M.Outlines.load(view.layers[id]).catch(() => null)));
    shownOutlines = loaded.filter(Boolean).map((outlines) => ({ outlines, style }));
    redraw();
  }
  const redraw = (M.regions.redraw = () => panes.forEach((pane) => pane.visible && pane.draw()));

  // ---------------------------------------------------------------- layout

  function layOut() {
    const { mode } = state;
    const two = mode !== "one";
    if (!two) lead(a);
    stage.dataset.mode = mode;
    divider.hidden = mode !== "slider";
    blend.hidden = mode !== "blend";
    a.visible = true;
    b.visible = two;
    b.element.hidden = !two;
    const over = mode === "slider" ? `inset(0 0 0 ${state.split}%)` : "none";
    b.element.style.clipPath = over;
    b.element.querySelector(".osd").style.opacity = mode === "blend" ? state.blend / 100 : 1;
    divider.style.left = `${state.split}%`;
    divider.setAttribute("aria-valuenow", Math.round(state.split));
    for (const input of $("modes").querySelectorAll("button")) input.setAttribute("aria-checked", String(input.value === mode));
    for (const [k, pane] of panes.entries()) {
      const legend = controls[k].querySelector("legend");
      legend.textContent = !two ? "Image" : mode === "blend" ? ["Below", "Above"][k] : ["Left", "Right"][k];
      pane.element.setAttribute("aria-label", `${legend.textContent} image`);
    }
    controls[1].hidden = !two;
    blend.querySelector(".name-a").textContent = a.image ? a.image.name : "";
    blend.querySelector(".name-b").textContent = b.image ? b.image.name : "";
    requestAnimationFrame(() => {
      follow();
      redraw();
      noteLink();
    });
  }

  // The pane that is moved leads, the other looks at the same place at the same scale.
  let leader = a;
  const lead = (pane) => {
    leader = pane;
  };
  function follow() {
    const other = leader === a ? b : a;
    if (!other.visible || !leader.visible) return;
    const { x, y } = leader.viewer.viewport.getCenter(true);
    const to = other.viewer.viewport;
    const width = to.getContainerSize().x;
    if (!width) return;
    to.zoomTo((leader.frame().scale * view.width) / width, null, true);
    to.panTo(new OpenSeadragon.Point(x, y), true);
  }

  function look([x, y, width, height], immediately = false) {
    lead(a);
    const margin = 0.04 * Math.max(width, height);
    const box = new OpenSeadragon.Rect((x - margin) / view.width, (y - margin) / view.width, (width + 2 * margin) / view.width, (height + 2 * margin) / view.width);
    a.viewer.viewport.fitBounds(box, immediately);
  }
  const everything = () => view.region || [0, 0, view.width, view.height];

  // ---------------------------------------------------------------- scale, magnification

  function scale() {
    const frame = a.frame();
    if (!Number.isFinite(frame.scale) || !frame.scale) return;
    const perUnit = frame.scale / (view.mpp || 1);
    const most = Math.min(180, frame.width * 0.4) / perUnit;
    const ten = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((n) => n * ten).find((n) => n <= most) || ten;
    $("scale").querySelector("i").style.width = `${length * perUnit}px`;
    $("scale").querySelector("span").textContent = view.mpp ? (length >= 1000 ? `${length / 1000} mm` : `${length} µm`) : `${length} px`;
    const power = view.mpp ? (10 * frame.scale) / view.mpp : frame.scale * 100;
    const now = $("power").options[0];
    now.textContent = view.mpp ? `${power >= 10 ? power.toFixed(0) : power.toFixed(1)}×` : `${power.toFixed(0)} %`;
    $("power").value = "";
  }

  M.options($("power"), [["", ""], ...(view.mpp ? POWERS.map((n) => [n, `${n}×`]) : [12.5, 25, 50, 100, 200].map((n) => [n, `${n} %`]))], "");
  $("power").addEventListener("change", () => {
    const wanted = Number($("power").value);
    lead(a);
    const to = view.mpp ? (wanted * view.mpp) / 10 : wanted / 100;
    a.viewer.viewport.zoomBy(to / a.frame().scale);
    a.viewer.viewport.applyConstraints();
  });

  // ---------------------------------------------------------------- values under the pointer

  function worldOf(event, sameAs = event) {
    const sides = stage.getBoundingClientRect();
    let pane = a;
    if (state.mode === "side" && isRight(sameAs)) pane = b;
    const box = pane.element.getBoundingClientRect();
    const frame = pane.frame();
    return [frame.x + (event.clientX - box.left) / frame.scale, frame.y + (event.clientY - box.top) / frame.scale, sides];
  }
  const isRight = (event) => {
    const box = b.element.getBoundingClientRect();
    const upright = getComputedStyle(stage).flexDirection === "column";
    return upright ? event.clientY >= box.top : event.clientX >= box.left;
  };

  let reading = 0;
  const read = M.debounce(async (x, y) => {
    const turn = (reading += 1);
    $("where").textContent = view.mpp ? `x ${M.length(x)}, y ${M.length(y)}` : `x ${Math.round(x)}, y ${Math.round(y)} px`;
    const shown = panes.filter((pane) => pane.visible);
    const words = await Promise.all(shown.map((pane) => pane.read(x, y)));
    if (turn !== reading) return;
    const names = shown.map((_, k) => (shown.length > 1 ? controls[k].querySelector("legend").textContent : ""));
    const parts = words.map((text, k) => (text ? M.make("span", { className: "value" }, names[k] ? M.make("b", {}, names[k]) : null, text) : null));
    for (const { outlines } of shownOutlines) {
      const found = outlines.at(x, y);
      if (!found) continue;
      const number = state.outlineValue ? found.values[state.outlineValue] : NaN;
      const text = [found.class, found.name, Number.isFinite(number) ? `${state.outlineValue}: ${M.number(number)}` : ""].filter(Boolean).join(", ");
      if (text) parts.push(M.make("span", { className: "value" }, M.make("b", {}, outlines.layer.name), text));
    }
    $("values").replaceChildren(...parts.filter(Boolean));
  }, 40);
  const pointed = (event) => {
    if (event.buttons && event.pointerType === "mouse") return;
    const [x, y] = worldOf(event);
    read(x, y);
  };

  // ---------------------------------------------------------------- everything together

  const changed = () => {
    blend.querySelector(".name-a").textContent = a.image ? a.image.name : "";
    blend.querySelector(".name-b").textContent = b.image ? b.image.name : "";
    regionBox.refresh();
    noteLink();
  };
  const controls = panes.map((pane, k) => M.paneControls(pane, k ? "Right" : "Left", changed));
  const outlineBox = M.outlineControls(state, () => loadOutlines().then(changed));
  const regionBox = M.regionControls(panes, {
    look,
    outlineOfView: () => {
      const { x, y, scale: s, width, height } = a.frame();
      const [w, h] = [width / s, height / s];
      return [x, y, x + w, y, x + w, y + h, x, y + h];
    },
  });
  aside.append(...controls, ...(outlineBox ? [outlineBox] : []), regionBox);
  if (view.failed.length) aside.append(M.make("p", { className: "failed" }, `Left out: ${view.failed.join(" ")}`));
  M.regions.changed = () => {
    regionBox.refresh();
    redraw();
  };

  for (const [mode, text] of MODES) {
    const button = M.make("button", { type: "button", value: mode, role: "radio" }, text);
    button.addEventListener("click", () => {
      state.mode = mode;
      layOut();
      changed();
    });
    $("modes").append(button);
  }
  if (!images.length && !tables.length) $("modes").hidden = true;

  function slide(event) {
    const box = stage.getBoundingClientRect();
    state.split = Math.max(0, Math.min(100, ((event.clientX - box.left) / box.width) * 100));
    layOut();
  }
  divider.addEventListener("pointerdown", (event) => {
    divider.setPointerCapture(event.pointerId);
    event.preventDefault();
    divider.focus();
  });
  divider.addEventListener("pointermove", (event) => divider.hasPointerCapture(event.pointerId) && slide(event));
  divider.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -2, ArrowRight: 2, Home: -100, End: 100 }[event.key];
    if (!step) return;
    state.split = Math.max(0, Math.min(100, state.split + step));
    layOut();
    event.preventDefault();
    event.stopPropagation();
  });
  blend.querySelector("input").value = state.blend;
  blend.querySelector("input").addEventListener("input", (event) => {
    state.blend = Number(event.target.value);
    layOut();
  });

  $("home").addEventListener("click", () => look(everything()));
  $("link").addEventListener("click", async () => {
    writeLink();
    const copied = navigator.clipboard ? await navigator.clipboard.writeText(location.href).then(() => true, () => false) : false;
    M.say(copied ? "The link of this view was copied." : "The link of this view is in the address bar.");
  });
  const narrow = matchMedia("(max-width: 760px)");
  const openSettings = (open) => {
    document.body.classList.toggle("closed", !open);
    $("toggle").setAttribute("aria-expanded", String(open));
  };
  $("toggle").addEventListener("click", () => openSettings(document.body.classList.contains("closed")));
  openSettings(!narrow.matches);
  document.addEventListener("keydown", (event) => {
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "Escape" && M.regions.tool()) M.regions.use(null);
    else if (event.key === "0" && !event.ctrlKey && !event.metaKey) look(everything());
  });

  stage.addEventListener("pointermove", pointed);
  stage.addEventListener("pointerdown", (event) => event.pointerType !== "mouse" && pointed(event));
  M.regions.listen(drawLayer, worldOf);

  const named = images.length ? images.map(({ name }) => name) : view.layers.map(({ name }) => name);
  $("title").textContent = named[0] + (named.length > 1 ? ` and ${named.length - 1} more` : "");
  document.title = `${named[0]} · Morphogen`;

  panes.forEach((pane) => {
    pane.viewer.addHandler("viewport-change", () => {
      if (pane !== leader) return;
      follow();
      scale();
    });
    for (const event of ["canvas-press", "canvas-scroll", "canvas-pinch", "canvas-key", "canvas-double-click"])
      pane.viewer.addHandler(event, () => lead(pane));
    pane.viewer.addHandler("animation-finish", noteLink);
    pane.viewer.addHandler("resize", () => {
      follow();
      scale();
    });
  });
  layOut();
  a.showImage().then(() => {
    const [x, y, w] = start || [];
    if (start) {
      const height = w * (a.element.clientHeight / a.element.clientWidth);
      const box = new OpenSeadragon.Rect((x - w / 2) / view.width, (y - height / 2) / view.width, w / view.width, height / view.width);
      a.viewer.viewport.fitBounds(box, true);
    } else look(everything(), true);
    return b.showImage();
  }).then(async () => {
    follow();
    scale();
    await Promise.all([a.showSpots(), b.showSpots(), loadOutlines(), M.regions.load()]);
    layOut();
    changed();
    document.body.dataset.ready = "true";
  });
})(Morphogen);
