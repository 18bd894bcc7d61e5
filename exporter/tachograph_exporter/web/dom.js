// Builds elements without parsing markup, so that data from workflows is always shown as text.

const SVG = "http://www.w3.org/2000/svg";

/** Create an element. Properties: attributes, `on` (listeners by event), `data` (dataset), `style` (CSS properties). */
export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** Create an SVG element. */
export function svg(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style")
      for (const [key, setting] of Object.entries(value)) element.style.setProperty(key, setting);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...flat(children));
  return element;
}

function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Replace all children of an element. */
export function replace(element, ...children) {
  element.replaceChildren(...flat(children));
}

/** Set an element's text; does not touch the document if it is the same. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
