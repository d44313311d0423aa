// Parts of a model switched off, and what becomes of its guess.

import { el, fail, named } from "./parts.js";

const KINDS = [
  [/^attn\/head(\d+)$/, "Heads", (n) => `head ${n}`],
  [/^subspace(\d+)$/, "Subspaces of what enters the layer", (n) => `subspace ${n}`],
  [/^(attn|mlp)$/, "Halves", (n) => (n === "attn" ? "attention" : "MLP")],
];

// off: names of parts, as `unrolled ablate` has them; changed(off) is told of every change
export function offerSwitches(card, off, changed) {
  const known = new Set(card.switches), parts = el("div", { class: "switches" }), answer = el("div", { "aria-live": "polite" });
  let wish = 0, layer = -1;
  off = off.filter((name) => known.has(name));
  card.guess.replaceChildren(answer, parts);
  draw(null);

  async function ask() {
    const own = ++wish;
    markAll();
    if (!off.length) return draw(null);
    answer.classList.add("busy");
    try {
      const found = await card.more("without", { method: "POST", body: JSON.stringify(off) });
      if (own === wish) draw(found);
    } catch (error) {
      if (own !== wish) return;
      draw(null);
      answer.append(el("p", { class: "warn" }, error.message));
      fail(error);
    } finally {
      if (own === wish) answer.classList.remove("busy");
    }
  }

  function draw(found) {
    card.without = found;
    answer.replaceChildren(...guesses(card, found));
    const list = off.map((name) => el("li", {}, el("button", { type: "button", "aria-label": `Switch ${name} on again`, onclick: () => toggle(name) }, `${name} ×`)));
    if (list.length) answer.append(el("ul", { class: "off", "aria-label": "Parts that are off" }, ...list, list.length > 1 ? el("li", {}, el("button", { type: "button", onclick: () => { off = []; changed(off); ask(); } }, "all on again")) : null));
  }

  function toggle(name) {
    off = off.includes(name) ? off.filter((other) => other !== name) : [...off, name];
    changed(off);
    ask();
  }

  const buttons = () => [...parts.querySelectorAll("[role=switch]")];
  const markAll = () => { for (const button of buttons()) button.setAttribute("aria-checked", String(!off.includes(button.dataset.part))); };

  // The switches of one layer; those of others stay as they are
  card.switched = (now) => {
    if (now === layer || !known.size) return;
    layer = now;
    const prefix = `block${String(layer).padStart(2, "0")}/`;
    const rows = KINDS.map(([pattern, title, words]) => {
      const found = card.switches.filter((name) => name.startsWith(prefix) && pattern.test(name.slice(prefix.length)));
      if (!found.length) return null;
      return el("div", { class: "row", role: "group", "aria-label": `${title}, layer ${layer}` }, el("span", {}, title), ...found.map((name) => {
        const said = words(name.slice(prefix.length).match(pattern)[1]);
        const button = el("button", { type: "button", role: "switch", "aria-label": `${said} of layer ${layer}`, title: name, onclick: () => toggle(name) }, said.replace(/^(head|subspace) /, ""));
        button.dataset.part = name;
        return button;
      }));
    });
    const opened = parts.querySelector("details")?.open ?? true;
    parts.replaceChildren(el("details", { open: opened }, el("summary", {}, `Switch parts of layer ${layer} off`), ...rows.filter(Boolean)));
    markAll();
  };
  if (off.length) ask();
}

function guesses(card, found) {
  if (!card.prediction) return [el("h4", {}, "Its guess"), el("p", { class: "hint" }, "This model names no classes.")];
  const percent = (share) => `${(share * 100).toFixed(1)} %`;
  const bar = (share, kind) => {
    const out = el("span", { class: kind });
    out.style.width = `${(share * 100).toFixed(1)}%`;
    return out;
  };
  const shown = found ? found.classes : card.prediction.top.map(({ name, probability }) => ({ name, before: probability, after: probability }));
  const rows = shown.map(({ name, before, after }) =>
    el("li", {}, el("span", { class: "name", title: name }, named(name)),
      el("span", { class: "bar", "aria-hidden": "true" }, bar(after, "after"), found ? bar(before, "before") : null),
      el("span", { class: "value" }, found ? `${percent(before)} → ${percent(after)}` : percent(after))));
  const of = `of ${card.prediction.classes} classes${card.model.data ? ` (${named(card.model.data)})` : ""}`;
  const out = [el("h4", {}, found ? `Its guess, ${of}, with all parts and without` : `Its guess, ${of}`), el("ol", { class: found ? "guesses edited" : "guesses" }, ...rows)];
  if (found) {
    const [before, after] = found.top.map(named);
    out.push(el("p", { class: "hint" }, found.top[0] === found.top[1] ? `It still says ${before}.` : `It said ${before}; without these parts it says ${after}.`));
  }
  if (!card.model.trained) out.push(el("p", { class: "warn" }, "Nothing was learned: the guess is noise, and what the maps show comes from the picture and the architecture."));
  return out;
}
