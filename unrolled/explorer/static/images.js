// The first tab: which picture, which models, and what of them is shown. What a model's card holds is in cards.js.

import { ask, byId, el, fail, fillModels, forgive, group, named, number, query, short, starting } from "./parts.js";
import { describes, note, whole } from "./address.js";
import { cardOf, refusalOf, show } from "./cards.js";
import { colourBar, fitted } from "./charts.js";
import { scaleOf } from "./draw.js";
import { figureOf, rowsOf } from "./picture_files.js";
import { savers } from "./save.js";
import { offerSwitches } from "./switches.js";

const VIEWS = { attention: "Attention", colours: "Colours", objects: "Objects", similar: "Look-alikes" };
const EXPLAIN = {
  attention: "Attention says from where a layer collects information into its summary of the picture (the class token). Both models and all heads of a layer are on one scale: 1 is what a patch gets if all get the same.",
  colours: "The three directions in which the patches differ most, shown as red, green and blue (principal components). Patches of one colour are alike to the model; the colours themselves have no meaning.",
  objects: "MaskCut joins patches that the model finds alike and cuts out the group that stands apart, up to three times. No labels are used. Nothing outlined means that no group stands apart at this layer.",
  similar: "Choose a patch in a picture: bright patches are those that this layer holds to be most like it (cosine similarity, both models on one scale). Arrow keys move the choice.",
};
const state = {
  source: null, models: ["", ""], off: [[], []], detail: 1, view: "attention", layer: null, head: 0, at: [0.5, 0.5],
  strength: 0.7, map: "viridis", tau: 0.2, cards: [], depth: 1,
};
const files = new Map(); // what was sent in this page, by the name the server has for it
let known, markView, stop = null;

export async function startImages(start) {
  known = start;
  for (const { name, title } of known.samples) {
    const button = el("button", { type: "button", "aria-pressed": "false", title }, el("img", { src: `/api/sample/${name}`, alt: title }));
    button.dataset.sample = name;
    button.addEventListener("click", () => choose({ sample: name, title }));
    byId("samples").append(button);
  }
  for (const [name, title] of Object.entries(VIEWS)) {
    const button = el("button", { type: "button", role: "radio", onclick: () => chooseView(name) }, title);
    button.dataset.view = name;
    byId("views").append(button);
  }
  markView = group(byId("views"), "aria-checked", (button) => chooseView(button.dataset.view));
  const names = { 1: "as the model was made", 2: "twice as fine", 3: "three times as fine" };
  byId("detail").append(...known.details.map((d) => el("option", { value: d }, names[d] ?? `${d} times`)));
  for (const [i, id] of ["model-a", "model-b"].entries())
    byId(id).addEventListener("change", (event) => { state.models[i] = event.target.value; state.off[i] = []; note(); look([i]); });
  byId("detail").addEventListener("change", (event) => { state.detail = Number(event.target.value); note(); look(); });
  byId("file").addEventListener("change", (event) => { const file = event.target.files[0]; event.target.value = ""; if (file) choose({ file, title: file.name }); });
  listenForDrops();
  const slider = (id, set, kind) => byId(id).addEventListener("input", (event) => { set(Number(event.target.value)); refresh(); if (kind) note(kind); });
  slider("layer", (value) => { state.layer = value; }, "layer");
  slider("strength", (value) => { state.strength = value / 100; });
  slider("tau", (value) => { state.tau = value; }, "tau");
  byId("map").addEventListener("change", (event) => { state.map = event.target.value; refresh(); });
  savers(byId("save-images"), { name: () => `unrolled-${state.view}-layer${state.layer}`, figure: () => figureOf(shown(), state), rows: () => rowsOf(shown(), state) });
  describes("images", () => ({
    picture: state.source?.sample ?? (state.source?.upload ? `upload-${state.source.upload}` : null),
    a: state.models[0], b: state.models[1] || "none", detail: state.detail === 1 ? null : state.detail, view: state.view,
    layer: state.layer, head: state.head ? state.head - 1 : null, tau: state.view === "objects" ? state.tau : null,
    at: state.view === "similar" ? state.at.map((v) => v.toFixed(3)).join(",") : null,
    off_a: state.off[0].join(","), off_b: state.off[1].join(","),
  }));
}

const listed = (id) => known.models.some((model) => model.id === id);

