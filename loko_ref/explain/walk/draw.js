// What all pages share: numbers out of the data, and their pictures. Letters of base 91: see cells.py.

const DATA = JSON.parse(document.getElementById("data").textContent);
const LETTERS = Array.from({ length: 92 }, (_, k) => String.fromCharCode(35 + k)).filter((c) => c !== "\\").join("");
const BASE = LETTERS.length;
const PLACE = Object.fromEntries([...LETTERS].map((letter, k) => [letter, k]));
const DARK = matchMedia("(prefers-color-scheme: dark)");

// From the least to the greatest: blue to orange through the page's ground, or one hue.
const COLOURS = {
  signed: [["#1c5a94", "#7fb2dc", "#f4f5f6", "#f0b068", "#9a4a00"], ["#a6d2ff", "#3a7db8", "#20262e", "#bb7420", "#ffd7a0"]],
  plain: [["#f4f6f8", "#a9cbe4", "#4a8fc0", "#0f4470"], ["#1d242c", "#2c6c9c", "#7dbbe6", "#e6f4ff"]],
};

function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "circle", "ellipse", "text", "polyline", "rect", "g"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

// ---------------------------------------------------------------------------------------- numbers

function show(value, digits = 4) {
  if (value === 0 || value === null || value === undefined) return value === 0 ? "0" : "";
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(digits))) : value.toExponential(Math.max(digits - 2, 1)).replace("e+", "e");
  return text.replace("-", "−").replace("e-", "e−");
}

function unpack(text, low, high) {
  const found = new Float64Array(text.length / 2);
  for (let k = 0; k < found.length; k++) {
    found[k] = low + ((high - low) * (PLACE[text[2 * k]] * BASE + PLACE[text[2 * k + 1]])) / (BASE * BASE - 1);
  }
  return found;
}

/** Rows, columns and cells of an item of the pool: values, and least and greatest of a block. */
function read(place) {
  const item = DATA.pool[place];
  if (!item.mean) {
    item.mean = item.v || unpack(item.d, item.lo, item.hi);
    item.least = item.n ? unpack(item.n, item.lo, item.hi) : item.mean;
    item.most = item.x ? unpack(item.x, item.lo, item.hi) : item.mean;
    item.low = item.v ? Math.min(...item.v) : item.lo;
    item.high = item.v ? Math.max(...item.v) : item.hi;
    item.full = Boolean(item.v);
    // a block has the colour of its entry farthest from 0, or from the mean of what has one sign
    const ground = item.low < 0 ? 0 : item.mean.reduce((a, b) => a + b, 0) / item.mean.length;
    item.tone = item.mean.map((_, k) => (item.most[k] - ground > ground - item.least[k] ? item.most[k] : item.least[k]));
  }
  return item;
}

// ---------------------------------------------------------------------------------------- colours

function mix(a, b, share) {
  const part = (text, k) => parseInt(text.slice(1 + 2 * k, 3 + 2 * k), 16);
  return [0, 1, 2].map((k) => Math.round(part(a, k) + (part(b, k) - part(a, k)) * share));
}

/**
 * Where a value stands between two bounds -> red, green, blue.
 *
 * Of signed numbers by the root of the magnitude, which shows small ones beside a large one.
 */
function scale(low, high) {
  const signed = low < 0;
  const stops = COLOURS[signed ? "signed" : "plain"][DARK.matches ? 1 : 0];
  const [from, to] = signed ? [-Math.max(-low, high), Math.max(-low, high)] : [low, high];
  const at = (value) => {
    if (to <= from) return signed ? 0.5 : 0;
    return signed ? (1 + Math.sign(value) * Math.sqrt(Math.min(1, Math.abs(value) / to))) / 2 : Math.min(1, Math.max(0, (value - from) / (to - from)));
  };
  const shade = (share) => {
    const k = Math.min(stops.length - 2, Math.floor(share * (stops.length - 1)));
    return mix(stops[k], stops[k + 1], share * (stops.length - 1) - k);
  };
  const ticks = signed ? [from, from / 4, 0, to / 4, to] : [from, (from + to) / 2, to];
  return { from, to, signed, shade, ticks, colour: (value) => shade(at(value)) };
}

function ink(rgb) {
  const light = rgb.map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2] > 0.179 ? "#000" : "#fff";
}

