// The views but that of one job.

import { bar, el, facts, jobLink, state, table } from './elements.js';
import { eventList, notices } from './notices.js';
import { bytes, duration, isKnown, percent, stageName, taskName, time } from './words.js';
import { job } from './job.js';

const JOB_COLUMNS = [
  { title: 'Job', kind: 'name', of: job => jobLink(job.job_id) },
  { title: 'State', of: job => state(job.paused ? 'paused' : job.state) },
  { title: 'Stage', kind: 'name', of: job => stageName(job) },
  { title: 'Progress', of: job => bar(job.state === 'done' ? 1 : job.fraction, `progress of ${job.job_id}`, job.state) },
  { title: 'Done', kind: 'number', of: job => percent(job.state === 'done' ? 1 : job.fraction) },
  { title: 'Owner', of: job => job.owner },
  { title: 'Came', kind: 'name', of: job => time(job.created_unix_ms) },
  { title: 'Output', kind: 'long', of: job => job.output_url },
];

/** A share as text before a bar of it. */
const share = (title, of) => ({
  title, kind: 'number',
  of: worker => { const value = of(worker.load); return typeof value === 'number' ? `${Math.round(100 * value)} %` : ''; },
  attributes: worker => { const value = of(worker.load); return typeof value === 'number' ? { style: `--share: ${Math.round(100 * value)}%` } : {}; },
});
const measured = (title, of) => ({ title, kind: 'number', of: worker => (worker.load ? of(worker.load) : '') });
const rate = speed => (isKnown(speed) ? `${bytes(speed)}/s` : '');
const used = (some, all) => (isKnown(some) ? `${bytes(some)}${isKnown(all) ? ` of ${bytes(all)}` : ''}` : '');

/** Why it takes nothing, or since when nothing was heard of it. */
const remark = ({ reason, silent_ms }) => reason || (silent_ms ? `silent for ${duration(silent_ms)}` : '');

const WORKER_COLUMNS = [
  { title: 'Worker', kind: 'name', of: worker => worker.name || worker.worker_id },
  { title: 'State', of: worker => [state(worker.state), remark(worker) ? el('small', {}, remark(worker)) : null] },
  { title: 'Task', kind: 'task', of: worker => worker.tasks.map(id => `${id.split('/')[0]}: ${taskName(id)}`).join(', ') },
  share('GPU', load => load?.gpu_utilisation),
  { title: 'GPU memory', kind: 'number', of: ({ load, device }) => (load?.gpu_memory_used_bytes ? used(load.gpu_memory_used_bytes, device?.memory_bytes) : '') },
  measured('Heat', load => (isKnown(load.gpu_temperature) ? `${Math.round(load.gpu_temperature)} °C` : '')),
  measured('Power', load => (isKnown(load.gpu_power) ? `${Math.round(load.gpu_power)} W` : '')),
  share('CPU', load => load?.cpu_utilisation),
  measured('Memory', load => used(load.memory_used_bytes)),
  measured('Reads', load => rate(load.read_bytes_per_second)),
  measured('Writes', load => rate(load.written_bytes_per_second)),
  { title: 'Machine', kind: 'name machine', of: worker => [worker.node, el('small', {}, worker.device?.name || worker.device?.kind || '')] },
];

const order = new Intl.Collator(undefined, { numeric: true });
/** Of workers, what was typed to see some of them. */
let wanted = '';

function filter(redraw) {
  return el('p', { class: 'filter' }, el('label', { for: 'wanted' }, 'Only those with '),
    el('input', { id: 'wanted', type: 'search', placeholder: 'name, state, task or machine', autocomplete: 'off', oninput: event => { wanted = event.target.value; redraw(); }, once: { value: wanted } }));
}

export const views = {
  job,

  jobs(data) {
    document.title = 'Jobs · deltaconv';
    const rows = [...data.jobs].sort((a, b) => b.created_unix_ms - a.created_unix_ms);
    return [...notices(data), el('h1', {}, 'Jobs'),
      rows.length ? table('Jobs', JOB_COLUMNS, rows, job => job.job_id)
        : el('p', { class: 'empty' }, 'No jobs yet: ', el('code', {}, 'deltaconv submit JOB.toml'), ' brings one.')];
  },

  workers(data, redraw) {
    document.title = 'Workers · deltaconv';
    const all = [...data.workers.values()].map(worker => [worker.name || worker.worker_id, worker]);
    all.sort(([a], [b]) => order.compare(a, b));
    const counts = {};
    all.forEach(([, worker]) => { counts[worker.state] = (counts[worker.state] || 0) + 1; });
    const text = wanted.toLowerCase();
    const fits = worker => [worker.name, worker.worker_id, worker.state, worker.node, ...worker.tasks].some(of => of.toLowerCase().includes(text));
    const shown = all.map(([, worker]) => worker).filter(worker => !text || fits(worker));
    const heading = [...notices(data), el('h1', {}, 'Workers')];
    if (!all.length) {
      return [...heading, el('p', { class: 'empty' }, 'No workers yet: ', el('code', {}, 'deltaconv worker'), ' joins one.')];
    }
    return [...heading,
      el('div', { class: 'card' }, facts([['All', `${all.length}`], ...Object.entries(counts).sort().map(([name, count]) => [name, `${count}`])])),
      filter(redraw),
      shown.length ? table('Workers', WORKER_COLUMNS, shown, worker => worker.worker_id, 'cards wide') : el('p', { class: 'empty' }, 'No worker has that.')];
  },

  events(data) {
    document.title = 'Events · deltaconv';
    return [...notices(data), el('h1', {}, 'Events'), eventList(data.events)];
  },
};
