// Elements from plain values. Text is always text: nothing that a driver or a user says is markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") {
      for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    } else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

export function make(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function draw(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

// Writes only what differs, so that a reader's selection and a screen reader's place stay.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function mark(element, name, value) {
  if (value === null || value === undefined || value === "") {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

export function table(caption, heads, rows, empty) {
  if (!rows.length) return make("p", { class: "empty" }, empty);
  return make(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    make(
      "table",
      {},
      make("caption", { class: "hidden" }, caption),
      make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, rows.map((row) => make("tr", {}, row.map((cell) => make("td", {}, cell))))),
    ),
  );
}

export function section(title, ...children) {
  return make("section", {}, make("h2", {}, title), children);
}

// A bar for a part of a whole; without a part it is hatched and says that it is unknown.
export function bar(label) {
  const filled = make("span", { class: "filled" });
  const element = make("span", { class: "meter", role: "img", "aria-label": label }, filled);
  return {
    element,
    set(part, words, level) {
      mark(element, "data-level", part === null ? "unknown" : level);
      const width = part === null ? "0%" : `${Math.min(100, Math.max(0, part * 100)).toFixed(1)}%`;
      if (filled.style.width !== width) filled.style.width = width;
      mark(element, "aria-label", `${label}: ${words}`);
    },
  };
}

// Puts fresh parts in the place of those that differ; what has the focus keeps it by its order.
export function refresh(container, parts) {
  parts.forEach((part, place) => {
    const old = container.children[place];
    if (!old) container.append(part);
    else if (!old.isEqualNode(part)) {
      const regions = [...old.querySelectorAll("a, button, summary, .scroll")];
      const focused = regions.indexOf(document.activeElement);
      const open = [...old.querySelectorAll("details")].map((one) => one.open);
      const scrolled = [...old.querySelectorAll(".scroll")].map((one) => one.scrollTop);
      part.querySelectorAll("details").forEach((one, at) => (one.open = open[at] ?? false));
      old.replaceWith(part);
      part.querySelectorAll(".scroll").forEach((one, at) => (one.scrollTop = scrolled[at] ?? 0));
      if (focused >= 0) part.querySelectorAll("a, button, summary, .scroll")[focused]?.focus();
    }
  });
  while (container.children.length > parts.length) container.lastChild.remove();
}
