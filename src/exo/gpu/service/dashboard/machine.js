// What the page knows of the machine: asked for once, then kept up by the stream.

import { ask, listen } from "./interface.js";

const RECENT = 120;
const EVENTS = 200;

// A sample may come just after the others: that is no gap.
const LATE_SECONDS = 3;

export class Machine extends EventTarget {
  constructor() {
    super();
    this.devices = new Map();
    this.missing = [];
    this.notes = [];
    this.recent = new Map();
    this.heardAt = new Map();
    this.leases = [];
    this.waiting = [];
    this.users = [];
    this.untold = {};
    this.jobs = [];
    this.jobProblems = [];
    this.events = [];
    this.staleAfter = 30;
    this.known = false;
    this.connected = false;
    this.trouble = null;
  }

  run() {
    return listen({
      open: () => {
        this.connected = true;
        this.trouble = null;
        this.changed("connection");
      },
      lost: (error) => {
        this.connected = false;
        this.trouble = error;
        this.changed("connection");
      },
      event: (kind, data) => this.take(kind, data),
    });
  }

  changed(what) {
    this.dispatchEvent(new CustomEvent("change", { detail: what }));
  }

  // Everything anew: at first, and where the stream could not tell what was missed.
  async refresh() {
    const names = ["devices", "recent", "leases", "queue", "processes", "jobs", "events"];
    const [devices, recent, leases, queue, processes, jobs, events] = await Promise.all(
      names.map((name) => ask(name)),
    );
    this.staleAfter = devices.stale_after_seconds;
    this.devices = new Map(devices.devices.map((one) => [one.device_id, one]));
    this.missing = devices.missing;
    this.notes = devices.notes;
    const now = performance.now();
    this.heardAt = new Map(
      devices.devices
        .filter((one) => one.sample_age_seconds !== null)
        .map((one) => [one.device_id, now - one.sample_age_seconds * 1000]),
    );
    this.recent = new Map(Object.entries(recent.values));
    this.leases = leases.leases;
    this.waiting = queue.waiting;
    this.users = processes.users;
    this.untold = processes.untold;
    this.jobs = jobs.jobs;
    this.jobProblems = jobs.problems;
    this.events = events.events;
    this.known = true;
    this.changed("all");
  }

  async take(kind, data) {
    if (kind === "reset") return this.refresh();
    if (kind === "samples") this.takeSamples(data.samples);
    else if (kind === "states") return this.takeStates(data);
    else if (kind === "leases") this.leases = data.leases;
    else if (kind === "queue") this.waiting = data.waiting;
    else if (kind === "processes") [this.users, this.untold] = [data.users, data.untold];
    else if (kind === "jobs") [this.jobs, this.jobProblems] = [data.jobs, data.problems];
    else if (["health", "fault", "change"].includes(kind)) {
      this.events = [data, ...this.events].slice(0, EVENTS);
      return this.changed("events");
    }
    return this.changed(kind);
  }

  takeSamples(samples) {
    const now = performance.now();
    const told = new Map(samples.map((one) => [one.device_id, one]));
    for (const [id, device] of this.devices) {
      const sample = told.get(id);
      if (sample) {
        device.sample = sample;
        this.heardAt.set(id, now);
      }
      const values = this.recent.get(id) ?? [];
      const age = this.age(id);
      const load = device.sample?.compute_utilization_percent ?? null;
      values.push(age !== null && age < LATE_SECONDS ? load : null);
      this.recent.set(id, values.slice(-RECENT));
    }
  }

  takeStates(data) {
    const ids = data.states.map((one) => one.device_id);
    if (ids.length !== this.devices.size || ids.some((id) => !this.devices.has(id))) {
      return this.refresh(); // a device came or went
    }
    for (const state of data.states) Object.assign(this.devices.get(state.device_id), state);
    this.missing = data.missing;
    this.notes = data.notes;
    return this.changed("states");
  }

  age(id) {
    const at = this.heardAt.get(id);
    return at === undefined ? null : (performance.now() - at) / 1000;
  }

  // "stale" beside the service's own verdicts: what was read says nothing about now.
  health(device) {
    const age = this.age(device.device_id);
    if (device.health === "ok" && age !== null && age > this.staleAfter) return "stale";
    if (device.health === "ok" && device.sample === null) return "unread";
    return device.health;
  }

  usersOf(id) {
    return this.users.filter((user) => user.device_id === id);
  }
}
