// What a series looks like: one colour and one marker for a group, in every plot of the page.

const COLOURS = 8;
// each in a square from -1 to 1; seven shapes and eight colours make 56 looks
const MARKERS = [
  "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0-1 0Z",
  "M-.88-.88H.88V.88H-.88Z",
  "M0-1.15L1.1.85H-1.1Z",
  "M0-1.3L1.1 0L0 1.3L-1.1 0Z",
  "M0 1.15L1.1-.85H-1.1Z",
  "M-.45-1.3H.45V-.45H1.3V.45H.45V1.3H-.45V.45H-1.3V-.45H-.45Z",
  "M0-1.7L.55-.55L1.7 0L.55.55L0 1.7L-.55.55L-1.7 0L-.55-.55Z",
];
const markerPaths = MARKERS.map((shape) => new Path2D(shape));
// of the first, second and third series of one look in one plot
const DASHES = { line: [[], [9, 3, 2, 3], [2, 2.5]], dashed: [[6, 4], [3, 3], [11, 5]] };

const page = JSON.parse(document.getElementById("page-data").textContent);
const groupLabels = new Map(page.groups);
const lookNumbers = new Map([...groupLabels.keys()].map((group, i) => [`group ${group}`, i]));
const hiddenGroups = new Set();
const groupListeners = [];
const themeListeners = [];

function lookNumber(series) {
  const key = series.group ? `group ${series.group}` : `name ${series.name}`;
  if (!lookNumbers.has(key)) lookNumbers.set(key, lookNumbers.size);
  return lookNumbers.get(key);
}

// The looks of a plot's series: {colour, marker, dash, hollow, width}.
function looksOf(seriesList) {
  const seen = new Map();
  return seriesList.map((series) => {
    const number = lookNumber(series);
    const key = `${number} ${series.mark}`;
    const variant = seen.get(key) ?? 0;
    seen.set(key, variant + 1);
    const dashes = DASHES[series.mark] ?? [[]];
    return {
      colour: number % COLOURS,
      marker: number % MARKERS.length,
      dash: dashes[variant % dashes.length],
      hollow: variant % 2 === 1,
      width: variant === 0 ? 2 : 1.5,
    };
  });
}

const theme = { colours: [], ink: "", muted: "", grid: "", surface: "" };

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  theme.colours = Array.from({ length: COLOURS }, (_, i) => read(`--series-${i}`));
  for (const name of ["ink", "muted", "grid", "surface"]) theme[name] = read(`--${name}`);
}

// A small drawing of a look, for legends; colours by class, so that themes and print apply.
function swatch(look, mark) {
  const line = mark !== "points";
  const parts = [];
  if (line) {
    const attributes = { d: "M1 6H27", class: "stroke", "stroke-width": look.width };
    parts.push(drawn("path", { ...attributes, "stroke-dasharray": look.dash.join(" ") || "none" }));
  }
  parts.push(drawn("path", {
    d: MARKERS[look.marker], transform: "translate(14 6) scale(3.6)",
    class: look.hollow ? "hollow" : "solid", "stroke-width": 0.4,
  }));
  const size = { width: 28, height: 12, viewBox: "0 0 28 12", "aria-hidden": "true" };
  return drawn("svg", { ...size, class: `swatch series-${look.colour}` }, ...parts);
}

function groupSwatch(group) {
  const [look] = looksOf([{ group, name: "", mark: "points" }]);
  const size = { width: 12, height: 12, viewBox: "0 0 12 12", "aria-hidden": "true" };
  const shape = { d: MARKERS[look.marker], transform: "translate(6 6) scale(4)", class: "solid" };
  return drawn("svg", { ...size, class: `swatch series-${look.colour}` }, drawn("path", shape));
}