function legend({ from, to, shade, ticks }) {
  if (to === from) return h("div", { class: "legend" }, `all ${show(from)}`);
  const strip = h("canvas", { width: 64, height: 1 });
  paint(strip, Array.from({ length: 64 }, (_, k) => shade(k / 63)));
  const near = show(from) === show(to) ? h("span", {}, `wide ${show(to - from, 2)}`) : "";
  return h("div", { class: "legend", "aria-hidden": "true" }, strip, h("div", {}, ticks.map((tick) => h("span", {}, show(tick, 3)))), near);
}

function paint(canvas, colours) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  colours.forEach((rgb, k) => image.data.set([...rgb, 255], 4 * k)); // cells beyond the end stay clear
  context.putImageData(image, 0, 0);
}

// -------------------------------------------------------------------------------------- heat maps

/** Whether a pointer moves: what scrolls below one at rest is not pointed at. */
let pointer = "";
const moves = (event) => `${event.clientX} ${event.clientY}` !== pointer;
document.addEventListener("pointermove", (event) => { pointer = `${event.clientX} ${event.clientY}`; });

/**
 * A picture of an item; small ones are tables of numbers.
 *
 * label: what it is; bounds: [low, high] of the colours; parts: [name, entries] along the columns;
 * columns: column -> its name, above a table of numbers;
 * cell: called with row and column under the pointer, or reached by the arrow keys.
 */
function heat(item, { label, bounds, parts, columns, cell, side = 22 }) {
  const tones = scale(...(bounds || [item.low, item.high]));
  if (item.full && item.r <= 6 && item.c <= 3) return h("div", {}, entries(item, tones, label, columns), legend(tones));
  const canvas = h("canvas", { width: item.c, height: item.r });
  paint(canvas, Array.from(item.tone, tones.colour));
  const mark = h("i");
  const tall = Math.max(item.r > 32 ? 4 : 10, Math.min(side, 640 / item.c));
  const map = h("div", {
    class: "map", tabindex: 0, role: "application", "aria-roledescription": "heat map",
    "aria-label": `${label}: ${item.r} by ${item.c} cells from ${show(item.low)} to ${show(item.high)}; the arrow keys go from cell to cell`,
    style: `width: min(100%, ${Math.max(item.c * Math.min(side, 900 / item.c), 60)}px); height: ${item.r * tall}px`,
  }, canvas, mark);
  let at = [0, 0];
  const go = (row, column) => {
    at = [Math.min(item.r - 1, Math.max(0, row)), Math.min(item.c - 1, Math.max(0, column))];
    if (at[0] * item.c + at[1] >= item.mean.length) at = [at[0], (item.mean.length - 1) % item.c];
    mark.style.cssText = `left:${(100 * at[1]) / item.c}%;top:${(100 * at[0]) / item.r}%;width:${100 / item.c}%;height:${100 / item.r}%`;
    map.classList.add("moving");
    if (cell) cell(...at);
  };
  map.addEventListener("pointermove", (event) => {
    if (!moves(event)) return;
    const box = canvas.getBoundingClientRect();
    go(Math.floor(((event.clientY - box.top) / box.height) * item.r), Math.floor(((event.clientX - box.left) / box.width) * item.c));
  });
  map.addEventListener("focus", () => go(...at));
  map.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    go(at[0] + step[0], at[1] + step[1]);
  });
  const axis = parts && parts.length > 1
    ? h("div", { class: "axis", style: map.getAttribute("style").split(";")[0], "aria-hidden": "true" },
        parts.map(([name, size]) => h("span", { style: `flex-grow: ${size}`, title: name }, name)))
    : null;
  return h("div", {}, axis, map, legend(tones));
}

function entries(item, tones, label, columns) {
  const rows = Array.from({ length: item.r }, (_, i) => h("tr", {}, Array.from({ length: item.c }, (_, j) => {
    const value = item.mean[i * item.c + j];
    const rgb = tones.colour(value);
    return h("td", { style: `background: rgb(${rgb}); color: ${ink(rgb)}`, title: value }, show(value));
  })));
  const head = columns ? h("thead", {}, h("tr", {}, Array.from({ length: item.c }, (_, j) => h("th", { scope: "col", class: "small" }, columns(j))))) : "";
  return h("table", { class: "entries", "aria-label": label }, head, h("tbody", {}, rows));
}

// ----------------------------------------------------------------------------------------- curves

