// How the errors of a job's layers went: what the coordinator remembers, what was seen since, and what the report keeps.

import { isKnown } from './words.js';

/** Points of a layer; where more come, every second one of them goes. */
const POINTS = 256;

let job;
let curves = new Map();
/** Curves of a job that is done, by its report. */
let reported = null;

/** Takes what a message says of a job's layers. */
export function take(status, unixMs, isFirst) {
  if (job !== status.summary.job_id) {
    job = status.summary.job_id;
    curves = new Map();
    reported = null;
  }
  for (const layer of status.layers) {
    let points = curves.get(layer.name) ?? [];
    if (isFirst && layer.history.length) {
      const history = layer.history.map(point => ({
        at: point.unix_ms, round: point.round, step: point.step, held: point.held_out_error, training: point.training_error,
      }));
      points = [...points.filter(point => point.at < history[0].at), ...history];
    }
    const last = points[points.length - 1];
    const point = { at: unixMs, round: layer.round, step: layer.step, held: layer.held_out_error, training: layer.training_error };
    const isNews = !last || last.round !== point.round || last.held !== point.held || last.training !== point.training;
    // What is over for long says nothing of when that was.
    const isSeen = layer.state === 'running' || (last && !status.summary.finished_unix_ms);
    if (isSeen && isNews && (isKnown(point.held) || isKnown(point.training))) points.push(point);
    if (points.length > POINTS) points = points.filter((_, index) => index % 2 === 0 || index === points.length - 1);
    curves.set(layer.name, points);
  }
}

/** Takes the curves of a report. Older ones have none. */
export function takeReport(id, report) {
  if (job !== id) return;
  reported = new Map(report.layers.map(layer => [layer.name, (layer.curve ?? []).map(([step, training, held]) => ({ round: 0, step, held, training }))]));
}

/** Of layers in their order: by time where it is known, by steps otherwise. */
export function all(layers) {
  const seen = layers.map(layer => curves.get(layer.name) ?? []);
  const isByTime = seen.some(points => points.length > 1);
  const points = isByTime || !reported ? seen : layers.map(layer => reported.get(layer.name) ?? []);
  return { isByTime: isByTime || !reported, points };
}
