// What the node tells, kept as it was told last, and those who want to know of changes.

const KINDS = ["node", "service", "task", "problem", "event"];
const SILENCE_MS = 25_000;
// What changes without end is drawn as often as one can read it.
const TOGETHER_MS = 500;
const RETRY_MS = [1_000, 2_000, 4_000, 8_000, 10_000];

export const known = {
  hello: null,
  node: new Map(), service: new Map(), task: new Map(), problem: new Map(), event: new Map(),
  figures: {}, figuresOf: null, history: {},
  isWhole: false,
  // Once all was told, also while it is told anew.
  isReady: false,
  // Since when nothing is told, in milliseconds; null while the stream goes on.
  lostSince: null,
  // Why nothing is shown: { status, text }.
  refusal: null,
};

const listeners = new Set();
let changed = new Map();
let isPlanned = false;
let toldAt = -Infinity;

/** Calls `tell` with what changed, at most once in TOGETHER_MS: kinds by name, each with its keys; "figures", "link" and "whole" have none. */
export function onChange(tell) {
  listeners.add(tell);
  return () => listeners.delete(tell);
}

function mark(kind, name) {
  if (!changed.has(kind)) changed.set(kind, new Set());
  if (name !== undefined) changed.get(kind).add(name);
  if (isPlanned || !(known.isWhole || kind === "link" || kind === "refusal")) return;
  isPlanned = true;
  const wait = toldAt + TOGETHER_MS - performance.now();
  if (wait > 0) setTimeout(frame, wait);
  else frame();
}

function frame() {
  // Not at all while nobody sees it.
  requestAnimationFrame(() => {
    isPlanned = false;
    toldAt = performance.now();
    const now = changed;
    changed = new Map();
    for (const tell of listeners) tell(now);
  });
}

function split(key) {
  const at = key.indexOf("/");
  return [key.slice(0, at), key.slice(at + 1)];
}

let beforeHello = null;

const takes = {
  hello(data) {
    known.hello = data;
    known.isWhole = false;
    // What is not told again is gone.
    beforeHello = new Map(KINDS.map((kind) => [kind, new Set(known[kind].keys())]));
    known.lostSince = null;
    if (known.refusal) {
      known.refusal = null;
      mark("refusal");
    }
  },
  put(data) {
    for (const [key, object] of Object.entries(data)) {
      const [kind, name] = split(key);
      if (!known[kind] || !KINDS.includes(kind)) continue;
      known[kind].set(name, object);
      beforeHello?.get(kind).delete(name);
      mark(kind, name);
    }
  },
  del(keys) {
    for (const key of keys) {
      const [kind, name] = split(key);
      if (KINDS.includes(kind) && known[kind].delete(name)) mark(kind, name);
    }
  },
  whole() {
    for (const [kind, names] of beforeHello ?? []) for (const name of names) {
      known[kind].delete(name);
      mark(kind, name);
    }
    beforeHello = null;
    known.isWhole = true;
    known.isReady = true;
    mark("whole");
  },
  history(data) {
    known.history = data.services;
    mark("figures");
  },
  figures(data) {
    known.figures = data.services;
    known.figuresOf = data.nodes;
    for (const [name, now] of Object.entries(data.services)) known.history[name] ??= { rate: [], errors: [], p99_us: [] };
    for (const [name, past] of Object.entries(known.history)) {
      const now = data.services[name];
      push(past.rate, now?.rate ?? 0);
      push(past.errors, now?.errors ?? 0);
      push(past.p99_us, now?.p99_us ?? 0);
    }
    mark("figures");
  },
  ping() {},
};

function push(list, value) {
  list.push(value);
  if (list.length > 180) list.shift();
}

export const session = {
  get: () => localStorage.getItem("session"),
  set: (value) => (value ? localStorage.setItem("session", value) : localStorage.removeItem("session")),
};

/** As `fetch`, with the session if there is one. */
export function ask(path, options = {}) {
  const headers = session.get() ? { Authorization: `Bearer ${session.get()}` } : {};
  return fetch(path, { ...options, headers, cache: "no-store" });
}

async function read(response, heard) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    text += value;
    let end;
    let from = 0;
    while ((end = text.indexOf("\n\n", from)) >= 0) {
      const [first, second] = text.slice(from, end).split("\n", 2);
      takes[first.slice("event: ".length)]?.(JSON.parse(second.slice("data: ".length)));
      from = end + 2;
    }
    text = text.slice(from);
  }
}

let retry = 0;
let timer;
let current;

/** Reads the stream for ever: what ends is begun again, a little later each time. */
export async function follow() {
  clearTimeout(timer);
  current?.abort();
  const mine = (current = new AbortController());
  let silence;
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => mine.abort(), SILENCE_MS);
    retry = 0;
  };
  try {
    const response = await ask("/v1/stream", { signal: mine.signal });
    if (!response.ok) {
      known.refusal = { status: response.status, text: (await response.text()).trim() };
      mark("refusal");
      // It is not asked for again without a session; another refusal may end by itself.
      if (response.status === 401) return;
    } else {
      heard();
      await read(response, heard);
    }
  } catch {
    // It is as if it had ended.
  }
  clearTimeout(silence);
  if (mine !== current) return;
  if (!known.refusal) {
    known.lostSince ??= Date.now();
    mark("link");
  }
  timer = setTimeout(follow, RETRY_MS[Math.min(retry, RETRY_MS.length - 1)]);
  retry += 1;
}
