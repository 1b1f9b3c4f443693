/* Browsing training pairs: filters, order, pages of pictures, and a cloud of points. All data lie in the page. */
(() => {
  "use strict";
  const PER_PAGE = 24;
  const root = document.getElementById("pairs-browser");
  const data = JSON.parse(document.getElementById("pairs-data").textContent);
  const { columns, pictures, names, classes } = data;
  const total = columns.weight.length;
  const pictured = pictures.a.length;
  const form = root.querySelector("form");
  const [count, cards, canvas, place] = ["count", "cards", "cloud", "place"].map((part) => root.querySelector("." + part));
  const [back, next] = root.querySelectorAll(".pager button");
  /* Names are read from A, numbers from the highest; "high" stands for what comes first in each. */
  const ORDERS = { names: ["A to Z", "Z to A"], numbers: ["highest first", "lowest first"] };
  let shown = [];
  let page = 0;

  const make = (tag, text, kind) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  };
  const address = (file) => `data:image/${file.startsWith("iVBOR") ? "png" : "jpeg"};base64,${file}`;
  const level = (value) => names[value] || `level ${value}`;
  const number = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));

  /* What the controls ask for, as tests of a row; a number that is not known passes no bound. */
  function tests() {
    const wanted = new FormData(form);
    const found = [];
    if (form.elements.level) {
      const levels = new Set(wanted.getAll("level").map(Number));
      found.push((row) => levels.has(columns.level[row]));
    }
    if (wanted.get("class")) found.push((row) => columns.class[row] === Number(wanted.get("class")));
    for (const input of form.querySelectorAll("input[type=number]")) {
      if (input.value === "" || !input.validity.valid) continue;
      const values = columns[input.dataset.column];
      const bound = Number(input.value);
      const fits = input.dataset.end === "low" ? (value) => value >= bound : (value) => value <= bound;
      found.push((row) => values[row] !== null && fits(values[row]));
    }
    return found;
  }

  function update() {
    const wanted = tests();
    const fits = Array.from({ length: total }, (_, row) => wanted.every((test) => test(row)));
    const values = columns[form.elements.sort.value];
    const named = form.elements.sort.value === "class";
    const sign = (form.elements.order.value === "high") === named ? 1 : -1;
    [...form.elements.order.options].forEach((option, n) => {
      option.textContent = ORDERS[named ? "names" : "numbers"][n];
    });
    const rank = (row) => (values[row] === null ? Infinity : sign * values[row]);
    shown = [...fits.keys()].filter((row) => row < pictured && fits[row]);
    shown.sort((a, b) => (rank(a) === rank(b) ? a - b : rank(a) - rank(b)));
    page = 0;
    const matching = fits.filter(Boolean).length;
    count.textContent =
      `${shown.length.toLocaleString("en")} of ${pictured.toLocaleString("en")} pictured pairs match, and ` +
      `${matching.toLocaleString("en")} of ${total.toLocaleString("en")} points.`;
    turn();
    draw(fits, matching);
  }

  function picture(file, alt, absent) {
    if (!file) return make("div", absent, "gone");
    const image = make("img");
    image.src = address(file);
    image.alt = alt;
    image.title = alt;
    return image;
  }

  function card(row) {
    const key = data.keys[row];
    const made = columns.level[row] !== -1;
    const figure = make("figure", undefined, "tile");
    const strip = make("div");
    strip.append(
      picture(pictures.original[row], `Original ${key}`, "not at hand"),
      picture(pictures.map[row], `Foreground map of ${key}`, "no map"),
      picture(pictures.view[row], `Generated view of ${key}`, made ? "not at hand" : "none"),
      picture(pictures.a[row], `First crop of the pair of ${key}`),
      picture(pictures.b[row], `Second crop of the pair of ${key}`),
    );
    const words = make("figcaption", "weight ");
    words.append(make("b", number(columns.weight[row])), ` · ${level(columns.level[row])}`);
    if (columns.class[row] !== null) words.append(` · ${classes[columns.class[row]]}`);
    words.append(make("br"));
    const facts = [["s", columns.foreground[row], "fg"], ["s", columns.background[row], "bg"],
      ["loss", columns.loss[row]], ["ratio", columns.ratio[row]], ["score", columns.score[row]]];
    const known = facts.filter(([, value]) => value !== null);
    for (const [name, value, below] of known) {
      words.append(name);
      if (below) words.append(make("sub", below));
      words.append(` ${number(value)} · `);
    }
    words.append(`step ${columns.step[row].toLocaleString("en")}`, make("span", key));
    words.lastChild.title = key;
    figure.append(strip, words);
    return figure;
  }

  function turn() {
    const first = page * PER_PAGE;
    const rows = shown.slice(first, first + PER_PAGE);
    cards.replaceChildren(...rows.map(card));
    place.textContent = rows.length ? `${first + 1}–${first + rows.length} of ${shown.length}` : "No pictured pair matches.";
    back.disabled = page === 0;
    next.disabled = first + PER_PAGE >= shown.length;
  }

  /* Ticks at round numbers within [low, high]. */
  function ticks(low, high) {
    const raw = (high - low) / 4 || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
    const first = Math.ceil(low / step);
    const found = [];
    for (let k = first; k * step <= high + step * 1e-9; k += 1) found.push(Number((k * step).toPrecision(12)));
    return found;
  }

  function axis(name, from, to) {
    const values = columns[name];
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      if (value === null) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (low > high) [low, high] = [0, 1];
    const pad = (high - low || 1) * 0.04;
    const at = (value) => from + ((value - low + pad) / (high - low + 2 * pad)) * (to - from);
    /* Whole numbers such as levels would lie on top of one another: each point is moved a little, always alike. */
    const few = name === "level" || name === "step" ? Math.abs(to - from) * 0.02 : 0;
    const spot = (row) => at(values[row]) + few * (((row * 0.618034) % 1) * 2 - 1);
    return { values, at, spot, ticks: ticks(low, high) };
  }

  let latest = null;
  function draw(fits, matching) {
    latest = [fits, matching];
    const [across, up] = [form.elements.across.value, form.elements.up.value];
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    const colour = (name) => getComputedStyle(root).getPropertyValue(name);
    pen.scale(ratio, ratio);
    pen.font = `12px ${getComputedStyle(root).fontFamily}`;
    const [x, y] = [axis(across, 46, width - 8), axis(up, height - 28, 8)];
    pen.strokeStyle = colour("--line");
    pen.fillStyle = colour("--soft");
    pen.textAlign = "center";
    for (const value of x.ticks) pen.fillText(String(value), x.at(value), height - 10);
    pen.textAlign = "right";
    for (const value of y.ticks) {
      pen.fillText(String(value), 38, y.at(value) + 4);
      pen.beginPath();
      pen.moveTo(46, y.at(value));
      pen.lineTo(width - 8, y.at(value));
      pen.stroke();
    }
    for (const [fit, name, alpha] of [[false, "--soft", 0.16], [true, "--views", 0.55]]) {
      pen.globalAlpha = alpha;
      pen.fillStyle = colour(name);
      for (let row = 0; row < total; row += 1) {
        if (fits[row] !== fit || x.values[row] === null || y.values[row] === null) continue;
        pen.beginPath();
        pen.arc(x.spot(row), y.spot(row), 2.2, 0, 7);
        pen.fill();
      }
    }
    const label = (select) => select.selectedOptions[0].textContent;
    canvas.setAttribute(
      "aria-label",
      `${label(form.elements.up)} over ${label(form.elements.across)}: ${matching} of ${total} points are marked.`,
    );
  }

  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  back.addEventListener("click", () => { page -= 1; turn(); });
  next.addEventListener("click", () => { page += 1; turn(); });
  new ResizeObserver(() => latest && draw(...latest)).observe(canvas.parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(...latest));
  root.hidden = false;
  update();
})();
