// Series on uPlot's canvas. uPlot draws axes and grid; bands, lines, bars and markers are ours,
// since series have their own x, intervals and shapes.

const MARKER_EVERY = 90; // CSS pixels between the markers of a line of many points
const MANY = 40;
const MARKER_SIZE = 3.6;

// What maps a point to canvas pixels; both scales of the plot are linear.
function projection(u) {
  const { left, top, width, height } = u.bbox;
  const { min: x0, max: x1 } = u.scales.x;
  const { min: y0, max: y1 } = u.scales.y;
  return {
    x: (at) => left + ((at - x0) / (x1 - x0)) * width,
    y: (y) => top + (1 - (y - y0) / (y1 - y0)) * height,
  };
}

function drawPlot(u, block, shown, intervals) {
  const { ctx } = u;
  const { left, top, width, height } = u.bbox;
  const to = projection(u);
  const ratio = uPlot.pxRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, top, width, height);
  ctx.clip();
  drawReferenceLines(u, block, to, ratio);
  for (const one of shown) {
    if (intervals && one.series.mark !== "points") drawBand(ctx, one, to);
  }
  for (const one of shown) {
    if (one.series.mark === "points") drawPoints(ctx, one, to, ratio, intervals);
    else drawLine(ctx, one, to, ratio);
  }
  // on top: a cloud of points about the diagonal would hide it
  if (block.diagonal) drawDiagonal(u, block, to, ratio);
  drawReferenceNames(u, block, to, ratio);
  ctx.restore();
}

function drawDiagonal(u, block, to, ratio) {
  const { ctx } = u;
  const { min, max } = u.scales.x;
  ctx.beginPath();
  for (let i = 0; i <= 100; i++) {
    const at = min + ((max - min) * i) / 100;
    ctx.lineTo(to.x(at), to.y(block.log_x ? 10 ** at : at));
  }
  ctx.strokeStyle = theme.ink;
  ctx.lineWidth = ratio;
  ctx.setLineDash([4 * ratio, 4 * ratio]);
  ctx.stroke();
  ctx.setLineDash([]);
}

function drawReferenceLines(u, block, to, ratio) {
  const { ctx } = u;
  ctx.strokeStyle = theme.muted;
  ctx.lineWidth = ratio;
  ctx.setLineDash([2 * ratio, 3 * ratio]);
  for (const [, y] of block.reference_lines) {
    if (y === null) continue;
    ctx.beginPath();
    ctx.moveTo(u.bbox.left, to.y(y));
    ctx.lineTo(u.bbox.left + u.bbox.width, to.y(y));
    ctx.stroke();
  }
  ctx.setLineDash([]);
}

// Names above their lines, at the right; of two lines that are close, the lower has its below.
function drawReferenceNames(u, block, to, ratio) {
  const { ctx } = u;
  const size = 11 * ratio;
  ctx.font = `${size}px ${FONT}`;
  ctx.textBaseline = "alphabetic";
  ctx.lineJoin = "round";
  const lines = block.reference_lines.filter(([, y]) => y !== null).map(([name, y]) => [name, to.y(y)]);
  ctx.textAlign = "right";
  const x = u.bbox.left + u.bbox.width - 5 * ratio;
  let previous = u.bbox.top;
  for (const [name, y] of lines.sort((a, b) => a[1] - b[1])) {
    const base = y - previous < size * 1.4 ? y + size * 1.1 : y - 4 * ratio;
    previous = Math.max(y, base);
    ctx.strokeStyle = theme.surface;
    ctx.lineWidth = 4 * ratio;
    ctx.strokeText(name, x, base);
    ctx.fillStyle = theme.muted;
    ctx.fillText(name, x, base);
  }
}

function drawBand(ctx, { points, look }, to) {
  ctx.fillStyle = theme.colours[look.colour];
  ctx.globalAlpha = 0.16;
  let run = [];
  const fill = () => {
    if (run.length > 1) {
      ctx.beginPath();
      for (const p of run) ctx.lineTo(to.x(p.at), to.y(p.high));
      for (const p of run.reverse()) ctx.lineTo(to.x(p.at), to.y(p.low));
      ctx.fill();
    }
    run = [];
  };
  for (const point of points) {
    if (point.low === null || point.high === null) fill();
    else run.push(point);
  }
  fill();
  ctx.globalAlpha = 1;
}

function drawLine(ctx, { points, look }, to, ratio) {
  ctx.strokeStyle = theme.colours[look.colour];
  // a line of many points is mostly noise, which a thin line shows better
  ctx.lineWidth = Math.min(look.width, points.length > 250 ? 1.3 : 2) * ratio;
  ctx.lineJoin = "round";
  ctx.setLineDash(look.dash.map((length) => length * ratio));
  ctx.beginPath();
  let broken = true;
  for (const { at, y } of points) {
    if (y === null) {
      broken = true;
    } else if (broken) {
      ctx.moveTo(to.x(at), to.y(y));
      broken = false;
    } else {
      ctx.lineTo(to.x(at), to.y(y));
    }
  }
  ctx.stroke();
  ctx.setLineDash([]);
  const every = (points.length > MANY ? MARKER_EVERY : 9) * ratio;
  let last = null;
  for (const { at, y } of points) {
    if (y === null) continue;
    const place = [to.x(at), to.y(y)];
    const far = last === null || Math.hypot(place[0] - last[0], place[1] - last[1]) >= every;
    if (!far) continue;
    drawMarker(ctx, look, place[0], place[1], ratio);
    last = place;
  }
}

function drawMarker(ctx, look, x, y, ratio, share = 1) {
  const size = MARKER_SIZE * share * ratio;
  ctx.save();
  ctx.translate(x, y);
  ctx.scale(size, size);
  ctx.fillStyle = look.hollow ? theme.surface : theme.colours[look.colour];
  ctx.fill(markerPaths[look.marker]);
  ctx.lineWidth = look.hollow ? 0.45 : 0.25;
  ctx.strokeStyle = look.hollow ? theme.colours[look.colour] : theme.surface;
  ctx.stroke(markerPaths[look.marker]);
  ctx.restore();
}

function drawPoints(ctx, { points, look }, to, ratio, intervals) {
  ctx.strokeStyle = theme.colours[look.colour];
  ctx.lineWidth = 1.4 * ratio;
  const cap = 3 * ratio;
  if (intervals) {
    ctx.beginPath();
    for (const { at, low, high } of points) {
      if (low === null || high === null) continue;
      const x = to.x(at);
      for (const y of [to.y(low), to.y(high)]) {
        ctx.moveTo(x - cap, y);
        ctx.lineTo(x + cap, y);
      }
      ctx.moveTo(x, to.y(low));
      ctx.lineTo(x, to.y(high));
    }
    ctx.stroke();
  }
  // many points over one another still show where they are dense
  const many = points.length > 400;
  ctx.globalAlpha = many ? 0.55 : 1;
  for (const { at, y } of points) drawMarker(ctx, look, to.x(at), to.y(y), ratio, many ? 0.7 : 1);
  ctx.globalAlpha = 1;
}
