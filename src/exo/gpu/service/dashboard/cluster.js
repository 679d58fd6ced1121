// The whole at a glance: totals, and a tile for each device.

import { sparkline } from "./chart.js";
import { bar, make, mark, say } from "./elements.js";
import { UNKNOWN, celsius, count, percent, size, watts } from "./words.js";

const DENSE = 48;

const ORDERS = {
  order: ["As found", null],
  health: ["Health, worst first", (one, machine) => -RANK.indexOf(machine.health(one))],
  load: ["Load", (one) => one.sample?.compute_utilization_percent ?? -1],
  memory: ["Memory used", (one) => one.sample?.memory_used_bytes ?? -1],
  heat: ["Temperature", (one) => one.sample?.temperature_celsius ?? -300],
};

const RANK = ["lost", "failed", "degraded", "stale", "unread", "sleeping", "ok"];

export const HEALTH_WORDS = {
  ok: "ok",
  degraded: "degraded",
  failed: "failed",
  lost: "lost",
  sleeping: "sleeping",
  stale: "no fresh sample",
  unread: "not read yet",
};

export function why(device, field) {
  if (device.sample === null) return device.sample_failure || "not read yet";
  return device.sample.missing_reasons?.[field] ?? "the driver does not tell";
}

// What holds a device, in a few words.
export function holder(machine, device) {
  const users = machine.usersOf(device.device_id);
  const leased = device.leases.map((lease) => lease.holder || lease.command || lease.user || lease.lease_id);
  const foreign = users.filter((user) => user.foreign).map((user) => user.command || `pid ${user.pid}`);
  const names = [...new Set([...leased, ...foreign.map((name) => `${name} (no lease)`)])];
  if (!names.length) return machine.untold[device.device_id] ? "no lease" : "free";
  return names.length > 1 ? `${names[0]} and ${names.length - 1} more` : names[0];
}

export class ClusterView {
  constructor(machine) {
    this.machine = machine;
    this.tiles = new Map();
    this.heads = new Map();
    this.totals = make("dl", { class: "totals" });
    this.figures = new Map();
    this.list = make("ul", { class: "tiles", "aria-label": "Devices" });
    this.empty = make("p", { class: "empty", role: "status" });
    this.search = make("input", { type: "search", id: "search", oninput: () => this.arrange() });
    this.order = make(
      "select",
      { id: "order", onchange: () => this.arrange() },
      Object.entries(ORDERS).map(([value, [text]]) => make("option", { value }, text)),
    );
    this.element = make(
      "div",
      {},
      make("h1", { class: "hidden" }, "Cluster"),
      this.totals,
      make(
        "form",
        { class: "tools", role: "search", onsubmit: (event) => event.preventDefault() },
        make("label", { for: "search" }, "Find"),
        this.search,
        make("label", { for: "order" }, "Order"),
        this.order,
      ),
      this.empty,
      this.list,
    );
    this.show("all");
  }

  show(what) {
    if (!["all", "samples", "states", "processes", "leases", "queue"].includes(what)) return;
    const here = this.machine.devices;
    let moved = what === "all" || what === "states";
    for (const [id, tile] of this.tiles) {
      if (!here.has(id)) {
        tile.element.remove();
        this.tiles.delete(id);
      }
    }
    for (const [id, device] of here) {
      if (!this.tiles.has(id)) {
        this.tiles.set(id, new Tile(device));
        moved = true;
      }
      this.tiles.get(id).show(this.machine, device);
    }
    this.sum();
    if (moved || this.order.value !== "order") this.arrange();
  }

  // Which tiles are seen, and in which order; only what moved is moved.
  arrange() {
    const wanted = this.search.value.trim().toLowerCase();
    const key = ORDERS[this.order.value][1];
    let shown = [...this.machine.devices.values()].filter((one) => matches(this.machine, one, wanted));
    if (key) {
      const keys = new Map(shown.map((one) => [one, key(one, this.machine)]));
      const worst = this.order.value === "health" ? 1 : -1;
      shown = shown.sort((one, other) => worst * (keys.get(one) - keys.get(other)) * (worst === 1 ? -1 : 1));
    }
    const elements = key ? shown.map((one) => this.tile(one)) : this.byNode(shown, wanted);
    elements.forEach((element, place) => {
      if (this.list.children[place] !== element) {
        this.list.insertBefore(element, this.list.children[place] ?? null);
      }
    });
    while (this.list.children.length > elements.length) this.list.lastChild.remove();
    this.list.classList.toggle("dense", shown.length > DENSE);
    const none = this.machine.devices.size ? "no device matches" : "no device was found here";
    say(this.empty, shown.length || !this.machine.known ? "" : none);
  }

  tile(device) {
    return this.tiles.get(device.device_id).element;
  }

  // Where there are several nodes, the devices of each stand below its name, the lost ones' too.
  byNode(shown, wanted) {
    const nodes = Map.groupBy(shown, (one) => one.node);
    const gone = Map.groupBy(this.machine.missing, (one) => one.device.node);
    const names = new Set([...this.machine.devices.values()].map((one) => one.node));
    for (const node of gone.keys()) names.add(node);
    if (names.size < 2) return shown.map((one) => this.tile(one));
    return [...names].sort().flatMap((node) => {
      const [devices, missing] = [nodes.get(node) ?? [], gone.get(node) ?? []];
      if (wanted && !devices.length) return [];
      return [this.head(node, devices, missing), ...devices.map((one) => this.tile(one))];
    });
  }

