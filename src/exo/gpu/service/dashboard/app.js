// The page: which view is shown, what the connection does, and the colours.

import { ClusterView } from "./cluster.js";
import { DeviceView } from "./device.js";
import { make, refresh, say } from "./elements.js";
import { ExplainView } from "./explain.js";
import { keepToken, takeToken } from "./interface.js";
import { JobView } from "./job.js";
import { Machine } from "./machine.js";
import { clock } from "./words.js";
import { WorkView } from "./work.js";

const THEME = "exo-gpu-theme";

const VIEWS = {
  cluster: { make: (machine) => new ClusterView(machine), part: "cluster", title: "Cluster" },
  device: { make: (machine, id) => new DeviceView(machine, id), part: "cluster", title: "Device" },
  work: { make: (machine) => new WorkView(machine), part: "work", title: "Work" },
  job: { make: (machine, id) => new JobView(machine, id), part: "work", title: "Job" },
  explain: { make: (machine) => new ExplainView(machine), part: "explain", title: "Explain" },
};

const main = document.getElementById("main");
const connection = document.getElementById("connection");
const notes = document.getElementById("notes");
const machine = new Machine();
let view = null;
let lostAt = null;

function route() {
  const [, name = "cluster", id = ""] = /^#\/(\w+)(?:\/(.*))?$/.exec(location.hash) ?? [];
  return { known: VIEWS[name] ?? VIEWS.cluster, id: decoded(id) };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function open({ first = false } = {}) {
  const { known, id } = route();
  view?.close?.();
  view = known.make(machine, id);
  main.replaceChildren(view.element);
  document.title = `${id || known.title} · exo.gpu`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === known.part) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (first) return;
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function tellConnection() {
  const state = machine.connected ? "live" : lostAt === null ? "connecting" : "lost";
  connection.dataset.state = state;
  const lost = `connection lost at ${clock(lostAt)}; what is shown is from then`;
  say(connection, { live: "live", connecting: "connecting", lost }[state]);
  document.body.classList.toggle("outdated", state === "lost");
}

function tellNotes() {
  refresh(notes, machine.notes.map((text) => make("p", {}, text)));
  const gone = machine.missing.map((one) => make("p", {}, `missing: ${one.device.device_id} (${one.device.name}): ${one.reason}`));
  notes.append(...gone);
}

function askToken() {
  if (document.getElementById("token")) return;
  const input = make("input", { id: "token", type: "password", autocomplete: "current-password" });
  const form = make(
    "form",
    {
      class: "question",
      onsubmit: (event) => {
        event.preventDefault();
        keepToken(input.value.trim());
        location.reload();
      },
    },
    make("h1", {}, "A token is needed"),
    make("p", {}, "'exo-gpu serve' showed it when it began."),
    make("div", { class: "field" }, make("label", { for: "token" }, "Token"), input),
    make("button", { type: "submit", class: "primary" }, "Open"),
  );
  main.replaceChildren(form);
  input.focus();
}

machine.addEventListener("change", ({ detail }) => {
  if (detail === "connection") {
    if (machine.connected) lostAt = null;
    else lostAt ??= Date.now() / 1000;
    tellConnection();
    if (machine.trouble?.status === 401) askToken();
  } else if (detail === "all" || detail === "states") tellNotes();
  if (!document.getElementById("token")) view.show(detail);
});

const theme = document.getElementById("theme");
theme.value = localStorage.getItem(THEME) ?? "";
const colour = () => document.documentElement.setAttribute("data-theme", theme.value || "system");
theme.addEventListener("change", () => {
  localStorage.setItem(THEME, theme.value);
  colour();
});
colour();

takeToken();
window.addEventListener("hashchange", () => open());
open({ first: true });
machine.run();
