// One job: its stages, what came of it, its layers, and who works on it.

import { bar, el, facts, state, table } from './elements.js';
import * as chart from './chart.js';
import * as curves from './curves.js';
import * as map from './map.js';
import { eventList, notices } from './notices.js';
import { duration, figure, isKnown, percent, shortName, stageName, taskName } from './words.js';

/** The layer that a pointer is at, and the one that was chosen. */
let pointed = null;
let chosen = '';
/** Which of the tables beside the pictures are open. */
const opened = { map: false, chart: false };
/** Reports of jobs that are done; null while one is on its way, and where it can't be had. */
const reports = new Map();

async function fetchReport(id, redraw) {
  if (reports.has(id)) return;
  reports.set(id, null);
  try {
    const answer = await fetch(`/api/job/${encodeURIComponent(id)}/report.json`);
    if (!answer.ok) return;
    const report = await answer.json();
    reports.set(id, report);
    redraw();
  } catch {
    // The coordinator is away; with its next message there is another try.
    reports.delete(id);
  }
}

const badge = summary => state(summary.paused ? 'paused' : summary.state);

function overview({ summary, stages, figures }, now) {
  const took = (summary.finished_unix_ms || now) - summary.created_unix_ms;
  const isRunning = summary.state === 'running';
  const left = isRunning && summary.fraction > 0.02 ? `about ${duration(took * (1 - summary.fraction) / summary.fraction)}` : '';
  const cost = stages.reduce((sum, stage) => sum + (stage.gpu_seconds || 0), 0);
  return el('div', { class: 'card' }, facts([
    ['State', badge(summary)],
    ['Done', percent(summary.state === 'done' ? 1 : summary.fraction)],
    ['Took', duration(took)], ['Left', left],
    ['GPU time', cost ? `${(cost / 60).toFixed(1)} min` : ''],
    ['Noise error', figure(figures?.epsilon_relative_mse)],
    ['Owner', summary.owner],
    ['Output', summary.output_url],
  ]));
}

// --- stages ----------------------------------------------------------------------------------------------------------------

function stage(one, summary, now) {
  const isDone = one.finished_unix_ms > 0;
  const isOver = summary.state !== 'running';
  const [kind, word] = isDone ? ['done', 'done'] : isOver ? ['waiting', 'not done'] : one.started_unix_ms ? ['running', 'at work'] : ['waiting', 'to come'];
  const share = isDone ? 1 : one.tasks ? one.done / one.tasks : 0;
  const took = one.started_unix_ms ? duration((one.finished_unix_ms || summary.finished_unix_ms || now) - one.started_unix_ms) : '';
  const rate = kind === 'running' && isKnown(one.samples_per_second) ? `${figure(one.samples_per_second)} samples/s` : '';
  return el('li', { key: `${one.stage} ${one.round}`, class: kind, 'aria-current': kind === 'running' ? 'step' : null },
    el('div', { class: 'box' }, el('b', {}, stageName(one)), el('span', { class: 'word' }, word),
      bar(share, `progress of ${stageName(one)}`, kind),
      el('small', {}, [one.tasks ? `${one.committed} of ${one.tasks} ${one.tasks === 1 ? 'task' : 'tasks'}` : '', took, rate].filter(Boolean).join(' · '))));
}

// --- what came of it -------------------------------------------------------------------------------------------------------

const RESULT_COLUMNS = [
  { title: 'Model', kind: 'name', of: row => row.name },
  { title: 'Error of the predicted noise', kind: 'number', of: row => figure(row.epsilon_relative_mse) },
  { title: 'PSNR of the samples', kind: 'number', of: row => (isKnown(row.psnr_db) ? `${row.psnr_db.toFixed(2)} dB` : '') },
];

