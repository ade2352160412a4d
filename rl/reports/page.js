"use strict";
// Draws the page from the JSON block. Everything in it is hostile: text reaches the page as text nodes only.
(() => {
const content = JSON.parse(document.getElementById("content").textContent);
const address = new URLSearchParams(location.hash.slice(1)); // view=tokens, theme=dark, a= and b= (row on each side)

// ---- words and elements

function make(tag, attributes, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "text"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "style") Object.assign(node.style, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child != null && child !== "") node.append(child);
  return node;
}

/** Text as a person may see it: control and direction characters become visible, so that nothing can hide or reorder. */
function visible(text) {
  return String(text)
    .replace(/[\0-\x08\x0b-\x1f\x7f]/g, c => String.fromCharCode(c === "\x7f" ? 0x2421 : 0x2400 + c.charCodeAt(0)))
    .replace(/[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, c => `⟨${c.charCodeAt(0).toString(16)}⟩`);
}

function number(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toFixed(size < 1e7 ? 2 : 1) + "M";
  if (size >= 1e4) return (value / 1e3).toFixed(size < 1e5 ? 1 : 0) + "k";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  if (size < 1e-3) return value.toExponential(1).replace("e-", "e−");
  return value.toPrecision(3).replace("-", "−");
}
const score = value => value == null ? "–" : value.toFixed(3).replace("-", "−");
const signed = value => (value > 0 ? "+" : "") + score(value);
const percent = value => value == null ? "–" : (100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0) + "%";
const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
const tone = value => value >= 0.75 ? "good" : value > 0 ? "warn" : "bad";
function seconds(value) {
  if (value == null) return "–";
  if (value < 10) return value.toFixed(value < 1 ? 2 : 1) + " s";
  if (value < 60) return Math.round(value) + " s";
  const total = Math.round(value), hours = Math.floor(total / 3600), minutes = Math.floor(total / 60) % 60;
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${total % 60} s`;
}

// ---- header

function header() {
  const status = content.status;
  const look = status === "finished" ? "good" : status === "not finished" ? "warn" : "bad";
  const theme = make("button", { class: "plain", onclick: () => setTheme(dark() ? "light" : "dark", true) });
  const dark = () => (address.get("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  function setTheme(name, keep) {
    if (name) document.documentElement.style.colorScheme = name;
    if (keep) address.set("theme", name);
    theme.textContent = dark() ? "Light page" : "Dark page";
    if (keep) remember("theme", name);
  }
  setTheme(address.get("theme"));
  const what = content.kind === "run" ? "training run" : "trajectories";
  return make("div", { class: "top" },
    make("div", {},
      make("div", { class: "kicker" }, `sandboxrl, ${what}, page made ${content.made}`),
      make("div", { class: "name" }, make("h1", {}, visible(content.title)),
        status && make("span", { class: `pill ${look}` }, visible(status)))),
    theme);
}

function change(before, after) {
  const delta = after - before;
  return [make("span", { class: "from" }, `${score(before)} → `), score(after),
    make("span", { class: `delta ${delta > 0 ? "good" : delta < 0 ? "bad" : "soft"}` }, signed(delta))];
}

function figures() {
  return make("div", { class: "figures" }, content.scores.map(({ name, before, after, detail }) => {
    const at = value => 100 * Math.min(1, Math.max(0, value));
    const from = before ?? 0;
    const track = make("i", { style: { left: `${at(Math.min(from, after))}%`, width: `${Math.abs(at(after) - at(from))}%`, minWidth: "4px",
      background: before == null ? "var(--faint)" : after >= before ? "var(--good)" : "var(--bad)" } });
    return make("div", { class: "figure" },
      make("div", { class: "label" }, visible(name)),
      make("div", { class: "value" }, before == null ? score(after) : change(before, after)),
      make("div", { class: "track" }, track), make("div", { class: "detail" }, visible(detail)));
  }));
}

function facts() {
  const write = { seconds, count: number };
  return make("dl", { class: "facts" }, content.facts.map(fact => make("div", {}, make("dt", {}, fact.label),
    make("dd", {}, write[fact.unit](fact.value), make("small", {}, visible(fact.detail))))));
}

// ---- charts

const STOPS = { finished: 2, answered: 0, max_turns: 5, max_tokens: 1, timeout: 4, sandbox_lost: 3, engine_lost: 6, grader_failed: 6, cancelled: 6 };
const words = key => key.split("/").pop().replace(/_s$/, "").replaceAll("_", " ");

function chartSpecs() {
  const keys = Object.keys(content.series).filter(key => content.series[key].some(value => value != null));
  const under = prefix => keys.filter(key => key.startsWith(prefix));
  const used = key => content.series[key].some(Boolean);
  const stops = Object.keys(STOPS).map(stop => `stop/${stop}`).filter(key => keys.includes(key) && used(key));
  const specs = [
    { title: "Training reward", keys: ["reward/mean"], from: 0, to: 1, smooth: true },
    { title: "Evaluation score", keys: under("eval/").filter(key => key.endsWith("/score")), label: key => key.slice("eval/".length, -"/score".length), from: 0, to: 1, dots: true },
    { title: "Informative groups", keys: ["groups/informative"], from: 0, to: 1, smooth: true },
    { title: "How trajectories end", keys: stops, stack: true, to: 1, format: percent, colour: key => STOPS[key.slice(5)] },
    { title: "Tokens a trajectory", keys: ["tokens/sampled", "tokens/environment"], stack: true },
    { title: "Log-prob gap, engine to learner", keys: ["mismatch/logprob_max"], log: true, bound: 1e-3 },
    { title: "Seconds a step", keys: ["time/rollout_s", "time/learn_s", "time/sync_s"], stack: true, over: "time/step_s" },
    { title: "What the computer is used for", keys: ["usage/external", "usage/files", "usage/computation"], from: 0, format: percent },
  ].map(spec => ({ ...spec, keys: spec.keys.filter(key => keys.includes(key)) })).filter(spec => spec.keys.length);
  const shown = new Set(specs.flatMap(spec => [...spec.keys, spec.over]));
  const rest = keys.filter(key => !shown.has(key) && used(key) && key !== "time/wall_s").map(key => ({ title: key, keys: [key], smooth: !key.startsWith("eval/") }));
  return [specs, rest];
}

/** Round values, about four, that cover low..high. */
function ticks(low, high) {
  const rough = (high - low) / 4 || 1, ten = 10 ** Math.floor(Math.log10(rough));
  const step = ten * [1, 2, 2.5, 5, 10].find(one => one * ten >= rough * 0.999);
  const out = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) out.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return out;
}

function mean(values, width) {
  return values.map((value, i) => {
    const near = values.slice(Math.max(0, i - width + 1), i + 1).filter(one => one != null);
    return value == null ? null : near.reduce((a, b) => a + b, 0) / near.length;
  });
}

const charts = []; // each: show(index or null)

function chart(spec) {
  const steps = content.steps, format = spec.format || number;
  const lines = spec.keys.map((key, i) => ({
    key, values: content.series[key], label: (spec.label || words)(key),
    colour: `var(--c${spec.colour ? spec.colour(key) : i % 7})`,
  }));
  const over = spec.over && content.series[spec.over];
  const width = spec.smooth && steps.length >= 30 ? Math.ceil(steps.length / 20) : 0;
  const svg = make("svg", {}), when = make("span", {}), legend = make("div", { class: "legend" });
  const ended = line => line.values.findLastIndex(value => value != null);
  const named = lines.length > 1 || spec.stack;
  const newest = Math.max(...lines.map(ended));
  let place = null, cross = null;

  function show(pointed) {
    // an evaluation is rare: point anywhere and read the last one up to there
    const index = spec.dots && pointed != null ? steps.findLastIndex((_, i) => i <= pointed && lines.some(line => line.values[i] != null)) : pointed;
    const value = line => spec.stack ? line.values[index ?? newest] ?? 0 : line.values[index ?? ended(line)];
    when.textContent = index == null ? (width ? `mean of ${width} steps` : "") : index < 0 ? "" : `step ${steps[index]}`;
    legend.replaceChildren(...lines.map(line => make("span", {},
      named ? make("i", { style: { background: line.colour } }) : null, named ? visible(line.label) : index == null ? "last" : "here",
      make("b", {}, format(value(line))))),
      ...(over ? [make("span", {}, "in all", make("b", {}, format(over[index ?? newest])))] : []));
    if (cross && place) {
      cross.style.visibility = index == null || index < 0 ? "hidden" : "visible";
      if (index != null && index >= 0) for (const end of ["x1", "x2"]) cross.setAttribute(end, place(steps[index]));
    }
  }

  function draw(total) {
    const height = 148, left = 44, right = 10, top = 8, bottom = 22;
    svg.setAttribute("viewBox", `0 0 ${total} ${height}`);
    const sums = steps.map((_, i) => lines.reduce((sum, line) => sum + (line.values[i] || 0), 0));
    const values = [...(spec.stack ? sums : lines.flatMap(line => line.values)), ...(over || [])].filter(value => value != null && (!spec.log || value > 0));
    let low = Math.min(...values, spec.stack ? 0 : spec.from ?? Infinity, spec.bound ?? Infinity);
    let high = Math.max(...values, spec.to ?? -Infinity, spec.bound ?? -Infinity);
    if (!spec.log && low === high) [low, high] = [Math.min(0, low), high || 1];
    const scale = spec.log ? Math.log10 : value => value;
    const marks = spec.log
      ? Array.from({ length: Math.ceil(Math.log10(high)) - Math.floor(Math.log10(low)) + 1 }, (_, i) => 10 ** (Math.floor(Math.log10(low)) + i))
      : ticks(low, high);
    low = Math.min(low, marks[0] ?? low); high = Math.max(high, marks.at(-1) ?? high);
    const x0 = left, x1 = total - right, y0 = height - bottom, y1 = top;
    const first = steps[0], span = steps.at(-1) - first || 1;
    const band = spec.stack ? (x1 - x0) / steps.length : 0;
    place = step => steps.length === 1 ? (x0 + x1) / 2 : x0 + band / 2 + (step - first) / span * (x1 - x0 - band);
    const y = value => y0 - (scale(value) - scale(low)) / (scale(high) - scale(low) || 1) * (y0 - y1);
    const parts = [];
    const shownMarks = marks.length > 5 ? marks.filter((_, i) => i % 2 === 0) : marks;
    for (const mark of shownMarks) parts.push(
      make("line", { class: "grid", x1: x0, x2: x1, y1: y(mark), y2: y(mark) }),
      make("text", { x: x0 - 7, y: y(mark) + 4, "text-anchor": "end" }, spec.log ? `1e${Math.round(Math.log10(mark))}`.replace("-", "−") : format === percent ? percent(mark) : Math.abs(mark) < 1e4 ? String(+mark.toPrecision(6)).replace("-", "−") : number(mark)));
    const below = steps.length === 1 ? steps : ticks(first, steps.at(-1)).filter(Number.isInteger);
    for (const step of below) parts.push(make("text", { x: place(step), y: height - 5, "text-anchor": "middle" }, number(step)));
    if (spec.bound) parts.push(make("line", { class: "bound", x1: x0, x2: x1, y1: y(spec.bound), y2: y(spec.bound) }));
    if (spec.stack) {
      const base = steps.map(() => 0), wide = Math.max(band - (band > 6 ? 1.5 : 0), 0.8);
      for (const line of lines) {
        const path = steps.map((step, i) => {
          const bottomY = y(base[i]), topY = y(base[i] += line.values[i] || 0);
          return bottomY === topY ? "" : `M${(place(step) - wide / 2).toFixed(1)} ${bottomY.toFixed(1)}h${wide.toFixed(2)}V${topY.toFixed(1)}h${-wide.toFixed(2)}Z`;
        });
        parts.push(make("path", { d: path.join(""), style: { fill: line.colour, opacity: 0.88 } }));
      }
    }
    const curve = (line, style) => {
      let pen = "M";
      const d = line.map((value, i) => {
        if (value == null || spec.log && value <= 0) return "";
        const point = `${pen}${place(steps[i]).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
        return point;
      });
      parts.push(make("path", { d: d.join(""), style: { fill: "none", strokeLinejoin: "round", ...style } }));
    };
    if (!spec.stack) for (const line of lines) {
      curve(line.values, { stroke: line.colour, strokeWidth: width ? 1.2 : 2, opacity: width ? 0.35 : 1 });
      if (width) curve(mean(line.values, width), { stroke: line.colour, strokeWidth: 2.2 });
      const known = line.values.filter(value => value != null).length;
      if (spec.dots || known === 1) line.values.forEach((value, i) => value != null && parts.push(
        make("circle", { cx: place(steps[i]), cy: y(value), r: 3.2, style: { fill: "var(--card)", stroke: line.colour, strokeWidth: 2 } })));
    }
    if (over) curve(over, { stroke: "var(--ink)", strokeWidth: 1.6 });
    cross = make("line", { class: "cross", y1, y2: y0 });
    svg.replaceChildren(...parts, cross);
    show(null);
  }

  svg.addEventListener("pointermove", event => {
    if (!place) return;
    const box = svg.getBoundingClientRect(), x = event.clientX - box.left;
    let best = 0;
    steps.forEach((step, i) => { if (Math.abs(place(step) - x) < Math.abs(place(steps[best]) - x)) best = i; });
    charts.forEach(one => one(best));
  });
  svg.addEventListener("pointerleave", () => charts.forEach(one => one(null)));
  new ResizeObserver(([entry]) => entry.contentRect.width && draw(entry.contentRect.width)).observe(svg);
  charts.push(show);
  return make("div", { class: "chart" }, make("div", { class: "head" }, make("b", {}, visible(spec.title)), when), legend, svg);
}

