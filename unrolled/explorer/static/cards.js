// One model's card: the picture with its map, the heads, the curves, and what is said about them.

import { el, group, key, named, number, cosines, short } from "./parts.js";
import { chart, fitted } from "./charts.js";
import { drawHead, drawMap, drawPlain } from "./draw.js";

function headOf({ model }) {
  return [
    el("h3", { title: model.label }, named(short(model.label))),
    el("span", { class: model.trained ? "badge" : "badge random" }, model.trained ? named(short(model.weights, 40)) : "random weights"),
  ];
}

export function refusalOf(card) {
  return el("article", { class: "card", "aria-label": card.model.label }, el("div", { class: "head-line" }, ...headOf(card)), el("p", { class: "refused" }, card.refused));
}

export function cardOf(card, { chooseHead, pick, patchAt }) {
  const canvas = el("canvas", { class: "map", tabIndex: 0, width: card.image.naturalWidth, height: card.image.naturalHeight });
  canvas.style.setProperty("--ratio", (card.image.naturalWidth / card.image.naturalHeight).toFixed(4));
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
  card.guess = el("div", { class: "guess" });
  card.plots = el("div", { class: "plots" });
  const [rows, columns] = card.grid, architecture = card.model.architecture ? `${named(short(card.model.architecture, 40))}, ` : "";
  return el("article", { class: "card", "aria-label": card.model.label },
    el("div", { class: "head-line" }, ...headOf(card), el("small", {}, `${architecture}${rows} × ${columns} patches`)),
    el("div", { class: "stage" }, canvas),
    card.caption,
    headsOf(card, chooseHead),
    card.guess,
    card.plots);
}

function headsOf(card, chooseHead) {
  card.head_canvases = [];
  if (!card.attention || card.heads < 2) return card.heads_row;
  const choose = (button) => chooseHead(Number(button.dataset.head));
  for (let head = 0; head <= card.heads; head++) {
    const canvas = el("canvas", { width: card.grid[1] * 4, height: card.grid[0] * 4 });
    const button = el("button", { type: "button", role: "radio", "aria-label": head ? `Head ${head - 1}` : "All heads, averaged" }, canvas, head ? String(head - 1) : "all");
    button.dataset.head = head;
    button.addEventListener("click", () => choose(button));
    card.head_canvases.push(canvas);
    card.heads_row.append(button);
  }
  card.mark_head = group(card.heads_row, "aria-checked", choose);
  return card.heads_row;
}

// Paint the map that is chosen, and say what it shows. Layers, heads, rows and columns count from 0, as in reports and flags
export function show(card, state) {
  const { view } = state, place = `Layer ${card.layer} of 0 to ${card.layers - 1}`;
  const said = (text) => {
    card.caption.textContent = text;
    card.canvas.setAttribute("aria-label", `${text} Arrow keys choose a patch to see its look-alikes.`);
  };
  plots(card);
  card.switched?.(card.layer);
  heads(card, state);
  if (card.blank) {
    drawPlain(card);
    return said("This picture has one colour: there is nothing to tell apart.");
  }
  if (view === "attention" && !card.attention) {
    drawPlain(card);
    return said(card.attention_note);
  }
  drawMap(card, state);
  if (view === "attention") {
    const head = Math.min(state.head, card.heads), peak = card.attention.peak[card.layer][head];
    const who = head ? `head ${head - 1}` : "average of the heads";
    return said(`${place}, ${who}: the brightest patch gets ${number(peak, 2)} times an even share${card.query === "class token" ? "" : ` (asked by the ${card.query})`}.`);
  }
  if (view === "colours") return said(`${place}: three directions hold ${Math.round(card.colours.explained[card.layer] * 100)} % of how its patches differ.`);
  if (view === "objects") {
    const { areas } = card.values, shares = areas.map((area) => `${Math.round(area * 100)} %`).join(", ");
    return said(`${place}: ${areas.length ? `${areas.length} group${areas.length > 1 ? "s" : ""}, ${shares} of the picture` : "no group stands apart"}.`);
  }
  const { patch, values } = card.values, columns = card.grid[1];
  const others = values.filter((_, i) => i !== patch), [nearest, farthest] = cosines([Math.max(...others), Math.min(...others)]);
  said(`${place}, patch in row ${Math.floor(patch / columns)}, column ${patch % columns}: its nearest has similarity ${nearest}, its farthest ${farthest}.`);
}

function heads(card, state) {
  card.heads_row.hidden = state.view !== "attention" || card.blank;
  if (card.heads_row.hidden || !card.head_canvases.length) return;
  card.head_canvases.forEach((canvas, head) => drawHead(canvas, card, head, state));
  card.mark_head(card.heads_row.children[Math.min(state.head, card.heads)]);
}

export const CURVES = { subspace_rate: "Description length in the heads' subspaces", nonzero: "Share of non-zero entries" };

function plots(card) {
  const box = card.plots, found = card.curves;
  if (!found) { box.replaceChildren(el("p", { class: "hint" }, "Measuring its layers …")); return; }
  if (!found.model) { box.replaceChildren(el("h4", {}, "What each layer does"), el("p", { class: "hint" }, found.note)); return; }
  const lines = (name) => [
    ...(found.untrained ? [{ values: found.untrained[name], colour: "var(--guide)", dash: "4 4", name: "the same model untrained", dots: false }] : []),
    { values: found.model[name], colour: "var(--a)", name: "this model" },
  ];
  const draw = (name) => (width) => chart(lines(name), { name: `${CURVES[name]}, by layer`, now: card.layer, zero: true, width });
  if (box.querySelector("svg")) { // only the line of the layer moves
    for (const host of box.querySelectorAll(".host")) fitted(host, draw(host.dataset.curve));
    return;
  }
  const plot = (name) => {
    const host = el("div", { class: "host" });
    host.dataset.curve = name;
    return el("div", {}, el("h4", {}, CURVES[name]), host);
  };
  box.replaceChildren(
    el("div", { class: "pair" }, ...Object.keys(CURVES).map(plot)),
    found.untrained ? el("ul", { class: "legend" }, key("this model", "var(--a)"), key("the same, untrained", "var(--guide)", "4 4")) : "",
    el("details", {}, el("summary", {}, "What do these curves say?"),
      el("p", { class: "explain" }, "Left: the coding rate R^c, in nats: how much it takes to describe the patches when each head sees them through its own subspace. CRATE's attention is built to lower it: falling means compressing. Right: how many entries of the patches' descriptions are not zero after the layer. CRATE's second half is built to make them sparse; in an ordinary transformer all are non-zero. Only what goes beyond the untrained model was learned.")));
  for (const host of box.querySelectorAll(".host")) fitted(host, draw(host.dataset.curve));
}
