// Live views of a coordinator: one stream of events by view, and each view drawn anew when something of it changed.

const main = document.getElementById('main');
const connection = document.getElementById('connection');

// --- making elements -------------------------------------------------------------------------------------------------------

const SVG = 'http://www.w3.org/2000/svg';

/** An element with attributes and children; text is always text, whatever a worker or a store said. */
function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined));
  return element;
}

const state = word => el('span', { class: `state ${word}` }, word);
const link = (view, text) => el('a', { href: `#/${view}` }, text ?? view);
const jobLink = id => link(`job/${encodeURIComponent(id)}`, id);

function bar(fraction, label, kind = '') {
  const percent = Math.max(0, Math.min(100, 100 * (fraction || 0)));
  const filled = el('span');
  filled.style.width = `${percent}%`;
  return el('div', { class: `bar ${kind}`, role: 'progressbar', 'aria-label': label, 'aria-valuenow': Math.round(percent),
    'aria-valuemin': 0, 'aria-valuemax': 100 }, filled);
}

function table(caption, columns, rows) {
  const heading = ({ title, kind }) => el('th', { scope: 'col', class: kind }, title);
  const cell = ({ kind, of }) => row => {
    const content = of(row);
    return el('td', { class: kind }, content === '' || content === undefined || content === null ? '–' : content);
  };
  const cells = columns.map(cell);
  return el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption }, el('table', {},
    el('thead', {}, el('tr', {}, columns.map(heading))),
    el('tbody', {}, rows.map(row => el('tr', {}, cells.map(make => make(row)))))));
}

const facts = pairs => el('dl', { class: 'facts' }, pairs.filter(([, value]) => value !== '' && value !== undefined)
  .map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value))));

// --- in words --------------------------------------------------------------------------------------------------------------

const time = ms => (ms ? new Date(ms).toLocaleString() : '');
const percent = fraction => `${Math.floor(100 * (fraction || 0))} %`;
const isKnown = value => typeof value === 'number' && isFinite(value) && value > 0;

function duration(ms) {
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
}

function bytes(count) {
  const unit = [['GB', 1e9], ['MB', 1e6], ['kB', 1e3]].find(([, size]) => count >= size);
  return unit ? `${(count / unit[1]).toFixed(1)} ${unit[0]}` : `${count} B`;
}

const stageName = stage => (stage.round > 0 ? `${stage.stage} ${stage.round + 1}` : stage.stage);

/** From green, where a block does what its layer did, to red, where it does nothing of it. */
function colour(error) {
  if (!isKnown(error)) return 'var(--bar)';
  const worst = Math.min(1, Math.max(0, (Math.log10(error) + 3) / 3));
  return `hsl(${Math.round(140 * (1 - worst))} 60% 48%)`;
}

// --- what was seen of each layer since the page is open --------------------------------------------------------------------

const seen = new Map();

function remember(job, layer) {
  const key = `${job}/${layer.name}`;
  const points = seen.get(key) ?? [];
  const last = points[points.length - 1];
  if (isKnown(layer.held_out_error) && (!last || last.step !== layer.step || last.round !== layer.round)) {
    points.push({ step: layer.step, round: layer.round, error: layer.held_out_error });
    if (points.length > 120) points.splice(1, 1);
  }
  seen.set(key, points);
  return points;
}

function spark(points) {
  const errors = points.map(point => Math.log(point.error));
  if (errors.length < 2) return '';
  const [low, high] = [Math.min(...errors), Math.max(...errors)];
  const at = (error, index) => `${(100 * index / (errors.length - 1)).toFixed(1)} ${(18 - 16 * (error - low) / (high - low || 1)).toFixed(1)}`;
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', `M${errors.map(at).join('L')}`);
  path.setAttribute('vector-effect', 'non-scaling-stroke');
  const picture = document.createElementNS(SVG, 'svg');
  for (const [key, value] of [['viewBox', '0 0 100 20'], ['preserveAspectRatio', 'none'], ['class', 'spark'], ['role', 'img']]) {
    picture.setAttribute(key, value);
  }
  picture.setAttribute('aria-label', `error from ${points[0].error.toPrecision(2)} to ${points[points.length - 1].error.toPrecision(2)}`);
  picture.append(path);
  return picture;
}

// --- views -----------------------------------------------------------------------------------------------------------------

const EVENT_COLUMNS = [
  { title: 'Time', kind: 'name', of: event => time(event.unix_ms) },
  { title: 'What', of: event => el('span', { class: event.severity }, event.kind) },
  { title: 'About', kind: 'long wide', of: event => event.task_id || (event.job_id ? jobLink(event.job_id) : event.worker_id || event.node) },
  { title: 'Message', kind: 'long', of: event => event.message },
];

