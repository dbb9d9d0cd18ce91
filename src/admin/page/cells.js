// Tasks as cells on a canvas, one canvas for each node: shape by state, hue by service. The cells are walked by arrow keys.

import { known } from "./stream.js";
import { ago, stateOf } from "./words.js";

const SIZE = 11;
const STEP = SIZE + 3;

function hue(name) {
  let hash = 2166136261;
  for (let i = 0; i < name.length; i += 1) hash = Math.imul(hash ^ name.charCodeAt(i), 16777619);
  return (hash >>> 0) % 360;
}

let style;
const colours = new Map();

/** To be called when the theme has changed. */
export function forgetColours() {
  style = undefined;
  colours.clear();
}

function colour(service) {
  style ??= getComputedStyle(document.documentElement);
  if (!colours.has(service)) {
    colours.set(service, `hsl(${hue(service)} ${style.getPropertyValue("--cell-full")} ${style.getPropertyValue("--cell-light")})`);
  }
  return colours.get(service);
}

function draw(context, x, y, task) {
  const { level } = stateOf(task.state);
  style ??= getComputedStyle(document.documentElement);
  const fill = level === 2 ? style.getPropertyValue("--bad") : colour(task.service);
  context.clearRect(x - 1, y - 1, SIZE + 2, SIZE + 2);
  context.fillStyle = fill;
  context.strokeStyle = fill;
  context.lineWidth = 1.5;
  context.beginPath();
  switch (task.state) {
    case "ready": case "running": case "complete":
      context.rect(x, y, SIZE, SIZE);
      return context.fill();
    case "untried":
      context.rect(x, y, SIZE, SIZE);
      context.fill();
      return context.clearRect(x + 4, y + 4, SIZE - 8, SIZE - 8);
    case "draining": case "stopping":
      context.rect(x, y + SIZE - 4, SIZE, 4);
      return context.fill();
    case "resting": case "failing":
      context.moveTo(x + SIZE / 2, y);
      context.lineTo(x + SIZE, y + SIZE);
      context.lineTo(x, y + SIZE);
      return context.fill();
    case "unready":
      context.moveTo(x + SIZE / 2, y);
      context.lineTo(x + SIZE, y + SIZE / 2);
      context.lineTo(x + SIZE / 2, y + SIZE);
      context.lineTo(x, y + SIZE / 2);
      return context.fill();
    case "failed":
      context.moveTo(x + 1, y + 1);
      context.lineTo(x + SIZE - 1, y + SIZE - 1);
      context.moveTo(x + SIZE - 1, y + 1);
      context.lineTo(x + 1, y + SIZE - 1);
      context.lineWidth = 2.5;
      return context.stroke();
    default:
      context.rect(x + 1, y + 1, SIZE - 2, SIZE - 2);
      return context.stroke();
  }
}

function describe(name) {
  const task = known.task.get(name);
  if (!task) return "";
  const lines = [`${task.name} of ${task.service}`, `${task.state} since ${ago(task.since_ms)}`];
  if (task.why) lines.push(task.why);
  if (task.image) lines.push(task.image);
  if (task.made_ms) lines.push(`made ${ago(task.made_ms)}`);
  return lines.join("\n");
}

/** Cells in a canvas. `names`: of tasks, as they are to stand. */
export class Cells {
  constructor(tip) {
    this.tip = tip;
    // Undefined: a hole.
    this.names = [];
    this.holes = [];
    this.at = new Map();
    this.focus = -1;
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-roledescription", "tasks, walked by arrow keys");
    this.canvas.addEventListener("mousemove", (event) => this.point(event));
    this.canvas.addEventListener("mouseleave", () => this.tip.hide());
    this.canvas.addEventListener("click", () => this.open());
    this.canvas.addEventListener("keydown", (event) => this.walk(event));
    this.canvas.addEventListener("blur", () => this.mark(-1));
    this.width = 0;
  }

  /** Shows these tasks, all anew. */
  show(names) {
    this.names = names;
    this.holes = [];
    this.at = new Map(names.map((name, i) => [name, i]));
    this.lay();
  }

  /** Takes one away and leaves a hole, so that nothing else moves. */
  remove(name) {
    const i = this.at.get(name);
    if (i === undefined) return;
    this.at.delete(name);
    this.names[i] = undefined;
    this.holes.push(i);
    if (this.context) this.wipe(i);
  }

