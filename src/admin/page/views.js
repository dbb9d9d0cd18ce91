// One service, one node, what happened, and why a request goes where it goes.

import { ask, known } from "./stream.js";
import { ago, bytes, compare, duration, el, facts, link, percent, rate, state, table, time } from "./words.js";

/** Asks for JSON each second while the view is open; shows words where there is none. */
function asking(path, show, refuse) {
  let timer;
  let isOver = false;
  async function turn() {
    try {
      const response = await ask(path);
      if (isOver) return;
      if (response.ok) show(await response.json());
      else refuse((await response.text()).trim());
    } catch {
      // The stream says that the node does not answer.
    }
    if (!isOver) timer = setTimeout(turn, document.hidden ? 5_000 : 1_000);
  }
  turn();
  return () => { isOver = true; clearTimeout(timer); };
}

/** The tasks of a view, and whether what changed is any of them. */
class Those {
  constructor(is) {
    this.is = is;
    this.names = new Set();
  }

  find() {
    const all = [...known.task].filter(([, task]) => this.is(task));
    this.names = new Set(all.map(([name]) => name));
    return all.map(([, task]) => task);
  }

  isAmong(changed) {
    for (const name of changed ?? []) {
      const task = known.task.get(name);
      if (this.names.has(name) || (task && this.is(task))) return true;
    }
    return false;
  }
}

export function service(main, tip, name) {
  const those = new Those((task) => task.service === name);
  const head = el("div");
  const tasks = el("div");
  const detail = el("div");
  main.append(el("h1", {}, name), head, el("h2", {}, "Tasks and endpoints"), tasks, detail);

  function upper() {
    const one = known.service.get(name);
    const now = known.figures[name];
    if (!one) return head.replaceChildren(el("p", { class: "dim" }, "There is no such service."));
    const update = one.update && `${one.update.state.replace("_", " ")}, ${one.update.done} of ${one.update.total}, ${ago(one.update.since_ms)}${one.update.message ? `: ${one.update.message}` : ""}`;
    return head.replaceChildren(
      ...(one.faults ?? []).map((fault) => el("p", { class: "bad" }, fault)),
      facts([
        ["Ready", `${one.ready} of ${one.wanted ?? one.endpoints ?? "-"}`], ["Image", one.image], ["Update", update],
        ["Mode", [one.mode, one.balance].filter(Boolean).join(", ")], ["VIP", one.vip], ["Published", one.publish?.join(", ")], ["Routes", one.routes?.join("; ")],
        ["Now", now && `${rate(now.rate)} a second, ${percent(now.errors)} failed, p50 ${duration(now.p50_us)}, p99 ${duration(now.p99_us)}, in ${bytes(now.in)}/s, out ${bytes(now.out)}/s, ${now.open} open, ${now.held} held`],
      ]));
  }

  function list() {
    const all = those.find();
    all.sort((a, b) => compare(a.name, b.name));
    tasks.replaceChildren(table([["Task", ""], ["Node", ""], ["State", ""], ["Since", ""], ["Why", ""]],
      all.map((task) => [task.name, task.node ? link.node(task.node, known.node.get(task.node)?.name) : "-", state(task.state), time(task.since_ms), task.why ?? ""]), "Tasks"));
    for (const cell of tasks.querySelectorAll("td:last-child")) cell.className = "long";
  }

  function below(one) {
    const sum = one.endpoints.reduce((n, endpoint) => n + endpoint.total, 0);
    const parts = [el("h2", {}, `As ${one.node} sees and counts it`), table(
      [["Endpoint", ""], ["State", ""], ["Share", "num"], ["In flight", "num"], ["Total", "num"], ["Failed connects", "num"], ["Last check", ""], ["Why", "long"]],
      one.endpoints.map((endpoint) => [
        endpoint.task ? `${endpoint.task} (${endpoint.address})` : endpoint.address, state(endpoint.state), sum ? percent(endpoint.total / sum) : "-",
        endpoint.in_flight.toLocaleString("en"), endpoint.total.toLocaleString("en"), endpoint.connect_failures.toLocaleString("en"),
        endpoint.check ? el("span", { class: endpoint.check.ok ? "" : "bad" }, endpoint.check.ok ? "passed " : `${endpoint.check.text} `, time(endpoint.check.at_ms)) : "-",
        endpoint.why ?? "",
      ]), "Endpoints")];
    const failed = one.ports.filter((port) => port.error);
    if (failed.length) parts.push(el("h2", {}, "Ports"), ...failed.map((port) => el("p", { class: "bad" }, `${port.listen}: ${port.error}`)));
    if (one.closes.length) {
      one.closes.sort((a, b) => b.count - a.count);
      parts.push(el("h2", {}, "How connections ended"), table([["Reason", ""], ["Connections", "num"]], one.closes.map((close) => [close.reason, close.count.toLocaleString("en")]), "Ends of connections"));
    }
    const port = /(\d+):\d+/.exec(one.publish[0] ?? "")?.[1];
    if (port) parts.push(el("p", {}, el("a", { href: `#/why?ask=${encodeURIComponent(`${location.hostname}:${port}`)}` }, "Why does a connection go where it goes?")));
    detail.replaceChildren(...parts);
  }

  upper();
  list();
  const stop = asking(`/v1/services/${encodeURIComponent(name)}`, below, (text) => detail.replaceChildren(el("p", { class: "dim" }, text)));
  return {
    update(changed) {
      if (changed.has("service") || changed.has("figures")) upper();
      if (changed.has("node") || those.isAmong(changed.get("task"))) list();
    },
    leave: stop,
  };
}

