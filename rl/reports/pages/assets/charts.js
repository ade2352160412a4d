// Curves over steps. A chart names what it shows and says its values to a reader who does not point: focus it, use arrows.

const STOPS = { finished: 2, answered: 0, max_turns: 5, max_tokens: 1, timeout: 4, sandbox_ended: 3, sandbox_lost: 6, engine_lost: 6, grader_failed: 6, cancelled: 6 };
const HEIGHT = 160, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 24;

/** All runs of the page over the same steps: `steps`, and of each run its values of a key, null where it has none. */
const curves = (() => {
  const runs = content.runs || [];
  const steps = [...new Set(runs.flatMap(run => run.steps))].sort((a, b) => a - b);
  const at = new Map(steps.map((step, i) => [step, i]));
  const aligned = runs.map(run => ({ label: run.label, group: run.group, series: Object.fromEntries(Object.entries(run.series).map(([key, values]) => {
    const out = new Array(steps.length).fill(null);
    values.forEach((value, i) => { out[at.get(run.steps[i])] = value; });
    return [key, out];
  })) }));
  const groups = [...new Set(aligned.map(run => run.group))];
  return { steps, runs: aligned, groups, single: aligned.length === 1, cells: groups.length < aligned.length };
})();

function chartSpecs() {
  const keys = [...new Set(curves.runs.flatMap(run => Object.keys(run.series).filter(key => run.series[key].some(value => value != null))))].sort();
  const used = key => curves.runs.some(run => run.series[key] && run.series[key].some(Boolean));
  const under = (prefix, suffix) => keys.filter(key => key.startsWith(prefix) && key.endsWith(suffix));
  const stops = Object.keys(STOPS).map(stop => `stop/${stop}`).filter(used);
  const other = under("stop/", "").filter(key => !stops.includes(key) && used(key) && key.split("/").length === 2);
  const evaluations = under("eval/", "/score");
  const sources = under("source/", "/reward");
  const setOf = key => key.slice("eval/".length, -"/score".length);
  const wanted = curves.single ? [
    { title: "Training reward", keys: ["reward/mean"], from: 0, to: 1, smooth: true },
    { title: "Evaluation score", keys: evaluations, label: setOf, from: 0, to: 1, dots: true },
    { title: "Reward by source", keys: sources.length > 1 ? sources : [], label: key => key.slice("source/".length, -"/reward".length), from: 0, to: 1 },
    { title: "Informative groups", keys: ["groups/informative"], from: 0, to: 1, smooth: true, format: percent },
    { title: "How trajectories end", keys: [...stops, ...other], stack: true, to: 1, format: percent, colour: key => STOPS[key.slice(5)] ?? 6 },
    { title: "Tokens per trajectory", keys: ["tokens/sampled", "tokens/environment"], stack: true },
    { title: "Log-prob gap, engine to learner", keys: ["mismatch/logprob_max"], log: true, bound: 1e-3 },
    { title: "Sampling entropy, nats per token", keys: ["entropy/sampled"], from: 0, smooth: true },
    { title: "Seconds per step", keys: ["time/rollout_s", "time/learn_s", "time/sync_s"], stack: true, over: "time/step_s" },
    { title: "What the computer is used for", keys: ["usage/external", "usage/files", "usage/computation"], from: 0, format: percent },
  ] : [
    { title: "Training reward", keys: ["reward/mean"], from: 0, to: 1 },
    ...evaluations.map(key => ({ title: `Score on ${setOf(key)}`, keys: [key], from: 0, to: 1, dots: true })),
    { title: "Finished trajectories", keys: ["stop/finished"], from: 0, to: 1, format: percent },
    { title: "Informative groups", keys: ["groups/informative"], from: 0, to: 1, format: percent },
    { title: "Turns per trajectory", keys: ["turns/mean"], from: 0 },
    { title: "Sampled tokens per trajectory", keys: ["tokens/sampled"], from: 0 },
    { title: "Log-prob gap, engine to learner", keys: ["mismatch/logprob_max"], log: true, bound: 1e-3 },
    { title: "Seconds per step", keys: ["time/step_s"], from: 0 },
  ];
  const specs = wanted.map(spec => ({ ...spec, keys: spec.keys.filter(key => keys.includes(key)) })).filter(spec => spec.keys.length);
  const shown = new Set(specs.flatMap(spec => [...spec.keys, spec.over]));
  const rest = keys.filter(key => !shown.has(key) && used(key) && key !== "time/wall_s").map(key => ({ title: key, keys: [key], smooth: curves.single && !key.startsWith("eval/") }));
  return [specs, rest];
}

