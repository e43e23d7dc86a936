// Light and dark: the system's, until somebody chooses.

const dark = matchMedia("(prefers-color-scheme: dark)");
const listeners = [];
let chosen = null;

export function isDark() {
  return (chosen ?? (dark.matches ? "dark" : "light")) === "dark";
}

export function toggleTheme() {
  chosen = isDark() ? "light" : "dark";
  apply();
}

export function onTheme(listener) {
  listeners.push(listener);
}

function apply() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  for (const listener of listeners) listener();
}

dark.addEventListener("change", apply);
document.documentElement.dataset.theme = isDark() ? "dark" : "light";

export function token(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
