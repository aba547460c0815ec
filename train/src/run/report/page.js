// The readings under the pointer. Everything else of the page works without this script.
const tip = document.getElementById('tip');
const ns = 'http://www.w3.org/2000/svg';
const short = v => Math.abs(v) >= 1e4 ? v.toLocaleString('en', {maximumFractionDigits: 0}) : String(+v.toPrecision(5));
for (const figure of document.querySelectorAll('figure')) {
  const svg = figure.querySelector('svg');
  const data = JSON.parse(figure.querySelector('script').textContent);
  const cursor = svg.querySelector('.cursor');
  const [x0, x1, left, right] = data.x, [y0, y1, bottom, top] = data.y;
  const px = v => left + (v - x0) / (x1 - x0) * (right - left);
  const py = v => bottom - (v - y0) / (y1 - y0) * (bottom - top);
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (low < high) {
      const mid = (low + high) >> 1;
      if (points[mid][0] < x) low = mid + 1; else high = mid;
    }
    return low > 0 && x - points[low - 1][0] < points[low][0] - x ? points[low - 1] : points[low];
  };
  const draw = (name, attributes) => {
    const node = document.createElementNS(ns, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    cursor.append(node);
  };
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * 640;
    const x = x0 + (at - left) / (right - left) * (x1 - x0);
    const hits = data.series.filter(s => s.points.length).map(s => [s, nearest(s.points, x)]);
    if (!hits.length) return;
    const step = hits.map(h => h[1][0]).sort((a, b) => Math.abs(a - x) - Math.abs(b - x))[0];
    cursor.replaceChildren();
    draw('line', {x1: px(step), x2: px(step), y1: top, y2: bottom});
    for (const [s, p] of hits) draw('circle', {class: 'dot c' + s.color, cx: px(p[0]), cy: py(p[1]), r: 4});
    tip.textContent = 'step ' + step + hits.map(([s, p]) => `\n${s.label}  ${short(p[1])}` + (p[0] === step ? '' : ` (step ${p[0]})`)).join('');
    tip.hidden = false;
    const room = event.clientX + 16 + tip.offsetWidth < innerWidth;
    tip.style.left = (room ? event.clientX + 16 : event.clientX - 16 - tip.offsetWidth) + 'px';
    tip.style.top = event.clientY + 12 + 'px';
  });
  svg.addEventListener('pointerleave', () => { tip.hidden = true; cursor.replaceChildren(); });
}