// What an address says, and what a page begins with where it says nothing
export async function restoreImages(said) {
  const missing = ["a", "b"].map((name) => said.get(name)).filter((id) => id && id !== "none" && !listed(id));
  state.models = ["a", "b"].map((name, i) => {
    const id = said.get(name);
    return i && id === "none" ? "" : listed(id) ? id : known.default[i] ?? "";
  });
  fillModels(byId("model-a"), known.models, state.models[0]);
  fillModels(byId("model-b"), known.models, state.models[1], "no other model");
  state.detail = known.details.includes(Number(said.get("detail"))) ? Number(said.get("detail")) : 1;
  byId("detail").value = state.detail;
  state.layer = whole(said.get("layer"), 0, 999);
  state.head = (whole(said.get("head"), 0, 998) ?? -1) + 1;
  state.off = ["off_a", "off_b"].map((name) => (said.get(name) ?? "").split(",").filter(Boolean));
  const at = (said.get("at") ?? "").split(",").map(Number);
  state.at = at.length === 2 && at.every((v) => v >= 0 && v <= 1) ? at : [0.5, 0.5];
  const tau = Number(said.get("tau"));
  state.tau = tau > 0 && tau < 1 ? tau : 0.2;
  byId("tau").value = state.tau;
  setView(said.get("view") in VIEWS ? said.get("view") : "attention");
  const picture = said.get("picture"), upload = picture?.startsWith("upload-") ? picture.slice(7) : null;
  const sample = known.samples.find(({ name }) => name === picture) ?? known.samples.find(({ name }) => name === known.sample);
  const source = upload ? { upload, file: files.get(upload) ?? null, title: files.get(upload)?.name ?? "your picture", noted: true } : { sample: sample.name, title: sample.title };
  setSource(source);
  await look();
  if (missing.length) fail(new Error(`This address names a model that is not on the list: ${missing.map((id) => named(short(id))).join(", ")}. Another one is shown.`));
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
    if (file && here()) choose({ file, title: file.name });
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file && here()) choose({ file, title: file.name });
  });
}

function setSource(source) {
  state.source = source;
  for (const button of byId("samples").children) button.setAttribute("aria-pressed", String(button.dataset.sample === source.sample));
}

async function choose(source) {
  setSource(source);
  if (source.sample) note();
  await look();
}

