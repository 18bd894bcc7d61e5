// In place of `stream.js`: no events reach a file.

export class EventStream {
  close() {}
}
