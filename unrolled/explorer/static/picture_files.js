// What the first tab saves: the pictures with their maps, and the numbers behind all that is shown.

import { named, short, svg } from "./parts.js";
import { colourBar } from "./charts.js";
import { CURVES } from "./cards.js";
import { attentionOf, coloursOf } from "./draw.js";
import { copyOf, sheet } from "./save.js";

const SIDE = 460;

export function figureOf(cards, state) {
  const columns = cards.map((card) => {
    const height = Math.round((SIDE * card.canvas.height) / card.canvas.width);
    const image = svg("image", { href: card.canvas.toDataURL("image/png"), width: SIDE, height });
    return sheet([
      { text: named(short(card.model.label)), strong: true }, { text: card.model.trained ? named(short(card.model.weights)) : "random weights" },
      { node: image }, { text: card.caption.textContent }, ...guesses(card),
      ...curves(card),
    ], SIDE);
  });
  const width = columns.reduce((sum, column) => sum + Number(column.getAttribute("width")) + 20, -20);
  const bar = state.scale ? [{ node: inked(colourBar(state.scale, 420)) }] : [];
  return sheet([{ text: titleOf(cards[0]), strong: true }, { row: columns }, ...bar], width);
}

const titleOf = ({ source }) => (source.sample ? source.title : named(short(source.title)));

// Side by side, or on a narrow page as wide as they are drawn
function curves(card) {
  const charts = [...card.plots.querySelectorAll("svg.chart")].map((chart) => sheet([{ text: CURVES[chart.parentNode.dataset.curve] }, { node: copyOf(chart) }], Number(chart.getAttribute("width"))));
  return charts.length ? [{ row: charts }] : [];
}

// A bar that is not on the page takes its looks from the one that is
function inked(bar) {
  document.getElementById("scale").append(bar);
  const copy = copyOf(bar);
  bar.remove();
  return copy;
}

function guesses(card) {
  const percent = (share) => `${(share * 100).toFixed(1)} %`;
  if (card.without) return [{ text: `Without ${card.without.off.join(", ")}:` }, ...card.without.classes.map(({ name, before, after }) => ({ text: `${named(name)}: ${percent(before)} → ${percent(after)}` }))];
  return (card.prediction?.top ?? []).map(({ name, probability }) => ({ text: `${named(name)}: ${percent(probability)}` }));
}

// One number a row
export function rowsOf(cards, state) {
  const out = [["picture", "model", "weights", "quantity", "layer", "head", "row", "column", "name", "value"]];
  for (const card of cards) {
    const who = [card.source.title, card.model.label, card.model.trained ? card.model.weights : "random"], columns = card.grid[1];
    const head = Math.min(state.head, card.heads);
    const patches = (quantity, values, which = "") => values.forEach((value, i) => out.push([...who, quantity, card.layer, which, Math.floor(i / columns), i % columns, "", value]));
    if (card.blank) { /* no map */ }
    else if (state.view === "attention" && card.attention) patches("attention as a multiple of an even share", attentionOf(card, card.layer, head).map((v) => Number(v.toPrecision(5))), head ? head - 1 : "mean");
    else if (state.view === "objects") patches("object", card.values.labels);
    else if (state.view === "similar") patches(`cosine to row ${Math.floor(card.values.patch / columns)} column ${card.values.patch % columns}`, card.values.values);
    else if (state.view === "colours") {
      const values = Array.from(coloursOf(card, card.layer));
      ["red", "green", "blue"].forEach((name, c) => patches(name, values.filter((_, i) => i % 3 === c)));
    }
    for (const { name, probability } of card.prediction?.top ?? []) out.push([...who, "probability", "", "", "", "", name, probability]);
    for (const { name, after } of card.without?.classes ?? []) out.push([...who, `probability without ${card.without.off.join(" ")}`, "", "", "", "", name, after]);
    for (const [name, title] of Object.entries(CURVES))
      for (const [which, found] of [["", card.curves?.model], [" untrained", card.curves?.untrained]])
        found?.[name].forEach((value, layer) => out.push([...who, `${title}${which}`, layer, "", "", "", "", value]));
  }
  return out;
}
