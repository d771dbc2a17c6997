// What a plot says of the points under the pointer, a finger or the arrow keys.

const isWithin = (value, scale) => value >= scale.min && value <= scale.max;

// The nearest point in view, by distance along x alone or in the plane; at most `reach` away.
function nearest(one, { scales }, to, x, y, reach) {
  let best = null;
  let bestDistance = reach;
  for (const point of one.points) {
    if (point.y === null || !isWithin(point.at, scales.x)) continue;
    if (y !== null && !isWithin(point.y, scales.y)) continue;
    const dx = to.x(point.at) - x;
    const distance = y === null ? Math.abs(dx) : Math.hypot(dx, to.y(point.y) - y);
    if (distance <= bestDistance && (best === null || distance < bestDistance)) {
      best = { one, point, distance };
      bestDistance = distance;
    }
  }
  return best;
}

// Series that are read by x, all at once: rising lines, and everything over categories.
const isReadByX = (block, one) =>
  block.x_ticks !== null || (one.series.mark !== "points" && one.rising);

function pointsAt(state, u, left, top) {
  const { block } = state;
  const ratio = uPlot.pxRatio;
  const onCanvas = projection(u);
  const to = {
    x: (at) => (onCanvas.x(at) - u.bbox.left) / ratio, y: (v) => (onCanvas.y(v) - u.bbox.top) / ratio,
  };
  const shown = shownOf(state);
  const byX = shown.filter((one) => isReadByX(block, one));
  const others = shown.filter((one) => !isReadByX(block, one));
  const reach = byX.length > 0 ? NEAR : 60;
  const inPlane = others.map((one) => nearest(one, u, to, left, top, reach)).filter(Boolean)
    .sort((a, b) => a.distance - b.distance).slice(0, 1);
  const alongX = byX.map((one) => nearest(one, u, to, left, null, Infinity)).filter(Boolean);
  const closest = alongX.reduce((a, b) => (a && a.distance <= b.distance ? a : b), null);
  const x = closest ? to.x(closest.point.at) : 0;
  const together = alongX.filter(({ point }) => point.x === closest.point.x ||
    (!block.x_ticks && Math.abs(to.x(point.at) - x) <= NEAR / 2));
  return { found: [...together, ...inPlane], to, x: (closest ?? inPlane[0])?.point.x };
}

function valueText(block, { y, low, high }) {
  if (low === null || high === null) return yText(block, y);
  const scale = block.y_percent ? 100 : 1;
  return `${yText(block, y)} [${numberText(low * scale)}, ${numberText(high * scale)}]`;
}

const ROWS_SHOWN = 14;

function hover(state, u) {
  const { left, top } = u.cursor;
  if (left === undefined || left < 0) {
    hideTip(state);
    return;
  }
  showTip(state, pointsAt(state, u, left, top), left, top);
}

function showTip(state, { found, to, x }, left, top) {
  const { block, tip, u } = state;
  for (const dot of u.over.querySelectorAll(".dot")) dot.remove();
  tip.hidden = found.length === 0;
  if (tip.hidden) return;
  const rows = found.slice(0, ROWS_SHOWN).map(({ one, point }) => element("tr", {},
    element("td", {}, swatch(one.look, one.series.mark)),
    element("th", { scope: "row" }, one.series.name,
      point.label ? element("span", { class: "label" }, point.label) : null,
      point.x === x ? null : element("span", { class: "label" }, `at ${xText(block, point.x)}`)),
    element("td", { class: "number" }, valueText(block, point))));
  const more = found.length - ROWS_SHOWN;
  tip.replaceChildren(
    element("p", {}, `${block.x_label || "x"} ${xText(block, x)}`),
    element("table", {}, element("tbody", {}, ...rows)),
    ...(more > 0 ? [element("p", {}, `and ${more} more`)] : []));
  for (const { one, point } of found) {
    if (!isWithin(point.y, u.scales.y)) continue;
    const dot = element("div", { class: `dot series-${one.look.colour}` });
    dot.style.transform = `translate(${to.x(point.at)}px, ${to.y(point.y)}px)`;
    u.over.append(dot);
  }
  placeTip(state, left, top);
}

// Beside the pointer, on the side with more room, within the plot's own width.
function placeTip({ tip, area, u }, left, top) {
  const over = u.over.getBoundingClientRect();
  const box = area.getBoundingClientRect();
  const x = over.left - box.left + left;
  const y = over.top - box.top + top;
  const width = tip.offsetWidth;
  const wanted = x > box.width / 2 ? x - width - 16 : x + 16;
  tip.style.left = `${Math.max(0, Math.min(box.width - width, wanted))}px`;
  tip.style.top = `${Math.max(0, Math.min(box.height - tip.offsetHeight, y - 20))}px`;
}

function hideTip(state) {
  state.tip.hidden = true;
  state.keyed = -1;
  for (const dot of state.u?.over.querySelectorAll(".dot") ?? []) dot.remove();
}