  /** Shows one more in the first hole. Whether there was one: otherwise all are to be shown anew. */
  add(name) {
    this.holes.sort((a, b) => b - a);
    const i = this.holes.pop();
    if (i === undefined) return false;
    this.names[i] = name;
    this.at.set(name, i);
    this.redraw(name);
    return true;
  }

  /** Finds how much room there is. */
  measure() {
    const width = this.canvas.parentElement?.clientWidth ?? 0;
    if (!width) return void (this.width = 0);
    const style = getComputedStyle(this.canvas.parentElement);
    this.width = width - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  }

  /** Draws everything, as wide as was measured. */
  lay() {
    if (!this.width) return;
    this.columns = Math.max(1, Math.floor((this.width + STEP - SIZE) / STEP));
    const height = Math.max(1, Math.ceil(this.names.length / this.columns)) * STEP + 1;
    const scale = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(this.width * scale);
    this.canvas.height = Math.round(height * scale);
    this.canvas.style.height = `${height}px`;
    this.context = this.canvas.getContext("2d");
    this.context.scale(scale, scale);
    for (const name of this.names) this.redraw(name);
    this.label();
  }

  /** Draws one task, which has changed. */
  redraw(name) {
    const i = this.at.get(name);
    const task = known.task.get(name);
    if (i === undefined || !task || !this.context) return;
    const [x, y] = this.place(i);
    draw(this.context, x, y, task);
    if (i === this.focus) this.frame(i);
  }

  label() {
    const counts = new Map();
    for (const name of this.at.keys()) {
      const { state } = known.task.get(name) ?? {};
      counts.set(state, (counts.get(state) ?? 0) + 1);
    }
    const parts = [...counts].map(([state, n]) => `${n} ${state}`);
    this.canvas.setAttribute("aria-label", `${this.at.size} tasks: ${parts.join(", ")}`);
  }

  place(i) {
    return [1 + (i % this.columns) * STEP, 1 + Math.floor(i / this.columns) * STEP];
  }

  wipe(i) {
    const [x, y] = this.place(i);
    this.context.clearRect(x - 1, y - 1, SIZE + 2, SIZE + 2);
  }

  frame(i) {
    const [x, y] = this.place(i);
    this.context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    this.context.lineWidth = 1;
    this.context.strokeRect(x - 0.5, y - 0.5, SIZE + 1, SIZE + 1);
  }

  mark(i) {
    const before = this.focus;
    this.focus = i;
    if (before >= 0 && before < this.names.length) {
      this.wipe(before);
      this.redraw(this.names[before]);
    }
    if (i < 0) return this.tip.hide();
    this.frame(i);
    if (!this.names[i]) return this.tip.hide();
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = this.place(i);
    return this.tip.show(describe(this.names[i]), box.left + x, box.top + y);
  }

  point(event) {
    const i = Math.floor(event.offsetY / STEP) * this.columns + Math.floor(event.offsetX / STEP);
    this.pointed = this.names[i];
    if (this.pointed) this.tip.show(describe(this.pointed), event.clientX, event.clientY);
    else this.tip.hide();
  }

  open(name = this.pointed) {
    const task = known.task.get(name);
    if (task) location.hash = `#/service/${encodeURIComponent(task.service)}`;
  }

  walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns }[event.key];
    if (event.key === "Enter" && this.focus >= 0) return this.open(this.names[this.focus]);
    if (event.key === "Escape") return this.mark(-1);
    if (!step || !this.names.length) return undefined;
    event.preventDefault();
    const next = this.focus < 0 ? 0 : this.focus + step;
    return this.mark(Math.min(this.names.length - 1, Math.max(0, next)));
  }
}

const LEGEND = [["ready", "takes traffic"], ["untried", "untried"], ["starting", "on its way"], ["draining", "leaving"], ["resting", "fails"], ["unready", "its check fails"], ["failed", "has failed"]];

/** What the shapes mean, as [canvas, words]. */
export function legend() {
  return LEGEND.map(([state, words]) => {
    const canvas = document.createElement("canvas");
    const scale = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [STEP * scale, STEP * scale];
    [canvas.style.width, canvas.style.height] = [`${STEP}px`, `${STEP}px`];
    canvas.setAttribute("aria-hidden", "true");
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    draw(context, 1, 1, { state, service: "legend" });
    return [canvas, words];
  });
}
