// The world of two parameters: the plane of A and B, one for each filter.

const PLANE = { from: [-0.6, -1.3], to: [2.6, 2.9] };

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
  const at = (k) => (k < 0 ? one.world.start : read(one.steps[k].values.theta_post).mean);
  const cov = (k) => (k < 0 ? [[1, 0], [0, 1]] : one.steps[k].cov);
  const oval = (k, kind) => {
    const { long, short, angle } = ellipse(cov(k));
    return h("ellipse", { class: kind, rx: long * unit, ry: short * unit, transform: `translate(${x(at(k)[0])} ${y(at(k)[1])}) rotate(${(-angle * 180) / Math.PI})` });
  };
  const curve = [];
  for (let a = 0.3; a < 3; a += 0.05) curve.push(`${x(a)},${y(one.world.product / a)}`);
  const ticks = [0, 1, 2].flatMap((t) => [
    h("line", { class: "grid", x1: x(t), x2: x(t), y1: 0, y2: tall * unit }), h("line", { class: "grid", x1: 0, x2: 300, y1: y(t), y2: y(t) }),
    h("text", { x: x(t) + 3, y: tall * unit - 4 }, String(t)), h("text", { x: 3, y: y(t) - 3 }, String(t))]);
  const path = Array.from({ length: index + 2 }, (_, k) => at(k - 1)).map(([a, b]) => `${x(a)},${y(b)}`);
  const P = cov(index), [a, b] = at(index);
  const lean = P[0][1] / Math.sqrt(P[0][0] * P[1][1]);
  const words = `${one.name}: A ${show(a, 3)}, B ${show(b, 3)}; ellipse of area ${show(area(P), 3)}, correlation ${show(lean, 2)}`;
  return h("figure", { class: "card plane" }, h("figcaption", {}, h("b", {}, one.name)),
    h("svg", { viewBox: `0 0 300 ${tall * unit}`, role: "img", "aria-label": words }, ticks,
      h("text", { x: 286, y: tall * unit - 4 }, "A"), h("text", { x: 3, y: 17 }, "B"),
      h("polyline", { class: "right", points: curve.join(" ") }), sampleLine(one, index, x, y),
      oval(-1, "first"), oval(index - 1, "prior"), oval(index, "posterior"),
      h("polyline", { class: "path", points: path.join(" ") }), h("circle", { class: "mean", cx: x(a), cy: y(b), r: 4 })),
    h("table", {}, h("tbody", {}, [["A, B", `${show(a, 3)}, ${show(b, 3)}`], ["W + B A", show(one.world.weight + a * b)],
      ["p", `${show(P[0][0], 2)}, ${show(P[1][1], 2)}`], ["correlation", show(lean, 3)], ["area", show(area(P), 3)], ["shrunk to", `${show((100 * area(P)) / area(cov(index - 1)), 3)} %`],
    ].map(([what, value]) => h("tr", {}, h("th", { scope: "row" }, what), h("td", { class: "number" }, value))))));
}

/** The line on which the sample, linearised at the prior, is met exactly: H (v - theta) = e. */
function sampleLine(one, index, x, y) {
  const values = one.steps[index].values;
  const [H, e, theta] = [read(values.H).mean, read(values.e).mean[0], read(values.theta).mean];
  const size = H[0] ** 2 + H[1] ** 2;
  if (size < 1e-12) return "";
  const foot = [theta[0] + (H[0] * e) / size, theta[1] + (H[1] * e) / size];
  const far = (t) => [foot[0] - H[1] * t, foot[1] + H[0] * t];
  const [p, q] = [far(-9 / Math.sqrt(size)), far(9 / Math.sqrt(size))];
  return h("line", { class: "sample", x1: x(p[0]), y1: y(p[1]), x2: x(q[0]), y2: y(q[1]) });
}

function arithmetic() {
  const [A, B] = read(step().values.theta).mean, x = read(step().values.x).mean[0];
  const signed = (v) => (v < 0 ? `(${show(v)})` : show(v));
  return h("p", {}, h("code", {}, `u = (W + B A) x = (${walk().world.weight} + ${signed(B)} · ${signed(A)}) · ${signed(x)} = ${show(read(step().values.z).mean[0])}${walk().outputs > 1 ? ";  z = (u, −u)" : " = z"}`));
}

const KEY = [
  ["posterior", "ellipse", "the belief after the step, one standard deviation"], ["prior", "ellipse", "the belief before the step"],
  ["first", "ellipse", "the belief at the start"], ["right", "line", "every right answer: W + B A = 2"],
  ["sample", "line", "what this sample asks for, linearised at the prior"], ["path", "line", "the means so far"],
];

