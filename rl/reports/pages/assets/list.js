// The list of all trajectories: filtered, sorted, searched. Only the rows in view exist, so 10,000 scroll as ten do.

const ROW = 36; // pixels
const SORTS = [
  ["in order", row => row], ["lowest reward", row => store.gained(row) ?? -1], ["highest reward", row => -(store.gained(row) ?? -1)],
  ["highest advantage", row => -(store.value("advantage", row) ?? -1e9)], ["lowest advantage", row => store.value("advantage", row) ?? 1e9],
  ["most turns", row => -store.value("turns", row)], ["most sampled tokens", row => -store.value("sampled", row)], ["longest time", row => -(store.value("wall", row) ?? 0)],
];
const REWARDS = [["any reward", () => true], ["reward 1", row => store.gained(row) >= 1], ["between 0 and 1", row => store.gained(row) > 0 && store.gained(row) < 1],
  ["reward 0", row => store.gained(row) === 0], ["below 0", row => store.gained(row) < 0], ["no reward", row => store.gained(row) == null]];

/** The list and its filters. `chosen(row)` is called when a person chooses one, `open()` to go on to what it says. */
function trajectoryList(chosen, open) {
  const state = { text: address.get("q") || "", failed: address.get("failed") === "1", reward: noted("reward", REWARDS.length - 1), sort: noted("sort", SORTS.length - 1), picks: {} };
  let rows = [], at = -1, turn = 0;

  // ---- filters

  const search = make("input", { type: "search", placeholder: "Search everything said…", "aria-label": "Search the text of all trajectories", value: state.text, spellcheck: "false" });
  let typing = 0;
  search.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => { state.text = search.value; remember("q", state.text); apply(); }, 120); });
  const failed = make("button", { type: "button", class: "toggle", "aria-pressed": String(state.failed), title: "Reward 0, a limit used up, or lost to the machine", onclick: () => {
    state.failed = !state.failed;
    failed.setAttribute("aria-pressed", state.failed);
    remember("failed", state.failed ? "1" : "");
    apply();
  } }, "Failed only");

  function picker(label, names, key, start = 0) {
    const select = make("select", { "aria-label": label, onchange: () => { act(select.selectedIndex); apply(); } }, names.map((name, i) => make("option", { selected: i === start ? "" : null }, visible(name))));
    const act = i => { if (key === "reward" || key === "sort") state[key] = i; else state.picks[key] = i - 1; remember(key, i || ""); };
    return select;
  }
  const named = [["stop", "Stop reason", "any ending", text => text.replaceAll("_", " ")], ["source", "Source", "any source", text => text], ["mode", "Mode", "any mode", text => text],
    ["place", "Step", "any step", ([what, step]) => store.placed(what, step)], ["run", "Run", "any run", text => text]].filter(([key]) => store.names[key].length > 1);
  const selects = named.map(([key, label, any, write]) => {
    const start = noted(key, store.names[key].length);
    state.picks[key] = start - 1;
    return picker(label, [any, ...store.names[key].map(write)], key, start);
  });
  const present = REWARDS.filter(([, test], i) => !i || rowsAll().some(test));
  const rewards = picker("Reward", present.map(([name]) => name), "reward", Math.min(state.reward, present.length - 1));
  const sorts = SORTS.filter(([name]) => !name.includes("advantage") || content.index.columns.advantage.some(value => value != null));
  const sorting = picker("Order", sorts.map(([name]) => name), "sort", Math.min(state.sort, sorts.length - 1));
  const clear = make("button", { type: "button", class: "plain", onclick: () => {
    Object.assign(state, { text: "", failed: false, reward: 0 });
    search.value = "";
    failed.setAttribute("aria-pressed", "false");
    rewards.selectedIndex = 0;
    named.forEach(([key], i) => { state.picks[key] = -1; selects[i].selectedIndex = 0; remember(key, ""); });
    for (const key of ["q", "failed", "reward"]) remember(key, "");
    apply();
    box.focus();
  } }, "Show all");
  const told = make("div", { class: "told", role: "status" });

  function rowsAll() { return Array.from({ length: store.size }, (_, row) => row); }

  function passes(row) {
    if (state.failed && !store.failed(row)) return false;
    if (!present[Math.min(state.reward, present.length - 1)][1](row)) return false;
    return named.every(([key]) => state.picks[key] < 0 || content.index.columns[key][row] === state.picks[key]);
  }

  async function apply() {
    const mine = ++turn, needle = state.text.trim().toLowerCase(), kept = rowsAll().filter(passes);
    if (!needle) return show(kept, "");
    const found = new Set(kept.filter(row => store.listed(row, needle))), open = new Set(kept);
    show([...found].sort((a, b) => a - b), "searching…");
    let told = performance.now();
    for (let chunk = 0; chunk < store.numChunks; chunk++) {
      for (const row of await store.searched(chunk, needle, row => open.has(row) && !found.has(row))) found.add(row);
      if (mine !== turn) return; // a newer search is on its way
      if (performance.now() - told > 150) {
        told = performance.now();
        show([...found].sort((a, b) => a - b), `searching, ${percent((chunk + 1) / store.numChunks)}…`);
      }
    }
    show([...found].sort((a, b) => a - b), "");
  }

  function show(kept, busy) {
    const current = rows[at], by = sorts[Math.min(state.sort, sorts.length - 1)][1];
    rows = state.sort ? kept.map(row => [by(row), row]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, row]) => row) : kept;
    at = rows.indexOf(current);
    const mean = average(rows.map(row => store.value("score", row)));
    told.replaceChildren(make("b", {}, rows.length === store.size ? count(store.size, "trajectory") : `${rows.length.toLocaleString("en-US")} of ${count(store.size, "trajectory")}`),
      rows.length ? ` mean score ${score(mean)}` : " Nothing matches.", busy ? make("span", { class: "soft" }, ` ${busy}`) : "");
    clear.hidden = rows.length === store.size && !state.text;
    spacer.style.height = `${rows.length * ROW}px`;
    render(true);
  }

  // ---- rows

  const spacer = make("div", { class: "rows" });
  const box = make("div", { class: `list ${store.names.place.length + store.names.run.length > 2 ? "placed" : ""}`, role: "listbox", tabindex: 0, "aria-label": "Trajectories" }, spacer);
  const pool = [];

  function cellRow() {
    const parts = Object.fromEntries(["reward", "where", "task", "answer", "stop", "turns", "tokens"].map(name => [name, make("span", { class: `c-${name}` })]));
    const node = make("div", { role: "option", class: "row", onclick: () => { choose(node.at, true); } }, Object.values(parts));
    return Object.assign(node, { parts, at: -1, row: -1 });
  }

  function fill(node, i) {
    const row = rows[i], { parts } = node, gained = store.gained(row), fault = store.fault(row);
    node.at = i;
    node.style.transform = `translateY(${i * ROW}px)`;
    node.setAttribute("aria-posinset", i + 1);
    node.setAttribute("aria-setsize", rows.length);
    node.setAttribute("aria-selected", i === at ? "true" : "false");
    if (node.row === row) return;
    node.row = row;
    node.id = `row${row}`;
    parts.reward.textContent = gained == null ? "lost" : fixed(gained, 2);
    parts.reward.className = `c-reward ${fault === "machine" ? "soft" : tone(gained)}`;
    parts.where.textContent = line([store.names.run.length > 1 ? store.name("run", row) : "", store.short(row)].filter(Boolean).join(" · "));
    parts.task.replaceChildren(make("bdi", {}, line(store.name("task", row))));
    const gold = store.name("gold", row), answer = store.name("answer", row);
    parts.answer.textContent = line(answer || "no answer") + (gold && gold !== answer ? ` ≠ ${line(gold)}` : "");
    parts.answer.className = `c-answer ${answer ? "" : "soft"}`;
    parts.stop.textContent = line(store.name("stop", row)).replaceAll("_", " ");
    parts.stop.className = `c-stop ${{ none: "", policy: "warn", machine: "bad" }[fault]}`;
    parts.turns.textContent = count(store.value("turns", row), "turn");
    parts.tokens.textContent = `${number(store.value("sampled", row))} tok`;
  }

  function render(all) {
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 4), last = Math.min(rows.length, first + Math.ceil((box.clientHeight || 400) / ROW) + 9);
    while (pool.length < last - first) { const node = cellRow(); pool.push(node); spacer.append(node); }
    pool.forEach((node, k) => {
      const i = first + (((k - first) % pool.length) + pool.length) % pool.length; // a row keeps its node while it scrolls
      node.hidden = i >= last;
      if (!node.hidden && (all || node.at !== i || node.row !== rows[i])) fill(node, i);
    });
    if (at >= 0) box.setAttribute("aria-activedescendant", `row${rows[at]}`);
    else box.removeAttribute("aria-activedescendant");
  }

  let waiting = false;
  box.addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; render(false); }); } }, { passive: true });
  new ResizeObserver(() => render(false)).observe(box);

  function reveal() {
    if (at < 0) return;
    if (at * ROW < box.scrollTop) box.scrollTop = at * ROW;
    else if ((at + 1) * ROW > box.scrollTop + box.clientHeight) box.scrollTop = (at + 1) * ROW - box.clientHeight;
  }

  function choose(i, tell) {
    if (!rows.length) return;
    at = Math.max(0, Math.min(rows.length - 1, i));
    reveal();
    render(true);
    if (tell) chosen(rows[at]);
  }

  box.addEventListener("keydown", event => {
    const page = Math.max(1, Math.floor(box.clientHeight / ROW) - 1);
    const by = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (by !== undefined) { event.preventDefault(); choose(Math.min(rows.length - 1, Math.max(0, at + by)), true); }
    else if (event.key === "Enter") { event.preventDefault(); open(); }
  });
  search.addEventListener("keydown", event => { if (event.key === "ArrowDown") { event.preventDefault(); box.focus(); choose(Math.max(0, at), true); } });

  apply();
  const filters = make("div", { class: "filters" }, search, make("div", { class: "picks" }, failed, rewards, selects, sorting, clear));
  return {
    node: make("div", { class: "listing" }, filters, told, box), box, search, failed,
    step: by => { choose(at + by, true); },
    /** Mark a row as chosen elsewhere. */
    mark: row => { at = rows.indexOf(row); reveal(); render(true); },
  };
}
