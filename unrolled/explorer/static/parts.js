// What the tabs share: elements, requests, colours, charts, keyboard groups.

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

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The explorer does not answer. Is `unrolled explore` still running?");
  }
  const found = await answer.json().catch(() => ({ error: `The explorer answered with status ${answer.status}.` }));
  if (!answer.ok) throw new Error(found.error);
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

// Options under the headings of their groups
export function fillModels(select, models, chosen, none = null) {
  select.replaceChildren();
  if (none) select.append(el("option", { value: "" }, none));
  const groups = new Map();
  for (const model of models) {
    if (!groups.has(model.group)) groups.set(model.group, el("optgroup", { label: model.group }));
    groups.get(model.group).append(el("option", { value: model.id }, model.label));
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

// Lines over layers. lines: [{values, colour, dash, width, name}]; y from the values, or from 0
export function chart(lines, { label, now = null, zero = false, width = 320, height = 150, from = 1, x = "layer" }) {
  const known = lines.flatMap((line) => line.values).filter(Number.isFinite);
  let low = Math.min(...known), high = Math.max(...known);
  if (zero) low = Math.min(0, low);
  if (high - low < 1e-12) { high += 0.5; low -= 0.5; }
  const count = Math.max(...lines.map((line) => line.values.length));
  const left = 44, right = 10, top = 10, bottom = 24;
  const px = (i) => left + (width - left - right) * (count > 1 ? i / (count - 1) : 0.5);
  const py = (v) => top + (height - top - bottom) * (1 - (v - low) / (high - low));
  const said = lines.map((line) => `${line.name}: ${line.values.map((v) => number(v)).join(", ")}`).join("; ");
  const out = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label}. ${said}` });
  for (const value of [low, (low + high) / 2, high]) {
    out.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: py(value), y2: py(value) }));
    const text = svg("text", { x: left - 6, y: py(value) + 4, "text-anchor": "end" });
    text.textContent = number(value);
    out.append(text);
  }
  const step = Math.max(1, Math.ceil(count / (width / 34)));
  for (let i = 0; i < count; i += step) {
    const text = svg("text", { x: px(i), y: height - 6, "text-anchor": "middle" });
    text.textContent = i === 0 && from === 1 ? `${x} 1` : String(i + from);
    out.append(text);
  }
  if (now !== null) out.append(svg("line", { class: "now", x1: px(now), x2: px(now), y1: top - 4, y2: height - bottom }));
  for (const line of lines) {
    const path = line.values.map((v, i) => `${i ? "L" : "M"}${px(i).toFixed(1)} ${py(v).toFixed(1)}`).join("");
    const look = `stroke:${line.colour};stroke-width:${line.width ?? 2};fill:none`;
    const drawn = svg("path", { d: path, "stroke-dasharray": line.dash ?? null });
    drawn.style.cssText = look;
    out.append(drawn);
    if (now !== null && line.values.length > now && line.dots !== false) {
      const dot = svg("circle", { cx: px(now), cy: py(line.values[now]), r: 4 });
      dot.style.fill = line.colour;
      out.append(dot);
    }
  }
  return out;
}

// A short line as a legend's key
export function key(name, colour, dash = null, dot = false) {
  const mark = dot ? svg("circle", { cx: 14, cy: 6, r: 5 }) : svg("path", { d: "M1 6H27", "stroke-dasharray": dash });
  mark.style.cssText = dot ? `fill:${colour}` : `stroke:${colour};stroke-width:3`;
  return el("li", {}, svg("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" }, mark), name);
}
