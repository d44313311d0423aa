// The second tab: a world of examples, and what each layer predicts from them.

import { ask, byId, el, fail, forgive, key, number, svg } from "./parts.js";
import { describes, note, whole } from "./address.js";
import { chart, fitted, label } from "./charts.js";
import { copyOf, savers, sheet } from "./save.js";

const PAD = 30;
const MOST = 100;
let W = 680, H = 440; // the plot is drawn at the size at which it is seen
const SETTINGS = [
  { name: "features", label: "Dimension of the rule", min: 1, max: 8, step: 1, said: (v) => ["", "1: a level", "2: a straight line", "3: a parabola"][v] ?? `${v}: a curve of degree ${v - 1}` },
  { name: "examples", label: "Examples", min: 1, max: 60, step: 1, said: String },
  { name: "noise", label: "Noise on every example", min: 0, max: 1, step: 0.05, said: (v) => v.toFixed(2) },
  { name: "layers", label: "Layers", min: 1, max: 40, step: 1, said: String },
  { name: "step", label: "Step size of a layer", min: 0.1, max: 2.4, step: 0.05, said: (v) => `${v.toFixed(2)}${v > 2 ? ": too long, it diverges" : ""}` },
  { name: "ridge", label: "Ridge of the exact answer", min: -4, max: 2, step: 0.1, said: (v) => number(10 ** v, 2) },
];
const BEGIN = { features: 5, examples: 14, noise: 0.2, layers: 16, step: 1, ridge: null, seed: 11, points: null };
const world = { ...BEGIN };
const view = { layer: 3, found: null, top: 3, cursor: [0, 0], playing: 0, dragging: null, stop: null };
const inputs = {};

const px = (x) => PAD + ((x + 1) / 2) * (W - 2 * PAD);
const py = (y) => H / 2 - (y / view.top) * (H / 2 - PAD);
const inverse = (left, top) => [
  Math.min(1, Math.max(-1, ((left - PAD) / (W - 2 * PAD)) * 2 - 1)),
  Math.min(view.top, Math.max(-view.top, ((H / 2 - top) / (H / 2 - PAD)) * view.top)),
];

export async function startWorld() {
  settings();
  const root = svg("svg", { tabindex: 0, role: "application", "aria-label": "Examples and predictions. Arrow keys move, Enter adds an example, Delete removes the nearest." });
  byId("plot").append(root);
  listen(root);
  new ResizeObserver(() => { if (byId("plot").clientWidth) draw(); }).observe(byId("plot"));
  byId("world-layer").addEventListener("input", (event) => { view.layer = Number(event.target.value); pause(); draw(); note("layer"); });
  byId("play").addEventListener("click", () => (view.playing ? pause() : play()));
  byId("again").addEventListener("click", () => { world.points = null; world.seed = Math.floor(Math.random() * 1e9); note(); update(true); });
  byId("clear").addEventListener("click", () => { world.points = []; note(); update(true); root.focus(); });
  savers(byId("save-world"), { name: () => `unrolled-in-context-${view.layer}-layers`, figure, rows });
  byId("world-legend").append(
    key("the examples", "var(--ink)", null, true), key("this layer", "var(--a)"), key("exact ridge regression", "var(--b)", "7 4"),
    key("one mesa layer", "var(--b)", null, true), key("the true rule", "var(--guide)", "2 4"));
  const short = (v) => Number(v.toFixed(3));
  describes("world", () => ({
    ...Object.fromEntries(["features", "examples", "noise", "layers", "step"].map((name) => [name, world[name]])),
    ridge: world.ridge === null ? null : Number(world.ridge.toPrecision(4)), seed: world.points ? null : world.seed, after: view.layer,
    points: world.points && (world.points.map((point) => point.map(short).join(":")).join(",") || "none"),
  }));
}

