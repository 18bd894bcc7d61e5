// What the service says about itself: a banner while it cannot do its work, or when something was lost.

import { h, replace } from "./dom.js";

const EVERY_MS = 15_000;

/** Show what `-/ready` reports in `banner`, now and again and again while the page is visible. */
export function watchHealth(banner) {
  async function check() {
    if (document.hidden) return;
    let faults = [];
    let warnings = [];
    try {
      const response = await fetch(new URL("-/ready", document.baseURI));
      ({ faults = [], warnings = [] } = await response.json());
    } catch {
      // The service does not answer, which the views themselves show.
    }
    show(banner, faults, warnings);
  }
  setInterval(check, EVERY_MS);
  document.addEventListener("visibilitychange", check);
  return check();
}

function show(banner, faults, warnings) {
  const texts = [...faults, ...warnings];
  banner.hidden = texts.length === 0;
  banner.dataset.state = faults.length ? "fault" : "warning";
  // Unchanged texts stay, so that a screen reader does not repeat them.
  if (banner.textContent === texts.join("")) return;
  replace(banner, ...texts.map((text) => h("p", {}, text)));
}
