// The layer map: a row for each layer in forward order, time to the right, the held-out error as colour. One canvas.

import { figure, isKnown, shortName } from './words.js';

/** Errors from here to 1 have colours of their own. */
const LEAST = 1e-4;
/** Viridis, whose lightness alone tells its values apart; dark is bad. */
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
/** Cells from left to right at most. */
const CELLS = 160;

const share = error => Math.min(1, Math.max(0, Math.log10(error) / Math.log10(LEAST)));

function shade(fraction) {
  const place = fraction * (STOPS.length - 1);
  const left = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[left].map((value, channel) => Math.round(value + (place - left) * (STOPS[left + 1][channel] - value)));
}

/** The same as pixels. */
const SHADES = Uint32Array.from({ length: 256 }, (_, index) => new Uint32Array(new Uint8ClampedArray([...shade(index / 255), 255]).buffer)[0]);

/** The colour of an error, for the style of an element. */
export const colour = error => (isKnown(error) ? `rgb(${shade(share(error)).join(' ')})` : 'transparent');

/** Of the axis, which stands above the rows: below many of them nobody would see it. */
const AXIS = 22;

const rowHeight = rows => (rows > 40 ? 15 : 22);

/** The error that held at a time or step: that of the last point before. */
export const errorAt = (points, key, at) => points.findLast(point => point[key] <= at && isKnown(point.held))?.held ?? 0;

/** A canvas of its parent's width and so high, cleared, in CSS pixels. */
export function prepare(canvas, height) {
  const width = canvas.parentElement.clientWidth;
  // More pixels than this can't be told apart, and take longer.
  const scale = Math.min(2, devicePixelRatio || 1);
  const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== wide || canvas.height !== high) {
    [canvas.width, canvas.height] = [wide, high];
    canvas.style.cssText = `width: ${width}px; height: ${height}px`;
  }
  const context = canvas.getContext('2d');
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  const style = getComputedStyle(canvas);
  const ink = Object.fromEntries(['ink', 'soft', 'line', 'accent'].map(name => [name, style.getPropertyValue(`--${name}`)]));
  return { context, width, ink };
}

/** Draws `rows` ({ name, points, error, state }) over `axis` ({ key, from, to, label, marks }). */
export function draw(canvas, rows, axis, active) {
  const high = rowHeight(rows.length);
  const bottom = AXIS + rows.length * high;
  const { context, width, ink } = prepare(canvas, bottom + 1);
  const size = high > 18 ? 13 : 11;
  context.font = `${size}px system-ui, sans-serif`;
  context.textBaseline = 'middle';
  const names = rows.map(row => shortName(row.name));
  const left = Math.min(width * 0.4, Math.max(...names.map(name => context.measureText(name).width)) + 10);
  const right = width - 72;
  const cells = Math.max(8, Math.min(CELLS, Math.floor((right - left) / 4)));
  const picture = new ImageData(cells, rows.length);
  const pixels = new Uint32Array(picture.data.buffer);
  const at = cell => axis.from + (axis.to - axis.from) * (cell + 1) / cells;

  rows.forEach((row, index) => {
    const middle = AXIS + (index + 0.5) * high;
    const isActive = row.name === active;
    context.font = `${isActive ? '600 ' : ''}${size}px system-ui, sans-serif`;
    context.fillStyle = isActive ? ink.accent : ink.ink;
    context.textAlign = 'left';
    context.fillText(names[index], 0, middle, left - 8);
    context.textAlign = 'right';
    context.fillText(figure(row.error) || '–', width, middle);
    context.fillStyle = ink.line;
    context.fillRect(left, middle - 0.5, right - left, 1);
    let [next, pixel] = [0, 0];
    for (let cell = 0; cell < cells; cell += 1) {
      for (; next < row.points.length && row.points[next][axis.key] <= at(cell); next += 1) {
        const { held } = row.points[next];
        if (isKnown(held)) pixel = SHADES[Math.round(255 * share(held))];
      }
      pixels[index * cells + cell] = pixel;
    }
  });
  const small = new OffscreenCanvas(cells, rows.length);
  small.getContext('2d').putImageData(picture, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, left, AXIS, right - left, bottom - AXIS);
  // A seam between rows, so that neighbours of one colour stay two.
  for (let index = 0; index <= rows.length; index += 1) context.clearRect(left, AXIS + index * high - 0.5, right - left, 1);

  const x = value => left + (right - left) * (value - axis.from) / (axis.to - axis.from || 1);
  context.font = '12px system-ui, sans-serif';
  context.fillStyle = ink.soft;
  const ticks = right - left > 420 ? 4 : right - left > 260 ? 2 : 1;
  for (let tick = 0; tick <= ticks; tick += 1) {
    const value = axis.from + (axis.to - axis.from) * tick / ticks;
    context.textAlign = tick === 0 ? 'left' : tick === ticks ? 'right' : 'center';
    context.fillText(axis.label(value), x(value), AXIS / 2 - 1);
  }
  context.strokeStyle = ink.ink;
  for (const mark of axis.marks) {
    context.setLineDash([3, 3]);
    context.beginPath();
    context.moveTo(x(mark), AXIS);
    context.lineTo(x(mark), bottom);
    context.stroke();
  }
  context.setLineDash([]);
  const index = rows.findIndex(row => row.name === active);
  if (index >= 0) {
    context.strokeStyle = ink.accent;
    context.lineWidth = 2;
    context.strokeRect(left, AXIS + index * high, right - left, high);
  }
}

/** The layer in whose row a pointer is. */
export function layerAt(event, rows) {
  const top = event.currentTarget.getBoundingClientRect().top;
  return rows[Math.floor((event.clientY - top - AXIS) / rowHeight(rows.length))]?.name ?? null;
}