// What an address says, within the reach of the sliders
export async function restoreWorld(said) {
  pause();
  for (const { name, min, max } of SETTINGS) {
    const value = said.has(name) ? Number(said.get(name)) : NaN;
    if (name === "ridge") world.ridge = value > 0 ? Math.min(100, Math.max(1e-4, value)) : null;
    else world[name] = value >= min && value <= max ? value : BEGIN[name];
  }
  for (const name of ["features", "examples", "layers"]) world[name] = Math.round(world[name]);
  world.seed = whole(said.get("seed"), 0, 2 ** 31 - 1) ?? BEGIN.seed;
  const points = said.get("points"), pairs = points && points !== "none" ? points.split(",").map((pair) => pair.split(":").map(Number)) : [];
  const fine = pairs.length <= MOST && pairs.every(([x, y, more]) => Math.abs(x) <= 1 && Math.abs(y) <= 10 && more === undefined);
  world.points = points && fine ? pairs : null;
  view.layer = whole(said.get("after"), 0, world.layers) ?? Math.min(3, world.layers);
  for (const { name } of SETTINGS) if (name !== "ridge") inputs[name].input.value = world[name];
  byId("ridge-auto").checked = world.ridge === null;
  inputs.ridge.input.value = Math.log10(world.ridge ?? 1);
  await update(true);
}

function settings() {
  const box = byId("world-settings");
  for (const { name, label, min, max, step, said } of SETTINGS) {
    const out = el("output", { for: `set-${name}` });
    const input = el("input", { type: "range", id: `set-${name}`, min, max, step });
    input.value = name === "ridge" ? 0 : world[name];
    input.addEventListener("input", () => {
      const value = Number(input.value);
      if (name === "ridge") { byId("ridge-auto").checked = false; world.ridge = 10 ** value; }
      else world[name] = value;
      if (name === "layers") view.layer = Math.min(view.layer, value);
      note(name);
      update(name === "features" || name === "noise" || name === "examples");
    });
    inputs[name] = { input, out, said };
    box.append(el("div", { class: "control" }, el("label", { for: `set-${name}` }, `${label} `, out), input));
  }
  const auto = el("input", { type: "checkbox", id: "ridge-auto", checked: true });
  auto.addEventListener("change", () => { world.ridge = auto.checked ? null : 10 ** Number(inputs.ridge.input.value); note(); update(); });
  box.append(el("label", { class: "check" }, auto, " the ridge that suits the noise best"));
}

async function update(rescale = false) {
  view.stop?.abort();
  view.stop = new AbortController();
  try {
    const found = await ask("/api/world", { method: "POST", body: JSON.stringify(world), signal: view.stop.signal });
    forgive();
    view.found = found;
    if (rescale) {
      const heights = [...found.points.map((p) => p[1]), ...(found.truth ?? []), ...found.ridge_line].map(Math.abs);
      view.top = Math.min(10, Math.max(1, 1.2 * Math.max(0, ...heights)));
    }
    if (world.ridge === null) inputs.ridge.input.value = Math.log10(found.ridge);
    draw();
  } catch (error) {
    fail(error);
  }
}

function path(x, y) {
  const clipped = y.map((v) => Math.min(3 * view.top, Math.max(-3 * view.top, v)));
  return x.map((v, i) => `${i ? "L" : "M"}${px(v).toFixed(1)} ${py(clipped[i]).toFixed(1)}`).join("");
}

function line(x, y, style, dash = null) {
  const out = svg("path", { d: path(x, y), "stroke-dasharray": dash, "clip-path": "url(#plot-area)" });
  out.style.cssText = `fill:none;${style}`;
  return out;
}

