// Elements and words. Everything that is shown came from strangers: it is text, and never HTML.

/** An element with attributes and children; strings become text. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sets the text of an element where it is another one. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** The order of names as people read them: web.2 before web.10. Made once, since making it costs more than all comparisons. */
export const { compare } = new Intl.Collator("en", { numeric: true });

export function ago(ms) {
  const seconds = Math.max(0, Math.round((Date.now() - ms) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86_400)} d ago`;
}

/** A moment, said as how long ago it is. */
export function time(ms) {
  if (!ms) return el("span", { class: "dim" }, "-");
  const at = new Date(ms);
  return el("time", { datetime: at.toISOString(), title: at.toLocaleString(), "data-ms": ms }, ago(ms));
}

// What is said to be some time ago goes on.
setInterval(() => {
  if (document.hidden) return;
  for (const element of document.querySelectorAll("time[data-ms]")) say(element, ago(Number(element.dataset.ms)));
}, 5_000);

export function duration(us) {
  if (us === undefined || us === null) return "-";
  if (us < 1_000) return `${us} µs`;
  if (us < 1_000_000) return `${(us / 1_000).toFixed(us < 10_000 ? 1 : 0)} ms`;
  return `${(us / 1_000_000).toFixed(us < 10_000_000 ? 1 : 0)} s`;
}

export function bytes(n) {
  if (!n) return "0 B";
  const unit = Math.min(4, Math.floor(Math.log10(n) / 3));
  const value = n / 1000 ** unit;
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

export function rate(n) {
  if (!n) return "0";
  return n < 10 ? n.toFixed(1) : Math.round(n).toLocaleString("en");
}

export function percent(part) {
  if (!part) return "0 %";
  return part < 0.001 ? "< 0.1 %" : `${(part * 100).toFixed(part < 0.1 ? 1 : 0)} %`;
}

/** A list of names and what is known of them; what is unknown is left out. */
export function facts(pairs) {
  const list = el("dl");
  for (const [name, value] of pairs) {
    if (value === undefined || value === null || value === "" || value?.length === 0) continue;
    list.append(el("dt", {}, name), el("dd", {}, value));
  }
  return list;
}

/** A table whose columns are [title, class]; rows are lists of texts or elements. */
export function table(columns, rows, caption) {
  return el("div", { class: "scroll" }, el("table", { "aria-label": caption },
    el("thead", {}, el("tr", {}, columns.map(([title, kind]) => el("th", { scope: "col", class: kind }, title)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => el("td", { class: columns[i][1] }, cell ?? "-")))))));
}

export const link = {
  service: (name) => el("a", { href: `#/service/${encodeURIComponent(name)}` }, name),
  node: (id, name) => el("a", { href: `#/node/${encodeURIComponent(id)}` }, name ?? id),
};

// How far a state is from what is wished: 0 is well, 1 is on its way, 2 is wrong.
const STATES = {
  ready: ["takes traffic", 0], untried: ["gets traffic, nothing is known of it yet", 0], running: ["runs", 0], complete: ["has completed", 0],
  pending: ["waits for a node", 1], starting: ["starts", 1], draining: ["has left, finishes what is open", 1], stopping: ["is being stopped", 1],
  failing: ["the last that went there was not taken", 2], resting: ["rests: it failed", 2], unready: ["its check fails, or has not passed", 2], failed: ["has failed", 2],
};

export function stateOf(state) {
  const [words, level] = STATES[state] ?? ["", 1];
  return { words, level, kind: ["good", "warn", "bad"][level] };
}

export function state(name) {
  return el("span", { class: stateOf(name).kind, title: stateOf(name).words }, name);
}
