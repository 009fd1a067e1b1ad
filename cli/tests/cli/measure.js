// Has a page keep how long its long tasks took, and how often what it shows was changed.
(() => {
  window.tasks = [];
  window.drawn = 0;
  const note = list => list.getEntries().forEach(entry => window.tasks.push(entry.duration));
  new PerformanceObserver(note).observe({ type: 'longtask' });
  const everything = { subtree: true, childList: true, attributes: true, characterData: true };
  new MutationObserver(() => { window.drawn += 1; }).observe(document.getElementById('main'), everything);
})()