/**
 * The fixed point v = f(v), f(v) = y − softmax(z + G v), of two classes: v = (t, −t), one number.
 *
 * f(0) is the innovation e. The linear step goes by the tangent at 0, the implicit one by f itself.
 */
function fixedPoint(one, index) {
  const { z, y, G, v } = one.world.fixed[index];
  const f = (t) => y[0] - 1 / (1 + Math.exp(z[1] + (G[1][0] - G[1][1]) * t - z[0] - (G[0][0] - G[0][1]) * t));
  const slope = (f(1e-4) - f(-1e-4)) / 2e-4;
  const linear = f(0) / (1 - slope);
  const solved = v ? v[0] : linear;
  const [wide, tall] = [320, 320];
  const x = (t) => 30 + ((t + 1.1) * (wide - 40)) / 2.2, up = (t) => tall - 24 - ((t + 1.1) * (tall - 40)) / 2.2;
  const curve = Array.from({ length: 111 }, (_, k) => -1.1 + k / 50).map((t) => `${x(t)},${up(f(t))}`);
  const tangent = [-1.1, 1.1].map((t) => `${x(t)},${up(f(0) + slope * t)}`);
  const words = `${one.name}: e ${show(f(0))}; the step uses ${show(solved)}`;
  return h("figure", { class: "card plane" }, h("figcaption", {}, h("b", {}, one.name)),
    h("svg", { viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": words },
      [-1, 0, 1].flatMap((t) => [h("line", { class: "grid", x1: x(t), x2: x(t), y1: up(-1.1), y2: up(1.1) }), h("line", { class: "grid", y1: up(t), y2: up(t), x1: x(-1.1), x2: x(1.1) }),
        h("text", { x: x(t), y: tall - 6, "text-anchor": "middle" }, show(t)), h("text", { x: 24, y: up(t) + 4, "text-anchor": "end" }, show(t))]),
      h("line", { class: "prior", x1: x(-1.1), y1: up(-1.1), x2: x(1.1), y2: up(1.1) }), h("polyline", { class: "sample", points: tangent.join(" ") }),
      h("polyline", { class: "posterior open", points: curve.join(" ") }), h("circle", { class: "inner", cx: x(0), cy: up(f(0)), r: 4 }), h("circle", { class: "mean", cx: x(solved), cy: up(solved), r: 5 })),
    h("table", {}, h("tbody", {}, [["e = f(0)", f(0)], ["by the tangent", linear], ["the step uses", solved], ["f there", f(solved)]].map(([what, value]) => h("tr", {}, h("th", { scope: "row" }, what), h("td", { class: "number" }, show(value, 6)))))));
}

const FIXED_KEY = [["posterior open", "line", "f(t): what is left of the innovation once theta has moved by P Z' v"], ["prior", "line", "t itself: where both meet, v = f(v)"], ["sample", "line", "the tangent at 0, which the linear step takes for f"]];

function key(entries) {
  return h("ul", { class: "key plane" }, entries.map(([kind, what, words]) => h("li", {}, h("svg", { viewBox: "0 0 36 14", "aria-hidden": "true" },
    what === "line" ? h("line", { class: kind, x1: 1, x2: 35, y1: 7, y2: 7 }) : h("ellipse", { class: kind, cx: 18, cy: 7, rx: 16, ry: 5.5 })), words)));
}

if (DATA.tiny) {
  const real = DATA.walks.filter((one) => one.outputs === 1), classes = DATA.walks.filter((one) => one.outputs > 1);
  const planes = (walks) => h("div", { class: `planes${walks.length < 3 ? " two" : ""}` }, walks.map((one) => plane(one, state.index)));
  const views = {
    "Two parameters": () => [key(KEY), planes(real)],
    "The implicit step": () => [
      h("p", {}, "Two classes, z = (u, −u). The innovation v at the posterior solves v = f(v), f(v) = y − softmax(z + G v), G = Z P Z'. With two classes v = (t, −t) is one number. Where the network is confident and wrong, the tangent at 0 is flat, and the linear step overshoots. ", derivation("OBS-9")),
      key(FIXED_KEY), h("div", { class: "planes two" }, classes.map((one) => fixedPoint(one, state.index))), key(KEY), planes(classes)],
  };
  for (const [name, view] of Object.entries(VIEWS)) views[name] = view;
  Object.assign(VIEWS, views);
  start(Object.keys(views));
}
