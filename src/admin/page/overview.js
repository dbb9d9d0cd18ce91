// The cluster at a glance: what is wrong, nodes with their tasks, services with their figures.

import { Cells, legend } from "./cells.js";
import { known } from "./stream.js";
import { bytes, compare, duration, el, link, percent, rate, say, time } from "./words.js";

const COLUMNS = [
  ["name", "Service", ""], ["ready", "Ready", "num"], ["rate", "Per second", "num"], ["errors", "Failed", "num"],
  ["p50", "p50", "num"], ["p99", "p99", "num"], ["in", "In", "num"], ["out", "Out", "num"], ["chart", "15 minutes", ""], ["update", "Update", ""],
];
const order = { by: "name", isDown: false };
let wanted = "";
// Cells that came and went are put in order again after so long.
const TIDY_MS = 10_000;

export function overview(main, tip) {
  const problems = el("div");
  const nodes = el("ul", { class: "nodes" });
  const about = el("p", { class: "dim" });
  const body = el("tbody");
  const heads = COLUMNS.map(([key, title, kind]) => el("th", { scope: "col", class: kind, "data-key": key },
    key === "chart" ? title : el("button", { type: "button", onclick: () => sort(key) }, title)));
  const filter = el("input", { type: "search", placeholder: "Filter ( / )", "aria-label": "Filter services", value: wanted,
    oninput: () => { wanted = filter.value.toLowerCase(); arrange(); } });
  main.append(
    el("h1", {}, "Overview"), problems, el("h2", {}, "Nodes and tasks"), nodes,
    el("ul", { class: "legend", "aria-label": "Shapes" }, legend().map(([canvas, words]) => el("li", {}, canvas, words))),
    el("div", { class: "tools" }, el("h2", {}, "Services"), filter, about),
    el("div", { class: "scroll" }, el("table", { class: "wide", "aria-label": "Services" }, el("thead", {}, el("tr", {}, heads)), body)),
  );

  // --- nodes ---
  const columns = new Map();
  const home = new Map();

  function column(id) {
    if (columns.has(id)) return columns.get(id);
    const cells = new Cells(tip);
    const name = id === "" ? el("span", { class: "name" }, "endpoints") : el("a", { class: "name", href: `#/node/${encodeURIComponent(id)}` });
    const line = el("span", { class: "about" });
    const item = el("li", {}, name, line, cells.canvas);
    const made = { cells, name, line, item, tasks: new Set(), isNew: true };
    columns.set(id, made);
    return made;
  }

  function place(name) {
    const task = known.task.get(name);
    const id = task ? (task.node ?? "") : undefined;
    const before = home.get(name);
    if (before === id) return columns.get(id)?.cells.redraw(name);
    if (before !== undefined) {
      const one = column(before);
      one.tasks.delete(name);
      one.cells.remove(name);
      (one.tasks.size ? loose : touched).add(before);
    }
    if (id === undefined) return home.delete(name);
    home.set(name, id);
    const one = column(id);
    one.tasks.add(name);
    coming.push([one, name, id]);
    return undefined;
  }

  // Columns that are to be laid out now, and those whose tasks stand in no order, which waits until there is time.
  const touched = new Set();
  const loose = new Set();
  let coming = [];
  let tidy;

  function enter() {
    for (const [one, name, id] of coming) {
      if (!one.tasks.has(name)) continue;
      if (!touched.has(id) && one.cells.add(name)) loose.add(id);
      else touched.add(id);
    }
    coming = [];
    for (const id of loose) columns.get(id)?.cells.label();
    if (loose.size) {
      tidy ??= setTimeout(() => {
        tidy = undefined;
        for (const id of loose) touched.add(id);
        lay();
      }, TIDY_MS);
    }
  }

  function lay() {
    for (const id of touched) {
      const one = columns.get(id);
      if (one && !one.tasks.size && !known.node.has(id)) {
        one.item.remove();
        columns.delete(id);
      }
    }
    const ids = [...columns.keys()].sort((a, b) => compare(nameOf(a), nameOf(b)));
    if (nodes.children.length !== ids.length || ids.some((id, i) => nodes.children[i] !== columns.get(id).item)) {
      nodes.replaceChildren(...ids.map((id) => columns.get(id).item));
    }
    // All are measured before any is changed, which would have all laid out again for each.
    for (const id of touched) columns.get(id)?.cells.measure();
    for (const id of touched) {
      const one = columns.get(id);
      if (!one) continue;
      one.isNew = false;
      const sorted = [...one.tasks].map((name) => [keyOf(name), name]).sort(([a], [b]) => compare(a, b));
      one.cells.show(sorted.map(([, name]) => name));
    }
    for (const id of touched) loose.delete(id);
    touched.clear();
  }

  const nameOf = (id) => (id === "" ? "\uffff" : known.node.get(id)?.name ?? id);
  const keyOf = (name) => {
    const task = known.task.get(name);
    return `${task?.service} ${task?.name}`;
  };

  function head(id) {
    const node = known.node.get(id);
    const one = column(id);
    if (!node) return void touched.add(id);
    if (one.isNew || one.called !== node.name) touched.add(id);
    one.called = node.name;
    say(one.name, node.name + (node.is_self ? " ·" : ""));
    one.item.className = node.state;
    const words = [];
    if (node.state !== "up") words.push(node.state);
    if (node.role) words.push(node.role);
    if (node.availability && node.availability !== "active") words.push(node.availability);
    if (node.lag) words.push(`${node.lag} behind`);
    if (node.missing?.length) words.push(`${node.missing.length} off`);
    say(one.line, words.join(" · ") || "up");
    one.item.title = node.error ?? "";
    return undefined;
  }

  // --- services ---
  const rows = new Map();

  function row(name) {
    const service = known.service.get(name);
    if (!service) {
      rows.get(name)?.line.remove();
      return rows.delete(name);
    }
    if (!rows.has(name)) {
      const cells = COLUMNS.map(([, , kind]) => el("td", { class: kind }));
      cells[0].append(link.service(name));
      const chart = el("canvas", { width: 100, height: 20, "aria-hidden": "true" });
      cells[8].append(chart);
      rows.set(name, { line: el("tr", {}, cells), cells, chart, isSeen: false });
      watch.observe(rows.get(name).line);
      rows.get(name).line.dataset.name = name;
      isUnsorted = true;
    }
    const { cells } = rows.get(name);
    const all = service.wanted ?? service.endpoints;
    say(cells[1], `${service.ready} / ${all ?? "-"}`);
    cells[1].className = service.ready >= (all ?? 0) ? "num" : service.ready ? "num warn" : "num bad";
    cells[1].title = (service.faults ?? []).join("\n");
    const update = service.update;
    if (update && update.state !== "completed") {
      const bar = cells[9].querySelector("progress") ?? el("progress");
      bar.max = update.total || 1;
      bar.value = update.done;
      const words = cells[9].querySelector("span") ?? el("span");
      say(words, ` ${update.state.replace("_", " ")} ${update.done} / ${update.total}`);
      if (!bar.parentElement) cells[9].replaceChildren(bar, words);
      cells[9].title = update.message ?? "";
    } else if (cells[9].firstChild) cells[9].replaceChildren();
    return undefined;
  }

  function figures(name) {
    const one = rows.get(name);
    if (!one) return;
    const now = known.figures[name];
    const { cells } = one;
    say(cells[2], now ? rate(now.rate) : "0");
    say(cells[3], now ? percent(now.errors) : "0 %");
    cells[3].classList.toggle("bad", Boolean(now?.errors));
    say(cells[4], duration(now?.p50_us));
    say(cells[5], duration(now?.p99_us));
    say(cells[6], now ? bytes(now.in) : "0 B");
    say(cells[7], now ? bytes(now.out) : "0 B");
    if (one.isSeen) chart(name);
  }

  function chart(name) {
    const { chart: canvas } = rows.get(name);
    const past = known.history[name];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, 100, 20);
    if (!past?.rate.length) return;
    const style = getComputedStyle(document.documentElement);
    const most = Math.max(...past.rate, 0.001);
    const start = 180 - past.rate.length;
    past.rate.forEach((value, i) => {
      const height = Math.max(value ? 1 : 0, (value / most) * 19);
      context.fillStyle = style.getPropertyValue(past.errors[i] ? "--bad" : "--dim");
      context.fillRect(((start + i) / 180) * 100, 20 - height, 0.7, height);
    });
  }

  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const one = rows.get(entry.target.dataset.name);
      if (!one) continue;
      one.isSeen = entry.isIntersecting;
      if (one.isSeen) chart(entry.target.dataset.name);
    }
  });

  let isUnsorted = false;
  const values = {
    name: (name) => name,
    ready: (name) => known.service.get(name).ready / Math.max(1, known.service.get(name).wanted ?? known.service.get(name).endpoints ?? 1),
    rate: (name) => known.figures[name]?.rate ?? 0,
    errors: (name) => known.figures[name]?.errors ?? 0,
    p50: (name) => known.figures[name]?.p50_us ?? 0,
    p99: (name) => known.figures[name]?.p99_us ?? 0,
    in: (name) => known.figures[name]?.in ?? 0,
    out: (name) => known.figures[name]?.out ?? 0,
    update: (name) => (known.service.get(name).update?.state === "completed" ? "" : known.service.get(name).update?.state ?? ""),
  };

  function sort(key) {
    order.isDown = order.by === key ? !order.isDown : key !== "name";
    order.by = key;
    arrange();
  }

  function arrange() {
    isUnsorted = false;
    const value = values[order.by];
    const names = [...rows.keys()].filter((name) => name.toLowerCase().includes(wanted));
    names.sort((a, b) => {
      const [one, other] = [value(a), value(b)];
      const by = typeof one === "string" ? compare(one, other) : one - other;
      return (order.isDown ? -by : by) || compare(a, b);
    });
    body.replaceChildren(...names.map((name) => rows.get(name).line));
    for (const head of heads) {
      const is = head.dataset.key === order.by;
      if (is) head.setAttribute("aria-sort", order.isDown ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    if (wanted && !names.length) body.replaceChildren(el("tr", {}, el("td", { colspan: COLUMNS.length, class: "dim" }, "No service is called so.")));
  }

  function wrong() {
    if (!known.problem.size) return problems.replaceChildren(el("p", { class: "calm" }, "Nothing is known to be wrong."));
    const all = [...known.problem.values()].sort((a, b) => (a.since_ms ?? 0) - (b.since_ms ?? 0));
    return problems.replaceChildren(el("ul", { class: "problems", "aria-label": "What is wrong" },
      all.map((one) => el("li", {}, one.node ? `${one.node}: ` : "", one.text, el("time", { "data-ms": one.since_ms, title: new Date(one.since_ms).toLocaleString() }, time(one.since_ms).textContent)))));
  }

  function whose() {
    const [of, all] = known.figuresOf ?? [];
    const others = all > 1 ? `, figures of ${of} of ${all} nodes` : "";
    say(about, `${known.service.size} services, ${known.task.size} tasks${others}`);
  }

  function update(changed) {
    if (changed.has("problem") || changed.has("whole")) wrong();
    for (const id of changed.get("node") ?? []) head(id);
    for (const name of changed.get("task") ?? []) place(name);
    enter();
    if (touched.size) lay();
    for (const name of changed.get("service") ?? []) {
      row(name);
      figures(name);
    }
    if (changed.has("figures")) for (const name of rows.keys()) figures(name);
    if (isUnsorted) arrange();
    else if (changed.get("service") && rows.size !== body.children.length && !wanted) arrange();
    whose();
  }

  update(new Map([["problem", new Set()], ["node", new Set(known.node.keys())], ["task", new Set(known.task.keys())], ["service", new Set(known.service.keys())]]));

  const relay = () => {
    for (const one of columns.values()) one.cells.measure();
    for (const one of columns.values()) one.cells.lay();
  };
  window.addEventListener("resize", relay);
  const keys = (event) => {
    if (event.key === "/" && !/INPUT|SELECT/.test(document.activeElement.tagName)) {
      event.preventDefault();
      filter.focus();
    }
  };
  document.addEventListener("keydown", keys);
  return {
    update,
    repaint() { relay(); for (const name of rows.keys()) if (rows.get(name).isSeen) chart(name); },
    leave() { window.removeEventListener("resize", relay); document.removeEventListener("keydown", keys); watch.disconnect(); clearTimeout(tidy); },
  };
}
