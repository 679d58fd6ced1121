// One job: how far it is, who did what when, and what failed why.

import { draw, make, refresh, section, table } from "./elements.js";
import { ask } from "./interface.js";
import { UNKNOWN, count, duration, moment } from "./words.js";
import { jobName, progress } from "./work.js";

const TRIES = 2000;
const LANE = 18;
const WIDTH = 900;
const LEFT = 110;
const FAILURES = 100;

export class JobView {
  constructor(machine, id) {
    this.machine = machine;
    this.id = id;
    this.stamp = null;
    this.heading = make("h1", {}, `Job ${id}`);
    this.note = make("p", { class: "note", role: "status" });
    this.parts = make("div", {});
    this.element = make(
      "article",
      {},
      make("p", {}, make("a", { href: "#/work" }, "All work")),
      this.heading,
      this.note,
      this.parts,
    );
    this.load();
  }

  show(what) {
    if (what === "jobs" || what === "all") this.load();
  }

  async load() {
    const now = this.machine.jobs.find((one) => one.job_id === this.id);
    const stamp = JSON.stringify(now ?? null);
    if (stamp === this.stamp && this.stamp !== "null") return;
    this.stamp = stamp;
    const path = `jobs/${encodeURIComponent(this.id)}`;
    try {
      const [story, failed] = await Promise.all([
        ask(path),
        ask(`${path}/items`, { failed: true, limit: FAILURES }),
      ]);
      const summary = story.summary;
      const tried = Object.values(summary.devices).reduce((sum, one) => sum + one.tries, 0);
      const offset = Math.max(0, tried - TRIES);
      const items = await ask(`${path}/items`, { limit: TRIES, offset });
      this.note.textContent = "";
      this.draw(story, items, failed);
    } catch (error) {
      this.note.textContent = error.message;
    }
  }

  draw(story, items, failed) {
    const { summary } = story;
    this.heading.textContent = `Job ${summary.job_id}: ${jobName(summary)}`;
    const facts = [
      ["State", make("span", { class: "state", "data-state": summary.state }, summary.state)],
      ["Items done", progress(summary)],
      ["Succeeded", String(summary.succeeded)],
      ["Failed", String(summary.failed)],
      ["Left", summary.left === null ? UNKNOWN : String(summary.left)],
      ["Begun more than once", String(summary.started_again)],
      ["Began", moment(summary.started_at)],
      ["Last heard of", moment(summary.last_at)],
      ["In", summary.directory || UNKNOWN],
    ];
    const devices = Object.entries(summary.devices).map(([id, one]) => [id, String(one.tries), duration(one.seconds)]);
    refresh(this.parts, [
      section("In figures", table("Figures", ["What", "Value"], facts, "")),
      section("Who did what when", gantt(items)),
      section(`Failures (${failed.total})`, failures(failed)),
      section("Devices", table("Devices", ["Device", "Tries", "Time in all"], devices, "none yet")),
    ]);
  }
}

function failures(failed) {
  const rows = failed.tries.map((one) => [
    one.failed.slice(0, 8).map((item) => `#${item + 1}`).join(", ") + (one.failed.length > 8 ? ", …" : ""),
    one.attempt === null ? UNKNOWN : String(one.attempt),
    `${one.ending}${one.reason || one.cause ? `: ${one.reason || one.cause}` : ""}`,
    one.exit_status !== null ? `exit ${one.exit_status}` : one.signal !== null ? `signal ${one.signal}` : UNKNOWN,
    one.device_id ?? UNKNOWN,
    moment(one.ended_at),
    one.final === null ? "" : one.final ? "gave up" : "was tried again",
  ]);
  const more = failed.total > failed.tries.length ? `the first ${failed.tries.length} of ${failed.total}` : "";
  return [
    table("Failures", ["Items", "Attempt", "Reason", "Ended with", "Device", "When", "Then"], rows, "nothing failed"),
    make("p", { class: "note" }, more),
  ];
}

// A lane for each slot of each device; a rectangle for each try.
function gantt(items) {
  if (!items.tries.length) return make("p", { class: "empty" }, "nothing has ended yet");
  const lanes = [...new Set(items.tries.map(laneOf))].sort();
  const begin = Math.min(...items.tries.map((one) => one.started_at));
  const end = Math.max(...items.tries.map((one) => one.ended_at), begin + 0.001);
  const x = (at) => LEFT + ((at - begin) / (end - begin)) * (WIDTH - LEFT - 4);
  const height = lanes.length * LANE + 22;
  const label = `${count(items.tries.length, "try", "tries")} on ${count(lanes.length, "slot")} in ${duration(end - begin)}`;
  const more = items.offset ? `the last ${items.tries.length} of ${items.total}` : label;
  return [
    make(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Gantt chart" },
      draw(
        "svg",
        { class: "gantt", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label },
        lanes.map((lane, place) => [
          draw("text", { x: LEFT - 6, y: place * LANE + 13, "text-anchor": "end" }, lane),
          draw("line", { class: "lane", x1: LEFT, x2: WIDTH, y1: (place + 1) * LANE, y2: (place + 1) * LANE }),
        ]),
        items.tries.map((one) =>
          draw(
            "rect",
            {
              class: one.failed.length ? "try failed" : "try",
              x: x(one.started_at).toFixed(1),
              y: lanes.indexOf(laneOf(one)) * LANE + 2,
              width: Math.max(1, x(one.ended_at) - x(one.started_at) - 0.5).toFixed(1),
              height: LANE - 4,
            },
            draw("title", {}, `${named(one)}: ${one.ending}, ${duration(one.ended_at - one.started_at)}`),
          ),
        ),
        draw("text", { x: LEFT, y: height - 6 }, moment(begin)),
        draw("text", { x: WIDTH - 4, y: height - 6, "text-anchor": "end" }, moment(end)),
      ),
    ),
    make("p", { class: "note" }, more),
  ];
}

function laneOf(one) {
  return `${one.device_id ?? UNKNOWN} / ${one.slot}`;
}

function named(one) {
  const [first, last] = [one.items[0][0] + 1, one.items[one.items.length - 1][1] + 1];
  return first === last ? `item ${first}` : `items ${first} to ${last}`;
}
