// Numbers for people. Unknown is a word of its own, never zero.

export const UNKNOWN = "unknown";

export function size(bytes) {
  if (bytes === null || bytes === undefined) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let value = bytes;
  let place = 0;
  while (Math.abs(value) >= 1024 && place < units.length - 1) {
    value /= 1024;
    place += 1;
  }
  const digits = place === 0 || value >= 100 ? 0 : 1;
  return `${value.toFixed(digits)} ${units[place]}`;
}

export function number(value, unit, digits = 0) {
  return value === null || value === undefined ? UNKNOWN : `${value.toFixed(digits)} ${unit}`;
}

export function percent(value) {
  return number(value, "%");
}

export function celsius(value) {
  return number(value, "°C");
}

export function watts(value) {
  return number(value, "W");
}

export function clock(at) {
  return at === null || at === undefined ? UNKNOWN : new Date(at * 1000).toLocaleTimeString();
}

export function moment(at) {
  return at === null || at === undefined ? UNKNOWN : new Date(at * 1000).toLocaleString();
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return UNKNOWN;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function since(at) {
  return at === null || at === undefined ? UNKNOWN : duration(Math.max(0, Date.now() / 1000 - at));
}

export function count(amount, one, many = `${one}s`) {
  return `${amount} ${amount === 1 ? one : many}`;
}

// "compute_utilization_percent" as a head: its unit is said by the figure.
export function title(field) {
  const words = field.replace(/_(bytes|percent|celsius|watts|mhz|gbps|joules|seconds)$/, "").split("_");
  const text = words.join(" ");
  return (text.charAt(0).toUpperCase() + text.slice(1)).replace(/\b(Pci|pci|Pcie|Numa)\b/, (one) => one.replace(/pcie/i, "PCIe").replace(/^pci$/i, "PCI").replace("Numa", "NUMA"));
}

export function reading(field, value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (field.endsWith("_bytes")) return size(value);
  if (field.endsWith("_percent")) return percent(value);
  if (field.endsWith("_celsius")) return celsius(value);
  if (field.endsWith("_watts")) return number(value, "W", 1);
  if (field.endsWith("_mhz")) return number(value, "MHz");
  if (field.endsWith("_gbps")) return number(value, "GB/s");
  if (field.endsWith("_joules")) return number(value, "J");
  if (field.endsWith("_seconds")) return duration(value);
  if (Array.isArray(value)) return value.length ? value.join(", ") : "none";
  return String(value);
}
