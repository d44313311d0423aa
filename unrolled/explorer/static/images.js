// The first tab: one picture in one or two models.

import { ask, byId, chart, el, fail, fillModels, forgive, group, key, number, query } from "./parts.js";
import { drawHead, drawMap, drawPlain } from "./draw.js";

const VIEWS = {
  attention: "Attention",
  colours: "Colours",
  objects: "Objects",
  similar: "Look-alikes",
};
const EXPLAIN = {
  attention: "Attention says from where a layer collects information into its summary of the picture (the class token). Bright patches count most. Every layer has several heads that look in their own ways; choose one below the picture, or see their average.",
  colours: "The three directions in which the patches differ most, shown as red, green and blue (principal components). Patches of one colour are alike to the model; the colours themselves have no meaning.",
  objects: "MaskCut joins patches that the model finds alike and cuts out the group that stands apart, up to three times. No labels are used. Nothing outlined means that no group stands apart at this layer.",
  similar: "Choose a patch in a picture: bright patches are those that this layer holds to be most like it (cosine similarity). Arrow keys move the choice.",
};
const state = {
  source: null, models: ["", ""], detail: 1, view: "attention", layer: null, head: 0, at: [0.5, 0.5], strength: 0.7,
  map: "viridis", tau: 0.2, cards: [],
};
let known, markView, stop = null;

export async function startImages(start) {
  known = start;
  for (const { name, title } of known.samples) {
    const button = el("button", { type: "button", "aria-pressed": "false", title }, el("img", { src: `/api/sample/${name}`, alt: title }));
    button.dataset.sample = name;
    button.addEventListener("click", () => choose({ sample: name }));
    byId("samples").append(button);
  }
  for (const [name, title] of Object.entries(VIEWS)) {
    const button = el("button", { type: "button", role: "radio", onclick: () => setView(name) }, title);
    button.dataset.view = name;
    byId("views").append(button);
  }
  markView = group(byId("views"), "aria-checked", (button) => setView(button.dataset.view));
  state.models = [known.default[0], known.default[1] ?? ""];
  fillModels(byId("model-a"), known.models, state.models[0]);
  fillModels(byId("model-b"), known.models, state.models[1], "no other model");
  const names = { 1: "as the model was made", 2: "twice as fine", 3: "three times as fine" };
  byId("detail").append(...known.details.map((d) => el("option", { value: d }, names[d] ?? `${d} times`)));
  for (const [i, id] of ["model-a", "model-b"].entries())
    byId(id).addEventListener("change", (event) => { state.models[i] = event.target.value; look([i]); });
  byId("detail").addEventListener("change", (event) => { state.detail = Number(event.target.value); look(); });
  byId("file").addEventListener("change", (event) => { const file = event.target.files[0]; event.target.value = ""; if (file) choose({ file }); });
  listenForDrops();
  const slider = (id, set) => byId(id).addEventListener("input", (event) => { set(Number(event.target.value)); refresh(); });
  slider("layer", (value) => { state.layer = value - 1; });
  slider("strength", (value) => { state.strength = value / 100; });
  slider("tau", (value) => { state.tau = value; });
  byId("map").addEventListener("change", (event) => { state.map = event.target.value; refresh(); });
  setView("attention");
  await choose({ sample: known.sample });
}

function listenForDrops() {
  const root = document.documentElement;
  const here = () => !byId("panel-images").hidden;
  addEventListener("dragover", (event) => { event.preventDefault(); if (here()) root.classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) root.classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    root.classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (file && here()) choose({ file });
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file && here()) choose({ file });
  });
}

async function choose(source) {
  if (source.file && source.file.size > known.limits.bytes) {
    fail(new Error(`${source.file.name} has ${number(source.file.size / 2 ** 20)} MB; at most ${known.limits.bytes / 2 ** 20} MB can be sent. Make it smaller first.`));
    return;
  }
  state.source = source;
  for (const button of byId("samples").children) button.setAttribute("aria-pressed", String(button.dataset.sample === source.sample));
  await look();
}

// Ask for the pass of every model, or of those whose choice changed
async function look(which = [0, 1]) {
  if (!state.source) return;
  if (stop) { // a newer wish takes the place of what is under way
    stop.abort();
    which = [0, 1];
  }
  const own = (stop = new AbortController()), signal = own.signal, began = performance.now();
  forgive();
  byId("results").classList.add("busy");
  byId("status").textContent = "Looking …";
  try {
    await Promise.all(which.map(async (i) => {
      const model = state.models[i];
      state.cards[i] = model ? await passOf(model, signal) : null;
    }));
    byId("status").textContent = `Looked at the picture in ${((performance.now() - began) / 1000).toFixed(1)} s.`;
    build();
    await Promise.all(which.map((i) => state.cards[i] && curvesOf(state.cards[i], signal)));
  } catch (error) {
    if (stop === own) byId("status").textContent = "";
    fail(error);
  } finally {
    if (stop === own) {
      stop = null;
      byId("results").classList.remove("busy");
    }
  }
}

