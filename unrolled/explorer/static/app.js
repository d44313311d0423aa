// Starts the page: tabs, the address, and what every tab needs to know.

import { ask, byId, fail, group, starting } from "./parts.js";
import { adopting, enter, note, read } from "./address.js";
import { restoreImages, startImages } from "./images.js";
import { restoreWorld, startWorld } from "./world.js";
import { restoreAlignment, startAlignment } from "./alignment.js";

const starters = { images: startImages, world: startWorld, alignment: startAlignment };
const restorers = { images: restoreImages, world: restoreWorld, alignment: restoreAlignment };
const started = new Map(); // tab -> when it was built
let known = null;

const tabs = document.querySelector(".tabs");
const mark = group(tabs, "aria-selected", (button) => choose(button.id.slice(4)), ["ArrowRight"], ["ArrowLeft"]);

function reveal(name) {
  for (const other of Object.keys(starters)) byId(`panel-${other}`).hidden = other !== name;
  mark(byId(`tab-${name}`));
  enter(name);
}

// A tab with what an address says of it, or as it was left
async function open(name, said = null) {
  reveal(name);
  const first = !started.has(name);
  if (first) started.set(name, starters[name](known));
  try {
    await started.get(name);
    if (first || said) await adopting(() => restorers[name](said ?? new URLSearchParams()));
  } catch (error) {
    fail(error);
  }
  note(null, { complete: true });
}

async function choose(name) {
  reveal(name);
  note();
  await open(name);
}

async function follow() {
  const { tab, said } = read();
  await open(tab in starters ? tab : "images", said);
}

tabs.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) choose(button.id.slice(4));
});
addEventListener("popstate", follow);

// What the first answers wait for, while they do
async function startup() {
  const { step, seconds } = await ask("/api/startup");
  byId("startup").hidden = !step;
  if (!step) {
    starting.over = performance.now();
    return;
  }
  byId("startup").textContent = `Starting: ${step}, ${Math.round(seconds)} s so far. The first answer comes after that.`;
  setTimeout(() => startup().catch(fail), 500);
}

try {
  startup().catch(fail);
  known = await ask("/api/start");
  byId("about").textContent =
    `unrolled ${known.version}. Everything on this page is computed on this machine; nothing is sent anywhere or kept.`;
  await follow();
} catch (error) {
  fail(error);
}
document.body.dataset.ready = "yes";
