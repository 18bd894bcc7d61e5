// The service's JSON API. A token, where one is asked for, stays in this tab.

import { h } from "./dom.js";

const TOKEN = "tachograph.token";

/** What the service answered instead: a problem (RFC 9457). */
export class Problem extends Error {
  constructor(status, detail, code) {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

/** Query parameters as text; empty ones are left out, lists are repeated. */
export function queryOf(values) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(name, one);
    }
  }
  return query.toString();
}

export const session = {
  /** The workspace's slug; empty: the service's own. */
  workspace: "",
  token: sessionStorage.getItem(TOKEN) ?? "",
};

/** The address of something of the service, wherever it is mounted, in the chosen workspace. */
export function address(path, values = {}) {
  const query = queryOf(session.workspace ? { workspace_slug: session.workspace, ...values } : values);
  return new URL(query ? `${path}?${query}` : path, document.baseURI);
}

/** The decoded answer. Raises `Problem`; asks for a token where one is needed. */
export async function get(path, values = {}, { signal } = {}) {
  for (;;) {
    const headers = session.token ? { Authorization: `Bearer ${session.token}` } : {};
    const answer = await fetch(address(path, values), { headers, signal });
    if (answer.status === 401) {
      await askForToken();
      continue;
    }
    const isJson = answer.headers.get("Content-Type")?.includes("json");
    const body = isJson ? await answer.json() : await answer.text();
    if (!answer.ok) throw new Problem(answer.status, body.detail ?? answer.statusText, body.code ?? "");
    return body;
  }
}

/** The subprotocols of a WebSocket: ours and, for a browser can send no header, the token. */
export function protocols() {
  if (!session.token) return ["tachograph"];
  const bytes = new TextEncoder().encode(session.token);
  const text = btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replaceAll("=", "");
  return ["tachograph", `tachograph.bearer.${text}`];
}

let asking = null;

function askForToken() {
  asking ??= new Promise((resolve) => {
    const input = h("input", { type: "password", id: "token", autocomplete: "current-password", required: true });
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", {}, "A token is needed"),
      h("p", {}, session.token ? "The one given is not valid." : "This service asks everybody for a token."),
      h("label", { for: "token" }, "Token"),
      input,
      h("p", {}, h("button", { type: "submit", class: "primary" }, "Go on")),
    );
    const dialog = h("dialog", { "aria-label": "Token" }, form);
    form.addEventListener("submit", () => {
      session.token = input.value.trim();
      sessionStorage.setItem(TOKEN, session.token);
      dialog.remove();
      asking = null;
      resolve();
    });
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}
