// What the tabs share: elements, requests, words, colours, keyboard groups.

export const byId = (id) => document.getElementById(id);

export function el(tag, settings = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name in node && !name.startsWith("aria")) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function svg(tag, settings = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(settings)) if (value !== null) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// When the server had started, by the page's clock: what was waited for until then is no time of an answer
export const starting = { over: 0 };

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The explorer does not answer. Is `unrolled explore` still running?");
  }
  const found = await answer.json().catch((error) => {
    if (error.name === "AbortError") throw error; // something newer was chosen while this answer came in
    throw Object.assign(new Error(`The explorer answered with status ${answer.status}.`), { status: answer.status });
  });
  if (!answer.ok) throw Object.assign(new Error(found.error), { status: answer.status });
  return found;
}

export const query = (values) => new URLSearchParams(values).toString();

export function fail(error) {
  if (error.name === "AbortError") return;
  const box = byId("error");
  box.textContent = error.message;
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
}
export const forgive = () => { byId("error").hidden = true; };

export const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
export const words = (text) => new Uint16Array(bytes(text).buffer);

const STOPS = {
  viridis: ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"],
  cividis: ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838"],
  grey: ["000000", "ffffff"],
};
const tables = {};
// 256 colours of a map that stays ordered in print and for colour-blind eyes
export function palette(name) {
  if (tables[name]) return tables[name];
  const stops = STOPS[name].map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const table = [];
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2), share = place - low;
    table.push(stops[low].map((value, c) => Math.round(value + (stops[low + 1][c] - value) * share)));
  }
  return (tables[name] = table);
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

// Cosines with as many digits as tell the nearest from 1: where all are nearly 1, "1.000" says nothing
export function cosines(values) {
  const gaps = values.filter((v) => v !== null && v < 1 - 1e-9).map((v) => 1 - v);
  const digits = gaps.length ? Math.min(8, Math.max(2, Math.ceil(-Math.log10(Math.min(...gaps))) + 1)) : 2;
  return values.map((v) => (v === null ? "–" : v > 1 - 1e-9 ? "1" : v.toFixed(digits)));
}

// A name that is not ours, within a sentence: no mark in it turns the direction of what stands around it, and none is unseen
export const named = (text) => `\u2068${printable(text)}\u2069`;
export function printable(text) {
  return String(text).replace(/(?![\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
}
// Its beginning and its end, where it is long
export function short(text, most = 60) {
  const letters = [...printable(text)];
  return letters.length <= most ? letters.join("") : `${letters.slice(0, most - 16).join("")}…${letters.slice(-15).join("")}`;
}

// Options under the headings of their groups
export function fillModels(select, models, chosen, none = null) {
  select.replaceChildren();
  if (none) select.append(el("option", { value: "" }, none));
  const groups = new Map();
  for (const model of models) {
    if (!groups.has(model.group)) groups.set(model.group, el("optgroup", { label: model.group }));
    groups.get(model.group).append(el("option", { value: model.id }, short(model.label)));
  }
  select.append(...groups.values());
  select.value = chosen ?? "";
}

// Arrow keys move within a group of buttons of which one is on; Tab leaves it
export function group(container, attribute, choose, keys = ["ArrowRight", "ArrowDown"], back = ["ArrowLeft", "ArrowUp"]) {
  container.addEventListener("keydown", (event) => {
    const buttons = [...container.querySelectorAll("button")], at = buttons.indexOf(event.target);
    let next = null;
    if (at < 0) return;
    if (keys.includes(event.key)) next = (at + 1) % buttons.length;
    else if (back.includes(event.key)) next = (at - 1 + buttons.length) % buttons.length;
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = buttons.length - 1;
    if (next === null) return;
    event.preventDefault();
    buttons[next].focus();
    choose(buttons[next]);
  });
  return (on) => {
    for (const button of container.querySelectorAll("button")) {
      button.setAttribute(attribute, String(button === on));
      button.tabIndex = button === on ? 0 : -1;
    }
  };
}

// A short line as a legend's key
export function key(name, colour, dash = null, dot = false) {
  const mark = dot ? svg("circle", { cx: 14, cy: 6, r: 5 }) : svg("path", { d: "M1 6H27", "stroke-dasharray": dash });
  mark.style.cssText = dot ? `fill:${colour}` : `stroke:${colour};stroke-width:3`;
  return el("li", {}, svg("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" }, mark), name);
}