function result(summary, figures, report) {
  const { epsilon_relative_mse, psnr_db, removed_epsilon_relative_mse, removed_psnr_db } = figures;
  const rows = [
    { name: 'Converted', epsilon_relative_mse, psnr_db },
    ...(report?.ridge_only ? [{ name: 'As training began', ...report.ridge_only }] : []),
    ...(report?.rounds ?? []).map(round => ({ ...round, name: `After round ${round.round + 1}` })),
    { name: 'Attention removed', epsilon_relative_mse: removed_epsilon_relative_mse, psnr_db: removed_psnr_db },
  ];
  const prompts = report?.samples?.prompts ?? [];
  const staying = figures.stay_attention ?? [];
  const picture = prompts.length ? el('figure', { class: 'samples' },
    el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': 'Samples' },
      el('img', { src: `/api/job/${encodeURIComponent(summary.job_id)}/samples.png`,
        alt: `Pictures of the teacher above those of the converted model, from the same noise. Prompts: ${prompts.join('; ')}` })),
    el('figcaption', {}, `The teacher above, the converted model below, from the same noise: ${report.samples.ddim_steps} steps, guidance ${report.samples.guidance}.`)) : null;
  return el('section', { key: 'result', 'aria-labelledby': 'result' }, el('h2', { id: 'result' }, 'Result'),
    el('div', { class: 'result' }, table('Figures', RESULT_COLUMNS, rows, row => row.name, 'plain'), picture),
    staying.map(one => el('p', { class: 'legend' }, `${one.layer} stays attention: ${one.reason}`)));
}

// --- layers ----------------------------------------------------------------------------------------------------------------

/** The map's axis: time since training began, or steps where only a report tells of it. */
function axisOf({ summary, stages }, now, { isByTime, points }) {
  const rounds = stages.filter(one => one.stage === 'distill' && one.started_unix_ms);
  if (!isByTime) {
    const to = points.flat().reduce((most, point) => Math.max(most, point.step), 1);
    return { key: 'step', from: 0, to, marks: [], label: step => `${Math.round(step).toLocaleString()} steps` };
  }
  if (!rounds.length) return null;
  const from = rounds[0].started_unix_ms;
  const isOver = stages.every(one => one.stage !== 'distill' || one.finished_unix_ms);
  const end = isOver ? rounds[rounds.length - 1].finished_unix_ms : summary.finished_unix_ms || now;
  const to = Math.max(end, from + 1000);
  return { key: 'at', from, to, marks: rounds.slice(1).map(one => one.started_unix_ms), label: at => duration(at - from) };
}

const legend = () => el('p', { class: 'legend scale' }, 'Held-out error: ',
  el('span', { class: 'key' }, el('span', { class: 'swatch', style: `background: linear-gradient(90deg, ${[1, 0.1, 0.01, 0.001, 0.0001].map(map.colour).join(', ')})` }),
  el('span', { class: 'ticks' }, ['1', '0.1', '0.01', '0.001', '0.0001'].map(tick => el('span', {}, tick)))),
  ' A block at 1 does nothing of its layer; a line without colour is not known yet. The figure at the right is the last.');

function chooser(rows, redraw) {
  return el('p', { class: 'filter' }, el('label', { for: 'layer' }, 'Show one layer '),
    el('select', { id: 'layer', onchange: event => { chosen = event.target.value; redraw(); } },
      el('option', { key: '', value: '' }, 'none'), rows.map(row => el('option', { key: row.name, value: row.name }, row.name))));
}

const describe = row => `${row.name}: ${row.state}, error ${figure(row.error) || 'not known'}, step ${row.step} of ${row.steps}${row.round ? `, round ${row.round + 1}` : ''}`;

const picture = (label, title, draw, at, redraw) => el('div', { class: 'plot' }, el('canvas', {
  role: 'img', 'aria-label': label, title,
  onpointermove: event => { const next = at(event); if (next !== pointed) { pointed = next; redraw(); } },
  onpointerleave: () => { pointed = null; redraw(); },
  onclick: event => { chosen = at(event) ?? ''; document.getElementById('layer').value = chosen; redraw(); },
  after: draw,
}));

