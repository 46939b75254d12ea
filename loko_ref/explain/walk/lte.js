// The walk of LTE: steps, merges and resets in order.

const state = { index: 0, site: Object.keys(DATA.moments[0].sites)[0], tab: "" };
const moment = () => DATA.moments[state.index];
const site = () => moment().sites[state.site];

function figure(title, words, place, options) {
  const item = read(place);
  const said = h("p", { class: "small", "aria-live": "polite" }, "");
  const cell = (row, column) => {
    const k = row * item.c + column;
    const block = item.b[0] * item.b[1] > 1 ? `, mean of ${item.b.join(" × ")}` : "";
    said.textContent = `${options.named(row * item.b[0], column * item.b[1])}${block}: ${show(item.mean[k])}`;
  };
  return h("figure", { class: `card${item.c > 24 ? " wide" : ""}` }, h("figcaption", {}, h("b", {}, title), h("span", { class: "small" }, words)), heat(item, { label: title, cell, side: 16, ...options }), said);
}

/** One bar for each number: name, bar, value. */
function bars(title, words, values, name) {
  const most = Math.max(...values) || 1;
  const rows = values.map((value, k) => h("tr", {}, h("th", { scope: "row" }, name(k)),
    h("td", {}, h("span", { class: "bar", style: `--share: ${value / most}` })), h("td", { class: "number" }, show(value))));
  return h("figure", { class: "card" }, h("figcaption", {}, h("b", {}, title), h("span", { class: "small" }, words)), h("table", {}, h("tbody", {}, rows)));
}

const byHead = (k) => `head ${Math.floor(k / DATA.rank)}`;

/** The singular values as columns, those above rounding filled. */
function spectrum() {
  const values = site().singular;
  const [wide, tall] = [460, 170];
  const most = Math.max(...values) || 1, each = (wide - 40) / values.length;
  const words = `Singular values of W − W0: rank ${site().rank} of ${values.length}, the largest ${show(values[0])}`;
  return h("figure", { class: "card wide" }, h("figcaption", {}, h("b", {}, "singular values of W − W0"), h("span", { class: "small" }, `rank ${site().rank} of ${values.length}; N r = ${DATA.heads * DATA.rank}`)),
    h("svg", { class: "chart", viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": words, style: "max-width: 44rem" },
      h("line", { class: "rule", x1: 36, x2: wide, y1: tall - 20, y2: tall - 20 }),
      h("text", { x: 32, y: 16, "text-anchor": "end" }, show(most, 3)), h("text", { x: 32, y: tall - 20, "text-anchor": "end" }, "0"),
      values.map((value, k) => h("rect", { class: k < site().rank ? "counted" : "rest", x: 38 + k * each, width: Math.max(1, each - 2), y: tall - 20 - ((tall - 32) * value) / most, height: ((tall - 32) * value) / most })),
      h("text", { x: 38, y: tall - 6 }, "1"), h("text", { x: wide, y: tall - 6, "text-anchor": "end" }, String(values.length))));
}

const VIEWS = {
  Heads: () => h("div", { class: "maps" },
    bars("loss", "of each head, before its step", moment().losses, (k) => `head ${k}`),
    bars("learned since the merge", "norm of scale (B A − B' A')", site().pending, (k) => `head ${k}`),
    figure("A", "the heads' factors below one another, r rows each", site().A, { side: 14, named: (row, column) => `A[${byHead(row)}][${row % DATA.rank},${column}]` }),
    figure("B", "the same, each on its side", site().B, { side: 14, named: (row, column) => `B[${byHead(row)}][${column},${row % DATA.rank}]` })),
  Subspaces: () => [h("p", {}, "Each head's A spans a space of r input directions. A cell compares two heads: 1 says that they span the same space, 0 that their spaces are orthogonal."),
    h("div", { class: "maps" }, figure("overlap", "mean squared cosine of the principal angles", site().overlap, { bounds: [0, 1], side: 44, named: (row, column) => `heads ${row} and ${column}` }))],
  "The weight": () => h("div", { class: "maps" }, spectrum(),
    figure("W − W0", "what all merges so far have added", site().update, { named: (row, column) => `(W − W0)[${row},${column}]` })),
  Curves: () => {
    const of = (value) => DATA.moments.map(value);
    const curves = [["mean loss of the heads", of((one) => one.losses.reduce((a, b) => a + b, 0) / DATA.heads)], ["held-out loss of the merged network", of((one) => one.loss)]];
    if (moment().accuracy !== null) curves.push(["held-out accuracy of the merged network", of((one) => one.accuracy)]);
    curves.push([`rank of W − W0, layer ${state.site}`, of((one) => one.sites[state.site].rank)]);
    return h("div", { class: "charts" }, curves.map(([label, values]) => chart(label, values, state.index, 0, "event")));
  },
};

function side() {
  const kind = DATA.kinds[moment().kind];
  const panel = document.getElementById("side");
  const kept = panel.querySelector(".derivation");
  panel.replaceChildren(h("button", { class: "close", "aria-label": "close", onclick: closeSide }, "✕"), h("h2", {}, `A ${moment().kind}`),
    h("p", {}, h("code", {}, kind.equation)), h("p", {}, kind.meaning), h("dl", {}, h("dt", {}, "derived in"), h("dd", {}, kind.labels.map(derivation))));
  if (kept) panel.append(kept);
}

function render() {
  document.getElementById("panel").replaceChildren(...[VIEWS[state.tab]()].flat(Infinity));
}

const go = slider(DATA.moments.length, (index) => {
  state.index = index;
  document.getElementById("said").textContent = `${moment().kind[0].toUpperCase()}${moment().kind.slice(1)}: ${moment().title}`;
  if (state.tab) render();
  side();
  document.querySelectorAll("#flow button").forEach((button) => {
    if (button.dataset.key === moment().kind) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
});
document.getElementById("flow").append(...Object.keys(DATA.kinds).map((kind) => h("button", { "data-key": kind, onclick: () => {
  const next = DATA.moments.findIndex((one, k) => k > state.index && one.kind === kind);
  go(next < 0 ? DATA.moments.findIndex((one) => one.kind === kind) : next);
} }, `next ${kind}`)));
const filters = document.getElementById("filters");
filters.hidden = false;
filters.querySelector("legend").textContent = "Layer";
Object.keys(DATA.moments[0].sites).forEach((name, k) => {
  const input = h("input", { type: "radio", name: "filter", id: `filter-${k}`, onchange: () => { state.site = name; render(); } });
  input.checked = k === 0;
  filters.append(h("label", {}, input, ` ${name}`));
});
tabs(Object.keys(VIEWS), (tab) => { state.tab = tab; render(); });
closeSide();
go(0);
DARK.addEventListener("change", render);
