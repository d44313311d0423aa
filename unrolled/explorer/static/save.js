// What is seen, as a file: a drawing, a picture of it, or its numbers. Made in the page; nothing is sent.

import { el, fail, svg } from "./parts.js";
import { label } from "./charts.js";

const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "font-weight", "visibility"];

// Three buttons in a host. name(), rows() [[heading, ...], [cell, ...], ...], figure() an <svg> that stands by itself
export function savers(host, { name, figure, rows }) {
  const button = (kind, work) => el("button", { type: "button", onclick: () => Promise.resolve().then(work).catch(fail) }, kind);
  host.replaceChildren(el("span", {}, "Save what is shown:"),
    button("PNG", async () => offer(await picture(figure()), `${name()}.png`)),
    button("SVG", () => offer(new Blob([text(figure())], { type: "image/svg+xml" }), `${name()}.svg`)),
    button("CSV", () => offer(new Blob([csv(rows())], { type: "text/csv" }), `${name()}.csv`)));
}

function offer(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const text = (figure) => new XMLSerializer().serializeToString(figure);

async function picture(figure) {
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([text(figure)], { type: "image/svg+xml" }));
  try {
    await image.decode();
    const canvas = el("canvas", { width: 2 * figure.getAttribute("width"), height: 2 * figure.getAttribute("height") });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((done) => canvas.toBlob(done, "image/png"));
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

function csv(rows) {
  const cell = (value) => {
    if (typeof value === "number") return Number.isFinite(value) ? String(value) : "";
    const said = String(value ?? "");
    const safe = /^[=+\-@\t\r]/.test(said) ? `'${said}` : said; // no spreadsheet takes a name for a formula
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return rows.map((row) => row.map(cell).join(",") + "\r\n").join("");
}

// A drawing of the page with its looks written into it, since a file has no style sheet
export function copyOf(node) {
  const copy = node.cloneNode(true), from = [node, ...node.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((original, i) => {
    const style = getComputedStyle(original);
    to[i].removeAttribute("class");
    to[i].removeAttribute("style");
    for (const name of STYLES) to[i].setAttribute(name, style.getPropertyValue(name));
  });
  return copy;
}

// Drawings and lines of text under each other, on the page's ground. blocks: {node} or {text, strong} or {row: [nodes]}
export function sheet(blocks, width) {
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const pad = 20, out = svg("svg", { xmlns: "http://www.w3.org/2000/svg" });
  let top = pad, right = 0;
  const put = (node, x) => { node.setAttribute("x", x); node.setAttribute("y", top); out.append(node); };
  for (const block of blocks) {
    if (block.text !== undefined) {
      for (const line of wrapped(block.text, width / (block.strong ? 8.5 : 7))) {
        const words = label(line, pad, top + 14, "start");
        for (const [name, value] of [["fill", colour(block.strong ? "--ink" : "--soft")], ["font-size", block.strong ? 15 : 13], ["font-weight", block.strong ? 600 : 400], ["font-family", style.fontFamily]]) words.setAttribute(name, value);
        out.append(words);
        top += 20;
      }
    } else {
      const nodes = block.row ?? [block.node];
      let x = pad;
      for (const node of nodes) { put(node, x); x += Number(node.getAttribute("width")) + pad; }
      right = Math.max(right, x - pad);
      top += Math.max(...nodes.map((node) => Number(node.getAttribute("height")))) + 10;
    }
  }
  const wide = Math.max(width, right - pad) + 2 * pad, high = top + pad;
  for (const [name, value] of [["width", wide], ["height", high], ["viewBox", `0 0 ${wide} ${high}`]]) out.setAttribute(name, value);
  out.prepend(svg("rect", { width: wide, height: high, fill: colour("--surface") }));
  return out;
}

// Words in lines of at most so many letters
function wrapped(said, most) {
  const lines = [];
  for (const word of String(said).split(" ")) {
    const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && longer.length <= most) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}
