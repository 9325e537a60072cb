// The page's own work: pictures that can be chosen, the plane of codes, sliders, interpolation.

const page = JSON.parse(byId("data").textContent);
const decode = page.network && decoderOf(page.network);
const [channels, height, width] = page.shape;
const nz = page.codes[0].length;
const COLOURS = ["#4e79a7", "#f28e2b", "#e15759", "#3aa6a0", "#59a14f", "#d4ab1c", "#b07aa1", "#ff8fa3", "#9c755f", "#8d9299"];
const N_STRIP = 9;

const subscript = (n) => [...String(n)].map((digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]).join("");
const axisName = (name) => name.replace(/^z(\d+)$/, (_, n) => `z${subscript(n)}`);
const colourOf = (code) => (page.labels ? COLOURS[classes.indexOf(page.labels[code]) % COLOURS.length] : "var(--accent)");
const className = (label) => page.classes?.[label] ?? String(label);
const classes = page.labels ? [...new Set(page.labels)].sort((a, b) => a - b) : [];
const mix = (a, b, t) => a.map((v, i) => v + t * (b[i] - v));
const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
const draw = () => Array.from({ length: nz }, normal);

/** What is shown: z; the test image whose code z is, or null; the ends of the interpolation, and where z is between them, or null. */
const state = { z: page.codes[0], code: 0, a: 0, b: 0, t: 0, axes: [0, Math.min(1, nz - 1)] };
state.b = Math.max(1, page.labels ? page.labels.findIndex((label) => label !== page.labels[0]) : 1) % page.codes.length;
const axes = page.axes.map((axis) => ({ ...axis, name: axisName(axis.name) }));
if (nz > 2) state.axes = [nz, nz + 1]; // the principal components
let extent = 2; // of the plane, from its middle

function dot(a, b) {
  return a.reduce((sum, v, i) => sum + v * b[i], 0);
}

// ---- pictures ----

/** An image of the decoder, values as the images have them, on a canvas. */
function paint(canvas, image) {
  const [low, high] = page.range, area = width * height, context = canvas.getContext("2d");
  canvas.width = width;
  canvas.height = height;
  const pixels = context.createImageData(width, height);
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++)
      pixels.data[4 * i + c] = (255 * (image[channels === 3 ? c * area + i : i] - low)) / (high - low);
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

const originals = new Image();
originals.onload = () => refresh();
originals.src = page.originals;

function paintOriginal(code) {
  const canvas = byId("original");
  const w = originals.naturalWidth, h = originals.naturalHeight / page.codes.length; // less than width, height of large images
  canvas.width = w;
  canvas.height = h;
  if (code !== null && originals.complete)
    canvas.getContext("2d").drawImage(originals, 0, code * h, w, h, 0, 0, w, h);
}

/** Let one of a grid's pictures be chosen, by pointer or keys: one stop of the Tab key, arrows within. */
function choosable(grid, names, choose) {
  const items = [...grid.children];
  let current = 0;
  const point = (i) => {
    items[current].classList.remove("current");
    items[(current = i)].classList.add("current");
    grid.setAttribute("aria-activedescendant", items[i].id);
  };
  const move = (i) => (point(i), items[i].scrollIntoView({ block: "nearest" }));
  grid.setAttribute("role", "listbox");
  grid.tabIndex = 0;
  items.forEach((item, i) => {
    item.id = `${grid.id}-${i}`;
    item.setAttribute("role", "option");
    item.setAttribute("aria-label", names(i));
    item.onpointerdown = () => point(i); // before the grid gets the focus
    item.onclick = () => choose(i);
  });
  grid.onfocus = () => (grid.matches(":focus-visible") ? move : point)(current); // by pointer nothing scrolls away below it
  grid.onkeydown = (event) => {
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (step) move(Math.min(Math.max(current + step, 0), items.length - 1));
    else if (event.key === "Enter" || event.key === " ") choose(current);
    else return;
    event.preventDefault();
  };
}

function reveal() {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  byId("explorer").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
}

function drawSamples() {
  const canvas = document.createElement("canvas");
  for (const [i, image] of [...byId("samples").children].entries()) {
    page.samples[i] = draw();
    paint(canvas, decode(page.samples[i]));
    image.src = canvas.toDataURL();
  }
  say("New samples drawn");
}

// ---- the plane ----