// The arrow keys go through the distinct x of what is shown.
function listenForKeys(state) {
  const { area, spoken } = state;
  const step = (direction) => {
    const { u, block } = state;
    const places = new Set();
    for (const { points } of shownOf(state)) {
      for (const { at, x, y } of points) {
        if (y !== null && isWithin(at, u.scales.x)) places.add(x);
      }
    }
    const sorted = [...places].sort((a, b) => a - b);
    if (sorted.length === 0) return;
    const next = state.keyed < 0 && direction < 0 ? sorted.length - 1 : state.keyed + direction;
    const index = Math.max(0, Math.min(sorted.length - 1, next));
    const x = sorted[index];
    const found = shownOf(state).flatMap((one) => one.points
      .filter((p) => p.x === x && p.y !== null).map((point) => ({ one, point })));
    const left = u.valToPos(found[0].point.at, "x");
    const top = u.valToPos(found[0].point.y, "y");
    const { to } = pointsAt(state, u, left, top);
    showTip(state, { found, to, x }, left, top);
    state.keyed = index;
    spoken.textContent = `${xText(block, x)}: ` + found.slice(0, ROWS_SHOWN)
      .map(({ one, point }) => `${one.series.name} ${valueText(block, point)}`).join("; ");
  };
  const actions = {
    ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    "+": () => zoomBy(state, 0.6), "=": () => zoomBy(state, 0.6), "-": () => zoomBy(state, 1 / 0.6),
    Escape: () => zoomTo(state, null),
  };
  area.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  });
  area.addEventListener("blur", () => hideTip(state));
}

// The view scaled along x about the middle, or about the point that the keys are at.
function zoomBy(state, factor) {
  const { x, y } = viewOf(state);
  const middle = (x[0] + x[1]) / 2;
  const half = ((x[1] - x[0]) / 2) * factor;
  const full = fullView(state.block, shownOf(state), state.intervals);
  if (half * 2 >= full.x[1] - full.x[0]) zoomTo(state, null);
  else zoomTo(state, { x: [middle - half, middle + half], y });
}

const DOUBLE_TAP_MS = 350;

// One finger reads values, while the page still scrolls up and down; two zoom; two taps reset.
function listenForFingers(state) {
  const { u } = state;
  let pinch = null;
  let lastTap = 0;
  const place = (touch) => {
    const box = u.over.getBoundingClientRect();
    return { x: touch.clientX - box.left, y: touch.clientY - box.top };
  };
  const read = (touch) => {
    const { x, y } = place(touch);
    u.setCursor({ left: x, top: y });
  };
  const start = (event) => {
    if (event.touches.length === 2) {
      event.preventDefault();
      const fingers = [...event.touches].map(place);
      const at = fingers.map(({ x, y }) => ({ x: u.posToVal(x, "x"), y: u.posToVal(y, "y") }));
      pinch = { fingers, at, view: viewOf(state) };
      hideTip(state);
    } else if (event.touches.length === 1) {
      if (event.timeStamp - lastTap < DOUBLE_TAP_MS) zoomTo(state, null);
      lastTap = event.timeStamp;
      read(event.touches[0]);
    }
  };
  const move = (event) => {
    lastTap = 0;
    if (pinch === null) {
      if (event.touches.length === 1) read(event.touches[0]);
      return;
    }
    if (event.touches.length !== 2) return;
    event.preventDefault();
    const fingers = [...event.touches].map(place);
    const { width, height } = u.over.getBoundingClientRect();
    const x = pinchedRange(pinch, fingers, "x", (v) => v / width);
    const y = pinchedRange(pinch, fingers, "y", (v) => 1 - v / height);
    zoomTo(state, { x, y });
  };
  const end = (event) => {
    if (event.touches.length < 2) pinch = null;
  };
  u.over.addEventListener("touchstart", start, { passive: false });
  u.over.addEventListener("touchmove", move, { passive: false });
  u.over.addEventListener("touchend", end);
  u.over.addEventListener("touchcancel", end);
}

const FINGERS_APART = 40; // CSS pixels: below, an axis moves with the fingers but keeps its scale

// The range that keeps the values that were under two fingers under them.
function pinchedRange(pinch, fingers, axis, share) {
  const [low, high] = pinch.view[axis];
  const span = high - low;
  const [p, q] = fingers.map((finger) => share(finger[axis]));
  const [a, b] = pinch.at.map((value) => value[axis]);
  const apart = Math.abs(pinch.fingers[0][axis] - pinch.fingers[1][axis]);
  const scale = apart < FINGERS_APART || Math.abs(p - q) < 0.02 ? span : (a - b) / (p - q);
  if (!(scale > span * 1e-3)) return [low, high];
  const start = (a + b) / 2 - ((p + q) / 2) * scale;
  return [start, start + scale];
}
