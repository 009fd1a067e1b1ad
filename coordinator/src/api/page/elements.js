// What a view shows, described, and the changes that make the page show it: what stays keeps its element, and with it the
// focus, where it was scrolled to, and the time that drawing it anew would take.

/** An element. Children that are nothing are left out; text is always text, whatever a worker or a store said. */
export const el = (name, attributes = {}, ...children) => ({ name, attributes: attributes ?? {}, children: children.flat(Infinity).filter(isThere) });

const isThere = child => child !== null && child !== undefined && child !== false && child !== '';
/** What each element shows now. */
const shown = new WeakMap();

/** Has `parent` show `children`. Those with a `key` are known again wherever they come to stand. */
export function show(parent, children) {
  const kept = new Set(children.map(child => child.attributes?.key).filter(isThere));
  const keyed = new Map();
  for (const node of [...parent.childNodes]) {
    const key = shown.get(node)?.attributes.key;
    if (!isThere(key)) continue;
    if (kept.has(key)) keyed.set(key, node); else node.remove();
  }
  let at = parent.firstChild;
  for (const child of children) {
    const node = match(at, child, keyed) ?? create(child);
    if (node === at) at = at.nextSibling; else parent.insertBefore(node, at);
    change(node, child);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/** The element that already stands for `child`, if one does. */
function match(at, child, keyed) {
  if (!child.name) return at?.nodeType === Node.TEXT_NODE ? at : null;
  if (isThere(child.attributes.key)) return keyed.get(child.attributes.key) ?? null;
  const here = at && shown.get(at);
  return here && here.name === child.name && !isThere(here.attributes.key) ? at : null;
}

function create(child) {
  if (!child.name) return document.createTextNode('');
  const element = document.createElement(child.name);
  shown.set(element, { attributes: {}, children: [] });
  for (const [name, value] of Object.entries(child.attributes.once ?? {})) element[name] = value;
  return element;
}

function change(node, child) {
  if (!child.name) {
    if (node.data !== `${child}`) node.data = child;
    return;
  }
  const former = shown.get(node);
  if (former === child) return;
  shown.set(node, child);
  for (const name of Object.keys(former.attributes)) {
    if (!(name in child.attributes)) set(node, name, null);
  }
  for (const [name, value] of Object.entries(child.attributes)) {
    if (former.attributes[name] !== value) set(node, name, value);
  }
  show(node, child.children);
  child.attributes.after?.(node);
}

/** `key` and `once` (properties of a new element) are no attributes, nor is `after`, which draws a canvas. */
function set(element, name, value) {
  if (name === 'key' || name === 'once' || name === 'after') return;
  if (name.startsWith('on')) element[name] = value;
  else if (name === 'style') element.style.cssText = value ?? '';
  else if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

// --- pieces that views share -----------------------------------------------------------------------------------------------

export const state = word => el('span', { class: `state ${word}` }, word);
export const link = (view, text) => el('a', { href: `#/${view}` }, text ?? view);
export const jobLink = id => link(`job/${encodeURIComponent(id)}`, id);

export function bar(fraction, label, kind = '') {
  const percent = Math.max(0, Math.min(100, 100 * (fraction || 0)));
  return el('div', { class: `bar ${kind}`, role: 'progressbar', 'aria-label': label, 'aria-valuenow': Math.round(percent),
    'aria-valuemin': 0, 'aria-valuemax': 100 }, el('span', { style: `width: ${percent.toFixed(1)}%` }));
}

/** Rows are known again by `key`; on a narrow page each is a card, whose cells say what they are. */
export function table(caption, columns, rows, key, kind = 'cards') {
  const heading = ({ title, kind }) => el('th', { scope: 'col', role: 'columnheader', class: kind }, title);
  return el('div', { class: `scroll ${kind}`, tabindex: 0, role: 'region', 'aria-label': caption }, el('table', { role: 'table', 'aria-label': caption },
    el('thead', { role: 'rowgroup' }, el('tr', { role: 'row' }, columns.map(heading))),
    el('tbody', { role: 'rowgroup' }, rows.map(row => tableRow(columns, row, key)))));
}

/** A row that is given again as it was is drawn as it was. */
const rows = new WeakMap();

function tableRow(columns, row, key) {
  const known = rows.get(row);
  if (known && known.columns === columns) return known.element;
  const cell = ({ title, kind, of, attributes }) => {
    const content = of(row);
    const isEmpty = !isThere(content);
    return el('td', { role: 'cell', class: `${kind ?? ''}${isEmpty ? ' none' : ''}`, 'data-title': title, ...(attributes?.(row) ?? {}) }, isEmpty ? '–' : content);
  };
  const element = el('tr', { role: 'row', key: key(row) }, columns.map(cell));
  rows.set(row, { columns, element });
  return element;
}

export const facts = pairs => el('dl', { class: 'facts' }, pairs.filter(([, value]) => isThere(value))
  .map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value))));
