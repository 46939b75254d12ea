// The walk of LoKO: one or several filters over the same samples.

const state = { index: 0, filter: 0, key: "", tab: "", fixed: Boolean(DATA.tiny) };
const walk = () => DATA.walks[state.filter];
const step = () => walk().steps[state.index];
const lines = () => walk().lines[step().lines];
const line = (key) => lines().find((one) => one.key === key);
const name = (key) => line(key)?.name || key;
const entry = (k) => {
  for (const [factor, shape] of walk().params) {
    const size = shape.reduce((a, b) => a * b, 1);
    if (k < size) return shape.length === 1 ? `${factor}[${k}]` : `${factor}[${Math.floor(k / shape[1])},${k % shape[1]}]`;
    k -= size;
  }
  return String(k);
};
const output = (k) => {
  const what = walk().observation === "gaussian" ? "output" : "class";
  const some = ["e", "yhat", "y"].find((key) => key in step().values);
  const many = some && read(step().values[some]).mean.length > walk().outputs;
  return (many ? `sample ${Math.floor(k / walk().outputs)} ` : "") + `${what} ${k % walk().outputs}`;
};
const named = (axis, k) => (axis === "n" ? entry(k) : "mc".includes(axis) ? output(k) : axis === "s" ? `sample ${k}` : `[${k}]`);
const sizes = () => walk().params.map(([factor, shape]) => [factor, shape.reduce((a, b) => a * b, 1)]);

/** The axes of a quantity as it is drawn: K lies on its side, theta's entries from left to right. */
const drawn = (axes) => (axes === "nm" ? "mn" : axes);

/** Names of the entries in a cell. */
function place(axes, item, row, column) {
  const span = (axis, from, count, all) => {
    const to = Math.min(from + count, all) - 1;
    return to > from ? `${named(axis, from)} to ${named(axis, to)}` : named(axis, from);
  };
  if (axes.length === 1) return span(axes, (row * item.c + column) * item.b[1], item.b[1], item.s);
  return [span(axes[0], row * item.b[0], item.b[0], item.s[0]), span(axes[1], column * item.b[1], item.b[1], item.s[1])].join(" × ");
}

/** Least and greatest of a quantity: in this step, or in all. */
function bounds(key) {
  const all = (state.fixed ? walk().steps : [step()]).filter((one) => key in one.stats);
  const [low, high] = [Math.min(...all.map((one) => one.stats[key][0])), Math.max(...all.map((one) => one.stats[key][1]))];
  return [low, high];
}

// -------------------------------------------------------------------------------------- side panel

