// Where a plot's points lie: finite points, the ranges of its axes, their ticks.
//
// A plot with a logarithmic x axis works on log10(x) throughout; only its ticks and its texts show
// x itself.

// The points of a series, each {at, x, y, low, high, label}; `at` is the place on the axis, of which
// x is the value. A point of a line that has an x but no y stays, as a gap. `lost` counts the points a logarithm has no place for.
function pointsOf(series, logX) {
  const points = [];
  let lost = 0;
  for (let i = 0; i < series.x.length; i++) {
    const x = series.x[i];
    const y = series.y[i];
    if (x === null) continue;
    if (logX && x <= 0) {
      lost += y !== null;
      continue;
    }
    if (y === null && series.mark === "points") continue;
    const low = series.low[i] ?? null;
    const high = series.high[i] ?? null;
    const label = series.labels[i] ?? "";
    points.push({ at: logX ? Math.log10(x) : x, x, y, low, high, label });
  }
  const rising = points.every((point, i) => i === 0 || points[i - 1].at <= point.at);
  return { points, lost, rising };
}

// Over categories, points of several series stand beside one another, not on one another.
function spread(block, all) {
  const beside = all.filter(({ series }) => block.x_ticks && series.mark === "points");
  const apart = Math.min(0.14, 0.7 / Math.max(1, beside.length));
  beside.forEach(({ points }, i) => {
    for (const point of points) point.at += (i - (beside.length - 1) / 2) * apart;
  });
}

function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

function widened([low, high], share) {
  const width = high - low;
  if (width <= Math.abs(high) * 1e-12) {
    const margin = Math.abs(low) * 0.1 || 0.5;
    return [low - margin, high + margin];
  }
  return [low - share * width, high + share * width];
}

// Shares leave 0 and 100 % by a little only, so that a marker there is whole.
function withinShares(range, values) {
  if (values[0] < 0 || values[1] > 1) return range;
  return [Math.max(range[0], -0.03), Math.min(range[1], 1.03)];
}

function fullView(block, shown, intervals) {
  const xs = [];
  const ys = block.reference_lines.map(([, y]) => y).filter((y) => y !== null);
  for (const { points } of shown) {
    for (const { at, y, low, high } of points) {
      xs.push(at);
      if (y !== null) ys.push(y);
      if (intervals && low !== null && high !== null) ys.push(low, high);
    }
  }
  for (const [x] of block.x_ticks ?? []) xs.push(x);
  const xExtent = extent(xs) ?? [0, 1];
  const yExtent = extent(ys) ?? [0, 1];
  let x = widened(xExtent, shown.some((s) => s.series.mark === "points") ? 0.04 : 0.012);
  if (block.x_ticks) x = [xExtent[0] - 0.5, xExtent[1] + 0.5];
  else if (block.x_percent) x = withinShares(x, xExtent);
  let y = widened(yExtent, 0.06);
  if (block.y_percent) y = withinShares(y, yExtent);
  y = [block.y_range[0] ?? y[0], block.y_range[1] ?? y[1]];
  return { x, y: y[0] < y[1] ? y : widened([y[0], y[0]], 0) };
}

// The number of places that writes all multiples of a step: 2 for 0.25.
function placesOf(step) {
  for (let places = 0; places < 12; places++) {
    const scaled = step * 10 ** places;
    if (scaled > 0.5 && Math.abs(scaled - Math.round(scaled)) < 1e-6 * scaled) return places;
  }
  return 12;
}

function tickTexts(values, percent) {
  const scale = percent ? 100 : 1;
  const step = values.length > 1 ? (values[1] - values[0]) * scale : 1;
  const top = Math.max(...values.map((v) => Math.abs(v * scale)), 0);
  if (!percent && top > 0 && (top >= 1e13 || top < 1e-4)) return values.map((v) => numberText(v, 3));
  // a unit that leaves the ticks at most two places, and is not for numbers below 10 k
  const [size, letter] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([unit]) => (
    !percent && top >= Math.max(unit, 1e4) && Math.abs(step) >= unit * 0.00999)) ?? [1, ""];
  const places = placesOf(Math.abs(step) / size);
  return values.map((v) => {
    const text = groupThousands(((v * scale) / size).toFixed(places));
    if (/^\u2212?0(\.0*)?$/.test(text)) return percent ? "0 %" : "0";
    return text + letter + (percent ? " %" : "");
  });
}

// Ticks of a logarithmic axis from 10^low to 10^high, where `room` labels fit: {at, text} each.
// Where all x are powers of two, so are the ticks.
function logTicks(low, high, room, ofTwo) {
  const base = ofTwo ? 2 : 10;
  const unit = Math.log10(base);
  const powers = [];
  for (let e = Math.ceil(low / unit - 1e-9); e <= high / unit + 1e-9; e++) powers.push(e);
  for (const heads of ofTwo ? [] : [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3]]) {
    const ticks = [];
    for (let e = Math.floor(low); e <= high; e++) {
      for (const head of heads) {
        const at = e + Math.log10(head);
        if (at >= low && at <= high) ticks.push({ at, text: numberText(head * 10 ** e, 3) });
      }
    }
    if (ticks.length >= 2 && ticks.length <= room) return ticks;
  }
  if (powers.length >= 2) {
    const every = Math.ceil(powers.length / room);
    return powers.filter((e) => e % every === 0).map((e) => (
      { at: e * unit, text: ofTwo ? numberText(2 ** e) : decadeText(e) }));
  }
  // within a decade: the ticks of a plain axis
  const [from, to] = [10 ** low, 10 ** high];
  const step = niceStep((to - from) / Math.max(2, room));
  const values = [];
  for (let v = Math.ceil(from / step) * step; v <= to; v += step) values.push(v);
  const texts = tickTexts(values, false);
  return values.map((v, i) => ({ at: Math.log10(v), text: texts[i] }));
}

function decadeText(exponent) {
  return exponent >= -3 && exponent <= 4 ? numberText(10 ** exponent) : powerOfTen(exponent);
}

function niceStep(atLeast) {
  const power = 10 ** Math.floor(Math.log10(atLeast));
  return [1, 2, 5, 10].map((m) => m * power).find((step) => step >= atLeast * 0.999);
}
