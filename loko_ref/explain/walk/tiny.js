// The world of two parameters: the plane of A and B, one for each filter.

const PLANE = { from: [-0.6, -0.9], to: [2.6, 2.9] };

/** Half axes and angle of {v : v' P^-1 v = 1}. */
function ellipse(P) {
  const [[a, b], [, c]] = P;
  const middle = (a + c) / 2, apart = Math.hypot((a - c) / 2, b);
  return { long: Math.sqrt(middle + apart), short: Math.sqrt(Math.max(0, middle - apart)), angle: Math.atan2(2 * b, a - c) / 2 };
}

const area = (P) => Math.PI * Math.sqrt(Math.max(0, P[0][0] * P[1][1] - P[0][1] * P[1][0]));

function plane(one, index) {
  const [wide, tall] = [PLANE.to[0] - PLANE.from[0], PLANE.to[1] - PLANE.from[1]];
  const unit = 300 / wide;
  const x = (a) => (a - PLANE.from[0]) * unit, y = (b) => (PLANE.to[1] - b) * unit;
  const at = (k) => (k < 0 ? DATA.tiny.start : read(one.steps[k].values.theta_post).mean);
  const cov = (k) => (k < 0 ? [[1, 0], [0, 1]] : one.steps[k].cov);
  const oval = (k, kind) => {
    const { long, short, angle } = ellipse(cov(k));
    return h("ellipse", { class: kind, rx: long * unit, ry: short * unit, transform: `translate(${x(at(k)[0])} ${y(at(k)[1])}) rotate(${(-angle * 180) / Math.PI})` });
  };
  const curve = [];
  for (let a = 0.3; a < 3; a += 0.05) curve.push(`${x(a)},${y(DATA.tiny.product / a)}`);
  const ticks = [0, 1, 2].flatMap((t) => [
    h("line", { class: "grid", x1: x(t), x2: x(t), y1: 0, y2: tall * unit }), h("line", { class: "grid", x1: 0, x2: 300, y1: y(t), y2: y(t) }),
    h("text", { x: x(t) + 3, y: tall * unit - 4 }, String(t)), h("text", { x: 3, y: y(t) - 3 }, String(t))]);
  const path = Array.from({ length: index + 2 }, (_, k) => at(k - 1)).map(([a, b]) => `${x(a)},${y(b)}`);
  const P = cov(index), [a, b] = at(index);
  const lean = P[0][1] / Math.sqrt(P[0][0] * P[1][1]);
  const words = `${one.name}: A ${show(a, 3)}, B ${show(b, 3)}; ellipse of area ${show(area(P), 3)}, correlation ${show(lean, 2)}`;
  return h("figure", { class: "card plane" }, h("figcaption", {}, h("b", {}, one.name)),
    h("svg", { viewBox: `0 0 300 ${tall * unit}`, role: "img", "aria-label": words }, ticks,
      h("text", { x: 286, y: tall * unit - 4 }, "A"), h("text", { x: 3, y: 12 }, "B"),
      h("polyline", { class: "right", points: curve.join(" ") }), sampleLine(one, index, x, y),
      oval(-1, "first"), oval(index - 1, "prior"), oval(index, "posterior"),
      h("polyline", { class: "path", points: path.join(" ") }), h("circle", { class: "mean", cx: x(a), cy: y(b), r: 4 })),
    h("table", {}, h("tbody", {}, [["A, B", `${show(a)}, ${show(b)}`], ["W + B A", show(DATA.tiny.weight + a * b)],
      ["p", `${show(P[0][0])}, ${show(P[1][1])}`], ["correlation", show(lean, 3)], ["area", `${show(area(P), 3)} (${show((100 * area(P)) / area(cov(index - 1)), 3)} % of the prior's)`],
    ].map(([what, value]) => h("tr", {}, h("th", { scope: "row" }, what), h("td", { class: "number" }, value))))));
}

/** The line on which the sample, linearised at the prior, is met exactly: H (v - theta) = e. */
function sampleLine(one, index, x, y) {
  const values = one.steps[index].values;
  const [H, e, theta] = [read(values.H).mean, read(values.e).mean[0], read(values.theta).mean];
  const size = H[0] ** 2 + H[1] ** 2;
  const foot = [theta[0] + (H[0] * e) / size, theta[1] + (H[1] * e) / size];
  const far = (t) => [foot[0] - H[1] * t, foot[1] + H[0] * t];
  const [p, q] = [far(-9 / Math.sqrt(size)), far(9 / Math.sqrt(size))];
  return h("line", { class: "sample", x1: x(p[0]), y1: y(p[1]), x2: x(q[0]), y2: y(q[1]) });
}

function arithmetic() {
  const [A, B] = read(step().values.theta).mean, x = read(step().values.x).mean[0];
  const signed = (v) => (v < 0 ? `(${show(v)})` : show(v));
  return h("p", {}, h("code", {}, `z = (W + B A) x = (${DATA.tiny.weight} + ${signed(B)} · ${signed(A)}) · ${signed(x)} = ${show(read(step().values.z).mean[0])}`));
}

const KEY = [
  ["posterior", "ellipse", "the belief after the step, one standard deviation"], ["prior", "ellipse", "the belief before the step"],
  ["first", "ellipse", "the belief at the start"], ["right", "line", "every right answer, A B = 1.5"],
  ["sample", "line", "what this sample says, linearised at the prior"], ["path", "line", "the means so far"],
];

if (DATA.tiny) {
  const views = {
    "Two parameters": () => [
      h("ul", { class: "key plane" }, KEY.map(([kind, what, words]) => h("li", {}, h("svg", { viewBox: "0 0 36 14", "aria-hidden": "true" },
        what === "line" ? h("line", { class: kind, x1: 1, x2: 35, y1: 7, y2: 7 }) : h("ellipse", { class: kind, cx: 18, cy: 7, rx: 16, ry: 5.5 })), words))),
      h("div", { class: "planes" }, DATA.walks.map((one) => plane(one, state.index)))],
  };
  for (const [name, view] of Object.entries(VIEWS)) views[name] = view;
  Object.assign(VIEWS, views);
  start(Object.keys(views));
}
