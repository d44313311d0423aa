// Charts in SVG, drawn at the size at which they are seen, so that their text is as large on a phone as on a desk.

import { number, palette, svg } from "./parts.js";

const drawn = new WeakMap();
const watcher = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const { draw, width } = drawn.get(target);
    if (target.clientWidth && Math.abs(target.clientWidth - width) > 1) fitted(target, draw);
  }
});

// Fill a host with draw(width), again whenever its width changes
export function fitted(host, draw) {
  const width = host.clientWidth || 320;
  drawn.set(host, { draw, width });
  watcher.observe(host);
  host.replaceChildren(draw(width));
  return host;
}

export function label(text, x, y, anchor = "middle") {
  const out = svg("text", { x, y, "text-anchor": anchor });
  out.textContent = text;
  return out;
}

// Lines over layers, counted from 0. lines: [{values, colour, dash, width, name, dots}]; y from the values, or from 0, and
// up to `most`: what goes higher leaves the chart, and `beyond` says so
export function chart(lines, { name, now = null, zero = false, width = 320, height = 160, x = "layer", most = Infinity, beyond = "" }) {
  const known = lines.flatMap((line) => line.values).filter(Number.isFinite);
  let low = Math.min(...known), high = Math.min(most, Math.max(...known));
  if (zero) low = Math.min(0, low);
  if (high - low < 1e-12) { high += 0.5; low -= 0.5; }
  const count = Math.max(...lines.map((line) => line.values.length));
  const left = 48, right = 12, top = 14, bottom = 28;
  const px = (i) => left + (width - left - right) * (count > 1 ? i / (count - 1) : 0.5);
  const py = (v) => Math.max(-2 * height, top + (height - top - bottom) * (1 - (v - low) / (high - low)));
  const said = lines.map((line) => `${line.name}: ${line.values.map((v) => number(v)).join(", ")}`).join("; ");
  const out = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${name}. ${said}` });
  for (const value of [low, (low + high) / 2, high]) {
    out.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: py(value), y2: py(value) }));
    out.append(label(number(value), left - 6, py(value) + 4, "end"));
  }
  const step = Math.max(1, Math.ceil(count / ((width - left) / 40)));
  for (let i = 0; i < count; i += step) out.append(label(i === 0 ? `${x} 0` : String(i), px(i), height - 8));
  if (now !== null) out.append(svg("line", { class: "now", x1: px(now), x2: px(now), y1: top - 4, y2: height - bottom }));
  const leaves = known.some((v) => v > high);
  const clip = `clip-${Math.random().toString(36).slice(2)}`;
  if (leaves) out.append(svg("clipPath", { id: clip }, svg("rect", { x: left, y: top - 2, width: width - left - right, height: height - top - bottom + 4 })));
  for (const line of lines) {
    const path = line.values.map((v, i) => `${i ? "L" : "M"}${px(i).toFixed(1)} ${py(v).toFixed(1)}`).join("");
    const curve = svg("path", { d: path, "stroke-dasharray": line.dash ?? null, "clip-path": leaves ? `url(#${clip})` : null });
    curve.style.cssText = `stroke:${line.colour};stroke-width:${line.width ?? 2};fill:none`;
    out.append(curve);
    if (now !== null && line.values.length > now && line.dots !== false && line.values[now] <= high) {
      const dot = svg("circle", { cx: px(now), cy: py(line.values[now]), r: 4 });
      dot.style.fill = line.colour;
      out.append(dot);
    }
  }
  if (leaves && beyond) out.append(label(beyond, width - right, top + 12, "end"));
  return out;
}

// The colours of a scale with its numbers. ticks: [[value, text]]; those that would stand on another are left out
export function colourBar({ low, high, ticks, title, map }, width) {
  const wide = Math.min(width, 420), left = 14, span = wide - 2 * left, table = palette(map), height = 50;
  const px = (value) => left + (span * (value - low)) / (high - low);
  const out = svg("svg", { class: "scale", viewBox: `0 0 ${wide} ${height}`, width: wide, height, role: "img", "aria-label": `${title}: ${ticks.map(([, text]) => text).join(", ")}` });
  out.append(label(title, left, 12, "start"));
  for (let i = 0; i < 64; i++) {
    const [r, g, b] = table[Math.round((i / 63) * 255)];
    out.append(svg("rect", { x: left + (span * i) / 64, y: 18, width: span / 64 + 0.6, height: 12, fill: `rgb(${r},${g},${b})` }));
  }
  let last = -Infinity;
  const shown = [...ticks].sort((a, b) => a[0] - b[0]);
  shown.forEach(([value, text], i) => {
    const end = i === shown.length - 1, half = text.length * 3.4;
    const next = shown.at(-1), crowded = px(value) - half < last + 4 || (!end && px(value) + half > px(next[0]) - next[1].length * 3.4 - 4);
    if (crowded && !end) return;
    out.append(svg("line", { class: "axis", x1: px(value), x2: px(value), y1: 30, y2: 34 }));
    const at = Math.min(wide - half - 1, Math.max(half + 1, px(value)));
    out.append(label(text, at, 46));
    last = at + half;
  });
  return out;
}
