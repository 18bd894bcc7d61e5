// Renders /api/openapi.json. Content from the document is set as text, never as markup.
"use strict";

const METHODS = ["get", "post", "patch", "put", "delete"];

function h(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") element.className = value;
    else element.setAttribute(name, value);
  }
  for (const child of children) if (child !== null && child !== undefined) element.append(child);
  return element;
}

// Text in which `code` is marked up as code.
function prose(text, tag = "p") {
  const element = h(tag);
  text.split("`").forEach((part, i) => element.append(i % 2 ? h("code", {}, part) : part));
  return element;
}

function table(heads, rows) {
  const head = h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text)));
  const body = rows.map((cells) => h("tr", {}, ...cells.map((cell) => h("td", {}, cell))));
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), h("tbody", {}, ...body)));
}

function typeOf(schema, root) {
  if (!schema) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((variant) => typeOf(variant, root)).join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `${typeOf(schema.items, root)}[]`;
  if (schema.type === "object" && schema.additionalProperties)
    return `{…: ${typeOf(schema.additionalProperties, root)}}`;
  return schema.type ?? "any";
}

function namedType(schema, root) {
  if (!schema) return null;
  if (schema.$ref) return [schema.$ref.split("/").pop(), root.components.schemas[schema.$ref.split("/").pop()]];
  for (const variant of schema.anyOf ?? []) if (variant.$ref) return namedType(variant, root);
  if (schema.type === "array") return namedType(schema.items, root);
  if (schema.additionalProperties) return namedType(schema.additionalProperties, root);
  return null;
}

// The fields of a type and of the types they refer to, each type once.
function fields(schema, root, seen = new Set()) {
  const [name, type] = namedType(schema, root) ?? [];
  if (!name || seen.has(name)) return [];
  seen.add(name);
  const properties = Object.entries(type.properties ?? {});
  const block = [h("h3", {}, name)];
  if (type.description) block.push(prose(type.description.replaceAll("``", "`")));
  block.push(
    table(
      ["field", "type"],
      properties.map(([key, value]) => [h("code", {}, key), h("code", {}, typeOf(value, root))]),
    ),
  );
  for (const [, value] of properties) block.push(...fields(value, root, seen));
  return block;
}

function json(value) {
  return h("pre", { tabindex: "0" }, h("code", {}, JSON.stringify(value, null, 2)));
}

function operationDetails(root, path, method, operation) {
  const summary = h(
    "summary",
    {},
    h("span", { class: `method ${method}` }, method.toUpperCase()),
    h("code", { class: "path" }, path),
    h("span", { class: "quiet" }, operation.summary),
  );
  const panel = h("div");
  const details = h("details", { id: operation.operationId }, summary, panel);
  details.dataset.text = JSON.stringify([path, method, operation]).toLowerCase();
  // Built when opened, so that the page shows at once however many routes there are.
  details.addEventListener("toggle", () => {
    if (!details.open || panel.childElementCount) return;
    if (operation.description) panel.append(prose(operation.description));
    panel.append(
      h("p", { class: "quiet" }, operation["x-scope"] ? `Scope: ${operation["x-scope"]}` : "No token required"),
    );
    if (operation.parameters.length) {
      panel.append(
        h("h3", {}, "Parameters"),
        table(
          ["name", "in", "type", ""],
          operation.parameters.map((parameter) => [
            h("code", {}, parameter.name),
            parameter.in,
            h("code", {}, typeOf(parameter.schema, root)),
            prose(
              [
                parameter.description,
                parameter.schema.description,
                parameter.schema.default !== undefined ? `Default: \`${parameter.schema.default}\`.` : "",
              ]
                .filter(Boolean)
                .join(" "),
              "span",
            ),
          ]),
        ),
      );
    }
    const requestBody = operation.requestBody?.content["application/json"];
    if (requestBody) {
      panel.append(h("h3", {}, "Body"), ...fields(requestBody.schema, root));
      if (requestBody.example) panel.append(json(requestBody.example));
    }
    for (const [status, answer] of Object.entries(operation.responses)) {
      const content = answer.content?.["application/json"];
      if (!status.startsWith("2")) continue;
      panel.append(h("h3", {}, `${status} ${answer.description}`));
      if (content?.example) panel.append(json(content.example));
      panel.append(...fields(content?.schema, root));
      const others = Object.keys(answer.content ?? {}).filter((kind) => kind !== "application/json");
      if (others.length) panel.append(h("p", { class: "quiet" }, `Also as ${others.join(", ")}`));
    }
    const failures = Object.entries(operation.responses).filter(([status]) => status >= "300");
    panel.append(
      h("h3", {}, "Other responses"),
      table(
        ["status", "meaning"],
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
    const section = h("section", {}, h("h2", {}, tag.name), h("p", { class: "quiet" }, tag.description));
    for (const [path, item] of Object.entries(root.paths)) {
      for (const method of METHODS) {
        if (item[method]?.tags.includes(tag.name)) section.append(operationDetails(root, path, method, item[method]));
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
    document.getElementById("about").textContent = `Cannot load the API document: ${error}`;
  }
  const find = document.getElementById("find");
  find.addEventListener("input", () => {
    const text = find.value.trim().toLowerCase();
    for (const details of document.querySelectorAll("details")) details.hidden = !details.dataset.text.includes(text);
    for (const section of document.querySelectorAll("section"))
      section.hidden = !section.querySelector("details:not([hidden])");
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== find) {
      event.preventDefault();
      find.focus();
    }
  });
});
