// The list beside one trajectory, or two of the same task: before and after, one run and another, with and without tools.

/** What tells two trajectories of a task apart: the run, the step they were made at, or the mode. */
const side = (() => {
  const key = ["run", content.kind === "trajectories" ? "mode" : "place", "place", "mode"].find(name => store.names[name].length > 1);
  const many = store.names[key] ? store.names[key].length : 1;
  const label = row => key === "place" ? store.place(row) || "trajectories" : key ? store.name(key, row) + (key === "mode" ? " mode" : "") : "trajectories";
  const of = row => key ? content.index.columns[key][row] : 0;
  return { key, many, label, of };
})();

/** Of a task, its rows on each side: number of the side -> rows, in the order of the page. */
function sidesOf(row) {
  const found = new Map();
  for (const one of store.siblings.get(store.value("task", row))) found.has(side.of(one)) ? found.get(side.of(one)).push(one) : found.set(side.of(one), [one]);
  return found;
}

/** The trajectory to stand beside `row`: of the same task, on the last other side; of the last side, on the first. A task
 * that was tried on one side only: one that ended otherwise there. */
function counterpart(row, wanted) {
  const found = sidesOf(row), others = [...found.keys()].filter(one => one !== side.of(row));
  if (!others.length) {
    const near = found.get(side.of(row)).filter(one => one !== row);
    return near.find(one => store.gained(one) !== store.gained(row)) ?? near[0] ?? null;
  }
  const later = others.filter(one => one > side.of(row));
  const chosen = others.includes(wanted) ? wanted : later.length ? later.at(-1) : others[0];
  return found.get(chosen)[0];
}

/** What to look at first: the task on whose two sides the rewards differ most. */
function opening() {
  let best = [-1, 0];
  for (const rows of store.siblings.values()) {
    const other = side.many > 1 ? counterpart(rows[0]) : null;
    if (other != null) {
      const gain = Math.abs((store.gained(other) ?? 0) - (store.gained(rows[0]) ?? 0)) + (store.fault(rows[0]) === "none" ? 0.5 : 0);
      if (gain > best[0]) best = [gain, rows[0]];
    }
  }
  return best[1];
}