const events = list => (list.length ? table('Events', EVENT_COLUMNS, [...list].reverse()) : el('p', { class: 'empty' }, 'Nothing happened yet.'));

function notices({ read_only }) {
  return read_only ? el('p', { class: 'card notice bad', role: 'alert' }, `The coordinator is read-only: ${read_only}`) : null;
}

const views = {
  jobs(data) {
    document.title = 'Jobs · deltaconv';
    const columns = [
      { title: 'Job', kind: 'name', of: job => jobLink(job.job_id) },
      { title: 'State', of: job => state(job.paused ? 'paused' : job.state) },
      { title: 'Stage', kind: 'name', of: job => stageName(job) },
      { title: 'Progress', of: job => bar(job.state === 'done' ? 1 : job.fraction, `progress of ${job.job_id}`, job.state) },
      { title: 'Done', kind: 'number', of: job => percent(job.state === 'done' ? 1 : job.fraction) },
      { title: 'Owner', kind: 'wide', of: job => job.owner },
      { title: 'Came', kind: 'name wide', of: job => time(job.created_unix_ms) },
      { title: 'Output', kind: 'long wide', of: job => job.output_url },
    ];
    const rows = [...data.jobs].sort((a, b) => b.created_unix_ms - a.created_unix_ms);
    return [notices(data), el('h1', {}, 'Jobs'),
      rows.length ? table('Jobs', columns, rows)
        : el('p', { class: 'empty' }, 'No jobs yet: ', el('code', {}, 'deltaconv submit JOB.toml'), ' brings one.')];
  },

  job(data) {
    const { summary, stages, layers, tasks, waiting_for, figures } = data.job;
    document.title = `${summary.job_id} ${percent(summary.fraction)} · deltaconv`;
    const now = data.unix_ms;
    const took = (summary.finished_unix_ms || now) - summary.created_unix_ms;
    const left = summary.state === 'running' && summary.fraction > 0.02 ? `about ${duration(took * (1 - summary.fraction) / summary.fraction)}` : '';
    const cost = stages.reduce((sum, stage) => sum + (stage.gpu_seconds || 0), 0);
    const overview = facts([
      ['State', state(summary.paused ? 'paused' : summary.state)],
      ['Done', percent(summary.state === 'done' ? 1 : summary.fraction)],
      ['Took', duration(took)], ['Left', left],
      ['GPU time', cost ? `${(cost / 60).toFixed(1)} min` : ''],
      ['Owner', summary.owner],
      ['Noise error', isKnown(figures?.epsilon_relative_mse) ? figures.epsilon_relative_mse.toPrecision(3) : ''],
      ['Output', summary.output_url],
    ]);
    const stage = one => {
      const share = one.finished_unix_ms ? 1 : one.tasks ? one.done / one.tasks : 0;
      const when = one.finished_unix_ms ? duration(one.finished_unix_ms - one.started_unix_ms)
        : one.started_unix_ms ? `${one.running} at work` : 'to come';
      const rate = isKnown(one.samples_per_second) && !one.finished_unix_ms ? `, ${one.samples_per_second.toPrecision(3)} samples/s` : '';
      return el('li', {}, el('b', {}, stageName(one)), el('small', {}, `${one.committed} of ${one.tasks} tasks · ${when}${rate}`),
        bar(share, `progress of ${stageName(one)}`, one.finished_unix_ms ? 'done' : ''));
    };
    const columns = [
      { title: 'Layer', kind: 'name', of: layer => el('span', {}, chip(layer), layer.name) },
      { title: 'State', of: layer => state(layer.state) },
      { title: 'Trained', of: layer => bar(layer.state === 'done' ? 1 : layer.steps ? layer.step / layer.steps : 0, `training of ${layer.name}`, layer.state) },
      { title: 'Error', kind: 'number', of: layer => (isKnown(layer.held_out_error) ? layer.held_out_error.toPrecision(3) : '') },
      { title: 'Since open', kind: 'wide', of: layer => spark(remember(summary.job_id, layer)) },
      { title: 'Samples/s', kind: 'number wide', of: layer => (isKnown(layer.samples_per_second) ? Math.round(layer.samples_per_second) : '') },
      { title: 'Map', kind: 'number wide', of: layer => `${layer.height}×${layer.width}×${layer.channels}` },
    ];
    const chip = layer => {
      const square = el('span', { class: 'chip', 'aria-hidden': 'true' });
      square.style.background = colour(layer.held_out_error);
      return square;
    };
    const at = tasks.filter(task => task.worker_id || task.state === 'quarantined');
    const taskColumns = [
      { title: 'Task', kind: 'name', of: task => task.task_id.slice(summary.job_id.length + 1) },
      { title: 'State', of: task => state(task.state) },
      { title: 'Worker', kind: 'name', of: task => task.worker_id },
      { title: 'Attempts', kind: 'number', of: task => task.attempts },
      { title: 'Last failure', kind: 'long', of: task => task.last_failure },
    ];
    return [notices(data), el('h1', {}, summary.job_id),
      summary.reason ? el('p', { class: 'card notice bad' }, summary.reason) : null,
      waiting_for ? el('p', { class: 'card notice' }, `Waiting: ${waiting_for}`) : null,
      el('div', { class: 'card' }, overview),
      el('h2', {}, 'Stages'), el('ol', { class: 'stages' }, stages.map(stage)),
      el('h2', {}, 'Layers'), table('Layers', columns, layers),
      el('p', { class: 'legend' }, 'Colour is the held-out error: green a thousandth of the layer’s output, red all of it.'),
      at.length ? [el('h2', {}, 'At work'), table('Tasks at work', taskColumns, at)] : null,
      el('h2', {}, 'Events'), events(data.events)];
  },

  workers(data) {
    document.title = 'Workers · deltaconv';
    const columns = [
      { title: 'Worker', kind: 'name', of: worker => worker.name || worker.worker_id },
      { title: 'State', of: worker => state(worker.state) },
      { title: 'Task', kind: 'long', of: worker => worker.tasks.join(', ') },
      { title: 'Device', kind: 'name', of: worker => worker.device?.name || worker.device?.kind },
      { title: 'Memory', kind: 'number wide', of: worker => (worker.device?.memory_bytes ? bytes(worker.device.memory_bytes) : '') },
      { title: 'Machine', kind: 'name wide', of: worker => worker.node },
      { title: 'Heard of', kind: 'number wide', of: worker => `${duration(worker.silent_ms)} ago` },
      { title: 'Why', kind: 'long wide', of: worker => worker.reason },
    ];
    const counts = {};
    data.workers.forEach(worker => { counts[worker.state] = (counts[worker.state] || 0) + 1; });
    const shown = data.workers.slice(0, 1000);
    return [notices(data), el('h1', {}, 'Workers'),
      shown.length ? el('div', { class: 'card' }, facts(Object.entries(counts).map(([name, count]) => [name, `${count}`]))) : null,
      shown.length ? table('Workers', columns, shown)
        : el('p', { class: 'empty' }, 'No workers yet: ', el('code', {}, 'deltaconv worker'), ' joins one.'),
      data.workers.length > shown.length ? el('p', { class: 'legend' }, `The first ${shown.length} of ${data.workers.length}.`) : null];
  },

  events(data) {
    document.title = 'Events · deltaconv';
    return [notices(data), el('h1', {}, 'Events'), events(data.events)];
  },
};