function draw() {
  const found = view.found, root = byId("plot").firstChild;
  if (!found) return;
  W = Math.max(280, byId("plot").clientWidth);
  H = Math.round(Math.min(440, Math.max(260, 0.62 * W)));
  for (const [name, value] of [["viewBox", `0 0 ${W} ${H}`], ["width", W], ["height", H]]) root.setAttribute(name, value);
  const count = found.layers.length - 1, layer = Math.min(view.layer, count);
  const slider = byId("world-layer");
  slider.max = count;
  slider.value = layer;
  byId("world-layer-out").textContent = `${layer} of ${count}`;
  for (const [name, { input, out, said }] of Object.entries(inputs)) out.textContent = said(Number(input.value));
  inputs.examples.input.disabled = world.points !== null;
  if (world.points !== null) inputs.examples.out.textContent = `${found.points.length}, drawn by you`;

  const parts = [svg("clipPath", { id: "plot-area" }, svg("rect", { x: 0, y: 0, width: W, height: H }))];
  parts.push(svg("line", { class: "zero", x1: PAD, x2: W - PAD, y1: py(0), y2: py(0) }));
  for (const y of [-Math.floor(view.top), 0, Math.floor(view.top)]) {
    parts.push(label(y === 0 ? "0" : String(y).replace("-", "\u2212"), PAD - 8, py(y) + 4, "end"));
  }
  for (const x of [-1, 0, 1]) {
    parts.push(label(x === 0 ? "input x" : String(x), px(x), H - 8));
  }
  for (let i = 1; i < layer; i++) // earlier layers fade into the past
    parts.push(line(found.x, found.layers[i], `stroke:var(--a);stroke-width:1.5;opacity:${Math.max(0.12, 0.6 * 0.75 ** (layer - i)).toFixed(2)}`));
  if (found.truth) parts.push(line(found.x, found.truth, "stroke:var(--guide);stroke-width:2", "2 5"));
  parts.push(line(found.x, found.ridge_line, "stroke:var(--b);stroke-width:3", "9 6"));
  parts.push(line(found.x, found.layers[layer], "stroke:var(--a);stroke-width:4"));
  found.x.forEach((x, i) => {
    if (i % 12 || Math.abs(found.mesa[i]) > view.top) return;
    const dot = svg("circle", { cx: px(x), cy: py(found.mesa[i]), r: 4.5 });
    dot.style.fill = "var(--b)";
    parts.push(dot);
  });
  found.points.forEach(([x, y], i) => parts.push(svg("circle", { class: "point", cx: px(x), cy: py(y), r: 7, "data-point": i })));
  const [cx, cy] = [px(view.cursor[0]), py(view.cursor[1])];
  parts.push(svg("path", { class: "cursor", d: `M${cx - 11} ${cy}H${cx + 11}M${cx} ${cy - 11}V${cy + 11}` }));
  root.replaceChildren(...parts);
  facts(found, layer);
}

function facts(found, layer) {
  const some = found.points.length > 0;
  const plural = layer === 1 ? "layer" : "layers";
  byId("world-facts").replaceChildren(
    el("p", { class: "hint" }, `After ${layer} gradient-descent ${plural}, away from the exact answer by`),
    el("p", { class: "big" }, some ? number(found.gap[layer]) : "–"),
    el("p", { class: "hint" }, "After one mesa layer"),
    el("p", { class: "big" }, some ? (found.mesa_gap < 1e-9 ? "0" : number(found.mesa_gap)) : "–"),
    el("p", { class: "hint" }, some
      ? `Root mean square over all inputs. The mesa layer and ridge regression are computed in two ways; they differ by ${number(found.mesa_gap, 1)}, which is rounding.`
      : "Add an example: click in the plot."));
  const { layers, ridge, worlds, examples } = found.average;
  const flat = layers.map(() => ridge);
  const lines = [{ values: layers.map(() => ridge), colour: "var(--b)", dash: "7 4", name: "exact ridge regression, and one mesa layer", dots: false },
    { values: layers, colour: "var(--a)", width: 3, name: "gradient-descent layers" }];
  const most = 3 * Math.max(layers[0], ridge), highest = Math.max(...layers);
  fitted(byId("world-chart"), (width) => chart(lines, {
    name: "Mean squared error on new inputs by number of layers", now: layer, zero: true, width, height: 220, x: "layers:", most,
    beyond: `leaves the chart, up to ${number(highest, 2)}`,
  }));
  byId("world-note").textContent = `Mean over ${worlds} random worlds with these settings and ${examples} example${examples === 1 ? "" : "s"}, against the rule without its noise. After ${layer} ${plural}: ${number(layers[layer])}; exact: ${number(ridge)}. ${course(layers)} A layer is one gradient step on the examples' squared error. Step size 1 is the one that fits the examples' steepest direction at once; above 2 the steps overshoot and grow.`;
}

// What further layers do to the error, and why
function course(layers) {
  const last = layers.length - 1, best = layers.indexOf(Math.min(...layers)), rises = best < last && layers[last] > 1.02 * layers[best];
  if (world.step > 2) return rises ? `Best after ${best}: this step size is too long, every layer overshoots by more than the one before, and the predictions diverge.` : "This step size is too long: with more layers the predictions diverge.";
  if (!rises) return "";
  if (world.noise === 0) return `Best after ${best}: further layers fit these examples at the cost of other inputs.`;
  return `Best after ${best}: further layers begin to fit the noise.`;
}

