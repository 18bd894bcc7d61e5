// The service's JSON API. The token, if one is required, is kept for this tab only.

import { h } from "./dom.js";
import { missed, reached } from "./reach.js";

const TOKEN_KEY = "tachograph.token";

/** An error response: problem details (RFC 9457). */
export class Problem extends Error {
  constructor(status, detail, code, errors = []) {
    super(detail);
    this.status = status;
    this.code = code;
    /** What is wrong in a document, with its place. */
    this.errors = errors.map((error) => `${error.at ? `${error.at}: ` : ""}${error.message}`);
  }
}

/** Encode query parameters. Empty values are left out, lists become repeated parameters. */
function encodeQuery(values) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== null && item !== undefined && item !== "") query.append(name, item);
    }
  }
  return query.toString();
}

export const session = {
  /** The workspace's slug; empty for the service's own. */
  workspace: "",
  token: sessionStorage.getItem(TOKEN_KEY) ?? "",
};

/** The URL of a path in the chosen workspace, below wherever the service is mounted. */
export function address(path, values = {}) {
  const query = encodeQuery(session.workspace ? { workspace_slug: session.workspace, ...values } : values);
  return new URL(query ? `${path}?${query}` : path, document.baseURI);
}

/** Fetch and decode a response. Throws `Problem`; asks the user for a token when one is required. */
export function get(path, values = {}, { signal } = {}) {
  return send(path, values, { signal });
}

/** Send a body as JSON and decode the response. Throws as `get` does. */
export function post(path, body = {}) {
  return send(path, {}, { method: "POST", body: JSON.stringify(body) });
}

/** Replace what is at a path. Throws as `get` does. */
export function put(path, body) {
  return send(path, {}, { method: "PUT", body: JSON.stringify(body) });
}

/** Delete what is at a path. Throws as `get` does. */
export function remove(path) {
  return send(path, {}, { method: "DELETE" });
}

async function send(path, values, options) {
  for (;;) {
    const headers = session.token ? { Authorization: `Bearer ${session.token}` } : {};
    if (options.body) headers["Content-Type"] = "application/json";
    const response = await answer(address(path, values), { ...options, headers });
    if (response.status === 401) {
      await askForToken();
      continue;
    }
    const isJson = response.headers.get("Content-Type")?.includes("json");
    const body = isJson ? await response.json() : await response.text();
    if (!response.ok)
      throw new Problem(response.status, body.detail ?? response.statusText, body.code ?? "", body.errors);
    return body;
  }
}

/** The response to a request. Throws `Problem` with status 0 when none comes. */
async function answer(url, options) {
  try {
    const response = await fetch(url, options);
    reached();
    return response;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    missed();
    throw new Problem(0, "The service does not answer. Is `tachograph serve` running?", "unreachable");
  }
}

/** The subprotocols for a WebSocket: ours and, since browsers cannot set its headers, the token. */
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
      h("h2", {}, "Token required"),
      h("p", {}, session.token ? "The token is not valid." : "This service requires a token."),
      h("label", { for: "token" }, "Token"),
      input,
      h("p", {}, h("button", { type: "submit", class: "primary" }, "Continue")),
    );
    const dialog = h("dialog", { "aria-label": "Token" }, form);
    form.addEventListener("submit", () => {
      session.token = input.value.trim();
      sessionStorage.setItem(TOKEN_KEY, session.token);
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
