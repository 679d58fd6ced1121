// A request, and what would be chosen for it: every term, every refusal. Nothing is taken.

import { bar, make, section, table } from "./elements.js";
import { ask, tell } from "./interface.js";

const FIELDS = [
  ["memory", "Memory", { placeholder: "8GiB", autocomplete: "off" }, "such as 8GiB; empty takes a slot"],
  ["count", "Devices", { type: "number", min: "1", value: "1" }, "how many, all or nothing"],
  ["share", "Share", { type: "number", min: "0.01", max: "1", step: "0.01" }, "a part of a device"],
  ["devices", "Only these", { autocomplete: "off" }, "ids, separated by commas"],
  ["labels", "Labelled", { autocomplete: "off" }, "labels, separated by commas"],
];

const LISTS = ["devices", "labels"];

export class ExplainView {
  constructor(machine) {
    this.machine = machine;
    this.inputs = new Map();
    this.answer = make("div", { role: "status" });
    this.policy = make("select", { id: "ask-policy" });
    this.runtime = select("ask-runtime", ["", "cuda", "rocm", "xpu", "metal", "vulkan", "cpu"]);
    this.kind = select("ask-class", ["", "hardware", "software", "host"]);
    this.exclusive = make("input", { type: "checkbox", id: "ask-exclusive" });
    this.all = make("input", { type: "checkbox", id: "ask-all" });
    this.element = make(
      "div",
      {},
      make("h1", {}, "Explain"),
      make("p", {}, "Which device would a piece of work get now, and why? Nothing is taken."),
      this.form(),
      this.answer,
    );
    ask("policies").then(
      (told) => {
        this.policy.append(...told.policies.map((one) => make("option", {}, one.name)));
        this.policy.value = told.default;
      },
      (error) => this.fail(error),
    );
  }

  show() {}

  form() {
    const fields = FIELDS.map(([name, text, properties, hint]) => {
      const id = `ask-${name}`;
      const input = make("input", { id, "aria-describedby": `${id}-hint`, ...properties });
      this.inputs.set(name, input);
      return field(id, text, input, hint);
    });
    return make(
      "form",
      {
        class: "question",
        novalidate: true,
        onsubmit: (event) => {
          event.preventDefault();
          this.send();
        },
      },
      fields,
      field("ask-runtime", "Runtime", this.runtime, "what the program was built for"),
      field("ask-class", "Class", this.kind, "hardware, software drivers or the host"),
      field("ask-policy", "Policy", this.policy, "how devices are weighed"),
      make("label", { class: "check" }, this.exclusive, " Alone on it"),
      make("label", { class: "check" }, this.all, " Every class and runtime"),
      make("button", { type: "submit", class: "primary" }, "Explain"),
    );
  }

  request() {
    const wish = {};
    for (const [name, input] of this.inputs) {
      const text = input.value.trim();
      if (!text) continue;
      if (LISTS.includes(name)) wish[name] = text.split(",").map((one) => one.trim()).filter(Boolean);
      else wish[name] = input.type === "number" ? Number(text) : text;
    }
    if (this.runtime.value) wish.runtime = this.runtime.value;
    if (this.kind.value) wish.device_class = this.kind.value;
    if (this.policy.value) wish.policy = this.policy.value;
    if (this.exclusive.checked) wish.exclusive = true;
    if (this.all.checked) wish.all_devices = true;
    return wish;
  }

  async send() {
    this.element.querySelectorAll("[aria-invalid]").forEach((one) => one.removeAttribute("aria-invalid"));
    try {
      this.tell(await tell("explain", this.request()));
    } catch (error) {
      this.fail(error);
    }
  }

  fail(error) {
    for (const fault of error.errors ?? []) {
      const name = fault.field.replace(/_bytes$/, "").replace("device_class", "class").replace("all_devices", "all");
      const input = this.element.querySelector(`#ask-${CSS.escape(name)}`);
      input?.setAttribute("aria-invalid", "true");
      input?.focus();
    }
    this.answer.replaceChildren(make("p", { class: "alarm" }, error.message));
  }

  tell(answer) {
    const chosen = answer.chosen.length
      ? `Chosen: ${answer.chosen.join(", ")}`
      : `${answer.never ? "Never" : "Not now"}: ${answer.message}`;
    const refusals = answer.refusals.map((one) => [
      one.device_id,
      one.permanent ? "never" : "not now",
      one.rule,
      [one.reason, ...one.also].join("; also "),
    ]);
    const left = answer.left_out.map((one) => [one.device_id, one.rule, one.reason]);
    this.answer.replaceChildren(
      make("p", { class: answer.chosen.length ? "chosen" : "alarm" }, chosen),
      section("Eligible, best first", answer.ranking.length ? make("ol", { class: "ranking" }, answer.ranking.map(ranked)) : make("p", { class: "empty" }, "no device")),
      section("Refused", table("Refused", ["Device", "When", "Rule", "Why"], refusals, "no device")),
      section("Left out", table("Left out", ["Device", "Rule", "Why"], left, "no device")),
      make("details", {}, make("summary", {}, "The same as text"), make("pre", { tabindex: "0" }, answer.text)),
    );
  }
}

function ranked(score) {
  const terms = score.terms.map((term) => {
    const meter = bar(term.name);
    const words = term.value === null ? "unknown" : term.value.toFixed(3);
    meter.set(term.value, words, null);
    const effect = term.multiplies ? `times ${words}` : `${words} × ${term.weight.toFixed(2)}`;
    return make("li", {}, make("span", { class: "name" }, term.name), meter.element, make("span", {}, term.value === null ? "unknown" : effect), make("span", { class: "note" }, term.note));
  });
  return make(
    "li",
    {},
    make("strong", {}, score.device_id),
    ` score ${score.total.toFixed(3)}`,
    make("ul", { class: "terms" }, terms),
    score.notes.map((note) => make("p", { class: "note" }, note)),
  );
}

function field(id, text, input, hint) {
  return make(
    "div",
    { class: "field" },
    make("label", { for: id }, text),
    input,
    make("span", { class: "note", id: `${id}-hint` }, hint),
  );
}

function select(id, values) {
  return make("select", { id, "aria-describedby": `${id}-hint` }, values.map((value) => make("option", { value }, value || "any")));
}
