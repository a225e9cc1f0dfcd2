"use strict";
/* The settings: what each pane shows, outlines, regions. */

(function (M) {
  const make = M.make;
  let serial = 0;

  function field(text, control) {
    control.id = control.id || `c${(serial += 1)}`;
    return make("div", { className: "field" }, make("label", { htmlFor: control.id }, text), control);
  }

  function slider(text, value, changed) {
    const shown = make("output", {}, `${Math.round(value * 100)} %`);
    const input = make("input", { type: "range", min: "0", max: "100", value: String(Math.round(value * 100)) });
    input.addEventListener("input", () => {
      shown.textContent = `${input.value} %`;
      changed(Number(input.value) / 100);
    });
    const made = field(text, input);
    made.append(shown);
    made.classList.add("slider");
    return made;
  }

  const ofKind = (kind) => M.view.layers.filter((layer) => layer.kind === kind);

  /** The settings of one pane; `changed()` after each. */
  M.paneControls = function (pane, title, changed) {
    const box = make("fieldset", { className: "pane-controls" }, make("legend", {}, title));
    const { choice } = pane;
    const images = ofKind("image");
    const tables = ofKind("spots");

    const mode = make("select");
    const image = M.options(make("select"), images.map(({ id, name }) => [id, name]), choice.image);
    const fillModes = () => {
      const { modes } = pane.image;
      if (!modes.includes(choice.mode)) choice.mode = modes[0];
      M.options(mode, modes.map((name) => [name, name]), choice.mode);
    };
    if (images.length) {
      fillModes();
      image.addEventListener("change", () => {
        choice.image = Number(image.value);
        fillModes();
        pane.showImage().then(changed);
      });
      mode.addEventListener("change", () => {
        choice.mode = mode.value;
        pane.showImage().then(changed);
      });
      box.append(field("Image", image), field("Shown as", mode));
    }
    if (tables.length) box.append(spotControls(pane, tables, changed));
    return box;
  };

  function spotControls(pane, tables, changed) {
    const { choice } = pane;
    const box = make("div", { className: "spots" });
    const table = M.options(
      make("select"),
      [["", "nothing"], ...tables.map(({ id, name, count }) => [id, `${name} (${count.toLocaleString("en")})`])],
      choice.table ?? "",
    );
    const rest = make("div", { className: "rest" });
    const quantity = make("select");
    const listed = make("datalist", { id: `genes${(serial += 1)}` });
    const gene = make("input", { type: "text", autocomplete: "off", spellcheck: false, placeholder: "Name of a gene" });
    gene.setAttribute("list", listed.id);
    const geneField = field("Gene", gene);
    geneField.append(listed);
    const map = M.options(make("select"), Object.keys(M.view.maps).map((name) => [name, name]), choice.map);
    const low = make("input", { type: "number", step: "any", placeholder: "auto" });
    const high = make("input", { type: "number", step: "any", placeholder: "auto" });
    low.setAttribute("aria-label", "Lowest value of the colours");
    high.setAttribute("aria-label", "Highest value of the colours");
    const auto = make("button", { type: "button", onclick: () => setRange(null, null) }, "auto");
    const range = make("div", { className: "field range" }, make("label", {}, "Colours from"), low, make("span", {}, "to"), high, auto);

    function setRange(a, b) {
      [choice.low, choice.high] = [a, b];
      [low.value, high.value] = [a ?? "", b ?? ""];
      pane.recolour();
      changed();
    }

    function suggest() {
      const layer = pane.table;
      const text = gene.value.trim().toUpperCase();
      const names = layer.genes;
      const shown = new Set(text && names[choice.gene].toUpperCase() !== text ? [] : layer.varied);
      for (let k = 0; k < names.length && shown.size < 40 && text; k++) if (names[k].toUpperCase().startsWith(text)) shown.add(k);
      for (let k = 0; k < names.length && shown.size < 40 && text; k++) if (names[k].toUpperCase().includes(text)) shown.add(k);
      listed.replaceChildren(...[...shown].map((k) => make("option", { value: names[k] })));
    }

    function fill() {
      const layer = pane.table;
      rest.hidden = !layer;
      if (!layer) return;
      const quantities = layer.quantities.map(({ title }, k) => [k, title]);
      const columns = layer.labels.map(({ name }, k) => [-1 - k, name]);
      if (choice.quantity >= quantities.length || -1 - choice.quantity >= columns.length) choice.quantity = quantities.length ? 0 : -1;
      if (choice.gene >= layer.genes.length) choice.gene = layer.varied[0] ?? 0;
      quantity.replaceChildren(
        make("optgroup", { label: "Of a gene" }, ...quantities.map(([value, text]) => make("option", { value: String(value) }, text))),
        make("optgroup", { label: "Of the spot" }, ...columns.map(([value, text]) => make("option", { value: String(value) }, text))),
      );
      quantity.value = String(choice.quantity);
      gene.value = layer.genes[choice.gene] ?? "";
      geneField.hidden = choice.quantity < 0;
      suggest();
    }

    table.addEventListener("change", () => {
      const before = pane.table ? pane.table.genes[choice.gene] : "";
      choice.table = table.value === "" ? null : Number(table.value);
      if (pane.table) {
        const same = pane.table.genes.indexOf(before);
        choice.gene = same >= 0 ? same : (pane.table.varied[0] ?? 0);
      }
      [choice.low, choice.high] = [null, null];
      fill();
      pane.showSpots().then(changed);
    });
    quantity.addEventListener("change", () => {
      choice.quantity = Number(quantity.value);
      if (choice.quantity >= 0) {
        choice.map = pane.table.quantities[choice.quantity].spread ? "viridis" : "magma";
        map.value = choice.map;
      }
      [choice.low, choice.high] = [null, null];
      [low.value, high.value] = ["", ""];
      geneField.hidden = choice.quantity < 0;
      pane.showSpots().then(changed);
    });
    gene.addEventListener("focus", () => gene.select());
    gene.addEventListener("input", () => {
      const found = pane.table.genes.findIndex((name) => name.toUpperCase() === gene.value.trim().toUpperCase());
      suggest();
      gene.setAttribute("aria-invalid", String(found < 0 && gene.value.trim() !== ""));
      if (found < 0 || found === choice.gene) return;
      choice.gene = found;
      [choice.low, choice.high] = [null, null];
      [low.value, high.value] = ["", ""];
      pane.showSpots().then(changed);
    });
    map.addEventListener("change", () => {
      choice.map = map.value;
      pane.recolour();
      changed();
    });
    const typed = (input) => (input.value.trim() === "" ? null : Number(input.value));
    for (const input of [low, high]) input.addEventListener("change", () => setRange(typed(low), typed(high)));
    [low.value, high.value] = [choice.low ?? "", choice.high ?? ""];
    const opacity = slider("Opacity of spots", choice.opacity, (value) => {
      choice.opacity = value;
      if (pane.shown) pane.shown.opacity = value;
      pane.draw();
      changed();
    });
    rest.append(field("Quantity", quantity), geneField, field("Colours", map), range, opacity);
    box.append(field("Spots", table), rest);
    fill();
    return box;
  }

  /** Outlines of files: which, how strong, coloured by what. */
  M.outlineControls = function (state, changed) {
    const layers = ofKind("outlines");
    if (!layers.length) return null;
    const box = make("fieldset", {}, make("legend", {}, "Outlines"));
    for (const layer of layers) {
      const check = make("input", { type: "checkbox", checked: state.outlines.includes(layer.id) });
      check.addEventListener("change", () => {
        state.outlines = state.outlines.filter((id) => id !== layer.id);
        if (check.checked) state.outlines.push(layer.id);
        changed();
      });
      box.append(make("label", { className: "check" }, check, `${layer.name} (${layer.count.toLocaleString("en")})`));
    }
    const values = [...new Set(layers.flatMap((layer) => layer.values))];
    if (values.length) {
      const by = M.options(make("select"), [["", "their class"], ...values.map((name) => [name, name])], state.outlineValue);
      by.addEventListener("change", () => {
        state.outlineValue = by.value;
        changed();
      });
      box.append(field("Coloured by", by));
    }
    box.append(slider("Opacity of outlines", state.outlineOpacity, (value) => {
      state.outlineOpacity = value;
      changed();
    }));
    return box;
  };

  /** Regions: draw, name, look at, save. */
  M.regionControls = function (panes, { look, outlineOfView }) {
    const { regions } = M;
    const box = make("fieldset", { id: "regions" }, make("legend", {}, "Regions"));
    const outline = make("button", { type: "button", onclick: () => regions.use("outline") }, "Draw outline");
    const rectangle = make("button", { type: "button", onclick: () => regions.use("box") }, "Draw box");
    const here = make("button", { type: "button", onclick: () => regions.add(outlineOfView()) }, "What is in view");
    const rows = make("ul", { className: "region-list" });
    const save = make("button", { type: "button", className: "main", onclick: () => regions.save() }, M.view.regions && !M.view.static ? "Save regions" : "Download GeoJSON");
    box.append(make("div", { className: "buttons" }, outline, rectangle, here), rows, save);

    function row(region) {
      const name = make("input", { type: "text", value: region.name, maxLength: 80 });
      name.setAttribute("aria-label", "Name of the region");
      name.addEventListener("change", () => {
        region.name = name.value.trim() || region.name;
        regions.redraw();
      });
      const words = [M.area(regions.area(region))];
      for (const pane of panes)
        if (pane.table && pane.values && !pane.categories.length && pane.visible) {
          const { count, mean } = pane.spots.within([region.ring], pane.values);
          if (count) words.push(`${M.titleOf(pane.choice)}: mean ${M.number(mean)} of ${count} spots`);
        }
      const go = make("button", { type: "button", onclick: () => look(regions.box(region)), title: "Go there" }, "Show");
      const drop = make("button", { type: "button", onclick: () => regions.remove(region) }, "Delete");
      return make("li", {}, name, go, drop, make("small", {}, [...new Set(words)].join(" · ")));
    }

    box.refresh = () => {
      rows.replaceChildren(...regions.list.map(row));
      save.hidden = !regions.list.length && !M.view.regions;
      outline.setAttribute("aria-pressed", String(regions.tool() === "outline"));
      rectangle.setAttribute("aria-pressed", String(regions.tool() === "box"));
    };
    box.refresh();
    return box;
  };
})(Morphogen);