function curves() {
  if (!content.steps.length) return null;
  const [specs, rest] = chartSpecs();
  const more = rest.length && make("details", { class: "more" }, make("summary", {}, count(rest.length, "more metric")),
    make("div", { class: "charts" }, rest.map(chart)));
  return make("section", {}, make("div", { class: "bar" }, make("h2", {}, "Curves"),
    make("span", { class: "hint" }, "Point at a chart to read one step in all of them.")),
    make("div", { class: "charts" }, specs.map(chart)), more || null);
}

// ---- trajectories

const views = { text: drawText, tokens: drawTokens };
let view = views[address.get("view")] ? address.get("view") : "text";
let sides = []; // of the pair that is shown

function grouped(rows) {
  const out = new Map();
  for (const row of rows) out.has(row.task) ? out.get(row.task).push(row) : out.set(row.task, [row]);
  return out;
}

function remember(key, value) {
  address.set(key, value);
  history.replaceState(null, "", "#" + address);
}

/** Buttons of which one is pressed. */
function choice(names, chosen, act) {
  const buttons = names.map((name, i) => make("button", { "aria-pressed": i === chosen, onclick: () => {
    buttons.forEach((button, j) => button.setAttribute("aria-pressed", i === j));
    act(i);
  } }, visible(name)));
  return make("span", { class: "switch" }, buttons);
}

