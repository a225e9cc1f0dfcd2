"use strict";
/* What every part of the page shares: data that is handed over, numbers that are loaded, elements, formats. */

const Morphogen = { given: new Map(), waiting: new Map() };

/** Called by data scripts: `view.js`, and in an exported copy the numbers too. */
function morphogenData(name, value) {
  Morphogen.given.set(name, value);
  const settle = Morphogen.waiting.get(name);
  if (settle) settle(value);
}

(function (M) {
  const kept = new Map();

  /** A script of an exported copy, which hands over what it holds. */
  function scripted(path) {
    return new Promise((resolve, reject) => {
      if (M.given.has(path)) return resolve(M.given.get(path));
      M.waiting.set(path, resolve);
      const script = document.createElement("script");
      script.src = path + ".js";
      script.onerror = () => reject(new Error("this copy does not hold it"));
      document.head.append(script);
    });
  }

  async function answered(path) {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  }

  /** Numbers by their path, as a Float32Array; loaded once. */
  M.numbers = function (path) {
    if (!kept.has(path)) {
      const loading = M.view.static
        ? scripted(path).then((text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer))
        : answered(path).then((answer) => answer.arrayBuffer()).then((bytes) => new Float32Array(bytes));
      loading.catch(() => kept.delete(path));
      kept.set(path, loading);
      if (kept.size > 200) kept.delete(kept.keys().next().value);
    }
    return kept.get(path);
  };

  /** A value by its path, as JSON gives it. */
  M.json = (path) => (M.view.static ? scripted(path) : answered(path).then((answer) => answer.json()));

  /** An element with properties and children; text is text, never markup. */
  M.make = function (tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (key in element && key !== "list") element[key] = value;
      else element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };

  M.options = (select, entries, chosen) => {
    select.replaceChildren(...entries.map(([value, text]) => M.make("option", { value: String(value) }, text)));
    select.value = String(chosen);
    return select;
  };

  M.number = function (value) {
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    if (size >= 100) return value.toFixed(0);
    if (size >= 10) return value.toFixed(1);
    if (size >= 0.1 || size === 0) return value.toFixed(2);
    return value.toPrecision(2);
  };

  /** A length of world pixels as people say it. */
  M.length = function (pixels) {
    const mpp = M.view.mpp;
    if (!mpp) return `${Math.round(pixels).toLocaleString("en")} px`;
    const um = pixels * mpp;
    return um >= 1000 ? `${(um / 1000).toPrecision(um >= 10000 ? 3 : 2)} mm` : `${Math.round(um)} µm`;
  };

  M.area = function (pixels) {
    const mpp = M.view.mpp;
    if (!mpp) return `${Math.round(pixels).toLocaleString("en")} px²`;
    const um2 = pixels * mpp * mpp;
    return um2 >= 1e5 ? `${(um2 / 1e6).toPrecision(3)} mm²` : `${Math.round(um2).toLocaleString("en")} µm²`;
  };

  /** Quantiles of what is known, as limits of colours. */
  M.limits = function (values) {
    const known = Float32Array.from(values.filter(Number.isFinite)).sort();
    if (!known.length) return [0, 1];
    const at = (q) => known[Math.min(known.length - 1, Math.round(q * (known.length - 1)))];
    const [low, high] = [at(0.01), at(0.99)];
    return high > low ? [low, high] : [low, low + 1];
  };

  M.PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000"];

  /** [r, g, b] of a step 0 … 255 of a colour map. */
  M.colour = (map, step) => {
    const at = Math.max(0, Math.min(255, Math.round(step))) * 3;
    return M.view.maps[map].slice(at, at + 3);
  };

  M.debounce = function (call, wait) {
    let timer = 0;
    return (...given) => {
      clearTimeout(timer);
      timer = setTimeout(() => call(...given), wait);
    };
  };

  M.say = function (text, lasting = 2500) {
    const hint = document.getElementById("hint");
    hint.textContent = text;
    hint.hidden = !text;
    clearTimeout(M.saying);
    if (lasting) M.saying = setTimeout(() => (hint.hidden = true), lasting);
  };
})(Morphogen);
