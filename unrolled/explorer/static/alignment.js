// The third tab: how far two models agree on what is like what.

import { ask, byId, cosines, el, fail, fillModels, forgive, group, named, number, palette, printable, query, short, svg } from "./parts.js";
import { describes, note, whole } from "./address.js";
import { label as words } from "./charts.js";
import { copyOf, savers, sheet } from "./save.js";

const PAGE = 34;
const state = { models: ["", ""], layers: [0, 0], image: 0, from: 0, score: null, found: null };
let known, set, markImage, stop = null, wish = 0;

export async function startAlignment(start) {
  known = start;
  byId("set-title").textContent = "Reading the images …";
  set = await ask("/api/set");
  for (const [i, id] of ["align-a", "align-b"].entries())
    byId(id).addEventListener("change", (event) => { state.models[i] = event.target.value; note(); compare().catch(fail); });
  byId("set-title").textContent = `Images: ${named(set.title)}.`;
  markImage = group(byId("picker"), "aria-checked", (button) => pick(Number(button.dataset.image)));
  byId("more").hidden = set.names.length <= PAGE;
  byId("more").addEventListener("click", () => { state.from = (state.from + PAGE) % set.names.length; fillPicker(); });
  savers(byId("save-alignment"), { name: () => "unrolled-alignment", figure, rows });
  describes("alignment", () => ({
    a: state.models[0], b: state.models[1], image: state.image,
    layer_a: state.score ? state.layers[0] : null, layer_b: state.score ? state.layers[1] : null,
  }));
}

export async function restoreAlignment(said) {
  state.models = ["a", "b"].map((name, i) => (known.models.some(({ id }) => id === said.get(name)) ? said.get(name) : known.default[i]));
  for (const [i, id] of ["align-a", "align-b"].entries()) fillModels(byId(id), known.models, state.models[i]);
  state.image = whole(said.get("image"), 0, set.names.length - 1) ?? 0;
  state.from = Math.floor(state.image / PAGE) * PAGE;
  fillPicker();
  await compare(["layer_a", "layer_b"].map((name) => whole(said.get(name), 0, 999)));
}

const picture = (image) => el("img", { src: `/api/set/${image}`, alt: printable(set.names[image]), loading: "lazy" });
const label = (i) => known.models.find((model) => model.id === state.models[i]);

function fillPicker() {
  const buttons = [];
  for (let image = state.from; image < Math.min(state.from + PAGE, set.names.length); image++) {
    const button = el("button", { type: "button", role: "radio", title: printable(set.names[image]), onclick: () => pick(image) }, picture(image));
    button.dataset.image = image;
    buttons.push(button);
  }
  byId("picker").replaceChildren(...buttons);
  mark();
}

function mark() {
  const buttons = [...byId("picker").children];
  const on = buttons.find((button) => Number(button.dataset.image) === state.image);
  markImage(on);
  if (!on && buttons.length) buttons[0].tabIndex = 0;
}

async function pick(image) {
  forgive();
  state.image = image;
  mark();
  note("image");
  try {
    await near();
  } catch (error) {
    fail(error);
  }
}

async function compare(wanted = [null, null]) {
  stop?.abort();
  const own = (stop = new AbortController());
  state.score = null; // its layers are not those of the new models
  forgive();
  byId("score").replaceChildren(el("h2", {}, "Agreement"), el("p", { class: "hint" }, `Showing ${set.names.length} images to both models …`));
  byId("neighbours").classList.add("busy");
  try {
    const [a, b] = state.models;
    state.score = await ask(`/api/agreement?${query({ a, b })}`, { method: "POST", signal: own.signal });
    state.layers = wanted.map((layer, i) => (layer !== null && layer < state.score.layers[i].length ? layer : state.score.best[i]));
    score();
    layers();
    note(null, { complete: true });
    await near();
  } catch (error) {
    if (error.name !== "AbortError") { // what was seen before is of other models
      byId("grid-card").hidden = true;
      byId("neighbours").replaceChildren();
      byId("score").replaceChildren(el("h2", {}, "Agreement"), el("p", {}, "Not known: see the message above."));
    }
    throw error;
  } finally {
    if (stop === own) byId("neighbours").classList.remove("busy");
  }
}