function explorer() {
  if (!store.size) return null;
  const looks = store.hasTokens ? ["text", "tokens"] : ["text"];
  let look = Math.max(0, looks.indexOf(address.get("view")));
  let beside = side.many > 1 && (address.get("beside") ?? (innerWidth < 860 ? "0" : "1")) !== "0";
  let wanted = null; // the side of the right pane that a person has chosen
  const panes = [pane("Trajectory"), pane("Beside it")];
  const list = trajectoryList(row => choose(row), () => panes[0].node.focus());

  function pane(label) {
    const node = make("article", { class: "pane", tabindex: -1, "aria-label": label });
    return { node, row: null, turn: 0 };
  }

  function choose(row) {
    remember("row", row);
    show(panes[0], row);
    follow();
  }

  function follow() {
    panes[1].node.hidden = !beside;
    place.classList.toggle("two", beside);
    if (!beside) return;
    const other = panes[0].row == null ? null : counterpart(panes[0].row, wanted);
    if (other != null) show(panes[1], other);
    else {
      panes[1].turn++;
      panes[1].row = null;
      panes[1].node.replaceChildren(make("p", { class: "empty" }, "This task has no other trajectory."));
    }
  }

  async function show(one, row) {
    const mine = ++one.turn, focused = one.node.contains(document.activeElement) ? document.activeElement.dataset.part : null;
    const sameRow = one.row === row, top = one.body ? one.body.scrollTop : 0;
    one.row = row;
    let said, spans;
    try {
      [said, spans] = await Promise.all([store.text(row), looks[look] === "tokens" || store.hasTokens ? store.tokens(row) : null]);
    } catch (error) {
      if (mine === one.turn) one.node.replaceChildren(make("p", { class: "empty bad" }, visible(error.message || error)));
      return;
    }
    if (mine !== one.turn) return;
    const inner = !said ? [badges(row, null), make("p", { class: "empty" }, "There was no room for its text on this page; see the notes above.")]
      : [badges(row, spans, said.used), said.error ? make("p", { class: "bad say error" }, visible(said.error)) : null, asked(row, said),
        looks[look] === "tokens" ? (spans ? drawTokens(row, spans) : make("p", { class: "empty" }, "The tokens of this one are not on this page.")) : drawText(said, spans)];
    one.body = make("div", { class: "body", tabindex: 0, "data-part": "body", role: "region", "aria-label": `What was said, ${visible(store.name("task", row))}` }, inner.filter(Boolean));
    one.node.replaceChildren(head(one, row), one.body);
    if (sameRow) one.body.scrollTop = top;
    const back = focused && one.node.querySelector(`[data-part="${focused}"]`);
    if (back) back.focus({ preventScroll: true });
  }

  function head(one, row) {
    const all = sidesOf(row), here = all.get(side.of(row)), second = one === panes[1];
    const go = to => { if (second) show(one, to); else { list.mark(to); choose(to); } };
    const names = [...all.keys()];
    const title = rows => `${side.label(rows[0])}: ${count(rows.length, "trajectory")}, mean ${score(average(rows.map(store.gained)))}`;
    const where = names.length > 1 ? make("select", { "aria-label": "Where this task was tried", "data-part": "where", onchange: () => {
      const to = all.get(names[where.selectedIndex])[0];
      if (second) wanted = side.of(to);
      go(to);
    } }, names.map(name => make("option", { selected: name === side.of(row) ? "" : null }, visible(title(all.get(name)))))) : side.many > 1 ? make("div", { class: "where" }, visible(side.label(row))) : null;
    const near = here.length > 1 ? around(here, row) : [];
    const chips = near.map(to => {
      const gained = store.gained(to), machine = store.fault(to) === "machine";
      return make("button", { type: "button", class: `chip ${machine ? "soft" : tone(gained)}`, "aria-pressed": to === row ? "true" : "false", "data-part": to === row ? "chip" : null,
        title: `${visible(store.name("stop", to))}, ${count(store.value("turns", to), "turn")}`, onclick: event => { event.currentTarget.dataset.part = "chip"; go(to); } }, gained == null ? "lost" : fixed(gained, 2));
    });
    return make("header", {}, make("h3", {}, visible(store.name("task", row))), where,
      chips.length ? make("div", { class: "chips", role: "group", "aria-label": "Trajectories of this task" }, chips, here.length > near.length ? make("span", { class: "soft" }, `of ${here.length}`) : null) : null);
  }

  /** At most 24 of the rows, `row` among them. */
  function around(rows, row) {
    const at = rows.indexOf(row), start = Math.max(0, Math.min(at - 12, rows.length - 24));
    return rows.slice(start, start + 24);
  }

  const scale = make("span", { class: "scale" });
  function redrawScale() {
    const [, low, high] = SHADES[shade];
    scale.replaceChildren(low, make("i"), `${high}; not shaded: not sampled`);
    tools.hidden = looks[look] !== "tokens";
  }
  const again = () => { redrawScale(); for (const one of panes) if (one.row != null) show(one, one.row); };
  const shades = choice("What the shade of a token says", ["Surprise", "Mismatch", "Version"], shade, i => { shade = i; remember("shade", i ? SHADES[i][0] : ""); again(); });
  const tools = make("span", { class: "tools" }, shades, scale);
  const seen = looks.length > 1 ? choice("What to show", ["Text", "Tokens"], look, setLook) : null;
  function setLook(i) { look = i; remember("view", i ? looks[i] : ""); if (seen) seen.set(i); again(); }
  const pairing = side.many > 1 ? make("button", { type: "button", class: "toggle", "aria-pressed": String(beside), title: "The same task elsewhere, beside it", onclick: () => {
    beside = !beside;
    pairing.setAttribute("aria-pressed", beside);
    remember("beside", beside ? "1" : "0");
    follow();
  } }, "Side by side") : null;
  const place = make("div", { class: "panes" }, panes.map(one => one.node));
  redrawScale();

  keys.set("/", ["search", () => list.search.focus()]);
  keys.set("f", ["failed only", () => list.failed.click()]);
  keys.set("j", ["next trajectory", () => list.step(1)]);
  keys.set("k", ["previous trajectory", () => list.step(-1)]);
  if (looks.length > 1) keys.set("t", ["text or tokens", () => setLook(1 - look)]);
  if (pairing) keys.set("b", ["side by side, or one alone", () => pairing.click()]);
  keys.set("l", ["to the list", () => list.box.focus()]);
  place.addEventListener("keydown", event => { if (event.key === "Escape") { tip.hidden = true; list.box.focus(); } });

  const first = address.has("row") ? noted("row", store.size - 1) : opening();
  requestAnimationFrame(() => { list.mark(first); choose(first); });
  return section("Trajectories", "", make("div", { class: "bar second" }, seen, pairing, tools), make("div", { class: "explorer" }, list.node, place));
}
