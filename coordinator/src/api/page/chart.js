// Loss curves: all layers' errors over steps on one canvas, held out as lines, training as thin ones under them.

import { prepare } from './map.js';
import { isKnown, shortName } from './words.js';

const HEIGHT = 300;
const MARGIN = { left: 52, right: 24, top: 12, bottom: 38 };

/** Steps over all rounds: where each round begins. */
function beginnings(points) {
  const lengths = [];
  for (const point of points) lengths[point.round] = Math.max(lengths[point.round] ?? 0, point.step);
  const starts = [];
  let start = 0;
  for (let round = 0; round < lengths.length; round += 1) {
    starts.push(start);
    start += lengths[round] ?? 0;
  }
  return { starts, end: start };
}

/** Where everything stands; nothing while there is no curve. */
function layout(rows, width) {
  const points = rows.flatMap(row => row.points);
  let [low, high] = [Infinity, 0];
  const reach = error => {
    if (!isKnown(error)) return;
    low = Math.min(low, error);
    high = Math.max(high, error);
  };
  for (const point of points) {
    reach(point.held);
    reach(point.training);
  }
  if (!high) return null;
  const [bottom, top] = [Math.floor(Math.log10(low) + 1e-9), Math.ceil(Math.log10(high) - 1e-9)];
  const { starts, end } = beginnings(points);
  const [wide, tall] = [width - MARGIN.left - MARGIN.right, HEIGHT - MARGIN.top - MARGIN.bottom];
  return {
    decades: Array.from({ length: Math.max(2, top - bottom + 1) }, (_, index) => bottom + index), starts, end,
    x: point => MARGIN.left + wide * (starts[point.round] + point.step) / (end || 1),
    y: error => MARGIN.top + tall * (1 - (Math.log10(error) - bottom) / Math.max(1, top - bottom)),
  };
}

/** Steps at which to write a number: a few, all round. */
function ticks(end, count) {
  const raw = (end || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(size => size >= raw);
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, index) => index * step);
}

function line(context, points, x, y) {
  context.beginPath();
  let round = -1;
  for (const [point, error] of points) {
    if (point.round === round) context.lineTo(x(point), y(error)); else context.moveTo(x(point), y(error));
    round = point.round;
  }
  context.stroke();
}

const of = (row, key) => row.points.filter(point => isKnown(point[key])).map(point => [point, point[key]]);

/** Draws `rows` ({ name, points }). */
export function draw(canvas, rows, active) {
  const { context, width, ink } = prepare(canvas, HEIGHT);
  const place = layout(rows, width);
  context.font = '12px system-ui, sans-serif';
  context.fillStyle = ink.soft;
  if (!place) {
    context.textAlign = 'center';
    context.fillText('no error is known yet', width / 2, HEIGHT / 2);
    return;
  }
  const bottom = HEIGHT - MARGIN.bottom;
  context.textBaseline = 'middle';
  context.textAlign = 'right';
  context.strokeStyle = ink.line;
  for (const decade of place.decades) {
    const y = place.y(10 ** decade);
    context.fillText(decade < -4 ? `1e${decade}` : `${Number((10 ** decade).toPrecision(1))}`, MARGIN.left - 8, y);
    context.beginPath();
    context.moveTo(MARGIN.left, y);
    context.lineTo(width - MARGIN.right, y);
    context.stroke();
  }
  context.textAlign = 'center';
  for (const step of ticks(place.end, width > 600 ? 8 : 4)) context.fillText(step.toLocaleString(), place.x({ round: 0, step }), bottom + 13);
  context.fillText(place.starts.length > 1 ? 'steps, round after round' : 'steps', (MARGIN.left + width - MARGIN.right) / 2, bottom + 29);
  context.setLineDash([3, 3]);
  for (const start of place.starts.slice(1)) {
    context.beginPath();
    context.moveTo(place.x({ round: 0, step: start }), MARGIN.top);
    context.lineTo(place.x({ round: 0, step: start }), bottom);
    context.stroke();
  }
  const isDark = matchMedia('(prefers-color-scheme: dark)').matches;
  const hue = index => `hsl(${Math.round(300 * index / Math.max(1, rows.length))} 65% ${isDark ? 65 : 40}%)`;
  const curve = (row, index) => {
    const isActive = row.name === active;
    const isAside = active && !isActive;
    context.strokeStyle = isActive ? ink.accent : hue(index);
    context.globalAlpha = isAside ? 0.12 : isActive ? 0.7 : 0.4;
    context.lineWidth = isActive ? 1.5 : 1;
    line(context, of(row, 'training'), place.x, place.y);
    context.globalAlpha = isAside ? 0.25 : 1;
    context.lineWidth = isActive ? 3 : 1.6;
    line(context, of(row, 'held'), place.x, place.y);
  };
  context.setLineDash([]);
  rows.forEach((row, index) => { if (row.name !== active) curve(row, index); });
  const index = rows.findIndex(row => row.name === active);
  if (index >= 0) {
    curve(rows[index], index);
    context.globalAlpha = 1;
    context.fillStyle = ink.accent;
    context.textAlign = 'right';
    context.font = '600 13px system-ui, sans-serif';
    context.fillText(shortName(active), width - MARGIN.right - 4, MARGIN.top + 10);
  }
  context.globalAlpha = 1;
}

/** The layer whose held-out curve is nearest to a pointer, if one is near. */
export function layerAt(event, rows) {
  const { left, top, width } = event.currentTarget.getBoundingClientRect();
  const place = layout(rows, width);
  if (!place) return null;
  const [x, y] = [event.clientX - left, event.clientY - top];
  let [nearest, best] = [null, 24];
  for (const row of rows) {
    const points = of(row, 'held').map(([point, error]) => [place.x(point), place.y(error)]);
    points.forEach(([px, py], index) => {
      const [qx, qy] = points[Math.max(0, index - 1)];
      if (x < Math.min(px, qx) - 8 || x > Math.max(px, qx) + 8) return;
      const along = px === qx ? 1 : Math.min(1, Math.max(0, (x - qx) / (px - qx)));
      const distance = Math.hypot(Math.max(0, Math.min(px, qx) - x, x - Math.max(px, qx)), y - (qy + along * (py - qy)));
      if (distance < best) [nearest, best] = [row.name, distance];
    });
  }
  return nearest;
}