function mark_at(share, text) {
  const out = el("div", { class: "mark" }, text ? el("span", {}, text) : null);
  out.style.left = `${(share * 100).toFixed(2)}%`;
  return out;
}

function score() {
  const s = state.score, fill = el("div", { class: "fill" });
  fill.style.width = `${(s.score * 100).toFixed(2)}%`;
  if (s.score === null || s.p_value === null) {
    byId("score").replaceChildren(el("h2", {}, "Agreement"), el("p", {}, "Not known: a model gives all these images the same features, so that no image is nearer than another."));
    return;
  }
  const sure = s.p_value < 0.05;
  const verdict = sure
    ? "More than chance gives: in " + (s.p_value <= 1.01 / (s.draws + 1) ? `none of ${s.draws}` : `about ${Math.round(s.p_value * (s.draws + 1) - 1)} of ${s.draws}`) + " shufflings of the images did the best pair of layers agree as well."
    : `No more than chance gives: ${Math.round(s.p_value * (s.draws + 1) - 1)} of ${s.draws} shufflings of the images agree as well.`;
  const interval = s.interval ? ` (${Math.round(s.interval[0] * 100)} to ${Math.round(s.interval[1] * 100)} % on other samples of images like these)` : "";
  byId("score").replaceChildren(
    el("h2", {}, "Agreement"),
    el("p", { class: "big" }, `${Math.round(s.score * 100)} %`),
    el("p", { class: "hint" }, `of an image's ${s.k} nearest images are the same in both models, at the layers that agree best${interval}`),
    el("div", { class: "meter", role: "img", "aria-label": `Score ${number(s.score)} of 1; chance gives ${number(s.chance)}` }, fill, mark_at(s.chance, `chance ${Math.round(s.chance * 100)} %`)),
    el("p", {}, verdict),
    el("p", {}, "Calibrated score: ", el("b", {}, number(s.calibrated, 2)), el("span", { class: "hint" }, "  0: no more than 95 % of shufflings reach; 1: all neighbours shared")));
  const random = [0, 1].filter((i) => !label(i).trained);
  if (random.length) byId("score").append(el("p", { class: "warn" }, random.length === 2 ? "Both models have random weights: what they agree on is what the pixels and the architecture give." : "One model has random weights: what it agrees on is what the pixels and the architecture give."));
}

