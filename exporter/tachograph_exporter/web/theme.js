// The colour theme: the system's, unless the user has chosen one.

import { keep, recall } from "./storage.js";

const STORAGE_KEY = "tachograph.theme";

/** Apply the stored choice. `onChange()` is called whenever the colours change. */
export function initTheme(onChange) {
  const theme = recall(STORAGE_KEY);
  if (theme) document.documentElement.dataset.theme = theme;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
}

/** Switch between dark and light, and store the choice. */
export function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  keep(STORAGE_KEY, theme);
}

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
