"use strict";
/* Regions that are drawn on the page: kept in pixels of the world, written as GeoJSON for QuPath. */

(function (M) {
  const COLOUR = "#e8467c";
  const list = [];
  let drawing = null; // {kind, points} while one is being drawn
  let tool = null;

  const R = (M.regions = { list, changed: () => {} });

  R.draw = function (context, frame) {
    const rings = list.map(({ ring }) => ring);
    if (drawing && drawing.ring) rings.push(drawing.ring);
    context.lineWidth = 2.5;
    for (const ring of rings) {
      context.beginPath();
      for (let i = 0; i < ring.length; i += 2)
        context[i ? "lineTo" : "moveTo"]((ring[i] - frame.x) * frame.scale, (ring[i + 1] - frame.y) * frame.scale);
      context.closePath();
      context.strokeStyle = "rgba(255,255,255,.85)";
      context.lineWidth = 4;
      context.stroke();
      context.strokeStyle = COLOUR;
      context.lineWidth = 2;
      context.stroke();
    }
    context.font = "600 12px system-ui, sans-serif";
    for (const { ring, name } of list) {
      const [x, y] = [(ring[0] - frame.x) * frame.scale, (ring[1] - frame.y) * frame.scale];
      context.lineWidth = 3;
      context.strokeStyle = "rgba(255,255,255,.9)";
      context.strokeText(name, x + 4, y - 6);
      context.fillStyle = COLOUR;
      context.fillText(name, x + 4, y - 6);
    }
  };

  R.area = ({ ring }) => {
    let twice = 0;
    for (let i = 0, j = ring.length - 2; i < ring.length; j = i, i += 2) twice += ring[j] * ring[i + 1] - ring[i] * ring[j + 1];
    return Math.abs(twice) / 2;
  };

  R.box = function ({ ring }) {
    const [xs, ys] = [ring.filter((_, i) => i % 2 === 0), ring.filter((_, i) => i % 2)];
    const [x, y] = [Math.min(...xs), Math.min(...ys)];
    return [x, y, Math.max(...xs) - x, Math.max(...ys) - y];
  };

  R.add = function (ring, name) {
    const flat = ring.map((v) => Math.round(v * 100) / 100);
    if (R.area({ ring: flat }) <= 0) return M.say("A region needs an area: drag over the tissue.");
    const taken = new Set(list.map((each) => each.name));
    let number = list.length + 1;
    while (taken.has(`Region ${number}`)) number += 1;
    list.push({ ring: flat, name: name || `Region ${number}` });
    R.changed();
  };

  R.remove = function (region) {
    list.splice(list.indexOf(region), 1);
    R.changed();
  };

  /** As QuPath reads it: annotations in pixels of the first image. */
  R.geojson = function () {
    const features = list.map((region) => {
      const points = [];
      for (let i = 0; i < region.ring.length; i += 2) points.push([region.ring[i], region.ring[i + 1]]);
      points.push(points[0]);
      return {
        type: "Feature",
        geometry: { type: "Polygon", coordinates: [points] },
        properties: { objectType: "annotation", name: region.name },
      };
    });
    return { type: "FeatureCollection", features };
  };

  R.load = async function () {
    if (!M.view.regions || M.view.static) return;
    const value = await M.json("regions.geojson").catch(() => ({ features: [] }));
    for (const feature of value.features || []) {
      const geometry = feature.geometry || {};
      const polygons = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.type === "MultiPolygon" ? geometry.coordinates : [];
      for (const rings of polygons) R.add(rings[0].slice(0, -1).flat(), (feature.properties || {}).name);
    }
  };

  R.save = async function () {
    const text = JSON.stringify(R.geojson(), null, 1);
    if (M.view.regions && !M.view.static) {
      const answer = await fetch("regions.geojson", { method: "POST", headers: { "Content-Type": "application/json" }, body: text });
      return M.say(answer.ok ? `${list.length} ${list.length === 1 ? "region was" : "regions were"} saved.` : await answer.text(), 5000);
    }
    const address = URL.createObjectURL(new Blob([text], { type: "application/geo+json" }));
    M.make("a", { href: address, download: "regions.geojson" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  };

  /** Begin to draw: "outline" by hand, or "box"; null ends it. */
  R.use = function (kind) {
    tool = tool === kind ? null : kind;
    drawing = null;
    const layer = document.getElementById("draw");
    layer.hidden = !tool;
    document.body.classList.toggle("drawing", Boolean(tool));
    M.say(tool === "box" ? "Drag a box over the tissue. Esc ends it." : tool ? "Draw around the tissue. Esc ends it." : "", 0);
    R.changed();
  };

  R.tool = () => tool;

  R.listen = function (layer, worldOf) {
    layer.addEventListener("pointerdown", (event) => {
      layer.setPointerCapture(event.pointerId);
      const [x, y] = worldOf(event);
      drawing = { pane: event, start: [x, y], ring: [x, y], last: [event.clientX, event.clientY] };
      event.preventDefault();
    });
    layer.addEventListener("pointermove", (event) => {
      if (!drawing) return;
      const [x, y] = worldOf(event, drawing.pane);
      const [x0, y0] = drawing.start;
      if (tool === "box") drawing.ring = [x0, y0, x, y0, x, y, x0, y];
      else if (Math.hypot(event.clientX - drawing.last[0], event.clientY - drawing.last[1]) > 3) {
        drawing.ring.push(x, y);
        drawing.last = [event.clientX, event.clientY];
      }
      R.redraw();
    });
    layer.addEventListener("pointerup", () => {
      const { ring } = drawing || {};
      drawing = null;
      if (ring) R.add(ring);
      R.use(null);
      R.redraw();
    });
    layer.addEventListener("pointercancel", () => R.use(null));
  };
})(Morphogen);
