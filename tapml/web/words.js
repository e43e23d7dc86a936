// Numbers and states in words, and what this browser calls itself.

export function bytes(count) {
  if (count < 1000) return `${Math.round(count)} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let unit = -1;
  do {
    count /= 1000;
    unit += 1;
  } while (count >= 999.5 && unit < units.length - 1);
  return `${short(count)} ${units[unit]}`;
}

// Sizes that are powers of two as a rule: limits of a device.
export function size(count) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${short(count)} ${units[unit]}`;
}

export function number(count) {
  if (count >= 999_500) return `${short(count / 1_000_000)} M`;
  if (count >= 9_999.5) return `${short(count / 1000)} k`;
  return count >= 100 ? Math.round(count).toLocaleString("en") : short(count);
}

function short(value) {
  const digits = value >= 99.95 || Number.isInteger(value) ? 0 : value >= 9.995 ? 1 : 2;
  return value.toFixed(digits).replace(/\.0+$/, "");
}

// What is optional, and what is missed: without float16 every kernel of a float16 model is computed in float32.
export function features(info) {
  return info.features.includes("float16") ? info.features : [...info.features, "no float16: computed in float32"];
}

export function span(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// "Chromium 156", "Linux" of the navigator.
export function browser(navigator) {
  const agent = navigator.userAgent;
  const brands = navigator.userAgentData?.brands ?? [];
  const brand = brands.find(({ brand: name }) => name !== "Chromium" && !/not.?a.?brand/i.test(name)) ?? brands.find(({ brand: name }) => name === "Chromium");
  const version = name => new RegExp(`${name}/(\\d+)`).exec(agent)?.[1];
  const product = brand ? `${brand.brand} ${brand.version}`
    : version("Firefox") ? `Firefox ${version("Firefox")}`
    : version("CriOS") ? `Chrome ${version("CriOS")}`
    : /Safari/.test(agent) && version("Version") ? `Safari ${version("Version")}`
    : version("Chrome") ? `Chrome ${version("Chrome")}` : "a browser";
  const system = /iPhone/.test(agent) ? "iPhone"
    : /iPad/.test(agent) || (/Macintosh/.test(agent) && navigator.maxTouchPoints > 1) ? "iPad"
    : /Android/.test(agent) ? "Android"
    : /Windows/.test(agent) ? "Windows"
    : /Mac OS/.test(agent) ? "macOS"
    : /CrOS/.test(agent) ? "ChromeOS"
    : /Linux/.test(agent) ? "Linux" : "an unknown system";
  return { product, system };
}

// A first name for this device: "chromium-linux", "safari-iphone".
export function firstName({ product, system }) {
  const word = text => text.toLowerCase().replace(/^an? /, "").replace(/ \d+$/, "").replace(/[^a-z0-9]+/g, "-");
  return `${word(product)}-${word(system)}`;
}

// As the hub makes it: what can be typed in NAME@URL.
export function cleanName(text) {
  return text.trim().replace(/[^\p{L}\p{N}_.]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40);
}

// What somebody else wrote, as a sentence of ours.
export function sentence(text) {
  const trimmed = text.trim();
  return trimmed ? trimmed[0].toUpperCase() + trimmed.slice(1).replace(/\.?$/, ".") : "";
}

export const LIMITS = [
  ["max_buffer_bytes", "Largest buffer", size],
  ["max_binding_bytes", "Largest binding", size],
  ["max_workgroup_invocations", "Invocations in a workgroup", String],
  ["max_workgroup_memory_bytes", "Workgroup memory", size],
  ["max_workgroups_per_dimension", "Workgroups along a dimension", String],
  ["max_storage_buffers", "Storage buffers of a kernel", String],
];