async function passOf(model, signal) {
  const { sample, file } = state.source;
  const asked = { model, detail: state.detail, ...(sample ? { sample } : {}) };
  const found = await ask(`/api/look?${query(asked)}`, { method: "POST", body: file ?? "", signal });
  const picture = new Image();
  picture.src = found.picture;
  await picture.decode();
  return { ...found, image: picture, objects: {}, similar: {} };
}

async function curvesOf(card, signal) {
  card.curves = await ask(`/api/look/${card.id}/curves`, { signal });
  refresh();
}

function build() {
  const cards = state.cards.filter(Boolean);
  const depth = Math.max(1, ...cards.map((card) => card.layers));
  const slider = byId("layer");
  slider.max = depth;
  if (state.layer === null) state.layer = Math.max(0, depth - 2); // the papers look at the last layer but one
  state.layer = Math.min(state.layer, depth - 1);
  slider.value = state.layer + 1;
  state.head = Math.min(state.head, Math.max(0, ...cards.map((card) => card.heads)));
  const results = byId("results");
  results.classList.toggle("one", cards.length === 1);
  results.replaceChildren(...cards.map(cardOf));
  refresh();
}

function cardOf(card) {
  const canvas = el("canvas", { tabIndex: 0, width: card.image.naturalWidth, height: card.image.naturalHeight });
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "picture of patches");
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    pick((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Enter: [0, 0], " ": [0, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    const [rows, columns] = card.grid, patch = patchAt(card);
    const column = Math.min(columns - 1, Math.max(0, (patch % columns) + move[0]));
    const row = Math.min(rows - 1, Math.max(0, Math.floor(patch / columns) + move[1]));
    pick((column + 0.5) / columns, (row + 0.5) / rows);
  });
  card.canvas = canvas;
  card.caption = el("p", { class: "caption", "aria-live": "polite" });
  card.heads_row = el("div", { class: "heads", role: "radiogroup", "aria-label": "Attention head" });
  card.plots = el("div", { class: "plots" });
  const [rows, columns] = card.grid;
  return el("article", { class: "card", "aria-label": card.model.label },
    el("h3", {}, card.model.label),
    el("div", { class: "head-line" },
      el("span", { class: card.model.trained ? "badge" : "badge random" }, card.model.trained ? card.model.weights : "random weights"),
      el("small", {}, `${card.model.architecture ? `${card.model.architecture}, ` : ""}${rows} × ${columns} patches`)),
    el("div", { class: "stage" }, canvas),
    card.caption,
    headsOf(card),
    ...predictionOf(card),
    card.plots);
}

function headsOf(card) {
  card.head_canvases = [];
  if (!card.attention || card.heads < 2) return card.heads_row;
  const choose = (button) => { state.head = Number(button.dataset.head); refresh(); };
  for (let head = 0; head <= card.heads; head++) {
    const canvas = el("canvas", { width: card.grid[1] * 4, height: card.grid[0] * 4 });
    const button = el("button", { type: "button", role: "radio", "aria-label": head ? `Head ${head}` : "All heads, averaged" }, canvas, head ? String(head) : "all");
    button.dataset.head = head;
    button.addEventListener("click", () => choose(button));
    card.head_canvases.push(canvas);
    card.heads_row.append(button);
  }
  card.mark_head = group(card.heads_row, "aria-checked", choose);
  return card.heads_row;
}

function predictionOf(card) {
  if (!card.prediction) return [el("h4", {}, "Its guess"), el("p", { class: "hint" }, "This model names no classes.")];
  const rows = card.prediction.top.map(({ name, probability }) => {
    const bar = el("span");
    bar.style.width = `${(probability * 100).toFixed(1)}%`;
    return el("li", {}, el("span", { class: "name", title: name }, name), el("span", { class: "bar", "aria-hidden": "true" }, bar),
      el("span", { class: "value" }, `${(probability * 100).toFixed(1)} %`));
  });
  const out = [el("h4", {}, `Its guess, of ${card.prediction.classes} classes${card.model.data ? ` (${card.model.data})` : ""}`), el("ol", { class: "guesses" }, ...rows)];
  if (!card.model.trained) out.push(el("p", { class: "warn" }, "Nothing was learned: the guess is noise, and what the maps show comes from the picture and the architecture."));
  return out;
}

function setView(name) {
  state.view = name;
  markView([...byId("views").children].find((button) => button.dataset.view === name));
  byId("explain").textContent = EXPLAIN[name];
  byId("tau-control").hidden = name !== "objects";
  byId("map-control").hidden = name === "colours" || name === "objects";
  refresh();
}

function pick(x, y) {
  state.at = [x, y];
  if (state.view !== "similar") setView("similar");
  else refresh();
}

const patchAt = ({ grid: [rows, columns] }) =>
  Math.min(rows - 1, Math.floor(state.at[1] * rows)) * columns + Math.min(columns - 1, Math.floor(state.at[0] * columns));

