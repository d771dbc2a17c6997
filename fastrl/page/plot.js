// A plot: uPlot with our series, legend, hover, zoom by mouse, fingers and keys, and its numbers.

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
const TICK_FONT = `12px ${FONT}`;
const MAX_TICK_NAME = 22; // characters of a line of a category's name; hovering gives all of it
const NEAR = 14; // CSS pixels within which a point counts as under the pointer
const plots = [];

function plotElement(block) {
  const looks = looksOf(block.series);
  const all = block.series.map((series, i) => (
    { series, look: looks[i], hidden: false, ...pointsOf(series, block.log_x) }));
  spread(block, all);
  const state = { block, all, intervals: true, zoom: null, u: null, keyed: -1, left: null };
  const area = element("div", {
    class: "plot-area", tabindex: 0, role: "group", "aria-roledescription": "plot",
    "aria-label": describe(block),
  });
  const tip = element("div", { class: "tip", hidden: true });
  const spoken = element("p", { class: "off-screen", "aria-live": "polite" });
  const reset = element("button", {
    type: "button", class: "reset", hidden: true, onclick: () => zoomTo(state, null),
  }, "Reset zoom");
  const root = element("figure", { class: "plot" },
    block.title ? element("h3", {}, block.title) : null,
    element("div", { class: "plot-top" }, element("span", { class: "axis-label" }, block.y_label), reset),
    area,
    element("p", { class: "axis-label x" }, block.x_label),
    legendOf(state), spoken, notesOf(state), numbersOf(state));
  Object.assign(state, { root, area, tip, reset, spoken });
  plots.push(state);
  return root;
}

function describe(block) {
  const names = block.series.map((s) => s.name).join(", ");
  return `${block.title}. ${block.y_label} over ${block.x_label}: ${names}. ` +
    "Arrow keys read the values, plus and minus zoom, Escape resets.";
}

const isShown = (one) => !one.hidden && !hiddenGroups.has(one.series.group);
const shownOf = (state) => state.all.filter(isShown);
const viewOf = (state) => state.zoom ?? fullView(state.block, shownOf(state), state.intervals);

function legendOf(state) {
  const { block, all } = state;
  const list = element("div", { class: "legend" });
  for (const one of all) {
    const button = element("button", { type: "button", "aria-pressed": "true" },
      swatch(one.look, one.series.mark), element("span", {}, one.series.name));
    button.addEventListener("click", () => {
      one.hidden = !one.hidden;
      button.setAttribute("aria-pressed", String(!one.hidden));
      refresh(state);
    });
    one.button = button;
    list.append(button);
  }
  if (block.series.some((s) => s.low.length > 0)) {
    const button = element("button", { type: "button", class: "plain", "aria-pressed": "true" },
      "intervals");
    button.addEventListener("click", () => {
      state.intervals = !state.intervals;
      button.setAttribute("aria-pressed", String(state.intervals));
      refresh(state);
    });
    list.append(button);
  }
  return list;
}

function notesOf({ block, all }) {
  const lost = all.reduce((sum, one) => sum + one.lost, 0);
  const notes = [block.note];
  if (lost > 0) {
    notes.push(`${lost} ${lost === 1 ? "point has" : "points have"} no place on this logarithmic ` +
      "axis, since x is not above 0.");
  }
  const text = notes.filter(Boolean).join(" ");
  return text ? element("p", { class: "note" }, text) : null;
}

const xText = (block, x) => {
  const named = (block.x_ticks ?? []).find(([at]) => at === x);
  return named ? named[1] : block.x_percent ? percentText(x) : numberText(x);
};
const yText = (block, y) => (block.y_percent ? percentText(y) : numberText(y));