function trajectories() {
  const pairs = content.pairs;
  if (!pairs.length) return null;
  const tokens = pairs.some(pair => pair.sides.some(side => side.rows.some(row => row.spans)));
  if (!tokens) view = "text";
  const scale = make("span", { class: "scale" }, "expected", make("i"), "surprising (log-probability −5 or less); grey: not sampled");
  const place = make("div", { class: "sides" });
  const names = Object.keys(views);
  const look = choice(["Text", "Tokens"], names.indexOf(view), i => {
    view = names[i];
    scale.hidden = view !== "tokens";
    sides.forEach(drawSide);
    remember("view", view);
  });
  scale.hidden = view !== "tokens";
  const open = index => {
    sides = pairs[index].sides.map((side, i) => ({ ...side, key: "ab"[i], tasks: grouped(side.rows), node: make("article", { class: "side" }) }));
    sides.forEach((side, i) => {
      const partner = i && sides[0].row;
      const like = partner && (side.tasks.get(partner.task) || side.rows.filter(row => row.source === partner.source))[0];
      side.row = side.rows[address.get(side.key)] || like || opening(side);
      drawSide(side);
    });
    place.replaceChildren(...sides.map(side => side.node));
  };
  const first = Math.max(0, pairs.findIndex(pair => pair.name === address.get("pair")));
  const which = pairs.length > 1 ? choice(pairs.map(pair => pair.name), first, i => {
    ["a", "b"].forEach(key => address.delete(key));
    open(i);
    remember("pair", pairs[i].name);
  }) : null;
  open(first);
  return make("section", {}, make("div", { class: "bar" },
    make("h2", {}, content.kind === "run" ? "Trajectories, first and last" : "Trajectories"), which,
    tokens ? make("span", { class: "look" }, scale, look) : null), place);
}