/** The lines of a chart: of one run a line per key, of several a line per run; the seeds of a cell are thin. */
function linesOf(spec) {
  if (curves.single) return spec.keys.map((key, i) => ({
    label: (spec.label || words)(key), values: curves.runs[0].series[key], colour: `var(--c${spec.colour ? spec.colour(key) : i % 7})`, named: true,
  }));
  const [key] = spec.keys, none = new Array(curves.steps.length).fill(null);
  const each = curves.runs.map(run => ({ label: run.label, group: run.group, values: run.series[key] || none, colour: `var(--c${curves.groups.indexOf(run.group) % 7})`, thin: curves.cells, named: !curves.cells }));
  if (!curves.cells) return each.filter(one => one.values.some(value => value != null));
  const means = curves.groups.map((group, i) => {
    const members = each.filter(one => one.group === group);
    return { label: group, values: curves.steps.map((_, at) => average(members.map(one => one.values[at]))), colour: `var(--c${i % 7})`, named: true };
  });
  return [...each, ...means];
}

function average(values) {
  const known = values.filter(value => value != null);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
}

/** Round values, about four, that cover low..high. */
function ticks(low, high) {
  const rough = (high - low) / 4 || 1, ten = 10 ** Math.floor(Math.log10(rough));
  const step = ten * [1, 2, 2.5, 5, 10].find(one => one * ten >= rough * 0.999);
  const out = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) out.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return out;
}

function smoothed(values, width) {
  return values.map((value, i) => value == null ? null : average(values.slice(Math.max(0, i - width + 1), i + 1)));
}

const charts = []; // each: show(index or null)

function chart(spec) {
  const { steps } = curves, format = spec.format || number, lines = linesOf(spec);
  const over = spec.over && curves.runs[0].series[spec.over];
  const width = spec.smooth && steps.length >= 30 ? Math.ceil(steps.length / 20) : 0;
  const ended = one => one.values.findLastIndex(value => value != null);
  const newest = Math.max(...lines.map(ended));
  const named = lines.filter(one => one.named);
  const when = make("span", {}), legend = make("div", { class: "legend" }), spoken = make("span", { class: "unseen", "aria-live": "polite" });
  const svg = make("svg", { role: "img", tabindex: 0, "aria-label": described() });
  let place = null, cross = null, pointed = null;

  function described() {
    const parts = named.map(one => `${one.label}: ${format(one.values.find(value => value != null))} to ${format(one.values[ended(one)])}`);
    return `${spec.title}, steps ${steps[0]} to ${steps.at(-1)}. ${parts.join("; ")}. Arrow keys read single steps.`;
  }

  /** The last step up to `index` that any line has a value of: an evaluation is rare. */
  const known = index => index == null ? null : steps.findLastIndex((_, i) => i <= index && lines.some(one => one.values[i] != null));

  function show(at) {
    const index = spec.stack ? at : known(at);
    const value = one => spec.stack ? one.values[index ?? newest] ?? 0 : one.values[index ?? ended(one)];
    when.textContent = index == null ? (width ? `mean of ${width} steps` : "last") : index < 0 ? "" : `step ${steps[index]}`;
    legend.replaceChildren(...named.map(one => make("span", {},
      named.length > 1 || spec.stack ? [make("i", { style: { background: one.colour } }), visible(one.label)] : null, make("b", {}, format(value(one))))),
      ...(over ? [make("span", {}, "in all", make("b", {}, format(over[index ?? newest])))] : []));
    if (cross && place) {
      cross.style.visibility = index == null || index < 0 ? "hidden" : "visible";
      if (index != null && index >= 0) for (const end of ["x1", "x2"]) cross.setAttribute(end, place(steps[index]));
    }
  }

  function draw(total) {
    const drawn = plot(spec, lines, over, width, total);
    place = drawn.place;
    cross = make("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM });
    svg.setAttribute("viewBox", `0 0 ${total} ${HEIGHT}`);
    svg.replaceChildren(...drawn.parts, cross);
    show(pointed);
  }

  svg.addEventListener("pointermove", event => {
    if (!place) return;
    const x = event.clientX - svg.getBoundingClientRect().left;
    let best = 0;
    steps.forEach((step, i) => { if (Math.abs(place(step) - x) < Math.abs(place(steps[best]) - x)) best = i; });
    pointed = best;
    charts.forEach(one => one(best));
  });
  const leave = () => { pointed = null; spoken.textContent = ""; charts.forEach(one => one(null)); };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", event => {
    const to = { ArrowLeft: (pointed ?? steps.length) - 1, ArrowRight: (pointed ?? -1) + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    pointed = Math.max(0, Math.min(steps.length - 1, to));
    charts.forEach(one => one(pointed));
    spoken.textContent = `${when.textContent}: ` + named.map(one => `${one.label} ${format(one.values[spec.stack ? pointed : known(pointed)])}`).join(", ");
  });
  new ResizeObserver(([entry]) => entry.contentRect.width && draw(entry.contentRect.width)).observe(svg);
  charts.push(show);
  show(null);
  return make("div", { class: "chart" }, make("div", { class: "head" }, make("h3", {}, visible(spec.title)), when), legend, svg, spoken);
}

