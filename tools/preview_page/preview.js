// Draws a dashboard's panels from Prometheus query results, well enough to judge layout, units, legends and colours.
import uPlot from "./uPlot.esm.js";

const COLOURS = { green: "#56a64b", red: "#e02f44", "dark-orange": "#fa6400", purple: "#a352cc", yellow: "#f2cc0c", blue: "#3274d9", "light-yellow": "#fff899", orange: "#ff780a", text: "#8e949f" };
const ROUND = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a", "#447ebc", "#c15c17"];

function unit(value, name) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const short = (number) => Number(number.toPrecision(3));
  if (name?.startsWith("prefix:")) return name.slice(7) + short(value);
  if (name?.startsWith("suffix:")) return unit(value) + name.slice(7);
  if (name === "percentunit") return `${short(value * 100)}%`;
  if (name === "currencyUSD") return `$${short(value)}`;
  if (name === "bytes") return value > 1 << 20 ? `${short(value / 2 ** 20)} MiB` : value > 1024 ? `${short(value / 1024)} KiB` : `${short(value)} B`;
  if (name === "s") {
    if (Math.abs(value) < 1e-3) return `${short(value * 1e6)} µs`;
    if (Math.abs(value) < 1) return `${short(value * 1e3)} ms`;
    if (value < 120) return `${short(value)} s`;
    return value < 7200 ? `${short(value / 60)} mins` : value < 172800 ? `${short(value / 3600)} hours` : `${short(value / 86400)} days`;
  }
  return Math.abs(value) >= 1e4 ? `${short(value / 1e3)} K` : String(short(value));
}

const legendOf = (format, metric) => format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => metric[label] ?? "");