/** What to look at first: a task on both sides whose trajectories differ in reward. */
function opening(side) {
  const other = sides.find(one => one !== side);
  const differs = rows => new Set(rows.map(row => row.reward)).size > 1;
  const both = [...side.tasks].filter(([task]) => !other || other.tasks.has(task));
  const [, rows] = both.find(([, rows]) => differs(rows)) || both[0] || [...side.tasks][0];
  return rows[0];
}

function choose(side, row) {
  side.row = row;
  drawSide(side);
  remember(side.key, side.rows.indexOf(row));
}

function drawSide(side) {
  const row = side.row, rows = side.tasks.get(row.task);
  const average = rows => {
    const known = rows.map(one => one.reward ?? one.score).filter(one => one != null);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  };
  const names = [...side.tasks.keys()];
  const select = make("select", { "aria-label": "Task", onchange: () => {
    const task = names[select.selectedIndex];
    for (const one of sides) if (one === side || one.tasks.has(task)) choose(one, one.tasks.get(task)[0]);
  } }, names.map(name => {
    const shared = sides.length > 1 && sides.every(one => one.tasks.has(name));
    return make("option", { selected: name === row.task ? "" : null }, `${visible(name)}, mean ${score(average(side.tasks.get(name)))}${shared ? ", on both sides" : ""}`);
  }));
  const chips = rows.map(one => {
    const value = one.reward ?? one.score;
    const colour = one.fault === "machine" || value == null ? "var(--c6)" : `color-mix(in oklab, var(--good) ${100 * value}%, var(--bad))`;
    return make("button", { "aria-pressed": one === row, title: `${visible(one.stop)}, ${count(one.num_turns, "turn")}`, onclick: () => choose(side, one),
      style: { color: colour, background: `color-mix(in srgb, ${colour} 10%, transparent)` } }, value == null ? "lost" : value.toFixed(2));
  });
  const share = side.rows.length < side.count ? `${side.rows.length} of ${side.count}` : `${side.count}`;
  const body = make("div", { class: "body" }, badges(row),
    row.error ? make("p", { class: "bad say error" }, visible(row.error)) : null,
    make("div", { class: "answer" }, make("span", {}, "What was graded"), row.answer ? make("div", { class: "say mono" }, visible(row.answer)) : make("em", { class: "soft" }, "nothing")),
    views[row.spans ? view : "text"](row));
  side.node.replaceChildren(make("header", {},
    make("h3", {}, visible(side.label), make("small", {}, `${share} trajectories, mean score ${score(side.score)}`)),
    select, make("div", { class: "chips" }, chips)), body);
}

