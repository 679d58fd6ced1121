// One device: what it is, what it does, what it did, and who is on it.

import { chart } from "./chart.js";
import { HEALTH_WORDS, holder, why } from "./cluster.js";
import { make, refresh, section, table } from "./elements.js";
import { ask, pathOf } from "./interface.js";
import { UNKNOWN, duration, moment, reading, size, title } from "./words.js";

const SPANS = [
  ["10 min", 600],
  ["1 h", 3600],
  ["6 h", 6 * 3600],
  ["24 h", 86400],
  ["7 d", 7 * 86400],
];

const CHARTED = [
  "memory_used_bytes",
  "compute_utilization_percent",
  "temperature_celsius",
  "power_watts",
];

const FACTS = [
  "vendor", "device_class", "runtime", "backend_name", "driver_version", "hardware_id",
  "pci_address", "node", "memory_bytes", "memory_pool", "bandwidth_gbps", "compute_units",
  "compute_capability", "tensor_core_count", "slots", "numa_node", "drives_display",
  "warn_celsius", "critical_celsius", "labels",
];

const READINGS = [
  "memory_used_bytes", "memory_total_bytes", "memory_reserved_bytes",
  "compute_utilization_percent", "memory_utilization_percent", "temperature_celsius",
  "hotspot_temperature_celsius", "memory_temperature_celsius", "power_watts",
  "power_limit_watts", "clock_rate_mhz", "memory_clock_mhz", "fan_percent", "throttle_reasons",
  "corrected_errors", "uncorrected_errors", "pcie_generation", "pcie_width", "performance_state",
];

const REDRAW_MS = 5000;

export class DeviceView {
  constructor(machine, id) {
    this.machine = machine;
    this.id = id;
    this.span = 600;
    this.zoom = null;
    this.asked = new AbortController();
    this.links = null;
    this.heading = make("h1", {});
    this.state = make("p", { class: "verdict", role: "status" });
    this.charts = make("div", { class: "charts" });
    this.note = make("p", { class: "note" });
    this.parts = make("div", { class: "columns" });
    this.buttons = SPANS.map(([text, seconds]) =>
      make("button", { type: "button", onclick: () => this.choose(seconds) }, text),
    );
    this.element = make(
      "article",
      {},
      make("p", {}, make("a", { href: "#/cluster" }, "All devices")),
      this.heading,
      this.state,
      make("div", { class: "tools", role: "group", "aria-label": "Span of the charts" }, this.buttons),
      this.note,
      this.charts,
      this.parts,
    );
    this.choose(this.span);
    this.show("all");
    this.timer = setInterval(() => this.zoom === null && this.load(), REDRAW_MS);
    ask("links").then(
      (told) => {
        this.links = told.links;
        this.show("links");
      },
      () => {},
    );
  }

  close() {
    clearInterval(this.timer);
    this.asked.abort();
  }

  choose(seconds) {
    this.span = seconds;
    this.zoom = null;
    this.buttons.forEach((button, place) =>
      button.setAttribute("aria-pressed", String(SPANS[place][1] === seconds)),
    );
    this.load();
  }

  async load() {
    this.asked.abort();
    this.asked = new AbortController();
    const now = Date.now() / 1000;
    const [since, until] = this.zoom ?? [now - this.span, now];
    try {
      const told = await ask(
        `history/${pathOf(this.id)}`,
        { metric: CHARTED, since, until, points: 300 },
        this.asked.signal,
      );
      const focused = [...this.charts.children].findIndex((one) => one.contains(document.activeElement));
      const fresh = told.series.map((series) =>
        chart(series, since, until, (from, to) => {
          this.zoom = [from, Math.max(to, from + 5)];
          this.load();
        }),
      );
      this.note.textContent = [told.note, this.zoom ? "zoomed; choose a span to go back" : ""].filter(Boolean).join("; ");
      this.charts.replaceChildren(...fresh);
      fresh[focused]?.querySelector("svg")?.focus();
    } catch (error) {
      if (error.name !== "AbortError") this.note.textContent = `no history: ${error.message}`;
    }
  }

