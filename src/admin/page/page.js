// Which view is open, who looks, and whether what is seen is still so.

import { forgetColours } from "./cells.js";
import { overview } from "./overview.js";
import { follow, known, onChange, session } from "./stream.js";
import { events, node, service, why } from "./views.js";
import { ago, el, say } from "./words.js";

const main = document.getElementById("main");
const lost = document.getElementById("lost");
const tip = {
  element: document.getElementById("tip"),
  show(text, x, y) {
    say(this.element, text);
    this.element.hidden = false;
    const box = this.element.getBoundingClientRect();
    this.element.style.left = `${Math.min(x + 14, innerWidth - box.width - 8)}px`;
    this.element.style.top = `${y + 20 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
  },
  hide() { this.element.hidden = true; },
};

let open;

function route() {
  const [, view = "", name = ""] = /^#\/([a-z]*)\/?([^?]*)/.exec(location.hash) ?? [];
  const query = location.hash.split("?")[1] ?? "";
  open?.leave();
  tip.hide();
  main.replaceChildren();
  if (known.refusal) {
    open = refused();
  } else if (!known.isReady) {
    open = undefined;
    main.append(el("p", { class: "dim" }, "Asking the node …"));
  } else {
    const views = { service, node, events, why };
    open = (views[view] ?? overview)(main, tip, view === "why" ? query : decodeURIComponent(name));
  }
  document.title = [view && view !== "overview" ? `${name ? decodeURIComponent(name) : view} · ` : "", known.hello?.hostname, " · anynode"].join("");
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === (view || "overview")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function refused() {
  const { status, text } = known.refusal;
  if (status !== 401) {
    main.append(el("div", { class: "notice" }, el("h1", {}, "This node does not show itself here"), el("p", {}, text)));
    return { update() {}, leave() {} };
  }
  session.set(null);
  const said = el("p", { class: "bad", role: "alert" });
  const input = el("input", { type: "password", id: "token", autocomplete: "current-password", required: true });
  const form = el("form", { class: "login", onsubmit: async (event) => {
    event.preventDefault();
    const response = await fetch("/login", { method: "POST", body: input.value }).catch(() => null);
    if (response?.ok) {
      session.set((await response.json()).session);
      known.refusal = null;
      route();
      follow();
    } else say(said, response ? (await response.text()).trim() : "The node does not answer.");
  } }, el("h1", {}, "Sign in"), el("label", { for: "token" }, "The token in admin.token_file of this node"), input, el("button", {}, "Sign in"), said);
  main.append(form);
  input.focus();
  return { update() {}, leave() {} };
}

function bar() {
  const hello = known.hello;
  say(document.getElementById("whose"), hello ? `${hello.hostname} · anynode ${hello.version}` : "");
  document.getElementById("leave").hidden = !session.get();
  const isLost = known.lostSince !== null && !known.refusal;
  lost.hidden = !isLost;
  main.classList.toggle("old", isLost);
  if (isLost) say(lost, `The connection to ${hello?.hostname ?? "the node"} was lost ${ago(known.lostSince)}. What you see is of then.`);
}
setInterval(bar, 1_000);

onChange((changed) => {
  bar();
  if (changed.has("refusal") || (known.isReady && !open)) route();
  else open?.update(changed);
});

addEventListener("hashchange", () => {
  route();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});

// --- theme ---
const dark = matchMedia("(prefers-color-scheme: dark)");
function theme() {
  const chosen = localStorage.getItem("theme") ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = chosen;
  say(document.getElementById("theme"), chosen === "dark" ? "Light" : "Dark");
  forgetColours();
  open?.repaint?.();
}
dark.addEventListener("change", theme);
document.getElementById("theme").addEventListener("click", () => {
  localStorage.setItem("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  theme();
});
document.getElementById("leave").addEventListener("click", () => {
  session.set(null);
  location.reload();
});

theme();
route();
follow();