// Where a model of fewer layers stands when the slider counts those of a deeper one
function layerOf(card) {
  const most = Number(byId("layer").max);
  return most > 1 ? Math.round((state.layer / (most - 1)) * (card.layers - 1)) : 0;
}

function refresh() {
  const cards = state.cards.filter(Boolean);
  byId("layer-out").textContent = `${state.layer + 1} of ${byId("layer").max}`;
  byId("strength-out").textContent = `${Math.round(state.strength * 100)} %`;
  byId("tau-out").textContent = state.tau.toFixed(2);
  for (const card of cards) if (card.canvas) show(card).catch(fail);
}

async function show(card) {
  const layer = layerOf(card), view = state.view, place = `Layer ${layer + 1} of ${card.layers}`;
  const said = (text) => {
    card.caption.textContent = text;
    card.canvas.setAttribute("aria-label", `${text} Arrow keys choose a patch to see its look-alikes.`);
  };
  plots(card, layer);
  heads(card, layer, view);
  if (card.blank) {
    drawPlain(card);
    return said("This picture has one colour: there is nothing to tell apart.");
  }
  if (view === "attention") {
    if (!card.attention) { drawPlain(card); return said(card.attention_note); }
    const head = Math.min(state.head, card.heads), peak = card.attention.peak[layer][head];
    drawMap(card, { kind: "attention", layer, head }, state);
    const who = head ? `head ${head}` : "average of the heads";
    return said(`${place}, ${who}: the brightest patch gets ${number(peak, 2)} times an even share${card.query === "class token" ? "" : ` (asked by the ${card.query})`}.`);
  }
  if (view === "colours") {
    drawMap(card, { kind: "colours", layer }, state);
    return said(`${place}: three directions hold ${Math.round(card.colours.explained[layer] * 100)} % of how its patches differ.`);
  }
  const ask_for = view === "objects" ? `${layer}/${state.tau}` : `${layer}/${patchAt(card)}`;
  const values = view === "objects" ? { layer, tau: state.tau } : { layer, patch: patchAt(card) };
  card.wanted = `${view}/${ask_for}`;
  card[view][ask_for] ??= ask(`/api/look/${card.id}/${view}?${query(values)}`).catch((error) => { delete card[view][ask_for]; throw error; });
  const found = await card[view][ask_for];
  if (card.wanted !== `${view}/${ask_for}` || state.view !== view) return; // something newer was chosen meanwhile
  if (view === "objects") {
    drawMap(card, { kind: "objects", labels: found.labels }, state);
    const areas = found.areas.map((area) => `${Math.round(area * 100)} %`).join(", ");
    return said(`${place}: ${found.areas.length ? `${found.areas.length} group${found.areas.length > 1 ? "s" : ""}, ${areas} of the picture` : "no group stands apart"}.`);
  }
  const patch = patchAt(card), columns = card.grid[1];
  drawMap(card, { kind: "similar", values: found.values, patch }, state);
  const others = found.values.filter((_, i) => i !== patch);
  said(`${place}, patch in row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}: its nearest has similarity ${number(Math.max(...others), 2)}, its farthest ${number(Math.min(...others), 2)}.`);
}

function heads(card, layer, view) {
  card.heads_row.hidden = view !== "attention" || card.blank;
  if (card.heads_row.hidden || !card.head_canvases.length) return;
  card.head_canvases.forEach((canvas, head) => drawHead(canvas, card, layer, head, state.map));
  card.mark_head(card.heads_row.children[Math.min(state.head, card.heads)]);
}

function plots(card, layer) {
  const box = card.plots, found = card.curves;
  if (!found) { box.replaceChildren(el("p", { class: "hint" }, "Measuring its layers …")); return; }
  if (!found.model) { box.replaceChildren(el("h4", {}, "What each layer does"), el("p", { class: "hint" }, found.note)); return; }
  const lines = (name) => [
    ...(found.untrained ? [{ values: found.untrained[name], colour: "var(--guide)", dash: "4 4", name: "the same model untrained", dots: false }] : []),
    { values: found.model[name], colour: "var(--a)", name: "this model" },
  ];
  const plot = (title, name) => el("div", {}, el("h4", {}, title), chart(lines(name), { label: `${title}, by layer`, now: layer, zero: true }));
  box.replaceChildren(
    el("div", { class: "pair" },
      plot("Description length in the heads' subspaces", "subspace_rate"),
      plot("Share of non-zero entries", "nonzero")),
    found.untrained ? el("ul", { class: "legend" }, key("this model", "var(--a)"), key("the same, untrained", "var(--guide)", "4 4")) : "",
    el("details", {}, el("summary", {}, "What do these curves say?"),
      el("p", { class: "explain" }, "Left: the coding rate R^c, in nats: how much it takes to describe the patches when each head sees them through its own subspace. CRATE's attention is built to lower it: falling means compressing. Right: how many entries of the patches' descriptions are not zero after the layer. CRATE's second half is built to make them sparse; in an ordinary transformer all are non-zero. Only what goes beyond the untrained model was learned.")));
}