function select(key, cell = "") {
  const one = line(key);
  const side = document.getElementById("side");
  const kept = side.querySelector(".derivation"); // stays open until another is opened
  state.key = key;
  const link = (to) => h("button", { class: "label", onclick: () => select(to) }, name(to));
  const [low, high, mean] = step().stats[key];
  const item = read(step().values[key]);
  const shape = one.axes.length === 1 ? item.s : one.axes === "nm" ? `${item.s[1]} × ${item.s[0]}` : item.s.join(" × ");
  const off = step().off[key];
  side.classList.remove("closed");
  side.replaceChildren(
    h("button", { class: "close", "aria-label": "close", onclick: closeSide }, "✕"),
    h("h2", {}, `${one.name} `, h("span", { class: "small" }, `(${shape})`)),
    h("p", {}, h("code", {}, one.equation)),
    h("p", {}, one.meaning),
    h("dl", {},
      h("dt", {}, "made of"), h("dd", {}, one.from.length ? one.from.map(link) : "given"),
      h("dt", {}, "goes into"), h("dd", {}, one.to.length ? one.to.map(link) : "the next step"),
      h("dt", {}, "range"), h("dd", { class: "number" }, `${show(low)} to ${show(high)}, mean ${show(mean)}`),
      step().wrong.includes(key) ? [h("dt", {}, "verdict"), h("dd", { class: "bad" }, step().outcome[step().wrong.indexOf(key)])] : "",
      off === undefined ? "" : [h("dt", {}, "check"), h("dd", { class: "number" }, off ? `differs from the plain equation by ${show(off, 2)} of its largest entry` : "equal to the plain equation")],
      h("dt", {}, "cell"), h("dd", { class: "number", id: "cell", "aria-live": "polite" }, cell || "none chosen"),
      h("dt", {}, "derived in"), h("dd", {}, one.labels.map(derivation))),
  );
  if (kept) side.append(kept);
  document.querySelectorAll("#flow button").forEach((button) => {
    button.classList.toggle("wrong", step().wrong.includes(button.dataset.key));
    button.classList.toggle("from", one.from.includes(button.dataset.key));
    button.classList.toggle("to", one.to.includes(button.dataset.key));
    if (button.dataset.key === key) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
  document.querySelectorAll("[data-card]").forEach((card) => card.classList.toggle("chosen", card.dataset.card === key));
}

/** A card with a quantity's picture; hovered or focused, the side panel is about it. */
function card(key) {
  const one = line(key);
  const item = read(step().values[key]);
  const axes = drawn(one.axes);
  const at = (row, column) => {
    const k = row * item.c + column;
    const value = item.least[k] === item.most[k] || item.least === item.mean
      ? show(item.mean[k], item.full ? 6 : 4)
      : `mean ${show(item.mean[k])}, ${show(item.least[k])} to ${show(item.most[k])}`;
    const text = `${place(axes, item, row, column)}: ${value}`;
    if (state.key === key) document.getElementById("cell").textContent = text;
    else select(key, text);
  };
  const wide = item.c > 24;
  return h("figure", { class: `card${wide ? " wide" : ""}`, "data-card": key, onpointerenter: (event) => moves(event) && key !== state.key && select(key), onfocusin: () => key !== state.key && select(key) },
    h("figcaption", {}, h("b", {}, one.name), h("span", { class: "small" }, one.axes === "nm" && item.r * item.c > 2 ? "(on its side) " : "", h("code", {}, one.equation))),
    heat(item, { label: one.name, bounds: bounds(key), cell: at, columns: axes.at(-1) === "n" ? entry : null, parts: axes.at(-1) === "n" && axes.length > 1 ? sizes() : null, side: key === "x" ? 16 : 22 }),
    item.full ? "" : top(key, 3));
}

function top(key, count) {
  const axes = line(key).axes;
  const found = step().top[key].slice(0, count).map((row) => `${row.slice(0, -1).map((k, j) => named(axes[Math.min(j, axes.length - 1)], k)).join(" × ")}: ${show(row.at(-1), 6)}`);
  return h("p", { class: "small" }, `${key.startsWith("p_") && axes.length === 1 ? "smallest" : "largest"}: ${found.join("; ")}`);
}

// ------------------------------------------------------------------------------------------- views

const VIEWS = {
  Network() {
    const cards = step().layers.map((layer, k) => {
      const item = read(layer.value);
      return [k ? h("span", { class: "arrow", "aria-hidden": "true" }, "→") : "",
        h("figure", { class: "card" }, h("figcaption", {}, h("b", {}, layer.name), h("span", { class: "small" }, `${[item.s].flat().join(" × ")}`)),
          heat(item, { label: layer.name, side: item.r * item.c > 100 ? 9 : 14 }))];
    });
    const tiny = DATA.tiny ? arithmetic() : "";
    const done = [h("h2", {}, cards.length ? "What the step did" : "What was found"), h("ul", {}, step().outcome.map((text) => h("li", {}, text)))];
    if (!cards.length) return done;
    return [h("p", { class: "small" }, "The first sample of the batch through the network, at the prior theta."), tiny,
      h("div", { class: "network" }, cards), done];
  },
  Filter() {
    const keys = lines().map((one) => one.key).filter((key) => !["x", "z", "y", "yhat", "theta_post"].includes(key));
    return [scaling(), h("div", { class: "maps" }, keys.map(card))];
  },
  "What it moved"() {
    const at = (key) => (key in step().values ? read(step().values[key]).mean : null);
    const columns = [["y", at("y")], ["yhat", at("yhat")], ["e = y − yhat", at("e")], ["yhat after", predicted()]].filter(([, values]) => values);
    const e = at("e");
    const biggest = e ? Math.max(...[...e].map(Math.abs)) || 1 : 1;
    const bar = (k) => h("td", {}, h("span", { class: `bar${e[k] < 0 ? " below" : ""}`, style: `--share: ${Math.abs(e[k]) / biggest}` }));
    const cell = ([title, values], k) => [h("td", { class: "number" }, show(values[k])), title[0] === "e" ? bar(k) : ""];
    const rows = Array.from({ length: walk().outputs }, (_, k) => h("tr", {}, h("th", { scope: "row" }, output(k)), columns.map((one) => cell(one, k))));
    const head = [h("td"), columns.map(([title]) => [h("th", { scope: "col", class: "number" }, title), title[0] === "e" ? h("td") : ""])];
    const cards = step().moved.map((part) => h("figure", { class: "card" },
      h("figcaption", {}, h("b", {}, part.name), h("span", { class: "small" }, `${part.shape.join(" × ")}${part.turned ? ", on its side" : ""}; moved by ${show(part.norm)} in norm; smallest p+ / p: ${show(part.left, 6)}`)),
      heat(read(part.move), { label: `the move of ${part.name}`, side: 16, cell: (row, column) => { said(part, row, column); } }),
      h("p", { class: "small", "aria-live": "polite", "data-said": part.name }, "")));
    return [h("h2", {}, "The innovation"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "the innovation" }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows))),
      h("h2", {}, "What it moved: theta+ − theta = K e, factor by factor"), h("div", { class: "maps" }, cards)];
  },
  Curves: () => h("div", { class: "charts" }, Object.entries(walk().curves).map(([label, values]) => chart(label, values, state.index, walk().steps[0].number))),
  "All numbers"() {
    const rows = lines().map((one) => {
      const item = read(step().values[one.key]);
      const axes = drawn(one.axes);
      const whole = item.full && item.mean.length <= 16;
      const list = whole
        ? [...item.mean].map((v, k) => `${place(axes, item, Math.floor(k / item.c), k % item.c)}: ${v}`)
        : step().top[one.key].slice(0, 5).map((row) => `${row.slice(0, -1).map((k, j) => named(one.axes[Math.min(j, one.axes.length - 1)], k)).join(" × ")}: ${row.at(-1)}`);
      const [low, high, mean] = step().stats[one.key];
      return h("tr", {}, h("th", { scope: "row" }, h("button", { class: "label", onclick: () => select(one.key) }, one.name)),
        h("td", {}, h("code", {}, one.equation)), ...[low, high, mean].map((v) => h("td", { class: "number" }, show(v))),
        h("td", { class: "number" }, step().off[one.key] === undefined ? "" : show(step().off[one.key], 2)),
        h("td", { class: "small" }, list.map((text) => h("div", {}, text))));
    });
    const head = ["", "equation", "least", "greatest", "mean", "off by", "entries (of many the largest, of p the smallest)"];
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "all numbers" }, h("table", {}, h("thead", {}, h("tr", {}, head.map((text) => (text ? h("th", { scope: "col" }, text) : h("td"))))), h("tbody", {}, rows)));
  },
};

