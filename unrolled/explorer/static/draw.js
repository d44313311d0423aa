// Maps of patches painted over the picture.

import { bytes, palette } from "./parts.js";

// Okabe and Ito's colours, told apart by colour-blind eyes
const LABELS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [204, 121, 167]];

const unpacked = new WeakMap();
function maps(record) {
  if (!unpacked.has(record)) unpacked.set(record, bytes(record.maps));
  return unpacked.get(record);
}

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

const at = (card, layer, head) => (layer * (card.heads + 1) + head) * card.grid[0] * card.grid[1];

export function drawMap(card, what, { strength, map }) {
  const table = palette(map), { grid, canvas } = card;
  if (what.kind === "attention") {
    const values = maps(card.attention), from = at(card, what.layer, what.head);
    overlay(card, gridCanvas(grid, (i) => [...table[values[from + i]], 255]), strength, true);
  } else if (what.kind === "colours") {
    const values = maps(card.colours), from = what.layer * grid[0] * grid[1] * 3;
    overlay(card, gridCanvas(grid, (i) => [...values.subarray(from + i * 3, from + i * 3 + 3), 255]), strength, true);
  } else if (what.kind === "objects") {
    const context = overlay(card, gridCanvas(grid, (i) => (what.labels[i] ? [...LABELS[(what.labels[i] - 1) % 4], 190] : [12, 16, 20, 200])), strength, false);
    outline(context, card, what.labels);
  } else {
    const others = what.values.filter((_, i) => i !== what.patch);
    const low = Math.min(...others), range = Math.max(...others) - low || 1;
    const shade = (value) => table[Math.round(255 * Math.min(1, Math.max(0, (value - low) / range)))];
    const context = overlay(card, gridCanvas(grid, (i) => [...shade(what.values[i]), 255]), strength, true);
    frame(context, canvas, grid, what.patch);
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

export function drawHead(canvas, card, layer, head, map) {
  const table = palette(map), values = maps(card.attention), from = at(card, layer, head);
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.drawImage(gridCanvas(card.grid, (i) => [...table[values[from + i]], 255]), 0, 0, canvas.width, canvas.height);
}