// Both drawings of the tab, and what they are of
function figure() {
  const plot = copyOf(byId("plot").firstChild), curve = copyOf(byId("world-chart").firstChild);
  const { found } = view;
  const said = SETTINGS.map(({ name, label }) => `${label}: ${inputs[name].out.textContent}`).join("; ");
  return sheet([
    { text: `In-context learning after ${view.layer} of ${found.layers.length - 1} gradient-descent layers`, strong: true },
    { text: "Dots: the examples. Blue: the layers. Orange, dashed: exact ridge regression; orange dots: one mesa layer. Grey, dotted: the true rule." },
    { text: `${said}.` }, { node: plot }, { text: "Mean squared error on new inputs, by number of layers", strong: true }, { node: curve }, { text: byId("world-note").textContent },
  ], Math.max(Number(plot.getAttribute("width")), Number(curve.getAttribute("width"))));
}

function rows() {
  const { found } = view, out = [["quantity", "layers", "x", "value"]];
  const line = (name, layers, values) => values?.forEach((value, i) => out.push([name, layers, found.x[i], value]));
  for (const [x, y] of found.points) out.push(["example", "", x, y]);
  line("true rule", "", found.truth);
  line("exact ridge regression", "", found.ridge_line);
  line("mesa layer", 1, found.mesa);
  found.layers.forEach((values, layers) => line("gradient-descent layers", layers, values));
  found.average.layers.forEach((value, layers) => out.push(["mean squared error on new inputs", layers, "", value]));
  out.push(["mean squared error of ridge regression on new inputs", "", "", found.average.ridge]);
  return out;
}

function own() {
  if (world.points === null) world.points = view.found.points.map((p) => [...p]);
  return world.points;
}

function listen(root) {
  const where = (event) => {
    const box = root.getBoundingClientRect();
    return inverse(((event.clientX - box.left) / box.width) * W, ((event.clientY - box.top) / box.height) * H);
  };
  root.addEventListener("pointerdown", (event) => {
    if (!view.found || event.button) return;
    const hit = event.target.dataset.point;
    view.dragging = { at: hit === undefined ? null : Number(hit), from: [event.clientX, event.clientY], moved: false };
    root.setPointerCapture(event.pointerId);
  });
  root.addEventListener("pointermove", (event) => {
    const drag = view.dragging;
    if (!drag || drag.at === null) return;
    drag.moved ||= Math.hypot(event.clientX - drag.from[0], event.clientY - drag.from[1]) > 3;
    if (!drag.moved) return;
    own()[drag.at] = where(event);
    note("drag");
    update();
  });
  root.addEventListener("pointerup", (event) => {
    const drag = view.dragging;
    view.dragging = null;
    if (!drag || drag.at !== null) return;
    add(where(event));
  });
  root.addEventListener("pointercancel", () => { view.dragging = null; });
  root.addEventListener("dblclick", (event) => {
    const hit = document.elementFromPoint(event.clientX, event.clientY)?.dataset.point;
    if (hit !== undefined) remove(Number(hit));
  });
  root.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.2 : 0.05;
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step * view.top], ArrowDown: [0, -step * view.top] }[event.key];
    if (move) view.cursor = inverse(px(view.cursor[0] + move[0]), py(view.cursor[1] + move[1]));
    else if (event.key === "Enter" || event.key === " ") add([...view.cursor]);
    else if (event.key === "Delete" || event.key === "Backspace") remove(nearest());
    else return;
    event.preventDefault();
    draw();
  });
}

function add(point) {
  if (own().length >= MOST) return fail(new Error("There are 100 examples, which is the most this page draws. Remove one first."));
  own().push(point);
  note();
  update();
}

function remove(index) {
  if (index < 0) return;
  own().splice(index, 1);
  note();
  update();
}

function nearest() {
  let best = -1, least = Infinity;
  view.found.points.forEach(([x, y], i) => {
    const far = Math.hypot(px(x) - px(view.cursor[0]), py(y) - py(view.cursor[1]));
    if (far < least) [best, least] = [i, far];
  });
  return best;
}

function play() {
  byId("play").textContent = "Pause";
  view.layer = 0;
  draw();
  view.playing = setInterval(() => {
    if (view.layer >= view.found.layers.length - 1) return pause();
    view.layer += 1;
    draw();
  }, 350);
}

function pause() {
  clearInterval(view.playing);
  view.playing = 0;
  byId("play").textContent = "Play the layers";
}
