// What several views show.

import { el, jobLink, table } from './elements.js';
import { time } from './words.js';

const EVENT_COLUMNS = [
  { title: 'Time', kind: 'name', of: event => time(event.unix_ms) },
  { title: 'What', of: event => el('span', { class: event.severity }, event.kind) },
  { title: 'About', kind: 'about', of: event => event.task_id || (event.job_id ? jobLink(event.job_id) : event.worker_id || event.node) },
  { title: 'Message', kind: 'long', of: event => event.message },
];

export function eventList(list) {
  if (!list.length) return el('p', { class: 'empty' }, 'Nothing happened yet.');
  return table('Events', EVENT_COLUMNS, [...list].reverse(), event => event.sequence);
}

export function notices({ read_only }) {
  return read_only ? [el('p', { key: 'read-only', class: 'card notice bad', role: 'alert' }, `The coordinator is read-only: ${read_only}`)] : [];
}
