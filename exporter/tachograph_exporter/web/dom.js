// Elements without a parser: whatever a workflow says stays text.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Properties: `class`, `on` (listeners by event), `data` (dataset), `style` (properties), attributes. */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** An SVG element. */
export function s(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style") for (const [key, of] of Object.entries(value)) element.style.setProperty(key, of);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...flat(children));
  return element;
}

function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Put these in place of all that an element holds. */
export function replace(element, ...children) {
  element.replaceChildren(...flat(children));
}

/** Set an element's text, without touching the document when it says that already. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A function that runs once, `wait` ms after it was last called; `.cancel()` forgets a call. */
export function debounce(work, wait) {
  let timer = 0;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...values), wait);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}
