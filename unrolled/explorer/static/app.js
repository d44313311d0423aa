// Starts the page: tabs, and what every tab needs to know.

import { ask, byId, fail, group } from "./parts.js";
import { startImages } from "./images.js";
import { startWorld } from "./world.js";
import { startAlignment } from "./alignment.js";

const starters = { images: startImages, world: startWorld, alignment: startAlignment };
const started = new Set();
let known = null;

const tabs = document.querySelector(".tabs");
const mark = group(tabs, "aria-selected", (button) => show(button.id.slice(4)), ["ArrowRight"], ["ArrowLeft"]);

async function show(name) {
  for (const other of Object.keys(starters)) byId(`panel-${other}`).hidden = other !== name;
  mark(byId(`tab-${name}`));
  history.replaceState(null, "", `#${name}`);
  if (!started.has(name)) {
    started.add(name);
    try {
      await starters[name](known);
    } catch (error) {
      fail(error);
    }
  }
}

tabs.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) show(button.id.slice(4));
});

try {
  known = await ask("/api/start");
  byId("about").textContent =
    `unrolled ${known.version}. Everything on this page is computed on this machine; nothing is sent anywhere or kept.`;
  const wanted = location.hash.slice(1);
  await show(wanted in starters ? wanted : "images");
} catch (error) {
  fail(error);
}
document.body.dataset.ready = "yes";