// Ask for the pass of every model, or of those whose choice changed
async function look(which = [0, 1]) {
  if (!state.source) return;
  if (stop) { // a newer wish takes the place of what is under way
    stop.abort();
    which = [0, 1];
  }
  const own = (stop = new AbortController()), signal = own.signal, began = performance.now(), { source } = state;
  const name = source.sample ? source.title : named(short(source.title));
  forgive();
  byId("results").classList.add("busy");
  byId("status").textContent = `Looking at ${name} …`;
  try {
    const refused = [];
    await Promise.all(which.map(async (i) => {
      const model = state.models[i];
      if (!model) { state.cards[i] = null; return; }
      try {
        state.cards[i] = { ...(await passOf(model, source, signal)), slot: i, source };
      } catch (error) {
        if (error.name === "AbortError") throw error;
        // what was seen before is not what was asked for now
        state.cards[i] = { refused: error.message, model: known.models.find(({ id }) => id === model), slot: i };
        refused.push(error);
      }
    }));
    if (source.upload) files.set(source.upload, source.file);
    byId("status").textContent = shown().length ? `Looked at ${name} in ${((performance.now() - Math.max(began, starting.over)) / 1000).toFixed(1)} s.` : "";
    build();
    if (refused.length) fail(refused[0]);
    note(null, { complete: !source.file || source.noted });
    source.noted = true;
    await Promise.all(which.map(async (i) => {
      const card = state.cards[i];
      if (!card || card.refused) return;
      card.curves = await card.more("curves", { signal });
      refresh();
    }));
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

const shown = () => state.cards.filter((card) => card && !card.refused);

async function passOf(model, source, signal) {
  const { sample, file } = source;
  if (file && file.size > known.limits.bytes)
    throw new Error(`${named(short(file.name))} has ${number(file.size / 2 ** 20)} MB; at most ${known.limits.bytes / 2 ** 20} MB can be sent. Make it smaller first.`);
  const asked = { model, detail: state.detail, ...(sample ? { sample } : !file ? { upload: source.upload } : {}) };
  const found = await ask(`/api/look?${query(asked)}`, { method: "POST", body: file ?? "", signal });
  if (found.upload) source.upload = found.upload;
  const picture = new Image();
  picture.src = found.picture;
  await picture.decode();
  const card = { ...found, image: picture, objects: {}, similar: {} };
  let renewed = null;
  // More about this pass. If other pages pushed it out of the server's memory meanwhile, it is made again
  card.more = async (what, options = {}) => {
    try {
      return await ask(`/api/look/${found.id}/${what}`, options);
    } catch (error) {
      if (error.status !== 410) throw error;
    }
    renewed ??= passOf(model, source).then((again) => { found.id = again.id; }).finally(() => { renewed = null; });
    await renewed;
    return ask(`/api/look/${found.id}/${what}`, options);
  };
  return card;
}

function build() {
  const cards = state.cards.filter(Boolean), depth = Math.max(1, ...shown().map((card) => card.layers)), slider = byId("layer");
  if (shown().length) {
    state.depth = depth;
    slider.max = depth - 1;
    state.layer ??= Math.max(0, depth - 2); // the papers look at the last layer but one
    state.layer = Math.min(state.layer, depth - 1);
    slider.value = state.layer;
    state.head = Math.min(state.head, Math.max(0, ...shown().map((card) => card.heads)));
  }
  const results = byId("results");
  results.classList.toggle("one", cards.length === 1);
  results.replaceChildren(...cards.map((card) => (card.refused ? refusalOf(card) : cardOf(card, {
    chooseHead: (head) => { state.head = head; refresh(); note(); },
    pick,
    patchAt,
  }))));
  for (const card of shown()) offerSwitches(card, state.off[card.slot], (off) => { state.off[card.slot] = off; note(); });
  refresh();
}

function setView(name) {
  state.view = name;
  markView([...byId("views").children].find((button) => button.dataset.view === name));
  byId("explain").textContent = EXPLAIN[name];
  byId("tau-control").hidden = name !== "objects";
  byId("map-control").hidden = name === "colours" || name === "objects";
}

function chooseView(name) {
  setView(name);
  refresh();
  note();
}

function pick(x, y) {
  state.at = [x, y];
  if (state.view !== "similar") setView("similar");
  refresh();
  note("patch");
}

const patchAt = ({ grid: [rows, columns] }) =>
  Math.min(rows - 1, Math.floor(state.at[1] * rows)) * columns + Math.min(columns - 1, Math.floor(state.at[0] * columns));

// Where a model of fewer layers stands when the slider counts those of a deeper one
const layerOf = (card) => (state.depth > 1 ? Math.round((state.layer / (state.depth - 1)) * (card.layers - 1)) : 0);

let round = 0;
async function refresh() {
  const own = ++round, cards = shown();
  byId("layer-out").textContent = `${state.layer ?? 0} of 0 to ${state.depth - 1}`;
  byId("strength-out").textContent = `${Math.round(state.strength * 100)} %`;
  byId("tau-out").textContent = state.tau.toFixed(2);
  byId("save-images").hidden = !cards.length;
  try {
    for (const card of cards) card.layer = layerOf(card);
    const wanted = await Promise.all(cards.map((card) => valuesOf(card)));
    if (own !== round) return; // something newer was chosen meanwhile
    cards.forEach((card, i) => { card.values = wanted[i]; });
    state.scale = scaleOf(cards, state);
    for (const card of cards) show(card, state);
  } catch (error) {
    fail(error);
  }
  const bar = byId("scale");
  bar.hidden = !state.scale;
  if (state.scale) fitted(bar, (width) => colourBar(state.scale, width));
}

// What a view needs that is not in the pass itself
async function valuesOf(card) {
  if (card.blank || (state.view !== "objects" && state.view !== "similar")) return null;
  const { layer } = card, patch = patchAt(card);
  const key = state.view === "objects" ? `${layer}/${state.tau}` : `${layer}/${patch}`;
  const asked = state.view === "objects" ? { layer, tau: state.tau } : { layer, patch }, kept = card[state.view];
  kept[key] ??= card.more(`${state.view}?${query(asked)}`).catch((error) => { delete kept[key]; throw error; });
  return { ...(await kept[key]), patch };
}

