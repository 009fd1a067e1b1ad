// Figures and names in words.

export const time = ms => (ms ? new Date(ms).toLocaleString() : '');
export const percent = fraction => `${Math.floor(100 * (fraction || 0) + 1e-9)} %`;
/** NaN comes as null, and 0 stands for what isn't known. */
export const isKnown = value => typeof value === 'number' && isFinite(value) && value > 0;

export function duration(ms) {
  const seconds = Math.round(Math.max(0, ms) / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return seconds % 60 ? `${Math.floor(seconds / 60)} min ${seconds % 60} s` : `${seconds / 60} min`;
  const minutes = Math.floor(seconds / 60) % 60;
  return minutes ? `${Math.floor(seconds / 3600)} h ${minutes} min` : `${Math.floor(seconds / 3600)} h`;
}

export function bytes(count) {
  const unit = [['GB', 1e9], ['MB', 1e6], ['kB', 1e3]].find(([, size]) => count >= size);
  if (!unit) return `${Math.round(count)} B`;
  const figure = count / unit[1];
  return `${figure < 10 ? figure.toFixed(1) : Math.round(figure)} ${unit[0]}`;
}

export function figure(value) {
  if (!isKnown(value)) return '';
  return value < 1e-4 ? value.toExponential(1) : `${Number(value.toPrecision(3))}`;
}

export const stageName = stage => (stage.round > 0 ? `${stage.stage} ${stage.round + 1}` : stage.stage);

/** A layer's name without the words that all have: "down 0.1.0" is block 0, attention 1, transformer block 0. */
export function shortName(layer) {
  const [block, ...rest] = layer.split('.');
  const parts = rest.filter(part => part !== 'attentions' && part !== 'transformer_blocks');
  return `${block.replace(/_blocks?$/, '')} ${parts.join('.')}`.trim();
}

/** A task's without its job: "tiny-1/r1/distill/mid_block.attentions.0" is "distill 2, mid 0". */
export function taskName(id) {
  const [, ...parts] = id.split('/');
  const round = /^r\d+$/.test(parts[0] ?? '') ? Number(parts.shift().slice(1)) : 0;
  const [stage = id, ...rest] = parts;
  return [stageName({ stage, round }), ...rest.map(part => (part.includes('.') ? shortName(part) : part))].join(', ');
}
