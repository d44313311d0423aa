// What is shown, in the address: Back, reload and a link lead to it.

const values = {};
let tab = null, last = null, restoring = false;

// A tab says what it shows: name -> text, null where there is nothing to say
export function describes(name, say) {
  values[name] = say;
}

export function read() {
  const [name, rest = ""] = location.hash.slice(1).split("?");
  return { tab: name, said: new URLSearchParams(rest) };
}

// Something else is shown now. Steps of one slider make one entry of the history; what only completes an entry replaces it
export function note(kind = null, { complete = false } = {}) {
  if (!tab) return;
  const said = values[tab] ? Object.entries(values[tab]()).filter(([, value]) => value !== null && value !== "") : [];
  const text = new URLSearchParams(said).toString(), hash = `#${tab}${text ? `?${text}` : ""}`;
  if (hash === location.hash) return;
  const replace = complete || restoring || (kind !== null && kind === last);
  history[replace ? "replaceState" : "pushState"](null, "", hash);
  if (!complete) last = kind;
}

export function enter(name) {
  tab = name;
}

// While a tab takes over what an address says, nothing is added to the history
export function adopting(work) {
  restoring = true;
  try {
    return work();
  } finally {
    restoring = false;
    last = null;
  }
}

// A whole number of an address, or null
export function whole(text, low, high) {
  if (text === null || !/^\d{1,9}$/.test(text)) return null;
  const value = Number(text);
  return value >= low && value <= high ? value : null;
}
