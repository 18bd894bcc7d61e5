// Renders /api/openapi.json. Everything from the document is set as text, never as markup.
"use strict";

const METHODS = ["get", "post", "patch", "put", "delete"];

function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") element.className = value;
    else element.setAttribute(name, value);
  }
  for (const child of children) if (child !== null && child !== undefined) element.append(child);
  return element;
}

// `code` in running text.
function prose(text, tag = "p") {
  const element = make(tag);
  text.split("`").forEach((part, i) => element.append(i % 2 ? make("code", {}, part) : part));
  return element;
}

function table(heads, rows) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell))));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

function typeOf(schema, root) {
  if (!schema) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((one) => typeOf(one, root)).join(" | ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.type === "array") return `${typeOf(schema.items, root)}[]`;
  if (schema.type === "object" && schema.additionalProperties)
    return `{…: ${typeOf(schema.additionalProperties, root)}}`;
  return schema.type ?? "any";
}

function named(schema, root) {
  if (!schema) return null;
  if (schema.$ref) return [schema.$ref.split("/").pop(), root.components.schemas[schema.$ref.split("/").pop()]];
  for (const one of schema.anyOf ?? []) if (one.$ref) return named(one, root);
  if (schema.type === "array") return named(schema.items, root);
  if (schema.additionalProperties) return named(schema.additionalProperties, root);
  return null;
}

// The fields of a type, and of the types they hold, each once.
function fields(schema, root, seen = new Set()) {
  const found = named(schema, root);
  if (!found || seen.has(found[0])) return [];
  seen.add(found[0]);
  const [name, type] = found;
  const properties = Object.entries(type.properties ?? {});
  const block = [make("h3", {}, name)];
  if (type.description) block.push(prose(type.description.replaceAll("``", "`")));
  block.push(
    table(
      ["field", "type"],
      properties.map(([key, value]) => [make("code", {}, key), make("code", {}, typeOf(value, root))]),
    ),
  );
  for (const [, value] of properties) block.push(...fields(value, root, seen));
  return block;
}

function json(value) {
  return make("pre", { tabindex: "0" }, make("code", {}, JSON.stringify(value, null, 2)));
}

function operation(root, path, method, about) {
  const summary = make(
    "summary",
    {},
    make("span", { class: `method ${method}` }, method.toUpperCase()),
    make("code", { class: "path" }, path),
    make("span", { class: "quiet" }, about.summary),
  );
  const inside = make("div");
  const details = make("details", { id: about.operationId }, summary, inside);
  details.dataset.text = JSON.stringify([path, method, about]).toLowerCase();
  // Made when it is opened: the page is there at once, however many routes there are.
  details.addEventListener("toggle", () => {
    if (!details.open || inside.childElementCount) return;
    if (about.description) inside.append(prose(about.description));
    inside.append(make("p", { class: "quiet" }, about["x-scope"] ? `Scope: ${about["x-scope"]}` : "Open to everybody"));
    if (about.parameters.length) {
      inside.append(
        make("h3", {}, "Parameters"),
        table(
          ["name", "in", "type", ""],
          about.parameters.map((one) => [
            make("code", {}, one.name),
            one.in,
            make("code", {}, typeOf(one.schema, root)),
            prose(
              [
                one.description,
                one.schema.description,
                one.schema.default !== undefined ? `Default: \`${one.schema.default}\`.` : "",
              ]
                .filter(Boolean)
                .join(" "),
              "span",
            ),
          ]),
        ),
      );
    }
    const body = about.requestBody?.content["application/json"];
    if (body) {
      inside.append(make("h3", {}, "Body"), ...fields(body.schema, root));
      if (body.example) inside.append(json(body.example));
    }
    for (const [status, answer] of Object.entries(about.responses)) {
      const content = answer.content?.["application/json"];
      if (!status.startsWith("2")) continue;
      inside.append(make("h3", {}, `${status} ${answer.description}`));
      if (content?.example) inside.append(json(content.example));
      inside.append(...fields(content?.schema, root));
      const others = Object.keys(answer.content ?? {}).filter((kind) => kind !== "application/json");
      if (others.length) inside.append(make("p", { class: "quiet" }, `Also as ${others.join(", ")}`));
    }
    const failures = Object.entries(about.responses).filter(([status]) => status >= "300");
    inside.append(
      make("h3", {}, "Other answers"),
      table(
        ["status", "what it means"],
        failures.map(([status, answer]) => [status, prose(answer.description, "span")]),
      ),
    );
  });
  return details;
}

function show(root) {
  document.getElementById("about").replaceWith(prose(root.info.description));
  const main = document.getElementById("routes");
  for (const tag of root.tags) {
    const section = make("section", {}, make("h2", {}, tag.name), make("p", { class: "quiet" }, tag.description));
    for (const [path, item] of Object.entries(root.paths)) {
      for (const method of METHODS) {
        if (item[method]?.tags.includes(tag.name)) section.append(operation(root, path, method, item[method]));
      }
    }
    main.append(section);
  }
  if (location.hash) document.getElementById(location.hash.slice(1))?.setAttribute("open", "");
}

document.addEventListener("DOMContentLoaded", async () => {
  try {
    const answer = await fetch("api/openapi.json");
    show(await answer.json());
  } catch (error) {
    document.getElementById("about").textContent = `The document could not be loaded: ${error}`;
  }
  const find = document.getElementById("find");
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    for (const one of document.querySelectorAll("details")) one.hidden = !one.dataset.text.includes(wanted);
    for (const one of document.querySelectorAll("section")) one.hidden = !one.querySelector("details:not([hidden])");
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== find) {
      event.preventDefault();
      find.focus();
    }
  });
});
