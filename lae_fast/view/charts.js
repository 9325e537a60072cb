// Curves as SVG, drawn to the width that there is: one chart for each entry of `page.curves` (page.py writes it).

const byId = (id) => document.getElementById(id);
const NS = "http://www.w3.org/2000/svg";

/** A new element with attributes, appended to its parent; `svg` elements where the parent is one. */
function add(parent, name, attributes = {}, text = "") {
  const isSvg = name === "svg" || parent.namespaceURI === NS;
  const element = isSvg ? document.createElementNS(NS, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return parent.appendChild(element);
}

const HEIGHT = 200, EDGE = { left: 44, right: 6, top: 8, bottom: 24 };
const HUES = ["var(--accent)", "var(--second)"];
const short = (v) => (v === 0 ? "0" : Math.abs(v) >= 1e4 || Math.abs(v) < 1e-3 ? v.toExponential(1) : String(+v.toPrecision(3)));

/** Round numbers from low to high, about n of them. */
function ticks(low, high, n) {
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((m) => m * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, i) => +((first + i) * step).toPrecision(12));
}

/** Round numbers for logarithms from low to high: powers of ten, and 2, 5 or all digits where these are few. */
function logTicks(low, high) {
  const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => 10 ** (Math.floor(low) + i));
  const choices = [[1], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]].map((digits) =>
    powers.flatMap((p) => digits.map((d) => +(d * p).toPrecision(1))).filter((v) => Math.log10(v) >= low && Math.log10(v) <= high));
  return choices.find((found) => found.length >= 2) ?? choices.at(-1);
}

/** The values that a chart has room for: all but the highest, which the first minibatches have. */
function rangeOf({ series, range, log }) {
  if (range) return range;
  const values = series.flatMap((s) => s.points.map((p) => p[1])).sort((a, b) => a - b);
  let low = values[0], high = values[Math.floor(0.98 * (values.length - 1))];
  if (log) return [low / 1.15, high * 1.15];
  const room = 0.06 * (high - low) || Math.abs(high) || 1;
  return [low - room, high + room];
}

function drawChart(box, chart) {
  const svg = box.querySelector("svg"), keys = [...box.querySelectorAll(".key span b")];
  const width = box.clientWidth, inner = width - EDGE.left - EDGE.right, bottom = HEIGHT - EDGE.bottom;
  const scale = chart.log ? Math.log10 : (v) => v;
  const [low, high] = rangeOf(chart).map(scale);
  const epochs = chart.series.flatMap((s) => s.points.map((p) => p[0]));
  const last = Math.max(...epochs);
  const x = (epoch) => EDGE.left + (epoch / last) * inner;
  const y = (v) => bottom - ((scale(v) - low) / (high - low)) * (bottom - EDGE.top);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const levels = chart.log ? logTicks(low, high) : ticks(low, high, 4);
  for (const v of levels) {
    add(svg, "line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(v), y2: y(v) });
    add(svg, "text", { x: EDGE.left - 8, y: y(v) + 4, "text-anchor": "end" }, short(v));
  }
  for (const v of ticks(0, last, Math.min(6, Math.max(2, inner / 60)))) {
    const name = v === 0 ? "epoch 0" : short(v);
    add(svg, "text", { x: x(v), y: HEIGHT - 6, "text-anchor": v === 0 ? "start" : v === last ? "end" : "middle" }, name);
  }
  if (chart.aim) {
    const at = y(chart.aim.value);
    add(svg, "line", { class: "aim", x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at });
    add(svg, "text", { x: width - EDGE.right, y: at - 6, "text-anchor": "end" }, chart.aim.name);
  }
  chart.series.forEach(({ points }, i) => {
    const at = points.map(([epoch, v]) => [x(epoch), Math.min(Math.max(y(v), EDGE.top), bottom)].map((c) => c.toFixed(1)));
    add(svg, "polyline", { class: "curve", stroke: HUES[i], points: at.map((p) => p.join(",")).join(" ") });
    if (points.length <= 60 && i > 0 && chart.series[0].points.length > points.length)
      for (const [cx, cy] of at) add(svg, "circle", { cx, cy, r: 3, fill: HUES[i] });
  });
  const cursor = add(svg, "line", { class: "cursor", y1: EDGE.top, y2: bottom, visibility: "hidden" });
  const tell = (epoch) =>
    chart.series.forEach(({ points }, i) => {
      const nearest = points.reduce((a, b) => (Math.abs(b[0] - epoch) < Math.abs(a[0] - epoch) ? b : a));
      keys[i].textContent = short(nearest[1]);
    });
  svg.onpointermove = (event) => {
    const at = Math.min(Math.max(event.clientX - svg.getBoundingClientRect().left, EDGE.left), width - EDGE.right);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    tell(((at - EDGE.left) / inner) * last);
  };
  svg.onpointerleave = () => (cursor.setAttribute("visibility", "hidden"), tell(last));
  tell(last);
}

function drawCharts(parent, curves) {
  for (const chart of curves) {
    const box = add(parent, "div", { class: "chart" });
    add(box, "h3", {}, chart.title);
    const key = add(box, "div", { class: "key" });
    chart.series.forEach(({ name }, i) => {
      const item = add(key, "span", { style: `--colour: ${HUES[i]}` }, `${name} `);
      add(item, "b");
    });
    const ends = chart.series.map(({ name, points }) => `${name} from ${short(points[0][1])} to ${short(points.at(-1)[1])}`);
    add(box, "svg", { role: "img", "aria-label": `${chart.title}: ${ends.join(", ")}` });
    new ResizeObserver(() => drawChart(box, chart)).observe(box);
  }
}