// --- the stream ------------------------------------------------------------------------------------------------------------

let stream;
let shown;

function route() {
  const [view, id] = location.hash.replace(/^#\//, '').split('/');
  switch (view) {
    case 'job': return ['job', `/api/live/job/${id}`];
    case 'workers': case 'events': return [view, `/api/live/${view}`];
    default: return ['jobs', '/api/live/jobs'];
  }
}

/** Puts a view in the place of the one before, without losing the focus or where a table was scrolled to. */
function draw(view, data) {
  const focus = document.activeElement;
  const place = main.contains(focus) ? [...main.querySelectorAll('a, [tabindex]')].indexOf(focus) : -1;
  const scrolled = [...main.querySelectorAll('.scroll')].map(region => region.scrollLeft);
  main.replaceChildren(...views[view](data).flat().filter(Boolean));
  main.querySelectorAll('.scroll').forEach((region, index) => { region.scrollLeft = scrolled[index] || 0; });
  if (place >= 0) main.querySelectorAll('a, [tabindex]')[place]?.focus({ preventScroll: true });
}

function open() {
  stream?.close();
  const [view, url] = route();
  document.querySelectorAll('nav a').forEach(a => {
    const isCurrent = a.getAttribute('href') === (view === 'jobs' || view === 'job' ? '#/' : `#/${view}`);
    if (isCurrent) a.setAttribute('aria-current', 'page'); else a.removeAttribute('aria-current');
  });
  if (shown !== url) main.replaceChildren(el('p', { class: 'empty' }, 'Loading'));
  shown = url;
  stream = new EventSource(url);
  stream.onopen = () => { connection.textContent = 'live'; connection.className = ''; };
  stream.onmessage = message => draw(view, JSON.parse(message.data));
  stream.addEventListener('refused', message => { stream.close(); main.replaceChildren(el('p', { class: 'card notice bad', role: 'alert' }, JSON.parse(message.data).message)); });
  stream.onerror = () => {
    connection.textContent = 'the coordinator is away; trying again';
    connection.className = 'lost';
    // A browser gives up on an answer that is an error; this page doesn't.
    if (stream.readyState === EventSource.CLOSED) setTimeout(open, 1000);
  };
}

addEventListener('hashchange', () => { open(); main.focus(); });
open();
