// Scores: of each source, compared task by task with the first run, and of a sweep's arms.

const cell = (value, look, tag = "td") => make(tag, { class: look || null }, value);

/** A table that may be wider than the page: it scrolls by itself, also by keys. `heads`: [text, class]. */
function table(label, heads, rows) {
  return make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": label }, make("table", {},
    make("thead", {}, make("tr", {}, heads.map(([text, look]) => make("th", { scope: "col", class: look || null }, text)))),
    make("tbody", {}, rows)));
}

/** A number with its true length as a bar: from nothing to one. */
function bar(value, low, high) {
  if (value == null) return make("span", { class: "soft" }, "–");
  const at = one => `${100 * Math.min(1, Math.max(0, one))}%`;
  const whole = make("span", { class: "meter", "aria-hidden": "true" }, make("i", { style: { width: at(value) } }));
  if (low != null && high != null && high > low) whole.append(make("u", { style: { left: at(low), width: `${100 * (Math.min(1, high) - Math.max(0, low))}%` } }));
  return make("span", { class: "metered" }, make("b", {}, score(value)), whole);
}

function scoresSection() {
  const rows = content.table || [], several = new Set(rows.map(one => one.run)).size > 1;
  if (!rows.length) return null;
  const heads = [...(several ? [["Run"]] : []), ["Source"], ["Mode"], ["Trajectories", "num"], ["Mean score"], ["Mean turns", "num"], ["How they end"]];
  return section("Scores", "Of every trajectory on this page.", table("Scores", heads, rows.map(one => make("tr", {},
    several ? cell(visible(one.run)) : null, cell(visible(one.source)), cell(visible(one.mode)), cell(one.count.toLocaleString("en-US"), "num"), cell(bar(one.score)), cell(fixed(one.turns, 1), "num"),
    cell(one.stops.map(([stop, n]) => `${visible(stop).replaceAll("_", " ")} ${percent(n / one.count)}`).join(", "), "soft")))));
}

function pairsSection() {
  const pairs = (content.pairs || []).filter(pair => pair.rows.length > 1);
  if (!pairs.length) return null;
  const written = p => p < 0.001 ? "< 0.001" : p.toFixed(3);
  return section("Compared task by task", `Each with ${visible(pairs[0].rows[0].run)}, on the tasks that both have; 95 % intervals.`, pairs.map(pair => [
    pairs.length > 1 || pair.set ? make("h3", { class: "over" }, visible(pair.set), make("small", {}, ` ${visible(pair.mode)} mode`)) : null,
    table(`Comparison on ${visible(pair.set)}`, [["Run"], ["Tasks", "num"], ["Mean score"], ["Difference", "num"], ["95 %", "num"], ["p", "num"], ["Test"]], pair.rows.map(one => make("tr", {},
      cell([make("i", { class: "key", style: { background: colourOf(one.run) } }), visible(one.run)]), cell(number(one.num), "num"), cell(bar(one.score, one.low, one.high)),
      one.difference == null ? cell("the first", "num soft") : cell(make("b", { class: one.between[0] > 0 ? "good" : one.between[1] < 0 ? "bad" : "" }, signed(one.difference)), "num"),
      cell(one.between ? `[${signed(one.between[0])}, ${signed(one.between[1])}]` : "", "num"), cell(one.p == null ? "" : written(one.p), "num"), cell(one.test || "", "soft")))),
  ]));
}

/** The colour of a run or an arm in the curves. */
const colourOf = label => `var(--c${Math.max(0, curves.groups.indexOf(label)) % 7})`;

function sweepSection() {
  if (content.kind !== "sweep") return null;
  const rows = content.sweep, columns = [...new Set(rows.map(row => `${row.set}, ${row.mode}`))], arms = [...new Set(rows.map(row => row.arm))];
  const found = (arm, column) => rows.find(row => row.arm === arm && `${row.set}, ${row.mode}` === column);
  const value = text => text === "" || text == null ? null : +text;
  const scores = rows.length ? table("Scores of the arms", [["Arm"], ...columns.map(column => [visible(column)]), ["Seeds", "num"]], arms.map(arm => make("tr", {}, cell(visible(arm)),
    columns.map(column => { const row = found(arm, column); return cell(row ? bar(value(row.mean), value(row.low), value(row.high)) : "–"); }),
    cell(`${rows.find(row => row.arm === arm).seeds}${+rows.find(row => row.arm === arm).seeds_failed ? `, ${rows.find(row => row.arm === arm).seeds_failed} failed` : ""}`, "num")))) : null;
  const states = table("Cells", [["Cell"], ["Arm"], ["State"]], content.cells.map(([name, arm, state]) => make("tr", {}, cell(visible(name)), cell(visible(arm)),
    cell(visible(state), state === "finished" ? "good" : state === "has not begun" ? "soft" : "warn"))));
  const open = content.cells.some(([, , state]) => state !== "finished");
  return section("Arms", rows.length ? "Means over seeds with 95 % intervals." : "The table is written when the sweep ends.", scores, folded(count(content.cells.length, "cell"), () => states, open));
}
