// Live events over a WebSocket that reconnects and resumes where it left off.

import { address, protocols } from "./api.js";
import { missed, reached } from "./reach.js";

const MIN_WAIT_MS = 500;
const MAX_WAIT_MS = 10_000;
/** Without even a heartbeat (sent every 15 s) for this long, the connection is dead, whatever the browser says. */
const SILENCE_MS = 40_000;

/** Follows events.
 *
 *  `onState("live" | "waiting")` tells whether it is connected. `onReload()` asks to read the current state: on the
 *  first connect, and when events were missed. `onMessages(list)` delivers events, at most once a frame.
 */
export class EventStream {
  constructor(path, { types = "", onMessages, onReload, onState }) {
    this.path = path;
    this.types = types;
    this.after = null;
    this.on = { messages: onMessages, reload: onReload, state: onState };
    this.queue = [];
    this.wait = MIN_WAIT_MS;
    this.isClosed = false;
    this.flush = this.flush.bind(this);
    this.receivedAt = performance.now();
    this.watchdog = setInterval(() => {
      if (performance.now() - this.receivedAt > SILENCE_MS) this.socket?.close();
    }, SILENCE_MS / 4);
    this.connect();
  }

  connect() {
    if (this.isClosed) return;
    const url = address(this.path, { types: this.types, after: this.after });
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url, protocols());
    this.socket = socket;
    socket.addEventListener("message", (event) => this.receive(JSON.parse(event.data)));
    socket.addEventListener("close", () => {
      if (this.socket === socket) this.reconnect();
    });
  }

  reconnect() {
    if (this.isClosed) return;
    missed();
    this.on.state?.("waiting");
    // Jitter, so that pages do not all reconnect at once when the service comes back.
    const wait = this.wait * (0.5 + Math.random());
    this.timer = setTimeout(() => this.connect(), wait);
    this.wait = Math.min(MAX_WAIT_MS, this.wait * 1.7);
  }

  receive(message) {
    this.receivedAt = performance.now();
    if (message.event_type === "connected") {
      this.wait = MIN_WAIT_MS;
      reached();
      this.on.state?.("live");
      if (this.after === null) this.on.reload?.();
      this.after = Math.max(this.after ?? 0, message.sequence);
      return;
    }
    if (message.event_type === "reload") {
      this.after = message.sequence;
      this.on.reload?.();
      return;
    }
    if (message.sequence > this.after) this.after = message.sequence;
    if (message.event_type === "heartbeat" || message.event_type === "coalesced") return;
    this.queue.push(message);
    if (this.queue.length === 1) {
      // A hidden page gets no animation frames.
      if (document.hidden) setTimeout(this.flush, 250);
      else requestAnimationFrame(this.flush);
    }
  }

  flush() {
    const messages = this.queue;
    this.queue = [];
    if (!this.isClosed && messages.length) this.on.messages(messages);
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    clearInterval(this.watchdog);
    this.socket?.close();
  }
}