function predicted() {
  if (step().z_post === null) return null;
  const z = [...read(step().z_post).mean].slice(0, walk().outputs);
  if (walk().observation === "gaussian") return z;
  const top = Math.max(...z);
  const total = z.reduce((sum, v) => sum + Math.exp(v - top), 0);
  return z.map((v) => Math.exp(v - top) / total);
}

/** Name and move of the entry of a factor under the pointer. */
function said(part, row, column) {
  const item = read(part.move);
  const at = [row * item.b[0], column * item.b[1]];
  const block = item.b[0] * item.b[1] > 1 ? `, and ${item.b[0] * item.b[1] - 1} beside it, in the mean` : "";
  const entry = part.shape.length > 1 ? (part.turned ? at.reverse() : at).join(",") : at[1];
  document.querySelector(`[data-said="${part.name}"]`).textContent = `${part.name}[${entry}]${block}: ${show(item.mean[row * item.c + column])}`;
}

function scaling() {
  const box = h("input", { type: "checkbox", id: "fixed", onchange: (event) => { state.fixed = event.target.checked; render(); document.getElementById("fixed").focus(); } });
  box.checked = state.fixed;
  return h("p", { class: "small" }, h("label", {}, box, " the same colours for the same numbers in all steps"), h("br"), "A cell that stands for several entries has the colour of the most extreme.");
}

function render() {
  document.getElementById("panel").replaceChildren(...[VIEWS[state.tab]()].flat(Infinity));
}

function start(views) {
  const go = slider(DATA.walks[0].steps.length, (index) => {
    state.index = index;
    document.getElementById("said").textContent = `Step ${step().number}: ${step().title}`;
    const side = document.getElementById("side");
    const closed = side.classList.contains("closed");
    if (state.tab) render();
    flow();
    select(line(state.key) ? state.key : line("S") ? "S" : lines()[0].key);
    if (closed) closeSide();
  });
  const filters = document.getElementById("filters");
  if (DATA.walks.length > 1) {
    filters.hidden = false;
    DATA.walks.forEach((one, k) => {
      const input = h("input", { type: "radio", name: "filter", id: `filter-${k}`, onchange: () => { state.filter = k; go(state.index); } });
      input.checked = k === 0;
      filters.append(h("label", {}, input, ` ${one.name}`));
    });
  }
  tabs(views, (tab) => { state.tab = tab; render(); });
  closeSide();
  go(0);
  DARK.addEventListener("change", render);
}

function flow() {
  const bar = document.getElementById("flow");
  const keys = lines().map((one) => one.key).join();
  if (bar.dataset.keys === keys) return; // the focus stays where it is
  bar.dataset.keys = keys;
  bar.replaceChildren(...lines().map((one) => h("button", { "data-key": one.key, onclick: () => select(one.key) }, one.name)));
}

if (!DATA.walks[0].steps[0].layers.length) { // a recording has no network
  VIEWS["What was found"] = VIEWS.Network;
  start(["What was found", ...Object.keys(VIEWS).filter((name) => !["Network", "What was found"].includes(name))]);
} else if (!DATA.tiny) start(Object.keys(VIEWS));
