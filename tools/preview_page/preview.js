// Draws a dashboard's panels from Prometheus query results, well enough to judge layout, units, legends and colours.
import uPlot from "./uPlot.esm.js";

const COLOURS = { green: "#56a64b", red: "#e02f44", "dark-orange": "#fa6400", purple: "#a352cc", yellow: "#f2cc0c", blue: "#3274d9", "light-yellow": "#fff899", orange: "#ff780a", text: "#8e949f" };
const ROUND = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a", "#447ebc", "#c15c17"];

function unit(value, name) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const short = (number) => Number(number.toPrecision(3));
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
  const axis = { stroke: "#9aa0aa", grid: { stroke: "#25282e", width: 1 }, ticks: { stroke: "#25282e" }, font: "11px DejaVu Sans" };
  const order = isStacked ? drawn.map((_, i) => drawn.length - 1 - i) : drawn.map((_, i) => i);
  requestAnimationFrame(() => new uPlot({
    width: plot.clientWidth, height: plot.clientHeight, legend: { show: false }, cursor: { show: false },
    scales: { y: { range: (_, low, high) => [Math.min(0, low), high > 0 ? high * 1.08 : 1] } },
    axes: [axis, { ...axis, size: 68, values: (_, values) => values.map((value) => unit(value, name)) }],
    series: [{}, ...order.map((i) => { const colour = colourOf(panel, all[i].name, i); return { stroke: colour, width: 1.3, fill: isStacked ? `${colour}cc` : `${colour}14`, points: { show: false }, ...(isBars ? { paths: uPlot.paths.bars({ size: [0.9, 20] }) } : {}) }; })],
  }, [times, ...order.map((i) => drawn[i])], plot));
  if (panel.options.legend?.showLegend) {
    const legend = element("div", "legend");
    for (const head of ["", "mean", "max", "last"]) legend.append(element("span", "", head));
    all.forEach((line, i) => {
      const values = data[i].filter((value) => value !== null);
      const first = element("span", "", `▬ ${line.name}`);
      first.style.color = colourOf(panel, line.name, i);
      legend.append(first, ...[values.reduce((a, b) => a + b, 0) / values.length, Math.max(...values), values.at(-1)].map((value) => element("span", "", unit(value, name))));
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
    const shown = element("div", "value", value === undefined ? panel.fieldConfig.defaults.noValue ?? "No data" : unit(rounded, panel.fieldConfig.defaults.unit));
    shown.style.color = value === undefined ? "#8e949f" : byThreshold(panel, value);
    box.append(shown);
  },
  bargauge(box, panel, results) {
    const rows = results.flatMap(({ legend, series }) => series.map((row) => [legendOf(legend, row.metric), Number((row.value ?? row.values.at(-1))[1])])).filter(([, value]) => !Number.isNaN(value)).sort((a, b) => b[1] - a[1]);
    if (!rows.length) return box.append(element("span", "empty", "No data"));
    const most = Math.max(...rows.map(([, value]) => value), 1e-12);
    const bars = element("div", "bars");
    for (const [name, value] of rows) {
      const bar = element("i");
      bar.style.width = `${Math.max(1, (100 * value) / most)}%`;
      bar.style.background = byThreshold(panel, value);
      bars.append(element("span", "", name), bar, element("span", "", unit(value, panel.fieldConfig.defaults.unit)));
    }
    box.append(bars);
  },
  table(box, _panel, results) {
    const table = element("table");
    const rows = results.flatMap(({ series }) => series);
    const names = [...new Set(rows.flatMap((item) => Object.keys(item.metric)))];
    const head = element("tr");
    head.append(...names.map((name) => element("th", "", name)), element("th", "", "running"));
    table.append(head);
    for (const item of rows) {
      const row = element("tr");
      row.append(...names.map((name) => element("td", "", item.metric[name] ?? "")), element("td", "", item.value[1]));
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