  head(node, devices, missing) {
    if (!this.heads.has(node)) {
      const [alarm, note] = [make("span", { class: "alarm" }), make("span", { class: "note" })];
      const element = make("li", { class: "node" }, make("h2", {}, node || "this machine"), note, alarm);
      this.heads.set(node, { element, note, alarm });
    }
    const { element, note, alarm } = this.heads.get(node);
    const reasons = [...new Set(missing.map((one) => one.reason))].join("; ");
    say(note, count(devices.length, "device"));
    say(alarm, missing.length ? `${missing.length} missing: ${reasons}` : "");
    return element;
  }

  sum() {
    const devices = [...this.machine.devices.values()];
    const samples = devices.map((one) => one.sample);
    const told = (field) => samples.map((one) => one?.[field] ?? null).filter((one) => one !== null);
    const add = (values) => (values.length ? values.reduce((sum, one) => sum + one, 0) : null);
    const pools = poolsOf(devices);
    const load = told("compute_utilization_percent");
    const heat = told("temperature_celsius");
    const power = told("power_watts");
    const bad = devices.filter((one) => !["ok", "sleeping"].includes(this.machine.health(one))).length;
    const gone = this.machine.missing.length;
    const of = (values) => (values.length < devices.length ? `${values.length} of ${devices.length} tell` : "");
    this.figure("Devices", String(devices.length), gone ? `${gone} missing` : "", gone > 0);
    this.figure("In trouble", String(bad), "", bad > 0);
    this.figure("Memory", `${size(add(pools.used))} of ${size(add(pools.total))}`, pools.untold ? `${count(pools.untold, "device")} untold` : "");
    this.figure("Mean load", percent(load.length ? add(load) / load.length : null), of(load));
    this.figure("Hottest", celsius(heat.length ? Math.max(...heat) : null), of(heat));
    this.figure("Power", watts(add(power)), of(power));
    this.figure("Leases", String(this.machine.leases.length), "");
    this.figure("Waiting", String(this.machine.waiting.length), "");
  }

  figure(name, text, note, alarm = false) {
    if (!this.figures.has(name)) {
      const [value, small] = [make("dd", {}), make("dd", { class: "note" })];
      this.totals.append(make("div", {}, make("dt", {}, name), value, small));
      this.figures.set(name, { value, small });
    }
    const { value, small } = this.figures.get(name);
    say(value, text);
    say(small, note);
    value.classList.toggle("alarm", alarm);
  }
}

// Memory behind several devices, as the host's, counts once.
function poolsOf(devices) {
  const seen = new Set();
  const found = { used: [], total: [], untold: 0 };
  for (const device of devices) {
    const { memory_used_bytes: used = null, memory_total_bytes: total = null } = device.sample ?? {};
    if (used === null || total === null) {
      found.untold += 1;
      continue;
    }
    const pool = `${device.node}/${device.memory_pool}`;
    if (seen.has(pool)) continue;
    seen.add(pool);
    found.used.push(used);
    found.total.push(total);
  }
  return found;
}

function matches(machine, device, wanted) {
  if (!wanted) return true;
  const words = [device.device_id, device.name, device.vendor, device.runtime, device.node];
  words.push(machine.health(device), holder(machine, device), device.device_class);
  return words.join(" ").toLowerCase().includes(wanted);
}

class Tile {
  constructor(device) {
    const span = (name) => make("span", { class: name });
    this.health = span("health");
    this.memory = { bar: bar("Memory"), text: span("figure") };
    this.load = { bar: bar("Load"), text: span("figure") };
    this.heat = span("figure");
    this.power = span("figure");
    this.holder = span("holder");
    this.spark = sparkline();
    const row = (name, ...children) => make("span", { class: "row" }, make("span", { class: "name" }, name), children);
    this.link = make(
      "a",
      { href: `#/device/${encodeURIComponent(device.device_id)}`, class: "tile" },
      make("span", { class: "head" }, make("strong", {}, device.device_id), this.health),
      make("span", { class: "model" }, device.name),
      row("Memory", this.memory.bar.element, this.memory.text),
      row("Load", this.load.bar.element, this.load.text),
      make("span", { class: "row pair" }, row("Heat", this.heat), row("Power", this.power)),
      this.spark.element,
      this.holder,
    );
    this.element = make("li", {}, this.link);
  }

  show(machine, device) {
    const health = machine.health(device);
    const sample = device.sample ?? {};
    say(this.health, device.cordon ? `${HEALTH_WORDS[health]}, cordoned` : HEALTH_WORDS[health]);
    mark(this.health, "title", [device.health_reason, device.cordon?.why].filter(Boolean).join("; "));
    mark(this.link, "data-health", health);
    mark(this.link, "data-cordoned", device.cordon ? "yes" : null);
    const { memory_used_bytes: used = null, memory_total_bytes: total = null } = sample;
    const part = used === null || !total ? null : used / total;
    const memory = part === null ? UNKNOWN : `${size(used)} of ${size(total)}`;
    this.memory.bar.set(part, memory, part > 0.9 ? "high" : null);
    this.figure(this.memory.text, memory, part === null ? why(device, "memory_used_bytes") : null);
    const load = sample.compute_utilization_percent ?? null;
    const least = sample.utilization_is_lower_bound ? "at least " : "";
    this.load.bar.set(load === null ? null : load / 100, percent(load), null);
    this.figure(this.load.text, least + percent(load), load === null ? why(device, "compute_utilization_percent") : null);
    for (const [element, field, words] of [
      [this.heat, "temperature_celsius", celsius],
      [this.power, "power_watts", watts],
    ]) {
      const value = sample[field] ?? null;
      this.figure(element, words(value), value === null ? why(device, field) : null);
    }
    this.spark.set(machine.recent.get(device.device_id) ?? []);
    say(this.holder, holder(machine, device));
  }

  figure(element, text, reason) {
    say(element, text);
    mark(element, "title", reason);
    element.classList.toggle("unknown", reason !== null);
  }
}