function element(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

// The text and colour that a panel's or a column's value mappings give a value.
function mapped(mappings, value) {
  return (mappings ?? []).find((mapping) => mapping.type === "value" && mapping.options[String(value)])?.options[String(value)];
}

function colourOf(panel, legend, index) {
  const override = panel.fieldConfig.overrides.find((candidate) => candidate.matcher.options === legend);
  const fixed = override?.properties.find((property) => property.id === "color")?.value.fixedColor;
  return COLOURS[fixed] ?? ROUND[index % ROUND.length];
}

function byThreshold(panel, value) {
  let colour = "blue";
  for (const step of panel.fieldConfig.defaults.thresholds?.steps ?? []) if (step.value === null || step.value === undefined || value >= step.value) colour = step.color;
  return COLOURS[colour] ?? colour;
}

function lines(box, panel, results) {
  const all = results.flatMap(({ legend, series }) => series.map((line) => ({ name: legendOf(legend, line.metric), values: line.values ?? [] })));
  const times = [...new Set(all.flatMap((line) => line.values.map(([at]) => at)))].sort((a, b) => a - b);
  if (!times.length) return box.append(element("span", "empty", "No data"));
  const custom = panel.fieldConfig.defaults.custom ?? {};
  const data = all.map((line) => { const byTime = new Map(line.values.map(([at, value]) => [at, Number(value)])); return times.map((at) => { const v = byTime.get(at); return v === undefined || Number.isNaN(v) ? null : v; }); });
  const isStacked = custom.stacking?.mode === "normal";
  const drawn = isStacked ? data.map((_, i) => times.map((_, t) => data.slice(0, i + 1).reduce((sum, row) => sum + (row[t] ?? 0), 0))) : data;
  const name = panel.fieldConfig.defaults.unit;
  const isBars = custom.drawStyle === "bars";
  const plot = element("div", "plot");
  box.append(plot);
  const limits = custom.thresholdsStyle?.mode === "dashed" ? panel.fieldConfig.defaults.thresholds.steps.slice(1).filter((step) => step.value !== null) : [];
  const top = Math.max(0, ...limits.map((step) => step.value));
  const axis = { stroke: "#9aa0aa", grid: { stroke: "#25282e", width: 1 }, ticks: { stroke: "#25282e" }, font: "11px DejaVu Sans" };
  const order = isStacked ? drawn.map((_, i) => drawn.length - 1 - i) : drawn.map((_, i) => i);
  requestAnimationFrame(() => new uPlot({
    width: plot.clientWidth, height: plot.clientHeight, legend: { show: false }, cursor: { show: false },
    scales: { y: { range: (_, low, high) => [Math.min(0, low), Math.max(high, top) > 0 ? Math.max(high, top) * 1.08 : 1] } },
    hooks: { draw: [(chart) => limits.forEach((step) => {
      const { ctx, bbox } = chart;
      const y = chart.valToPos(step.value, "y", true);
      ctx.save();
      ctx.setLineDash([8, 6]);
      ctx.strokeStyle = COLOURS[step.color] ?? step.color;
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      ctx.restore();
    })] },
    axes: [axis, { ...axis, size: 82, values: (_, values) => values.map((value) => unit(value, name)) }],
    series: [{}, ...order.map((i) => { const colour = colourOf(panel, all[i].name, i); return { stroke: colour, width: 1.3, fill: isStacked ? `${colour}cc` : `${colour}14`, points: { show: false }, ...(isBars ? { paths: uPlot.paths.bars({ size: [0.9, 20] }) } : {}) }; })],
  }, [times, ...order.map((i) => drawn[i])], plot));
  if (panel.options.legend?.showLegend) {
    const legend = element("div", "legend");
    const { sortBy, sortDesc, calcs } = panel.options.legend;
    for (const head of ["", ...calcs.map((calc) => calc.replace("lastNotNull", "last"))]) legend.append(element("span", "", head));
    const valuesOf = (i) => data[i].filter((value) => value !== null);
    const worst = (i) => (sortBy === "Min" ? Math.min : Math.max)(...valuesOf(i));
    const sorted = all.map((line, i) => [line, i]).sort(([, a], [, b]) => (sortDesc ? worst(b) - worst(a) : worst(a) - worst(b)));
    sorted.forEach(([line, i]) => {
      const values = valuesOf(i);
      const first = element("span", "", `▬ ${line.name}`);
      first.style.color = colourOf(panel, line.name, i);
      legend.append(first, ...[values.reduce((a, b) => a + b, 0) / values.length, worst(i), values.at(-1)].map((value) => element("span", "", mapped(panel.fieldConfig.defaults.mappings, value)?.text ?? unit(value, name))));
    });
    box.append(legend);
  }
}

function last(results) {
  const values = results.flatMap(({ series }) => series.map((row) => Number((row.values ?? [row.value]).at(-1)[1])));
  return values.find((value) => !Number.isNaN(value));
}

const DRAW = {
  timeseries: lines,
  stat(box, panel, results) {
    const value = last(results);
    const { decimals } = panel.fieldConfig.defaults;
    const rounded = decimals === 0 && value !== undefined ? Math.round(value) : value;
    const text = mapped(panel.fieldConfig.defaults.mappings, value);
    const shown = element("div", "value", text ? text.text : value === undefined ? panel.fieldConfig.defaults.noValue ?? "No data" : unit(rounded, panel.fieldConfig.defaults.unit));
    shown.style.color = text ? COLOURS[text.color] : value === undefined ? "#8e949f" : byThreshold(panel, value);
    box.append(shown);
  },
  bargauge(box, panel, results) {
    const rows = results.flatMap(({ legend, series }) => series.map((row) => [legendOf(legend, row.metric), Number((row.value ?? row.values.at(-1))[1])])).filter(([, value]) => !Number.isNaN(value));
    if (!rows.length) return box.append(element("span", "empty", "No data"));
    const { max, mappings } = panel.fieldConfig.defaults;
    const most = max ?? Math.max(...rows.map(([, value]) => value), 1e-12);
    const bars = element("div", "bars");
    for (const [name, value] of rows) {
      const bar = element("i");
      const text = mapped(mappings, value);
      bar.style.width = `${Math.min(100, Math.max(1, (100 * value) / most))}%`;
      bar.style.background = text ? COLOURS[text.color] : byThreshold(panel, value);
      bars.append(element("span", "", name), bar, element("span", "", text?.text ?? unit(value, panel.fieldConfig.defaults.unit)));
    }
    box.append(bars);
  },
  table(box, panel, results) {
    const { excludeByName, indexByName } = panel.transformations.find(({ id }) => id === "organize").options;
    const columns = results.map(({ legend }) => legend);
    // As Grafana merges: by the labels that all columns have.
    const rows = new Map();
    const shared = results.filter(({ series }) => series.length).map(({ series }) => Object.keys(series[0].metric)).reduce((some, others) => some.filter((name) => others.includes(name)), Object.keys(results.find(({ series }) => series.length)?.series[0].metric ?? {}));
    results.forEach(({ legend, series }) => series.forEach(({ metric, value }) => {
      const key = JSON.stringify((results.length > 1 ? shared : Object.keys(metric).sort()).map((name) => metric[name]));
      rows.set(key, { ...rows.get(key), ...metric, [legend]: Number(value[1]) });
    }));
    const labels = [...new Set(results.flatMap(({ series }) => series.flatMap(({ metric }) => Object.keys(metric))))].filter((name) => !excludeByName[name]);
    const first = labels.filter((name) => name in indexByName).sort((one, other) => indexByName[one] - indexByName[other]);
    const names = [...first, ...columns, ...labels.filter((name) => !(name in indexByName))];
    const compare = (one, other) => (typeof one === "number" || typeof other === "number" ? (one ?? -Infinity) - (other ?? -Infinity) : String(one ?? "").localeCompare(String(other ?? "")));
    const sorted = [...rows.values()].sort((one, other) => panel.options.sortBy.map(({ displayName: name, desc }) => (desc ? -1 : 1) * compare(one[name], other[name])).find((order) => order) ?? 0);
    const table = element("table");
    const head = element("tr");
    head.append(...names.map((name) => element("th", "", name)));
    table.append(head);
    for (const item of sorted) {
      const row = element("tr");
      for (const name of names) {
        const properties = Object.fromEntries((panel.fieldConfig.overrides.find(({ matcher }) => matcher.options === name)?.properties ?? []).map(({ id, value }) => [id, value]));
        const value = item[name];
        const text = mapped(properties.mappings, value);
        const cell = element("td", "", !columns.includes(name) ? value ?? "" : text?.text ?? (value === undefined ? properties.noValue ?? "" : unit(value, properties.unit)));
        if (text) cell.style.color = COLOURS[text.color];
        row.append(cell);
      }
      table.append(row);
    }
    box.append(table);
  },
  heatmap(box, panel, results) {
    const rows = results.flatMap(({ series }) => series).filter((row) => row.metric.le).map((row) => ({ le: Number(row.metric.le.replace("+Inf", "Infinity")), values: new Map(row.values.map(([at, value]) => [at, Number(value)])) })).sort((a, b) => a.le - b.le);
    const times = [...new Set(rows.flatMap((row) => [...row.values.keys()]))].sort((a, b) => a - b);
    const cells = rows.map((row, i) => times.map((at) => Math.max(0, (row.values.get(at) ?? 0) - (i ? rows[i - 1].values.get(at) ?? 0 : 0))));
    const used = rows.map((_, i) => i).filter((i) => cells[i].some((value) => value > 0));
    if (!used.length) return box.append(element("span", "empty", "No data"));
    const [low, high] = [Math.max(0, used[0] - 1), Math.min(rows.length - 1, used.at(-1) + 1)];
    const canvas = element("canvas", "heat");
    box.append(canvas);
    requestAnimationFrame(() => {
      canvas.width = canvas.clientWidth;
      canvas.height = canvas.clientHeight;
      const context = canvas.getContext("2d");
      const most = Math.max(...cells.flat());
      const [left, tall, wide] = [70, (canvas.height - 4) / (high - low + 1), (canvas.width - 70) / times.length];
      context.font = "11px DejaVu Sans";
      for (let i = low; i <= high; i += 1) {
        const y = canvas.height - 4 - (i - low + 1) * tall;
        context.fillStyle = "#9aa0aa";
        context.fillText(unit(rows[i].le, "s"), 4, y + tall / 2 + 4);
        cells[i].forEach((value, t) => {
          if (!value) return;
          context.fillStyle = `hsl(212 85% ${20 + 60 * (value / most) ** 0.5}%)`;
          context.fillRect(left + t * wide, y + 0.5, Math.max(1, wide - 0.5), tall - 1);
        });
      }
    });
  },
};

const name = location.search.slice(1);
const { title, description, panels } = await (await fetch(`${name}.json`)).json();
document.querySelector("h1").textContent = title;
document.querySelector("p").textContent = description;
for (const { panel, results } of panels) {
  const { x, y, w, h } = panel.gridPos;
  const box = element("section", panel.type === "row" ? "row" : "");
  box.style.gridArea = `${y + 1} / ${x + 1} / span ${h} / span ${w}`;
  box.title = panel.description ?? "";
  document.querySelector("main").append(box);
  if (panel.type === "row") {
    box.textContent = panel.title;
    continue;
  }
  box.append(element("h2", "", panel.title));
  DRAW[panel.type](box, panel, results);
}
requestAnimationFrame(() => requestAnimationFrame(() => { document.body.dataset.drawn = "1"; }));
