// What runs, what ran, who holds what, and who waits for it.

import { eventWords } from "./device.js";
import { make, refresh, section, table } from "./elements.js";
import { UNKNOWN, count, duration, moment, since, size } from "./words.js";

export class WorkView {
  constructor(machine) {
    this.machine = machine;
    this.parts = make("div", {});
    this.element = make("div", {}, make("h1", { class: "hidden" }, "Work"), this.parts);
    this.show("all");
  }

  show(what) {
    if (what === "samples" || what === "connection") return;
    refresh(this.parts, [this.jobs(), this.queue(), this.leases(), this.events()]);
  }

  jobs() {
    const rows = this.machine.jobs.map((job) => [
      make("a", { href: `#/job/${encodeURIComponent(job.job_id)}` }, job.job_id),
      jobName(job),
      make("span", { class: "state", "data-state": job.state }, job.state),
      progress(job),
      job.failed ? make("strong", { class: "alarm" }, String(job.failed)) : "0",
      moment(job.started_at),
      duration(job.last_at === null ? null : job.last_at - job.started_at),
    ]);
    const heads = ["Job", "What", "State", "Done", "Failed", "Began", "Lasted"];
    const problems = this.machine.jobProblems.map((text) => make("p", { class: "note" }, text));
    return section("Jobs", table("Jobs", heads, rows, "no jobs yet: 'exo-gpu map' makes one"), problems);
  }

  queue() {
    const rows = this.machine.waiting.map((waiter) => [
      String(waiter.place),
      waiter.user || UNKNOWN,
      waiter.request.holder || waiter.command || waiter.waiter_id,
      wish(waiter.request),
      since(waiter.waiting_since || null),
      reasons(waiter),
    ]);
    const heads = ["Place", "User", "For", "Asks for", "Waits", "Why it waits"];
    return section("Queue", table("Queue", heads, rows, "nobody waits"));
  }

  leases() {
    const rows = this.machine.leases.map((lease) => [
      make("a", { href: `#/device/${encodeURIComponent(lease.device_id)}` }, lease.device_id),
      lease.user || UNKNOWN,
      lease.holder || lease.command || lease.lease_id,
      lease.exclusive ? "all of it" : lease.memory_bytes ? size(lease.memory_bytes) : "a slot",
      seen(lease),
      moment(lease.taken_at || null),
    ]);
    const heads = ["Device", "User", "For", "Holds", "Seen in use", "Since"];
    return section("Leases", table("Leases", heads, rows, "nobody holds a lease"));
  }

  events() {
    const rows = this.machine.events.slice(0, 50).map((one) => [
      moment(one.at),
      one.device_id,
      ...eventWords(one),
    ]);
    return section("What happened", table("Events", ["When", "Device", "What", "Why"], rows, "nothing was heard"));
  }
}

export function jobName(job) {
  return job.name || [...new Set(Object.values(job.templates))].join(" | ") || job.kind;
}

export function progress(job) {
  const done = job.succeeded + job.failed;
  if (job.total === null) return `${done} of an unknown number`;
  const words = `${done} of ${job.total}`;
  return make("span", {}, make("progress", { max: Math.max(1, job.total), value: done, "aria-label": `Items done: ${words}` }), ` ${words}`);
}

function seen(lease) {
  if (lease.seen_bytes === null) return UNKNOWN;
  const more = lease.overrun_bytes ? ` (${size(lease.overrun_bytes)} too much)` : "";
  return size(lease.seen_bytes) + more;
}

export function wish(request) {
  const words = [request.memory_bytes ? size(request.memory_bytes) : "a slot"];
  if (request.count > 1) words.push(count(request.count, "device"));
  if (request.exclusive) words.push("alone");
  if (request.share) words.push(`a share of ${request.share}`);
  if (request.devices.length) words.push(`of ${request.devices.join(", ")}`);
  if (request.runtime) words.push(request.runtime);
  return words.join(", ");
}

function reasons(waiter) {
  const behind = waiter.ahead.length ? `behind ${waiter.ahead.join(", ")}; ` : "";
  return make(
    "details",
    {},
    make("summary", {}, `${behind}${waiter.reason || "it is its turn"}`),
    make("ul", {}, waiter.refusals.map((one) => make("li", {}, `${one.device_id}: ${one.reason}`))),
  );
}