export function node(main, tip, id) {
  const those = new Those((task) => task.node === id);
  const body = el("div");
  const title = el("h1", {}, id);
  main.append(title, body);
  function show() {
    const one = known.node.get(id);
    if (!one) return body.replaceChildren(el("p", { class: "dim" }, "There is no such node."));
    title.textContent = one.name;
    const of = (pair, words) => pair && `${words(pair[0])} of ${words(pair[1])} (${percent(pair[0] / pair[1])})`;
    const all = those.find();
    all.sort((a, b) => compare(a.service, b.service) || compare(a.name, b.name));
    const parts = [
      one.error ? el("p", { class: "bad" }, one.error) : "",
      facts([
        ["State", el("span", {}, el("span", { class: one.state === "up" ? "good" : "bad" }, one.state), one.since_ms ? [" since ", time(one.since_ms)] : [])],
        ["This page's node", one.is_self && "yes"], ["Managers see it", one.swarm], ["Role", one.role], ["Availability", one.availability], ["Address", one.address], ["Version", one.version],
        ["Revision", one.revision?.toString()], ["Behind", one.lag ? el("span", { class: "warn" }, `${one.lag} revisions since `, time(one.lag_since_ms)) : null], ["Digest", one.digest],
        ["Round trip", one.round_trip_us && duration(one.round_trip_us)], ["Descriptors", of(one.descriptors, (n) => n.toLocaleString("en"))], ["Memory", of(one.memory, bytes)],
      ]),
    ];
    if (one.missing?.length) parts.push(el("h2", {}, "What is off"), el("ul", {}, one.missing.map((part) => el("li", {}, `${part.off}: ${part.what}`))));
    parts.push(el("h2", {}, `Tasks (${all.length})`), table([["Task", ""], ["Service", ""], ["State", ""], ["Since", ""], ["Image", ""], ["Why", "long"]],
      all.map((task) => [task.name, link.service(task.service), state(task.state), time(task.since_ms), task.image ?? "-", task.why ?? ""]), "Tasks"));
    return body.replaceChildren(...parts);
  }
  show();
  return { update: (changed) => { if (changed.get("node")?.has(id) || those.isAmong(changed.get("task"))) show(); }, leave() {} };
}