/** The drawing of a chart at a width of `total` pixels: its parts, and where a step lies. */
function plot(spec, lines, over, width, total) {
  const { steps } = curves, parts = [];
  const bars = spec.stack ? binned(lines, over, (total - LEFT - RIGHT) / 4) : null;
  const sums = bars ? bars.map(bar => bar.values.reduce((a, b) => a + b, 0)) : [];
  const values = [...(bars ? sums : lines.flatMap(one => one.values)), ...(over || [])].filter(value => value != null && (!spec.log || value > 0));
  let low = Math.min(...values, spec.stack ? 0 : spec.from ?? Infinity, spec.bound ?? Infinity);
  let high = Math.max(...values, spec.to ?? -Infinity, spec.bound ?? -Infinity);
  if (low === high) [low, high] = spec.log ? [low / 10, high * 10] : [Math.min(0, low), high || 1];
  const scale = spec.log ? Math.log10 : value => value;
  const tens = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const marks = spec.log ? Array.from({ length: tens[1] - tens[0] + 1 }, (_, i) => 10 ** (tens[0] + i)) : ticks(low, high);
  low = Math.min(low, marks[0] ?? low); high = Math.max(high, marks.at(-1) ?? high);
  const x0 = LEFT, x1 = total - RIGHT, y0 = HEIGHT - BOTTOM, first = steps[0], span = steps.at(-1) - first || 1;
  const band = bars ? (x1 - x0) / bars.length : 0;
  const place = step => steps.length === 1 ? (x0 + x1) / 2 : x0 + band / 2 + (step - first) / span * (x1 - x0 - band);
  const y = value => y0 - (scale(value) - scale(low)) / (scale(high) - scale(low) || 1) * (y0 - TOP);
  const plain = value => Math.abs(value) < 1e4 ? String(+value.toPrecision(6)).replace("-", "−") : number(value);
  const written = mark => spec.log ? `1e${Math.round(Math.log10(mark))}`.replace("-", "−") : spec.format === percent ? percent(mark) : plain(mark);
  for (const mark of marks.length > 5 ? marks.filter((_, i) => i % 2 === 0) : marks) parts.push(
    make("line", { class: "grid", x1: x0, x2: x1, y1: y(mark), y2: y(mark) }),
    make("text", { x: x0 - 7, y: y(mark) + 4, "text-anchor": "end" }, written(mark)));
  for (const step of steps.length === 1 ? steps : ticks(first, steps.at(-1)).filter(Number.isInteger))
    parts.push(make("text", { x: place(step), y: HEIGHT - 6, "text-anchor": "middle" }, number(step)));
  if (spec.bound) parts.push(make("line", { class: "bound", x1: x0, x2: x1, y1: y(spec.bound), y2: y(spec.bound) }));
  if (bars) lines.forEach((one, k) => {
    const path = bars.map((bar, i) => {
      const base = bar.values.slice(0, k).reduce((a, b) => a + b, 0), bottom = y(base), up = y(base + bar.values[k]);
      const left = x0 + i * band + (band > 6 ? 0.75 : 0), wide = band - (band > 6 ? 1.5 : 0);
      return bottom === up ? "" : `M${left.toFixed(2)} ${bottom.toFixed(1)}h${wide.toFixed(2)}V${up.toFixed(1)}h${-wide.toFixed(2)}Z`;
    });
    parts.push(make("path", { class: "stacked", d: path.join(""), style: { fill: one.colour } }));
  });
  const curve = (values, style) => {
    let pen = "M";
    const d = values.map((value, i) => {
      if (value == null || (spec.log && value <= 0)) return "";
      const point = `${pen}${place(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
      return point;
    });
    parts.push(make("path", { d: d.join(""), style: { fill: "none", strokeLinejoin: "round", ...style } }));
  };
  if (!bars) for (const one of lines) {
    const faint = width || one.thin;
    curve(one.values, { stroke: one.colour, strokeWidth: faint ? 1.2 : 2, opacity: faint ? 0.35 : 1 });
    if (width) curve(smoothed(one.values, width), { stroke: one.colour, strokeWidth: 2.2 });
    const few = one.values.filter(value => value != null).length;
    if (!one.thin && (few === 1 || (spec.dots && few < 60))) one.values.forEach((value, i) => value != null && parts.push(
      make("circle", { cx: place(steps[i]), cy: y(value), r: 3.2, style: { fill: "var(--card)", stroke: one.colour, strokeWidth: 2 } })));
  }
  if (over) curve(over, { stroke: "var(--ink)", strokeWidth: 1.6 });
  return { parts, place };
}

/** Bars of a stack: a step each, or where a bar would be thinner than four pixels the mean of some steps. */
function binned(lines, over, most) {
  const measured = curves.steps.map((_, i) => i).filter(i => lines.some(one => one.values[i] != null));
  const each = Math.max(1, Math.ceil(curves.steps.length / most));
  return Array.from({ length: Math.ceil(curves.steps.length / each) }, (_, k) => {
    const members = measured.filter(i => Math.floor(i / each) === k);
    return { values: lines.map(one => average(members.map(i => one.values[i] ?? 0)) ?? 0) };
  });
}

/** Every value as a table, for whoever does not see curves, and for copying. */
function numbersTable() {
  const heads = curves.runs.flatMap(run => Object.keys(run.series).map(key => ({ name: curves.single ? key : `${run.label}: ${key}`, values: run.series[key] })));
  return make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "All numbers" }, make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "step"), heads.map(head => make("th", { scope: "col", class: "num" }, visible(head.name))))),
    make("tbody", {}, curves.steps.map((step, i) => make("tr", {}, make("th", { scope: "row" }, step), heads.map(head => make("td", { class: "num" }, number(head.values[i]))))))));
}

function curvesSection() {
  if (!curves.steps.length) return null;
  const [specs, rest] = chartSpecs();
  return section("Curves", "Point at a chart, or focus it and use the arrow keys, to read one step in all of them.",
    make("div", { class: "charts" }, specs.map(chart)),
    rest.length ? folded(count(rest.length, "more metric"), () => make("div", { class: "charts" }, rest.map(chart))) : null,
    curves.runs.length <= 4 ? folded("All numbers as a table", numbersTable) : null);
}
