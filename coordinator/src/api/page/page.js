// Live views of a coordinator: one stream of events by view, which goes on by itself when the coordinator comes back.

import { el, show } from './elements.js';
import { stageName } from './words.js';
import { views } from './views.js';

const main = document.getElementById('main');
const connection = document.getElementById('connection');
const said = document.getElementById('said');

/** The coordinator sends something every 10 seconds: one that is silent for so long is away, whatever the connection says. */
const PATIENCE_MS = 25_000;
const AGAIN_MS = 1000;

let stream;
/** Where it comes from, and the view that shows it. */
let url;
let view;
/** Everything that it said, put together. */
let data = null;
let silence;

function route() {
  const [name, id] = location.hash.replace(/^#\//, '').split('/');
  switch (name) {
    case 'job': return ['job', `/api/live/job/${id}`];
    case 'workers': case 'events': return [name, `/api/live/${name}`];
    default: return ['jobs', '/api/live/jobs'];
  }
}

function say(state, text) {
  connection.className = state;
  if (connection.textContent !== text) connection.textContent = text;
}

const away = () => say('lost', 'The coordinator is away; trying again');

function heard() {
  say('', 'Live');
  clearTimeout(silence);
  silence = setTimeout(() => { away(); open(); }, PATIENCE_MS);
}

/** What is shown with what is new. */
function put(former, news) {
  if (news.is_first || !former) return { ...news, workers: news.workers && new Map(news.workers.map(worker => [worker.worker_id, worker])) };
  const { workers, gone = [] } = news;
  if (former.workers) {
    gone.forEach(id => former.workers.delete(id));
    workers?.forEach(worker => former.workers.set(worker.worker_id, worker));
  }
  return { ...former, ...news, workers: former.workers };
}

/** What a screen reader is told of the difference: states and stages, no numbers. */
function changes(former, { jobs, job }) {
  const stands = ({ job_id, state, paused, ...stage }) => {
    if (paused) return `Job ${job_id} is paused`;
    return state === 'running' ? `Job ${job_id} is at ${stageName(stage)}` : `Job ${job_id}: ${state}`;
  };
  const before = new Set([...(former?.jobs ?? []), ...(former?.job ? [former.job.summary] : [])].map(stands));
  const now = [...(jobs ?? []), ...(job ? [job.summary] : [])].map(stands);
  return former ? now.filter(text => !before.has(text)) : [];
}

const draw = () => { if (data) show(main, views[view](data, draw)); };

function take(news) {
  const next = put(data, news);
  const told = changes(data, next);
  data = next;
  draw();
  if (told.length) said.textContent = told.join('. ');
}

function refuse(message) {
  stream.close();
  clearTimeout(silence);
  data = null;
  say('', 'Nothing to follow here');
  show(main, [el('h1', {}, 'Not found'), el('p', { class: 'card notice bad', role: 'alert' }, message)]);
}

function open() {
  stream?.close();
  const [next, from] = route();
  if (from !== url) {
    [url, view, data] = [from, next, null];
    show(main, [el('p', { class: 'empty' }, 'Loading')]);
  }
  document.querySelectorAll('nav a').forEach(a => {
    const isCurrent = a.getAttribute('href') === (view === 'jobs' || view === 'job' ? '#/' : `#/${view}`);
    if (isCurrent) a.setAttribute('aria-current', 'page'); else a.removeAttribute('aria-current');
  });
  const opened = new EventSource(url);
  stream = opened;
  stream.onopen = heard;
  stream.onmessage = message => { heard(); take(JSON.parse(message.data)); };
  stream.addEventListener('alive', heard);
  stream.addEventListener('refused', message => refuse(JSON.parse(message.data).message));
  stream.onerror = () => {
    away();
    clearTimeout(silence);
    // A browser gives up on an answer that is an error; this page doesn't.
    if (opened.readyState === EventSource.CLOSED) setTimeout(() => { if (stream === opened) open(); }, AGAIN_MS);
  };
}

// What stands behind # is the view.
document.querySelector('.skip').onclick = event => { event.preventDefault(); main.focus(); };
addEventListener('hashchange', () => { open(); scrollTo(0, 0); main.focus(); });
// Canvases have the width that there is, and the colours.
addEventListener('resize', draw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
open();