/** A curve over the steps with the present one marked, and its value in words. */
function chart(label, values, now, first = 0, unit = "step") {
  const [wide, tall, left, low] = [320, 150, 46, 22];
  const logarithmic = Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 300;
  const turned = values.map((v) => (logarithmic ? Math.log10(v) : v));
  const [least, most] = [Math.min(...turned), Math.max(...turned)];
  const x = (k) => left + ((wide - left - 10) * k) / Math.max(1, values.length - 1);
  const y = (v) => (most > least ? 10 + ((tall - low - 16) * (most - v)) / (most - least) : (tall - low) / 2);
  const words = `${label}: ${show(values[now])} at ${unit} ${first + now}, from ${show(values[0])} to ${show(values.at(-1))}`;
  return h("figure", { class: "card" }, h("figcaption", {}, h("h2", {}, label), h("span", { class: "small" }, `${show(values[now])} at ${unit} ${first + now}${logarithmic ? "; logarithmic" : ""}`)),
    h("svg", { class: "chart", viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": words },
      h("line", { class: "rule", x1: left, x2: wide - 10, y1: tall - low, y2: tall - low }),
      h("text", { x: left - 6, y: 14, "text-anchor": "end" }, show(logarithmic ? 10 ** most : most, 3)),
      h("text", { x: left - 6, y: tall - low - 2, "text-anchor": "end" }, show(logarithmic ? 10 ** least : least, 3)),
      h("text", { x: left, y: tall - 6 }, String(first)),
      h("text", { x: wide - 10, y: tall - 6, "text-anchor": "end" }, `${unit} ${first + values.length - 1}`),
      h("polyline", { class: "line", points: turned.map((v, k) => `${x(k)},${y(v)}`).join(" ") }),
      h("circle", { class: "now", cx: x(now), cy: y(turned[now]), r: 5 })));
}

// ------------------------------------------------------------------------------------------- tabs

/** Tabs by the pattern of WAI-ARIA: arrow keys, Home and End; `render(name)` fills the panel. */
function tabs(names, render) {
  const list = document.getElementById("tabs");
  const panel = document.getElementById("panel");
  const select = (k, focus) => {
    [...list.children].forEach((tab, j) => {
      tab.setAttribute("aria-selected", String(j === k));
      tab.tabIndex = j === k ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", list.children[k].id);
    if (focus) list.children[k].focus();
    render(names[k]);
  };
  names.forEach((name, k) => list.append(h("button", {
    role: "tab", id: `tab-${k}`, "aria-controls": "panel", onclick: () => select(k, true),
    onkeydown: (event) => {
      const to = { ArrowRight: k + 1, ArrowLeft: k - 1, Home: 0, End: names.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      select((to + names.length) % names.length, true);
    },
  }, name)));
  select(0, false);
}

/** The slider and the buttons beside it; `moved(index)` after each change. */
function slider(count, moved) {
  const range = document.getElementById("step");
  range.max = count - 1;
  const go = (k) => {
    range.value = k;
    document.getElementById("back").disabled = range.value === "0";
    document.getElementById("on").disabled = Number(range.value) === count - 1;
    moved(Number(range.value));
  };
  range.addEventListener("input", () => go(range.value));
  document.getElementById("back").addEventListener("click", () => go(Number(range.value) - 1));
  document.getElementById("on").addEventListener("click", () => go(Number(range.value) + 1));
  return go;
}

/** A button that opens a derivation in the side panel. */
function derivation(label) {
  return h("button", { class: "label", "data-open": label, onclick: () => openDerivation(label) }, label);
}

function openDerivation(label) {
  const kept = document.getElementById(`d-${label}`);
  const side = document.getElementById("side");
  side.classList.remove("closed");
  side.querySelector(".derivation")?.remove();
  if (!kept) return;
  const body = h("div", { class: "derivation" }, h("h3", {}, `[${label}] ${kept.dataset.title}`), kept.content.cloneNode(true));
  body.querySelectorAll("[data-label]").forEach((button) => button.addEventListener("click", () => openDerivation(button.dataset.label)));
  side.append(body);
  side.scrollTop += body.getBoundingClientRect().top - side.getBoundingClientRect().top - 8;
}

function closeSide() {
  document.getElementById("side").classList.add("closed");
}
document.addEventListener("keydown", (event) => event.key === "Escape" && closeSide());