const plane = byId("plane");
const across = (z) => 50 + (50 * dot(z, axes[state.axes[0]].direction)) / extent;
const up = (z) => (nz === 1 ? 50 : 50 - (50 * dot(z, axes[state.axes[1]].direction)) / extent);
const at = (z) => [across(z), up(z)].map((v) => Math.min(Math.max(v, 1.5), 98.5));

const rings = [1, 2].map(() => add(plane, "circle", { class: "ring", cx: 50, cy: 50 }));
const path = add(plane, "line", { class: "path live" });
const dots = page.codes.map((_, i) => add(plane, "circle", { class: "dot", r: 0.95, fill: colourOf(i) }));
const halo = add(plane, "circle", { class: "halo", r: 2.1 });
const here = add(plane, "circle", { class: "here", r: 2.1 });
const ends = ["A", "B"].map((name) => {
  const group = add(plane, "g", { class: "live" });
  add(group, "circle", { class: "end", r: 2 });
  add(group, "text", { class: "name" }, name);
  return group;
});

function place(circle, [x, y]) {
  circle.setAttribute("cx", x.toFixed(2));
  circle.setAttribute("cy", y.toFixed(2));
}

/** Put all dots where the two axes that are shown have them. */
function arrange() {
  const shown = state.axes.map((i) => axes[i].direction);
  extent = 1.06 * Math.max(2, ...page.codes.flatMap((z) => shown.map((direction) => Math.abs(dot(z, direction)))));
  rings.forEach((ring, i) => ring.setAttribute("r", (50 * (i + 1)) / extent));
  dots.forEach((circle, i) => place(circle, at(page.codes[i])));
  const share = (axis) => axis.variance / axes.slice(0, nz).reduce((sum, { variance }) => sum + variance, 0) || 0; // of one code
  const [a, b] = state.axes.map((i) => `${axes[i].name} (${Math.round(100 * share(axes[i]))} %)`);
  byId("shown").textContent = nz > 1 ? `Shown: ${a} and ${b} of the codes’ variance.` : "";
}

/** The code whose dot is nearest to a point of the page. */
function codeAt(event) {
  const box = plane.getBoundingClientRect();
  const x = (100 * (event.clientX - box.left)) / box.width, y = (100 * (event.clientY - box.top)) / box.height;
  return nearest((p) => Math.hypot(p[0] - x, p[1] - y));
}

/** The code with the least distance; codes of a hidden class are left out. */
function nearest(distance) {
  let best = null, least = Infinity;
  page.codes.forEach((z, i) => {
    const d = isHidden(i) ? Infinity : distance(at(z), i);
    if (d < least) [best, least] = [i, d];
  });
  return best;
}

/** The next code from here in the direction of an arrow key: near, and not far off to the side. */
function codeTowards([dx, dy]) {
  const [x, y] = at(state.z);
  const next = nearest((p, i) => {
    const along = (p[0] - x) * dx + (p[1] - y) * dy, aside = Math.abs((p[0] - x) * dy - (p[1] - y) * dx);
    return i === state.code || along <= 0.01 || aside > along ? Infinity : along + 2 * aside;
  });
  return next ?? state.code ?? nearest((p) => Math.hypot(p[0] - x, p[1] - y));
}

let highlighted = null;
const isHidden = (code) => highlighted !== null && page.labels[code] !== highlighted;

function highlight(label) {
  highlighted = highlighted === label ? null : label;
  dots.forEach((circle, i) => circle.classList.toggle("faded", isHidden(i)));
  [...byId("legend").children].forEach((button, i) => button.setAttribute("aria-pressed", classes[i] === highlighted));
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
plane.onkeydown = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (ARROWS[event.key]) chooseCode(codeTowards(ARROWS[event.key]));
  else if (["a", "b"].includes(event.key.toLowerCase())) mark(event.key.toLowerCase());
  else return;
  event.preventDefault();
};

let dragged = null; // the code at which a drag has begun
plane.onpointerdown = (event) => {
  dragged = codeAt(event);
  chooseCode(dragged);
  plane.setPointerCapture(event.pointerId);
};
plane.onpointermove = (event) => {
  const code = codeAt(event);
  if (dragged === null || code === null || code === dragged || !decode) return;
  Object.assign(state, { a: dragged, b: code });
  between(1);
};
plane.onpointerup = plane.onpointercancel = () => (dragged = null);

// ---- what is shown ----

function chooseCode(code) {
  if (code === null) return;
  show(page.codes[code], code);
  say(nameOf(code));
}

const nameOf = (code) => `test image ${code + 1}${page.labels ? `, class ${className(page.labels[code])}` : ""}`;