  show(what) {
    if (what === "connection" || what === "jobs") return;
    const device = this.machine.devices.get(this.id);
    if (!device) {
      this.heading.textContent = this.id;
      const missing = this.machine.missing.find((one) => one.device.device_id === this.id);
      if (missing) {
        this.heading.textContent = `${this.id}: ${missing.device.name}`;
        this.state.dataset.health = "lost";
      }
      const why = missing ? `, last seen ${moment(missing.last_seen)}: ${missing.reason}` : "";
      this.state.textContent = this.machine.known ? `this device is not here now${why}` : "";
      this.parts.replaceChildren();
      return;
    }
    const health = this.machine.health(device);
    this.heading.textContent = `${device.device_id}: ${device.name}`;
    this.state.dataset.health = health;
    this.state.textContent = verdict(device, health);
    refresh(this.parts, [
      this.readings(device),
      this.occupants(device),
      this.leases(device),
      this.events(device),
      this.facts(device),
      this.joined(device),
    ]);
  }

  readings(device) {
    const rows = READINGS.map((field) => {
      const value = device.sample?.[field] ?? null;
      const known = value !== null;
      return [title(field), make("span", { class: known ? "" : "unknown" }, reading(field, value)), known ? "" : why(device, field)];
    });
    const age = this.machine.age(device.device_id);
    return section(`Readings (${age === null ? "none yet" : `${duration(age)} old`})`, table("Readings", ["Reading", "Value", "Why not"], rows, ""));
  }

  facts(device) {
    const rows = FACTS.map((field) => [title(field), reading(field, fact(device, field))]);
    const speed = device.measured_gflops;
    rows.push(["Measured speed", speed === null ? "not measured; 'exo-gpu probe' does" : `${Math.round(speed)} GFLOP/s (FP32)`]);
    return section("What it is", table("Facts", ["Fact", "Value"], rows, ""));
  }

  occupants(device) {
    const rows = this.machine.usersOf(this.id).map((user) => [
      user.pid === null ? UNKNOWN : String(user.pid),
      user.user ?? UNKNOWN,
      user.command ?? UNKNOWN,
      size(user.memory_bytes),
      user.foreign ? "none" : (user.lease_id ?? "none"),
      user.reason,
    ]);
    const untold = this.machine.untold[this.id];
    const empty = untold ? `not known: ${untold}` : `nobody (${holder(this.machine, device)})`;
    return section("Processes", table("Processes", ["PID", "User", "Command", "Memory", "Lease", "Remark"], rows, empty));
  }

  leases(device) {
    const rows = device.leases.map((lease) => [
      lease.lease_id,
      lease.user || UNKNOWN,
      lease.holder || lease.command,
      lease.exclusive ? "all of it" : lease.memory_bytes ? size(lease.memory_bytes) : "a slot",
      moment(lease.taken_at || null),
    ]);
    return section("Leases", table("Leases", ["Lease", "User", "For", "Holds", "Since"], rows, "none"));
  }

  events(device) {
    const rows = this.machine.events
      .filter((one) => one.device_id === device.device_id)
      .map((one) => [moment(one.at), ...eventWords(one)]);
    return section("What happened", table("Events", ["When", "What", "Why"], rows, "nothing was heard"));
  }

  joined(device) {
    const rows = (this.links ?? [])
      .filter((link) => link.source === device.device_id)
      .map((link) => [
        link.target,
        link.kind ?? UNKNOWN,
        link.peer_access === null ? UNKNOWN : link.peer_access ? "yes" : "no",
        reading("bandwidth_gbps", link.bandwidth_gbps),
      ]);
    return section("Links", table("Links", ["To", "Kind", "Peer access", "Measured"], rows, "none is known"));
  }
}

function fact(device, field) {
  if (field === "node" && !device.node) return "this machine";
  return device[field] === "" ? null : device[field];
}

function verdict(device, health) {
  const words = [HEALTH_WORDS[health]];
  if (device.health_reason) words.push(device.health_reason);
  if (device.sample_failure) words.push(device.sample_failure);
  if (device.cordon) words.push(`cordoned by ${device.cordon.by}: ${device.cordon.why}`);
  return words.join(" · ");
}

export function eventWords(event) {
  const { fields } = event;
  if (event.kind === "health") return [`${fields.before} → ${fields.after}`, fields.reasons.join("; ")];
  if (event.kind === "fault") return [`fault ${fields.code}`, fields.what];
  return [fields.change ?? event.kind, fields.name ?? ""];
}