function badges(row) {
  const badge = (label, value, look) => make("span", { class: `badge ${look || ""}` }, label, label ? " " : "", make("b", {}, value));
  const versions = new Set((row.spans || []).flatMap(span => span.versions.filter((_, i) => span.mask[i])));
  const sorted = [...versions].sort((a, b) => a - b);
  return make("div", { class: "badges" },
    badge("", visible(row.stop).replaceAll("_", " "), { none: "good", policy: "warn", machine: "bad" }[row.fault]),
    badge("score", score(row.score), row.score == null ? "" : tone(row.score)),
    badge("reward", score(row.reward), row.reward == null ? "" : tone(row.reward)),
    row.advantage == null ? null : badge("advantage", signed(row.advantage), row.advantage > 0 ? "good" : row.advantage < 0 ? "bad" : ""),
    badge("turns", number(row.num_turns)),
    badge("tokens", `${number(row.num_sampled)} sampled, ${number(row.num_environment)} environment`),
    sorted.length ? badge(sorted.length > 1 ? "weights" : "weight version", sorted.length > 1 ? `${sorted[0]} to ${sorted.at(-1)}` : `${sorted[0]}`) : null,
    badge("time", seconds(row.wall_s)));
}

function drawText(row) {
  const parts = [];
  const prompt = row.spans && row.spans.find(span => span.kind === "prompt" && span.text);
  if (prompt) parts.push(make("details", { class: "more" }, make("summary", {}, `Prompt, ${count(prompt.ids.length + prompt.omitted, "token")}`),
    make("pre", { class: "say" }, visible(prompt.text.join("")))));
  let expected = 0;
  for (const turn of row.turns) {
    if (turn.index > expected) parts.push(make("div", { class: "gap" }, `${count(turn.index - expected, "turn")} left out`));
    expected = turn.index + 1;
    parts.push(make("div", { class: "turn" }, make("div", { class: "no" }, turn.index + 1), make("div", {},
      turn.reasoning ? make("div", { class: "say think" }, visible(turn.reasoning)) : null,
      prose(turn), turn.calls.map(callCard), turn.observations.map(observationCard),
      turn.cut ? make("div", { class: "warn" }, "The reply was cut at its limit.") : null)));
  }
  if (!row.turns.length) parts.push(make("div", { class: "gap" }, "No turn was taken."));
  return make("div", {}, parts);
}

