// The third tab: how far two models agree on what is like what.

import { ask, byId, el, fail, fillModels, forgive, group, number, palette, query } from "./parts.js";

const PAGE = 34;
const state = { models: ["", ""], layers: [0, 0], image: null, from: 0, score: null };
let known, markImage, stop = null, wish = 0;

export async function startAlignment(start) {
  known = start;
  state.models = [known.default[0], known.default[1]];
  for (const [i, id] of ["align-a", "align-b"].entries()) {
    fillModels(byId(id), known.models, state.models[i]);
    byId(id).addEventListener("change", (event) => { state.models[i] = event.target.value; compare().catch(fail); });
  }
  byId("set-title").textContent = `Images: ${known.set.title}.`;
  markImage = group(byId("picker"), "aria-checked", (button) => pick(Number(button.dataset.image)));
  byId("more").hidden = known.set.names.length <= PAGE;
  byId("more").addEventListener("click", () => { state.from = (state.from + PAGE) % known.set.names.length; fillPicker(); });
  state.image = 0;
  fillPicker();
  await compare();
}

const picture = (image) => el("img", { src: `/api/set/${image}`, alt: known.set.names[image], loading: "lazy" });
const alike = ({ similarity }) => (similarity === null ? "–" : similarity.toFixed(3)); // two digits are 1.0 for most
const label = (i) => known.models.find((model) => model.id === state.models[i]);

function fillPicker() {
  const buttons = [];
  for (let image = state.from; image < Math.min(state.from + PAGE, known.set.names.length); image++) {
    const button = el("button", { type: "button", role: "radio", title: known.set.names[image], onclick: () => pick(image) }, picture(image));
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
  try {
    await near();
  } catch (error) {
    fail(error);
  }
}

async function compare() {
  stop?.abort();
  const own = (stop = new AbortController());
  state.score = null; // its layers are not those of the new models
  forgive();
  byId("score").replaceChildren(el("h2", {}, "Agreement"), el("p", { class: "hint" }, `Showing ${known.set.names.length} images to both models …`));
  byId("neighbours").classList.add("busy");
  try {
    const [a, b] = state.models;
    state.score = await ask(`/api/agreement?${query({ a, b })}`, { method: "POST", signal: own.signal });
    state.layers = [...state.score.best];
    score();
    layers();
    await near();
  } catch (error) {
    byId("grid-card").hidden ||= error.name !== "AbortError";
    if (error.name !== "AbortError") byId("score").replaceChildren(el("h2", {}, "Agreement"), el("p", {}, "Not known: see the message above."));
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
  const body = rows.map((_, i) => el("tr", {}, el("th", { scope: "row" }, `${i + 1}`), ...columns.map((_, j) => {
    const value = scores[i][j], share = value === null ? 0 : (value - low) / range, [r, g, b] = table[Math.round(share * 255)];
    const button = el("button", { type: "button", "aria-label": `Layer ${i + 1} against layer ${j + 1}: ${number(value, 2)}`, "aria-pressed": String(i === state.layers[0] && j === state.layers[1]) }, value === null ? "–" : String(Math.round(value * 100)));
    button.style.cssText = `background:rgb(${r},${g},${b});color:${share > 0.6 ? "#111" : "#fff"}`;
    button.addEventListener("click", () => {
      state.layers = [i, j];
      for (const other of byId("layer-grid").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
      near().catch(fail);
    });
    return el("td", {}, button);
  })));
  const head = el("tr", {}, el("td", {}), ...columns.map((_, j) => el("th", { scope: "col" }, `${j + 1}`)));
  byId("layer-grid").replaceChildren(
    el("p", { class: "hint" }, `Rows: layers of ${label(0).label}. Columns: layers of ${label(1).label}. Per cent of neighbours shared.`),
    el("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": "Agreement of all layers" }, el("table", { class: "cells" }, el("thead", {}, head), el("tbody", {}, ...body))));
  byId("grid-card").hidden = false;
}

async function near() {
  if (!state.score) return;
  const [a, b] = state.models, [layer_a, layer_b] = state.layers, image = state.image, own = ++wish;
  const found = await ask(`/api/neighbours?${query({ a, b, layer_a, layer_b, image })}`);
  if (own !== wish || !state.score) return; // something newer was chosen meanwhile
  const both = new Set(found.shared);
  const column = (i) => {
    const rows = found[i ? "b" : "a"].map((row) => {
      const said = both.has(row.image) ? "in both" : alike(row);
      const button = el("button", { type: "button", "aria-label": `${row.name}, similarity ${alike(row)}${both.has(row.image) ? ", near in both models" : ""}. Show its neighbours.` }, picture(row.image));
      button.addEventListener("click", () => pick(row.image));
      return el("li", { class: both.has(row.image) ? "both" : "" }, button, el("span", {}, said));
    });
    return el("article", { class: "card" },
      el("h3", {}, label(i).label),
      el("div", { class: "head-line" }, el("span", { class: label(i).trained ? "badge" : "badge random" }, label(i).trained ? label(i).weights : "random weights"), el("small", {}, `layer ${state.layers[i] + 1} of ${state.score.layers[i].length}`)),
      el("p", { class: "hint" }, `Nearest to ${known.set.names[image]}, with cosine similarity; ${both.size} of ${state.score.k} shared:`),
      el("ol", { class: "near" }, ...rows));
  };
  byId("neighbours").replaceChildren(column(0), column(1));
}
