// Maps of patches painted over the picture.

import { bytes, cosines, number, palette, words } from "./parts.js";

// Okabe and Ito's colours, told apart by colour-blind eyes
const LABELS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [204, 121, 167]];

const unpacked = new WeakMap();
function maps(record, unpack) {
  if (!unpacked.has(record)) unpacked.set(record, unpack(record.maps));
  return unpacked.get(record);
}

// Attention of one head (0: their average) in multiples of an even share
export function attentionOf(card, layer, head) {
  const n = card.grid[0] * card.grid[1], from = (layer * (card.heads + 1) + head) * n, peak = card.attention.peak[layer][head];
  return Array.from(maps(card.attention, words).subarray(from, from + n), (word) => (word / 65535) * peak);
}

// Red, green and blue of every patch, 0 to 255
export function coloursOf(card, layer) {
  const n = card.grid[0] * card.grid[1] * 3;
  return maps(card.colours, bytes).subarray(layer * n, (layer + 1) * n);
}

// The scale that the maps of all models share, or null where colours are no numbers
export function scaleOf(cards, { view, map }) {
  const seen = cards.filter((card) => !card.blank && (view !== "attention" || card.attention));
  if (!seen.length || (view !== "attention" && view !== "similar")) return null;
  if (view === "attention") {
    // all heads of the layer; a map in which every patch gets about the same is to look like that
    const high = Math.max(2, ...seen.flatMap((card) => card.attention.peak[card.layer]));
    return { low: 0, high, map, title: "Attention, as a multiple of an even share", ticks: [[0, "0"], [1, "1: even"], [high, number(high, 2)]] };
  }
  const low = Math.min(0, ...seen.flatMap((card) => card.values.values));
  return { low, high: 1, map, title: "Cosine similarity to the patch", ticks: [[low, cosines([low])[0]], ...(low < 0 ? [[0, "0"]] : []), [0.5, "0.5"], [1, "1"]] };
}

const shaded = (scale) => {
  const table = palette(scale.map);
  return (value) => table[Math.round(255 * Math.min(1, Math.max(0, (value - scale.low) / (scale.high - scale.low))))];
};

function gridCanvas([rows, columns], colourAt) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) image.data.set(colourAt(i), i * 4);
  context.putImageData(image, 0, 0);
  return canvas;
}

export function drawPlain({ canvas, image }) {
  const context = canvas.getContext("2d");
  context.filter = "none";
  context.globalAlpha = 1;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return context;
}

function overlay(card, grid, strength, smooth) {
  const context = drawPlain(card), { canvas } = card;
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = "high";
  context.globalAlpha = strength;
  context.drawImage(grid, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
  return context;
}

export function drawMap(card, { view, head, strength, scale }) {
  const { grid, canvas, layer } = card;
  if (view === "attention") {
    const values = attentionOf(card, layer, Math.min(head, card.heads)), shade = shaded(scale);
    overlay(card, gridCanvas(grid, (i) => [...shade(values[i]), 255]), strength, true);
  } else if (view === "colours") {
    const values = coloursOf(card, layer);
    overlay(card, gridCanvas(grid, (i) => [...values.subarray(i * 3, i * 3 + 3), 255]), strength, true);
  } else if (view === "objects") {
    const { labels } = card.values;
    const context = overlay(card, gridCanvas(grid, (i) => (labels[i] ? [...LABELS[(labels[i] - 1) % 4], 190] : [12, 16, 20, 200])), strength, false);
    outline(context, card, labels);
  } else {
    const { values, patch } = card.values, shade = shaded(scale);
    const context = overlay(card, gridCanvas(grid, (i) => [...shade(values[i]), 255]), strength, true);
    frame(context, canvas, grid, patch);
  }
}

// The chosen patch: light inside dark, visible on any ground
function frame(context, canvas, [rows, columns], patch) {
  const w = canvas.width / columns, h = canvas.height / rows, x = (patch % columns) * w, y = Math.floor(patch / columns) * h;
  for (const [width, colour] of [[7, "#000"], [3, "#fff"]]) {
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.strokeRect(x, y, w, h);
  }
}

function outline(context, { canvas, grid: [rows, columns] }, labels) {
  const w = canvas.width / columns, h = canvas.height / rows;
  context.beginPath();
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++) {
      const own = labels[row * columns + column];
      if (column + 1 < columns && labels[row * columns + column + 1] !== own) { context.moveTo((column + 1) * w, row * h); context.lineTo((column + 1) * w, (row + 1) * h); }
      if (row + 1 < rows && labels[(row + 1) * columns + column] !== own) { context.moveTo(column * w, (row + 1) * h); context.lineTo((column + 1) * w, (row + 1) * h); }
    }
  context.lineWidth = 3;
  context.strokeStyle = "#fff";
  context.stroke();
}

export function drawHead(canvas, card, head, { scale }) {
  const values = attentionOf(card, card.layer, head), shade = shaded(scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.drawImage(gridCanvas(card.grid, (i) => [...shade(values[i]), 255]), 0, 0, canvas.width, canvas.height);
}
