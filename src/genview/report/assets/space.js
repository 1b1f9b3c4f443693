/* The neighbours of a test image: chosen on the map, or one after another by buttons. All data lie in the page. */
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("space-data").textContent);
  const root = document.getElementById("space-browser");
  const form = root.querySelector("form");
  const chosen = root.querySelector(".chosen");
  const svg = document.querySelector("#space .map svg");
  const dots = [...svg.querySelectorAll("circle")];
  const ring = document.createElementNS(svg.namespaceURI, "circle");
  const box = svg.viewBox.baseVal;
  let rows = [];
  let at = 0;

  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };

  function tile(row, words, bad) {
    const figure = make("figure", undefined, "tile");
    const strip = make("div");
    const image = make("img");
    const file = data.pictures[row];
    image.src = `data:image/${file.startsWith("iVBOR") ? "png" : "jpeg"};base64,${file}`;
    image.alt = `${data.keys[row]}, ${data.classes[data.label[row]]}`;
    strip.append(image);
    const caption = make("figcaption");
    caption.append(make("b", data.classes[data.label[row]], bad ? "down" : ""), make("br"), words, make("span", data.keys[row]));
    figure.title = data.keys[row];
    figure.append(strip, caption);
    return figure;
  }

  function show() {
    form.elements.back.disabled = at <= 0;
    form.elements.next.disabled = at >= rows.length - 1;
    root.querySelector(".place").textContent = rows.length ? `${at + 1} of ${rows.length}` : "no image";
    if (!rows.length) {
      chosen.replaceChildren();
      ring.remove();
      return;
    }
    const row = rows[at];
    const right = data.predicted[row] === data.label[row];
    const said = right ? "the probe is right" : `the probe says ${data.classes[data.predicted[row]]}`;
    const near = make("div", undefined, "tiles near");
    near.append(...data.neighbours[row].map((other, k) =>
      tile(other, data.similarity[row][k].toFixed(2), data.label[other] !== data.label[row])));
    const own = make("div", undefined, "own");
    own.append(make("h3", "Image"), tile(row, said, !right));
    const others = make("div");
    others.append(make("h3", "Nearest neighbours"), near);
    chosen.replaceChildren(own, others);
    const [x, y] = data.places[row];
    for (const [name, value] of Object.entries({ cx: x, cy: y, r: 11, class: "ring" })) ring.setAttribute(name, value);
    svg.append(ring);
  }

  function choose() {
    const which = form.elements.which.value;
    const fits = (row) =>
      which === "all" || (which === "wrong" ? data.predicted[row] !== data.label[row] : data.label[row] === Number(which));
    rows = [...data.keys.keys()].filter(fits);
    const among = new Set(rows);
    dots.forEach((dot, row) => dot.classList.toggle("faint", !among.has(row)));
    at = 0;
    show();
  }

  svg.addEventListener("click", (event) => {
    const frame = svg.getBoundingClientRect();
    const x = ((event.clientX - frame.left) / frame.width) * box.width;
    const y = ((event.clientY - frame.top) / frame.height) * box.height;
    let best = Infinity;
    rows.forEach((row, k) => {
      const far = (data.places[row][0] - x) ** 2 + (data.places[row][1] - y) ** 2;
      if (far < best) [best, at] = [far, k];
    });
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.which.addEventListener("input", choose);
  form.elements.back.addEventListener("click", () => { at -= 1; show(); });
  form.elements.next.addEventListener("click", () => { at += 1; show(); });
  root.hidden = false;
  choose();
})();