function aside(name, summary, redraw, content) {
  return el('details', { ontoggle: event => { if (opened[name] !== event.target.open) { opened[name] = event.target.open; redraw(); } } },
    el('summary', {}, summary), opened[name] ? content() : null);
}

function mapTable(rows, axis) {
  const times = [0.25, 0.5, 0.75, 1].map(part => axis.from + part * (axis.to - axis.from));
  const columns = [{ title: 'Layer', kind: 'name', of: row => row.name },
    ...times.map(at => ({ title: `At ${axis.label(at)}`, kind: 'number', of: row => figure(map.errorAt(row.points, axis.key, at)) })),
    { title: 'Last', kind: 'number', of: row => figure(row.error) }];
  return table('Held-out errors by layer and time', columns, rows, row => row.name, 'plain');
}

function chartTable(rows, active) {
  const points = row => row.points.map(point => ({ ...point, name: row.name }));
  const of = rows.filter(row => row.name === active);
  const shown = of.length ? of.flatMap(points) : rows.flatMap(row => points(row).slice(-1));
  const columns = [{ title: 'Layer', kind: 'name', of: point => point.name },
    { title: 'Round', kind: 'number', of: point => `${point.round + 1}` },
    { title: 'Step', kind: 'number', of: point => `${point.step}` },
    { title: 'Held out', kind: 'number', of: point => figure(point.held) },
    { title: 'Training', kind: 'number', of: point => figure(point.training) }];
  return table('Errors by step', columns, shown, point => `${point.name} ${point.round} ${point.step}`, 'plain');
}

function pictures(status, now, redraw) {
  const known = curves.all(status.layers);
  const axis = axisOf(status, now, known);
  const rows = status.layers.map((layer, index) => ({ name: layer.name, points: known.points[index],
    // One that waits for its next round stands where the last one left it.
    error: isKnown(layer.held_out_error) ? layer.held_out_error : map.errorAt(known.points[index], axis?.key, Infinity),
    state: layer.state, step: layer.step, steps: layer.steps, round: layer.round }));
  if (!axis || !known.points.some(points => points.length)) {
    return el('section', { key: 'map', 'aria-labelledby': 'map' }, el('h2', { id: 'map' }, 'Layer map'),
      el('p', { class: 'empty' }, status.summary.state === 'running' ? 'No layer has an error yet: training has still to begin.' : 'No curves are kept of this job.'));
  }
  if (!rows.some(row => row.name === chosen)) chosen = '';
  const active = rows.find(row => row.name === (pointed ?? chosen));
  const errors = rows.filter(row => isKnown(row.error)).sort((a, b) => a.error - b.error);
  const range = errors.length ? `; the least is ${figure(errors[0].error)}, of ${shortName(errors[0].name)}, the most ${figure(errors[errors.length - 1].error)}, of ${shortName(errors[errors.length - 1].name)}` : '';
  const told = active ? describe(active) : '';
  return [
    el('section', { key: 'map', 'aria-labelledby': 'map' }, el('h2', { id: 'map' }, 'Layer map'), legend(), chooser(rows, redraw),
      el('div', { class: 'card picture tall', tabindex: 0, role: 'region', 'aria-label': 'Layer map' },
        picture(`Held-out error of ${rows.length} layers over ${axis.label(axis.to)}${range}`, told,
          canvas => map.draw(canvas, rows, axis, active?.name), event => map.layerAt(event, rows), redraw)),
      el('p', { class: 'legend readout' }, told || 'Point at a row, or choose a layer, for its figures.'),
      aside('map', 'The map as a table', redraw, () => mapTable(rows, axis))),
    el('section', { key: 'chart', 'aria-labelledby': 'chart' }, el('h2', { id: 'chart' }, 'Loss curves'),
      el('p', { class: 'legend' }, 'Error over the mean square of the layer’s output. Lines: held out; thin and pale: training. Colours go from the first layer, red, to the last, violet.'),
      el('div', { class: 'card picture' },
        picture(`Errors of ${rows.length} layers over their steps${range}`, told,
          canvas => chart.draw(canvas, rows, active?.name), event => chart.layerAt(event, rows), redraw)),
      aside('chart', active ? `The curve of ${shortName(active.name)} as a table` : 'The last figures as a table', redraw, () => chartTable(rows, active?.name))),
  ];
}

