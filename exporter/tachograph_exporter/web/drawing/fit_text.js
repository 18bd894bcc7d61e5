// Shortens labels in drawings.

/** Shorten a text to a width in pixels, with an ellipsis. `options` are those of `painter.measure`. */
export function fitText(painter, text, width, options) {
  if (painter.measure(text, options) <= width) return text;
  let low = 0;
  let high = text.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (painter.measure(`${text.slice(0, middle)}…`, options) <= width) low = middle;
    else high = middle - 1;
  }
  return low ? `${text.slice(0, low)}…` : "";
}