function numbersOf(state) {
  const { block, all } = state;
  const details = element("details", { class: "numbers" }, element("summary", {}, "Show the numbers"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const intervals = block.series.some((s) => s.low.length > 0);
    const labels = block.series.some((s) => s.labels.length > 0);
    const columns = ["series", block.x_label || "x", block.y_label || "y"];
    if (intervals) columns.push("low", "high");
    if (labels) columns.push("label");
    const rows = [];
    const groups = [];
    for (const { series } of all) {
      for (let i = 0; i < series.x.length; i++) {
        const named = (block.x_ticks ?? []).find(([x]) => x === series.x[i]);
        const row = [series.name, named ? named[1] : series.x[i], series.y[i]];
        if (intervals) row.push(series.low[i] ?? null, series.high[i] ?? null);
        if (labels) row.push(series.labels[i] ?? "");
        rows.push(row);
        groups.push(series.group);
      }
    }
    details.append(tableElement({ title: "", columns, rows, note: "", row_groups: groups }));
  });
  return details;
}

// Draws a plot for the first time; it needs its width, so its element is in the page by now.
function startPlot(state) {
  const { block, area, tip } = state;
  if (state.all.every(({ points }) => points.every((p) => p.y === null))) {
    area.append(element("p", { class: "empty" }, "There is nothing to draw: no point has a value."));
    area.removeAttribute("tabindex");
    return;
  }
  const line = { stroke: () => theme.grid, width: 1 };
  const axis = { stroke: () => theme.muted, font: TICK_FONT, grid: line };
  const none = { show: false };
  const options = {
    ...sizeOf(state),
    padding: [10, 20, 2, paddingLeft(block)],
    legend: none,
    cursor: {
      points: none, y: block.series.some((s) => s.mark === "points"),
      drag: { x: true, y: true, uni: 30, setScale: false },
      bind: { dblclick: () => () => zoomTo(state, null) },
    },
    scales: {
      x: { time: false, range: () => viewOf(state).x }, y: { range: () => viewOf(state).y },
    },
    series: [{}, { scale: "y", points: none }],
    axes: [
      { ...axis, ...xAxis(state), ticks: { ...line, size: 5 } },
      {
        ...axis, ticks: none, space: 38, gap: 7,
        values: (u, values) => tickTexts(values, block.y_percent),
        size: (u, texts) => 12 + widest(texts ?? []),
      },
    ],
    hooks: {
      draw: [(u) => drawPlot(u, block, shownOf(state), state.intervals)],
      setCursor: [(u) => hover(state, u)],
      setSelect: [(u) => zoomToSelection(state, u)],
    },
  };
  // two places without values: uPlot has its scales from us, and none of the series
  state.u = new uPlot(options, [[0, 1], [null, null]], area);
  area.append(tip);
  listenForFingers(state);
  listenForKeys(state);
  applyView(state);
  new ResizeObserver(() => resize(state)).observe(area);
}

const X_AXIS_SIZE = 30;
const SLANT = 40; // degrees
const SLANT_SINE = Math.sin((SLANT * Math.PI) / 180);
const SLANT_COSINE = Math.cos((SLANT * Math.PI) / 180);

let printWidth = null; // CSS pixels while the page is printed

function sizeOf({ area }) {
  const width = Math.max(200, Math.floor(Math.min(area.clientWidth, printWidth ?? Infinity)));
  return { width, height: Math.round(Math.min(380, Math.max(240, width * 0.6))) };
}

function resize(state) {
  const size = sizeOf(state);
  if (!state.u || (size.width === state.u.width && size.height === state.u.height)) return;
  hideTip(state);
  state.u.setSize(size);
}

const measuring = document.createElement("canvas").getContext("2d");

function widest(texts) {
  measuring.font = TICK_FONT;
  return Math.ceil(Math.max(0, ...texts.map((text) => measuring.measureText(text).width)));
}