const chip = layer => el('span', { class: 'chip', 'aria-hidden': 'true', style: `background: ${map.colour(layer.held_out_error)}` });

const LAYER_COLUMNS = [
  { title: 'Layer', kind: 'name', of: layer => [chip(layer), layer.name] },
  { title: 'State', of: layer => state(layer.state) },
  { title: 'Trained', of: layer => bar(layer.state === 'done' ? 1 : layer.steps ? layer.step / layer.steps : 0, `training of ${layer.name}`, layer.state) },
  { title: 'Step', kind: 'number', of: layer => `${layer.step}` },
  { title: 'Held out', kind: 'number', of: layer => figure(layer.held_out_error) },
  { title: 'Training', kind: 'number', of: layer => figure(layer.training_error) },
  { title: 'Samples/s', kind: 'number', of: layer => (isKnown(layer.samples_per_second) ? `${Math.round(layer.samples_per_second)}` : '') },
  { title: 'Map', kind: 'number', of: layer => `${layer.height}×${layer.width}×${layer.channels}` },
];

const TASK_COLUMNS = [
  { title: 'Task', kind: 'task', of: task => taskName(task.task_id) },
  { title: 'State', of: task => state(task.state) },
  { title: 'Worker', kind: 'name', of: task => [task.worker_id, task.spare_worker_id].filter(Boolean).join(', ') },
  { title: 'Attempts', kind: 'number', of: task => `${task.attempts}` },
  { title: 'Last failure', kind: 'long', of: task => task.last_failure },
];

export function job(data, redraw) {
  const { summary, stages, layers, tasks, waiting_for, figures } = data.job;
  const now = data.unix_ms;
  document.title = `${summary.job_id} ${percent(summary.state === 'done' ? 1 : summary.fraction)} · deltaconv`;
  curves.take(data.job, now, data.is_first);
  const report = reports.get(summary.job_id);
  if (summary.state === 'done') fetchReport(summary.job_id, redraw);
  if (report) curves.takeReport(summary.job_id, report);
  return [...notices(data), el('h1', {}, summary.job_id),
    summary.reason ? el('p', { key: 'reason', class: 'card notice bad' }, summary.reason) : null,
    waiting_for ? el('p', { key: 'waiting', class: 'card notice' }, `Waiting: ${waiting_for}`) : null,
    overview(data.job, now),
    el('section', { key: 'stages', 'aria-labelledby': 'stages' }, el('h2', { id: 'stages' }, 'Stages'),
      el('ol', { class: 'stages' }, stages.map(one => stage(one, summary, now)))),
    figures ? result(summary, figures, report) : null,
    pictures(data.job, now, redraw),
    el('section', { key: 'layers', 'aria-labelledby': 'layers' }, el('h2', { id: 'layers' }, 'Layers'),
      layers.length ? table('Layers', LAYER_COLUMNS, layers, layer => layer.name) : el('p', { class: 'empty' }, 'None yet.')),
    tasks.length ? el('section', { key: 'tasks', 'aria-labelledby': 'tasks' }, el('h2', { id: 'tasks' }, 'At work'),
      table('Tasks at work', TASK_COLUMNS, tasks, task => task.task_id)) : null,
    el('section', { key: 'events', 'aria-labelledby': 'events' }, el('h2', { id: 'events' }, 'Events'), eventList(data.events))].flat().filter(Boolean);
}