function mark(end) {
  if (state.code === null || !decode) return say("Choose the code of a test image first");
  state[end] = state.code;
  say(`${nameOf(state.code)} is ${end.toUpperCase()}`);
  refresh();
}

/** z on the way from A to B. */
function between(t) {
  show(mix(page.codes[state.a], page.codes[state.b], t), t === 0 ? state.a : t === 1 ? state.b : null);
  state.t = t;
}

function show(z, code = null) {
  Object.assign(state, { z, code, t: null });
  refresh();
}

function say(text) {
  byId("said").textContent = text;
}

let due = 0;
function refresh() {
  due ||= requestAnimationFrame(() => ((due = 0), render()));
}

let fastest = Infinity; // decoding, ms
let strip = ""; // the ends of the interpolation that the strip shows
function render() {
  place(here, at(state.z));
  place(halo, at(state.z));
  paintOriginal(state.code);
  byId("caption").textContent = state.code === null ? "no test image" : nameOf(state.code);
  byId("original").setAttribute("aria-label", byId("caption").textContent);
  if (!decode) return;
  const start = performance.now();
  paint(byId("picture"), decode(state.z));
  fastest = Math.min(fastest, performance.now() - start); // the first ones are not yet compiled
  byId("speed").textContent = `Decoding runs here, in this page: ${page.network.n_weights.toLocaleString("en")} weights in 16 bits, ${fastest.toFixed(1)} ms an image.`;
  [...byId("sliders").querySelectorAll("label")].forEach((label, i) => {
    label.querySelector("input").value = state.z[i];
    label.querySelector("output").textContent = state.z[i].toFixed(2);
  });
  const way = state.t === null ? "not on the way from A to B" : `${Math.round(100 * state.t)} % from A to B`;
  byId("between").value = state.t ?? 0;
  byId("between").setAttribute("aria-valuetext", way);
  const [a, b] = [page.codes[state.a], page.codes[state.b]];
  ends.forEach((group, i) => group.setAttribute("transform", `translate(${at([a, b][i])})`));
  ["x1", "y1"].forEach((name, i) => path.setAttribute(name, at(a)[i]));
  ["x2", "y2"].forEach((name, i) => path.setAttribute(name, at(b)[i]));
  if (strip !== (strip = `${state.a} ${state.b}`))
    [...byId("strip").children].forEach((canvas, i) => paint(canvas, decode(mix(a, b, i / (N_STRIP - 1)))));
}

// ---- the start ----

drawCharts(byId("charts"), page.curves);
for (const label of classes) {
  const button = add(byId("legend"), "button", { type: "button", "aria-pressed": false }, className(label));
  button.style.setProperty("--colour", COLOURS[classes.indexOf(label) % COLOURS.length]);
  button.onclick = () => highlight(label);
}
["across", "up"].forEach((id, k) => {
  axes.forEach(({ name }, i) => add(byId(id), "option", { value: i }, name));
  byId(id).value = state.axes[k];
  byId(id).onchange = (event) => {
    state.axes[k] = +event.target.value;
    arrange();
    refresh();
  };
  byId(id).parentElement.hidden = nz <= k;
});
if (decode) {
  choosable(byId("samples"), (i) => `sample ${i + 1}`, (i) => (show(page.samples[i]), reveal(), say(`sample ${i + 1} is shown`)));
  choosable(byId("reconstructions"), nameOf, (i) => (chooseCode(i), reveal()));
  const reach = Math.max(4, Math.ceil(Math.max(...page.codes.flat().map(Math.abs))));
  for (let i = 0; i < nz; i++) {
    const label = add(byId("sliders"), "label");
    add(label, "span", {}, `z${subscript(i + 1)}`);
    const slider = add(label, "input", { type: "range", min: -reach, max: reach, step: 0.05 });
    add(label, "output");
    slider.oninput = () => show(state.z.map((v, k) => (k === i ? +slider.value : v)));
  }
  for (let i = 0; i < N_STRIP; i++) add(byId("strip"), "canvas");
  byId("again").onclick = drawSamples;
  byId("random").onclick = () => show(draw());
  byId("origin").onclick = () => show(Array(nz).fill(0));
  byId("between").oninput = (event) => between(+event.target.value);
  byId("mark-a").onclick = () => mark("a");
  byId("mark-b").onclick = () => mark("b");
} else document.body.classList.add("no-decoder");
arrange();
refresh();
