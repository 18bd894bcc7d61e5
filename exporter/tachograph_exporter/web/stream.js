// Live events. Comes back by itself and goes on where it was; where that is not possible, says that state must be read anew.

import { address, protocols } from "./api.js";

const FIRST_WAIT = 500;
const LONGEST_WAIT = 10_000;
/** So long without even a heartbeat (they come every 15 s): the connection is gone, whatever the browser thinks. */
const SILENCE = 40_000;

/** Follows events.
 *
 *  `onState("live" | "waiting")`: whether events come. `onReload()`: read the state anew; called when it first connects,
 *  too. `onMessages(list)`: what happened, at most once a frame.
 */
export class Stream {
  constructor(path, { types = "", onMessages, onReload, onState }) {
    this.path = path;
    this.types = types;
    this.after = null;
    this.on = { messages: onMessages, reload: onReload, state: onState };
    this.waiting = [];
    this.wait = FIRST_WAIT;
    this.isClosed = false;
    this.flush = this.flush.bind(this);
    this.heard = performance.now();
    this.watch = setInterval(() => {
      if (performance.now() - this.heard > SILENCE) this.socket?.close();
    }, SILENCE / 4);
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
      if (this.socket === socket) this.again();
    });
  }

  again() {
    if (this.isClosed) return;
    this.on.state?.("waiting");
    // Not all at once, when a service comes back and many pages wait for it.
    const wait = this.wait * (0.5 + Math.random());
    this.timer = setTimeout(() => this.connect(), wait);
    this.wait = Math.min(LONGEST_WAIT, this.wait * 1.7);
  }

  receive(message) {
    this.heard = performance.now();
    if (message.event_type === "connected") {
      this.wait = FIRST_WAIT;
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
    this.waiting.push(message);
    if (this.waiting.length === 1) {
      // A page nobody looks at gets no frames.
      if (document.hidden) setTimeout(this.flush, 250);
      else requestAnimationFrame(this.flush);
    }
  }

  flush() {
    const found = this.waiting;
    this.waiting = [];
    if (!this.isClosed && found.length) this.on.messages(found);
  }

  close() {
    this.isClosed = true;
    clearTimeout(this.timer);
    clearInterval(this.watch);
    this.socket?.close();
  }
}
