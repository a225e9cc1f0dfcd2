"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Contents: folded on a narrow screen, the current chapter marked on a wide one.
  const wide = window.matchMedia("(min-width: 1100px)");
  const contents = document.querySelector(".contents details");
  if (contents) {
    const fold = () => { contents.open = wide.matches; };
    fold();
    wide.addEventListener("change", fold);
    const links = new Map(all(".contents a").map(a => [a.getAttribute("href").slice(1), a]));
    const seen = new Set();
    const chapters = all(".chapter").filter(c => links.has(c.id));
    const watch = new IntersectionObserver(entries => {
      for (const e of entries) e.isIntersecting ? seen.add(e.target.id) : seen.delete(e.target.id);
      const current = chapters.find(c => seen.has(c.id));
      if (current) links.forEach((a, id) => a.classList.toggle("here", id === current.id));
    }, { rootMargin: "0px 0px -60% 0px" });
    chapters.forEach(c => watch.observe(c));
  }

  // Copy buttons. A page opened from disk may lack the clipboard interface: then select and copy.
  for (const button of all(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        const range = document.createRange();
        range.selectNodeContents(code);
        const selection = getSelection();
        selection.removeAllRanges();
        selection.addRange(range);
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  for (const input of all(".pair input")) {
    const show = () => input.parentElement.style.setProperty("--at", input.value + "%");
    input.addEventListener("input", show);
    show();
  }

  // The viewer: wheel or pinch zooms about the pointer, dragging moves, double click fits.
  const viewer = document.getElementById("viewer");
  const stage = viewer.querySelector(".stage");
  const image = stage.querySelector("img");
  const legend = viewer.querySelector(".legend");
  const pictures = all(".zoom");
  let at = 0, scale = 1, x = 0, y = 0, fitted = 1;
  const pointers = new Map();

  const draw = () => {
    image.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    image.style.imageRendering = scale > 3 ? "pixelated" : "auto";
  };
  const fit = () => {
    const w = stage.clientWidth, h = stage.clientHeight;
    fitted = Math.min(w / image.naturalWidth, h / image.naturalHeight, 8);
    scale = fitted;
    x = (w - image.naturalWidth * scale) / 2;
    y = (h - image.naturalHeight * scale) / 2;
    draw();
  };
  const zoom = (factor, cx = stage.clientWidth / 2, cy = stage.clientHeight / 2) => {
    const next = Math.min(Math.max(scale * factor, fitted / 2), Math.max(32, fitted));
    x = cx - (cx - x) * next / scale;
    y = cy - (cy - y) * next / scale;
    scale = next;
    draw();
  };
  const show = index => {
    at = (index + pictures.length) % pictures.length;
    const source = pictures[at].querySelector("img");
    const caption = pictures[at].closest("figure").querySelector(":scope > figcaption");
    image.classList.toggle("plot", pictures[at].classList.contains("plot"));
    image.alt = source.alt;
    legend.textContent = caption ? caption.textContent : "";
    image.src = source.src;
  };
  image.addEventListener("load", fit);
  const actions = {
    previous: () => show(at - 1), next: () => show(at + 1), fit,
    in: () => zoom(1.4), out: () => zoom(1 / 1.4), close: () => viewer.close(),
  };
  pictures.forEach((button, index) => button.addEventListener("click", () => {
    viewer.showModal();
    show(index);
  }));
  for (const button of all("[data-do]", viewer)) {
    button.addEventListener("click", () => actions[button.dataset.do]());
    if (pictures.length < 2 && ["previous", "next"].includes(button.dataset.do)) button.hidden = true;
  }
  viewer.addEventListener("keydown", event => {
    const key = { ArrowLeft: "previous", ArrowRight: "next", "+": "in", "-": "out", "0": "fit" }[event.key];
    if (key) { event.preventDefault(); actions[key](); }
  });
  stage.addEventListener("wheel", event => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
  }, { passive: false });
  stage.addEventListener("dblclick", fit);
  stage.addEventListener("pointerdown", event => {
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
  });
  stage.addEventListener("pointermove", event => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    if (pointers.size === 2) {
      const other = [...pointers.values()].find(p => p.pointerId !== event.pointerId);
      const distance = p => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY);
      if (distance(before) > 0) {
        zoom(distance(event) / distance(before), (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
      }
    } else {
      x += event.clientX - before.clientX;
      y += event.clientY - before.clientY;
      draw();
    }
    pointers.set(event.pointerId, event);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    stage.addEventListener(kind, event => pointers.delete(event.pointerId));
  }
  window.addEventListener("resize", () => { if (viewer.open) fit(); });
})();
