// Lines over time as SVG. A hole in the data is a hole in the line.

import { draw, make, say } from "./elements.js";
import { moment, reading, title } from "./words.js";

const WIDTH = 600;
const HEIGHT = 150;
const LEFT = 62;
const BOTTOM = 20;
const TOP = 8;

export function sparkline() {
  const line = draw("path", { class: "line", "vector-effect": "non-scaling-stroke" });
  const element = draw(
    "svg",
    { class: "spark", viewBox: "0 0 120 24", preserveAspectRatio: "none", "aria-hidden": "true" },
    line,
  );
  return {
    element,
    set(values) {
      const first = 120 - values.length;
      line.setAttribute(
        "d",
        path(values.map((value, place) => [first + place, value === null ? null : 23 - value * 0.22])),
      );
    },
  };
}

// "M" wherever a value follows a hole; a lone value is a short stroke.
function path(points) {
  let text = "";
  let drawing = false;
  for (const [x, y] of points) {
    if (y === null) {
      drawing = false;
      continue;
    }
    text += `${drawing ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    if (!drawing) text += "h0.6";
    drawing = true;
  }
  return text;
}

function ticks(low, high, wanted, unit = 1) {
  if (unit !== 1) return ticks(low / unit, high / unit, wanted).map((value) => value * unit);
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
    found.push(value);
  }
  return found;
}

function unitOf(metric, high) {
  return metric.endsWith("_bytes") ? 1024 ** Math.max(0, Math.floor(Math.log2(high) / 10)) : 1;
}

function clockOf(at, span) {
  const date = new Date(at * 1000);
  if (span > 2 * 86400) return date.toLocaleDateString([], { month: "short", day: "numeric" });
  const seconds = span < 600 ? { second: "2-digit" } : {};
  return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...seconds });
}

// One reading over a span. `onzoom(since, until)` is called when a part was chosen.
export function chart(series, since, until, onzoom) {
  const known = series.mean.some((value) => value !== null);
  const name = title(series.metric);
  const readout = make("output", { class: "readout" }, known ? "" : "no reading in this span");
  const figure = make("figure", { class: "chart" }, make("figcaption", {}, name, readout));
  if (!known) return figure;
  const scale = scaleOf(series, since, until);
  const cursor = draw("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const chosen = draw("rect", { class: "chosen", y: TOP, height: HEIGHT - BOTTOM - TOP, width: 0 });
  const plot = draw(
    "svg",
    {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      class: "plot",
      tabindex: "0",
      role: "img",
      "aria-label": summary(series, name),
    },
    grid(series.metric, scale),
    draw("path", { class: "band", d: band(series, scale) }),
    draw("path", { class: "line", d: path(scale.points(series.mean)) }),
    chosen,
    cursor,
  );
  attend(plot, { series, scale, cursor, chosen, readout, onzoom });
  figure.append(plot);
  return figure;
}

function summary(series, name) {
  const values = series.mean.filter((value) => value !== null);
  const last = values[values.length - 1];
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const say = (value) => reading(series.metric, value);
  return `${name}: now ${say(last)}, between ${say(low)} and ${say(high)}`;
}

function scaleOf(series, since, until) {
  const high = Math.max(...series.maximum.filter((value) => value !== null));
  const ceiling = series.metric.endsWith("_percent") ? 100 : high > 0 ? high * 1.1 : 1;
  const x = (at) => LEFT + ((at - since) / (until - since)) * (WIDTH - LEFT - 4);
  const y = (value) => HEIGHT - BOTTOM - (value / ceiling) * (HEIGHT - BOTTOM - TOP);
  const at = (place) => series.since + (place + 0.5) * series.step_seconds;
  return {
    since,
    until,
    ceiling,
    x,
    y,
    at,
    time: (x) => since + ((x - LEFT) / (WIDTH - LEFT - 4)) * (until - since),
    points: (values) =>
      values.map((value, place) => [x(at(place)), value === null ? null : y(value)]),
  };
}

function grid(metric, scale) {
  const span = scale.until - scale.since;
  return draw(
    "g",
    { class: "grid" },
    ticks(0, scale.ceiling, 3, unitOf(metric, scale.ceiling)).map((value) => [
      draw("line", { x1: LEFT, x2: WIDTH - 4, y1: scale.y(value), y2: scale.y(value) }),
      draw("text", { x: LEFT - 6, y: scale.y(value) + 4, "text-anchor": "end" }, reading(metric, value)),
    ]),
    [0.02, 0.35, 0.68, 0.98].map((part) => {
      const at = scale.since + part * span;
      const anchor = part < 0.1 ? "start" : part > 0.9 ? "end" : "middle";
      return draw("text", { x: scale.x(at), y: HEIGHT - 5, "text-anchor": anchor }, clockOf(at, span));
    }),
  );
}

// Between the lowest and the highest of each point, where a point is made of several samples.
function band(series, scale) {
  let text = "";
  series.count.forEach((count, place) => {
    if (count > 1) {
      const half = ((scale.x(scale.at(1)) - scale.x(scale.at(0))) / 2).toFixed(1);
      const x = scale.x(scale.at(place)) - half;
      const [top, bottom] = [scale.y(series.maximum[place]), scale.y(series.minimum[place])];
      text += `M${x.toFixed(1)} ${top.toFixed(1)}h${2 * half}V${bottom.toFixed(1)}h${-2 * half}Z`;
    }
  });
  return text;
}

// Pointer: read a point, drag to zoom. Keys: arrows read, + and - zoom.
function attend(plot, { series, scale, cursor, chosen, readout, onzoom }) {
  let place = series.mean.length - 1;
  let from = null;
  const xOf = (event) => {
    const box = plot.getBoundingClientRect();
    return Math.min(WIDTH - 4, Math.max(LEFT, ((event.clientX - box.left) / box.width) * WIDTH));
  };
  const show = (wanted) => {
    place = Math.min(series.mean.length - 1, Math.max(0, wanted));
    const x = scale.x(scale.at(place));
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    say(readout, `${reading(series.metric, series.mean[place])} at ${moment(scale.at(place))}`);
  };
  const placeOf = (x) => Math.floor((scale.time(x) - series.since) / series.step_seconds);
  plot.addEventListener("pointermove", (event) => {
    const x = xOf(event);
    show(placeOf(x));
    if (from === null) return;
    chosen.setAttribute("x", Math.min(from, x));
    chosen.setAttribute("width", Math.abs(x - from));
  });
  plot.addEventListener("pointerdown", (event) => {
    from = xOf(event);
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointerup", (event) => {
    const [low, high] = [from, xOf(event)].sort((one, other) => one - other);
    from = null;
    chosen.setAttribute("width", 0);
    if (high - low > 8) onzoom(scale.time(low), scale.time(high));
  });
  plot.addEventListener("keydown", (event) => {
    const span = scale.until - scale.since;
    const middle = scale.at(place);
    if (event.key === "ArrowLeft") show(place - 1);
    else if (event.key === "ArrowRight") show(place + 1);
    else if (event.key === "+") onzoom(middle - span / 4, middle + span / 4);
    else if (event.key === "-") onzoom(middle - span, Math.min(middle + span, Date.now() / 1000));
    else return;
    event.preventDefault();
  });
}