function xAxis({ block, all }) {
  if (block.log_x) {
    const xs = all.flatMap(({ points }) => points.map(({ x }) => x));
    const ofTwo = xs.every((x) => Number.isInteger(Math.log2(x)));
    const room = (u) => Math.max(2, Math.floor(u.bbox.width / uPlot.pxRatio / 42));
    const ticks = (u, low, high) => logTicks(low, high, room(u), ofTwo);
    return {
      size: X_AXIS_SIZE,
      splits: (u, i, low, high) => ticks(u, low, high).map(({ at }) => at),
      values: (u) => ticks(u, u.scales.x.min, u.scales.x.max).map(({ text }) => text),
    };
  }
  if (!block.x_ticks) {
    const values = (u, values) => tickTexts(values, block.x_percent);
    return { size: X_AXIS_SIZE, space: 60, values };
  }
  const at = (low, high) => placesOfNames(block).filter((x) => x >= low && x <= high);
  const names = new Map(block.x_ticks);
  const shown = (u) => at(u.scales.x.min, u.scales.x.max).map((x) => names.get(x));
  // names lie flat, of up to three lines, where each has its room, and slant where not
  const flat = (u) => {
    const room = ((u.width - 60) / Math.max(1, shown(u).length)) - 8;
    const lines = shown(u).map((name) => wrapped(name, room));
    return lines.every((texts) => texts.length <= 3 && widest(texts) <= room) ? lines : null;
  };
  const slantedSize = (u) => 18 + Math.ceil(widest(shown(u).map(shortened)) * SLANT_SINE);
  return {
    splits: (u, i, low, high) => at(low, high),
    values: (u) => (flat(u)?.map((texts) => texts.join("\n")) ?? shown(u).map(shortened)),
    rotate: (u) => (flat(u) ? 0 : SLANT),
    size: (u) => (flat(u) ? 14 + 18 * Math.max(1, ...flat(u).map((t) => t.length)) : slantedSize(u)),
    grid: { show: false },
  };
}

const placesOfNames = (block) => block.x_ticks.map(([at]) => at).sort((a, b) => a - b);
const shortened = (name) => (
  name.length > MAX_TICK_NAME ? `${name.slice(0, MAX_TICK_NAME - 1)}\u2026` : name);

// A name in lines of at most so many pixels, parted at its spaces.
function wrapped(name, room) {
  const lines = [];
  for (const word of name.split(" ")) {
    const longer = lines.length > 0 ? `${lines.at(-1)} ${word}` : word;
    if (lines.length > 0 && widest([longer]) <= room) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

// Slanting names begin left of their places, the first of them left of the axis.
function paddingLeft(block) {
  if (!block.x_ticks) return 4;
  return (u) => {
    if (!u.axes[0].rotate(u)) return 4;
    const names = new Map(block.x_ticks);
    const places = placesOfNames(block);
    const column = (u.width - 60) / Math.max(1, places.length);
    const over = places.map((at, i) => (
      widest([shortened(names.get(at))]) * SLANT_COSINE - (i + 0.5) * column - 44));
    return Math.max(4, ...over);
  };
}

function applyView(state) {
  const { u, root } = state;
  if (!u) return;
  const view = viewOf(state);
  u.batch(() => {
    u.setScale("x", { min: view.x[0], max: view.x[1] });
    u.setScale("y", { min: view.y[0], max: view.y[1] });
  });
  u.redraw(false, true);
  root.dataset.x = view.x.join(" ");
  root.dataset.y = view.y.join(" ");
  root.dataset.shown = shownOf(state).length;
}

function zoomTo(state, view) {
  state.zoom = view;
  state.reset.hidden = view === null;
  hideTip(state);
  applyView(state);
}

function zoomToSelection(state, u) {
  const { left, top, width, height } = u.select;
  if (width < 6 || height < 6) return;
  u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  zoomTo(state, {
    x: [u.posToVal(left, "x"), u.posToVal(left + width, "x")],
    y: [u.posToVal(top + height, "y"), u.posToVal(top, "y")],
  });
}

// After series came or went: what is left fills the plot, unless it is zoomed.
function refresh(state) {
  for (const one of state.all) one.button.hidden = hiddenGroups.has(one.series.group);
  hideTip(state);
  applyView(state);
}