export function events(main) {
  let kind = "";
  let text = "";
  const list = el("ol", { class: "events", "aria-label": "Events, the newest first" });
  const input = el("input", { type: "search", placeholder: "Filter", "aria-label": "Filter events", oninput: () => { text = input.value.toLowerCase(); show(); } });
  const select = el("select", { "aria-label": "Kind", onchange: () => { kind = select.value; show(); } },
    [["", "everything"], ["service", "services"], ["endpoint", "endpoints"], ["task", "tasks"], ["node", "nodes"], ["other", "what is wrong"]].map(([value, words]) => el("option", { value }, words)));
  main.append(el("h1", {}, "Events"), el("div", { class: "tools" }, select, input), list);
  function show() {
    const all = [...known.event].sort(([a], [b]) => Number(b) - Number(a)).map(([, event]) => event);
    const shown = all.filter((event) => (!kind || event.kind === kind) && event.text.toLowerCase().includes(text));
    list.replaceChildren(...shown.map((event) => el("li", {}, time(event.at_ms), el("span", {}, event.text))));
    if (!shown.length) list.replaceChildren(el("li", {}, el("span", { class: "dim" }, all.length ? "Nothing of that kind has happened." : "Nothing has happened since this node began.")));
  }
  show();
  return { update: (changed) => { if (changed.has("event")) show(); }, leave() {} };
}

const FIELDS = [
  ["ask", "Dialed, HOST:PORT", "10.0.0.1:8080"], ["host", "Host of the request", "a.example"], ["path", "Path", "/"], ["method", "Method", "GET"],
  ["sni", "Name that TLS begins with", "a.example"], ["from", "Client's address", "127.0.0.1"], ["node", "Node", ""],
];

export function why(main, tip, query) {
  const asked = new URLSearchParams(query);
  const inputs = FIELDS.map(([name, words, example]) => [name, el("input", { name, value: asked.get(name) ?? "", placeholder: example, autocomplete: "off", spellcheck: "false", required: name === "ask" }), words]);
  const answer = el("div", { "aria-live": "polite" });
  const form = el("form", { class: "why", onsubmit: (event) => {
    event.preventDefault();
    const fields = inputs.filter(([, input]) => input.value).map(([name, input]) => [name, input.value.trim()]);
    const next = `#/why?${new URLSearchParams(fields)}`;
    if (next === location.hash) look();
    else location.hash = next;
  } }, inputs.map(([, input, words]) => el("label", {}, words, input)), el("div", { class: "go" }, el("button", {}, "Ask")));
  main.append(el("h1", {}, "Why does it go there?"), form, answer);

  async function look() {
    if (!asked.get("ask")) return;
    const response = await ask(`/v1/why?${asked}`).catch(() => null);
    if (!response) return;
    if (!response.ok) return void answer.replaceChildren(el("p", { class: "bad" }, (await response.text()).trim()));
    const said = await response.json();
    const parts = [el("p", { class: "answer" }, said.text), facts([
      ["Listener", `${said.listener.text} (${said.listener.state})`], ["Rule", said.rule?.text],
      ["Service", said.service && el("span", {}, link.service(said.service), ` (${said.mode})`)], ["Next", said.next],
    ])];
    if (said.endpoints?.length) parts.push(el("h2", {}, "Endpoints"), table([["Endpoint", ""], ["Node", ""], ["Traffic", ""], ["Why", "long"]],
      said.endpoints.map((one) => [one.name, one.node ?? "-", el("span", { class: one.is_for ? "good" : "bad" }, one.is_for ? "yes" : "no"), one.why]), "Endpoints"));
    if (said.closes?.length) parts.push(el("h2", {}, "How the last connections ended at this node"), table([["Closed", ""], ["Reason", ""], ["Client", ""], ["Endpoint", ""], ["After", "num"]],
      said.closes.map((one) => [time(one.at_ms), one.reason, one.client ?? "-", one.endpoint ?? "-", duration(one.took_ms * 1000)]), "Ends of connections"));
    if (said.elsewhere?.length) parts.push(el("h2", {}, "Other nodes differ"), el("ul", {}, said.elsewhere.map((one) => el("li", {}, `${one.node}: ${one.text}`))));
    answer.replaceChildren(...parts);
  }
  look();
  return { update() {}, leave() {} };
}