/** What was said beside the calls; the whole of it where a call was wrong, because then the wording is what matters. */
function prose(turn) {
  const whole = turn.calls.some(call => call.error) || !turn.calls.length;
  const text = (whole ? turn.text : turn.text.replace(/<tool_call>[\s\S]*?<\/tool_call>/g, "")).replace(/<\|im_end\|>\s*$/, "").trim();
  return text ? make("div", { class: "say" }, visible(text)) : null;
}

function callCard(call) {
  return make("div", { class: "call" },
    make("div", { class: "cap" }, make("b", {}, visible(call.name || "no name")), call.error ? make("span", { class: "bad" }, visible(call.error)) : null),
    call.arguments.map(([key, value]) => make("div", { class: value.includes("\n") || value.length > 60 ? "arg" : "arg one" },
      make("i", {}, visible(key)), make("pre", { class: "text" }, visible(value)))));
}

function observationCard(seen) {
  const facts = [
    seen.is_error ? make("span", { class: "bad" }, "the call was wrong") : null,
    seen.timed_out ? make("span", { class: "bad" }, "timed out") : null,
    seen.exit_code ? make("span", { class: "warn" }, `exit code ${seen.exit_code}`) : null,
    seen.finished ? make("span", { class: "good" }, "finished") : null,
  ].filter(Boolean);
  if (!seen.text && !facts.length) return null;
  return make("div", { class: `seen ${seen.is_error ? "error" : ""}` },
    make("div", { class: "cap" }, facts.length ? facts : make("span", {}, "observation"), make("span", {}, seen.duration_s ? seconds(seen.duration_s) : "")),
    seen.text ? make("pre", { class: "text" }, visible(seen.text)) : null);
}

const tokenOf = new WeakMap(); // element -> [row, span, index]