function layers() {
  const { scores, layers: [rows, columns] } = state.score, table = palette("viridis");
  const all = scores.flat().filter((v) => v !== null), low = Math.min(...all), range = Math.max(...all) - low || 1;
  const body = rows.map((_, i) => el("tr", {}, el("th", { scope: "row" }, `${i}`), ...columns.map((_, j) => {
    const value = scores[i][j], share = value === null ? 0 : (value - low) / range, [r, g, b] = table[Math.round(share * 255)];
    const button = el("button", { type: "button", "aria-label": `Layer ${i} against layer ${j}: ${number(value, 2)}`, "aria-pressed": String(i === state.layers[0] && j === state.layers[1]) }, value === null ? "–" : String(Math.round(value * 100)));
    button.style.cssText = `background:rgb(${r},${g},${b});color:${share > 0.6 ? "#111" : "#fff"}`;
    button.addEventListener("click", () => {
      state.layers = [i, j];
      for (const other of byId("layer-grid").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      note();
      near().catch(fail);
    });
    return el("td", {}, button);
  })));
  const head = el("tr", {}, el("td", {}), ...columns.map((_, j) => el("th", { scope: "col" }, `${j}`)));
  byId("layer-grid").replaceChildren(
    el("p", { class: "hint" }, `Rows: layers of ${named(short(label(0).label))}. Columns: layers of ${named(short(label(1).label))}, from 0. Per cent of neighbours shared.`),
    el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Agreement of all layers" }, el("table", { class: "cells" }, el("thead", {}, head), el("tbody", {}, ...body))));
  byId("grid-card").hidden = false;
}

async function near() {
  if (!state.score) return;
  const [a, b] = state.models, [layer_a, layer_b] = state.layers, image = state.image, own = ++wish;
  const found = await ask(`/api/neighbours?${query({ a, b, layer_a, layer_b, image })}`);
  if (own !== wish || !state.score) return; // something newer was chosen meanwhile
  state.found = found;
  const both = new Set(found.shared);
  const column = (i) => {
    const near = found[i ? "b" : "a"], said = cosines(near.map(({ similarity }) => similarity));
    const items = near.map((row, at) => {
      const button = el("button", { type: "button", title: printable(row.name), "aria-label": `${printable(row.name)}, similarity ${said[at]}${both.has(row.image) ? ", near in both models" : ""}. Show its neighbours.` }, picture(row.image));
      button.addEventListener("click", () => pick(row.image));
      return el("li", { class: both.has(row.image) ? "both" : "" }, button, el("span", {}, said[at]), both.has(row.image) ? el("span", {}, "in both") : null);
    });
    return el("article", { class: "card" },
      el("h3", {}, named(short(label(i).label))),
      el("div", { class: "head-line" }, el("span", { class: label(i).trained ? "badge" : "badge random" }, label(i).trained ? named(short(label(i).weights, 40)) : "random weights"), el("small", {}, `layer ${state.layers[i]} of 0 to ${state.score.layers[i].length - 1}`)),
      el("p", { class: "hint" }, `Nearest to ${named(short(set.names[image]))}, with cosine similarity; ${both.size} of ${state.score.k} shared:`),
      el("ol", { class: "near" }, ...items));
  };
  byId("neighbours").replaceChildren(column(0), column(1));
}

// The grid of all layers as a drawing
function figure() {
  const { scores } = state.score, cell = 34, left = 26, top = 24, host = byId("layer-grid");
  const grid = svg("svg", { width: left + cell * scores[0].length, height: top + cell * scores.length });
  const cells = [...host.querySelectorAll("button")];
  scores.forEach((row, i) => {
    grid.append(words(String(i), left - 8, top + cell * (i + 0.5) + 4, "end"));
    row.forEach((_, j) => {
      if (i === 0) grid.append(words(String(j), left + cell * (j + 0.5), top - 8));
      const button = cells[i * row.length + j], text = words(button.textContent, left + cell * (j + 0.5), top + cell * (i + 0.5) + 4);
      text.style.fill = button.style.color;
      const square = svg("rect", { x: left + cell * j, y: top + cell * i, width: cell - 2, height: cell - 2 });
      square.style.fill = button.style.backgroundColor;
      grid.append(square, text);
    });
  });
  host.append(grid); // its looks are those of the page
  const copy = copyOf(grid);
  grid.remove();
  return sheet([
    { text: byId("score").innerText.split("\n").filter(Boolean).slice(0, 3).join(": "), strong: true },
    { text: `Rows: layers of ${named(short(label(0).label))}. Columns: layers of ${named(short(label(1).label))}. Per cent of neighbours shared. Images: ${named(short(set.title))}.` },
    { node: copy },
  ], Math.max(560, Number(copy.getAttribute("width"))));
}

function rows() {
  const out = [["quantity", "model", "layer", "other model", "other layer", "image", "neighbour", "rank", "value"]];
  const names = [0, 1].map((i) => label(i).label);
  state.score.scores.forEach((row, i) => row.forEach((value, j) => out.push(["share of neighbours in both", names[0], i, names[1], j, "", "", "", value])));
  for (const name of ["score", "chance", "p_value", "calibrated"]) out.push([name, names[0], state.score.best[0], names[1], state.score.best[1], "", "", "", state.score[name]]);
  for (const i of [0, 1]) state.found?.[i ? "b" : "a"].forEach((row, rank) => out.push(["cosine", names[i], state.layers[i], "", "", set.names[state.image], row.name, rank, row.similarity]));
  return out;
}