function drawTokens(row) {
  const title = { prompt: () => "Prompt", turn: span => `Turn ${span.turn + 1}`, observation: span => `Environment after turn ${span.turn + 1}` };
  return make("div", {}, row.spans.map(span => {
    const sampled = span.kind === "turn";
    const stream = make("div", { class: `stream ${sampled ? "sampled" : ""} ${span.text ? "" : "ids"}` });
    span.ids.forEach((id, i) => {
      if (span.omitted && i === span.omitted_at) stream.append(gap(span));
      const heat = span.mask[i] ? Math.min(1, -(span.logprobs[i] ?? -Infinity) / 5) ** 0.7 : 0; // null: not finite
      const token = make("u", heat > 0.02 ? { style: { background: `color-mix(in srgb, var(--heat) ${(78 * heat).toFixed(0)}%, transparent)` } } : {});
      for (const [j, piece] of (span.text ? visible(span.text[i]) : String(id)).split("\n").entries()) {
        if (j) token.append(make("span", { class: "nl" }, "↵"), "\n");
        token.append(piece);
      }
      tokenOf.set(token, [row, span, i]);
      stream.append(token, span.text ? "" : " ");
    });
    if (span.omitted && span.omitted_at >= span.ids.length) stream.append(gap(span));
    if (!sampled && span.ids.length > 60) {
      stream.classList.add("folded");
      stream.addEventListener("click", () => stream.classList.remove("folded"));
    }
    const mean = sampled && span.ids.length && !span.logprobs.includes(null) ? span.logprobs.reduce((a, b) => a + b, 0) / span.ids.length : null;
    return make("div", { class: "span" }, make("div", { class: "cap" }, make("b", {}, title[span.kind](span)),
      make("span", {}, count(span.ids.length + span.omitted, "token") + (mean == null ? "" : `, mean log-probability ${number(mean)}`))), stream);
  }));
}

const gap = span => make("div", { class: "gap" }, `${count(span.omitted, "token")} left out`);

// ---- the read-out of a token

const tip = make("div", { id: "tip", role: "status" });

document.addEventListener("pointerover", event => {
  const found = tokenOf.get(event.target.closest && event.target.closest("u"));
  if (!found) { tip.style.display = "none"; return; }
  const [row, span, i] = found, sampled = span.mask[i] === 1;
  const facts = [["token id", span.ids[i]], ["position", span.start + i + (span.omitted && i >= span.omitted_at ? span.omitted : 0)], ["loss mask", span.mask[i]]];
  if (sampled) facts.push(["log-probability", span.logprobs[i] == null ? "not finite" : span.logprobs[i].toFixed(4).replace("-", "−")],
    ["probability", span.logprobs[i] == null ? "–" : percent(Math.exp(span.logprobs[i]))],
    ["weight version", span.versions[i]], ["advantage", row.advantage == null ? "–" : signed(row.advantage)]);
  tip.replaceChildren(make("b", {}, span.text ? JSON.stringify(visible(span.text[i])) : "text not recorded"),
    make("dl", {}, facts.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, String(value))])));
  tip.style.display = "block";
  const box = event.target.closest("u").getClientRects()[0], size = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - size.width - 8))}px`;
  tip.style.top = `${box.bottom + size.height + 14 < innerHeight ? box.bottom + 8 : box.top - size.height - 8}px`;
});
document.addEventListener("scroll", () => { tip.style.display = "none"; }, true);

// ---- the rest

function scores() {
  if (!content.table) return null;
  const heads = [["Source", ""], ["Mode", ""], ["Trajectories", "num"], ["Mean score", "num"], ["Mean turns", "num"], ["How they end", ""]];
  return make("section", {}, make("div", { class: "bar" }, make("h2", {}, "Scores")), make("table", {},
    make("tr", {}, heads.map(([name, look]) => make("th", { class: look }, name))),
    content.table.map(one => make("tr", {}, make("td", {}, visible(one.source)), make("td", {}, visible(one.mode)), make("td", { class: "num" }, number(one.count)),
      make("td", { class: "num" }, make("b", {}, score(one.score))), make("td", { class: "num" }, one.turns.toFixed(1)),
      make("td", { class: "soft" }, one.stops.map(([stop, count]) => `${visible(stop).replaceAll("_", " ")} ${percent(count / one.count)}`).join(", "))))));
}

const notes = content.notes.length ? make("ul", { class: "notes" }, content.notes.map(note => make("li", {}, visible(note)))) : null;
const recipe = content.recipe ? make("section", {}, make("details", { class: "more" }, make("summary", {}, "The recipe, resolved"), make("pre", {}, visible(content.recipe)))) : null;
document.getElementById("page").append(...[header(), content.scores.length ? figures() : null, content.facts.length ? facts() : null, notes, scores(), curves(), trajectories(), recipe].filter(Boolean));
document.body.append(tip);
})();
