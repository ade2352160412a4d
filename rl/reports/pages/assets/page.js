// The page as a whole: its head, its sections in order, its keys.

const keys = new Map(); // key -> [what it does, function]

function header() {
  const status = content.status || "", live = content.live;
  const look = status === "finished" ? "good" : status === "not finished" || status === "interrupted" ? "warn" : "bad";
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => address.get("theme") ? address.get("theme") === "dark" : prefers.matches;
  const theme = make("button", { type: "button", class: "plain", onclick: () => { remember("theme", dark() ? "light" : "dark"); paint(); } });
  function paint() {
    document.documentElement.style.colorScheme = address.get("theme") || "";
    theme.textContent = dark() ? "Light" : "Dark";
    theme.setAttribute("aria-label", dark() ? "Show the page in light colours" : "Show the page in dark colours");
  }
  prefers.addEventListener("change", paint);
  paint();
  const what = { run: "training run", trajectories: "trajectories", compare: "comparison", sweep: "sweep" }[content.kind];
  return make("header", { class: "top" },
    make("div", {}, make("div", { class: "kicker" }, make("b", {}, "sandboxrl"), ` ${what}, made ${content.made}`),
      make("div", { class: "name" }, make("h1", {}, visible(content.title)), status ? make("span", { class: `pill ${look}` }, visible(status)) : null)),
    make("div", { class: "actions" }, live ? following() : null, make("button", { type: "button", class: "plain", "aria-haspopup": "dialog", onclick: help }, "Keys"), theme));
}

/** A run that goes on writes this page again and again: read it anew while nobody is doing anything here. */
function following() {
  let touched = 0;
  for (const kind of ["pointerdown", "pointermove", "keydown", "wheel", "touchstart"]) addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
  setInterval(() => {
    if (address.get("follow") !== "0" && document.visibilityState === "visible" && Date.now() - touched > 15_000) location.reload();
  }, 30_000);
  const button = make("button", { type: "button", class: "toggle", "aria-pressed": String(address.get("follow") !== "0"), title: "Read this page anew every 30 s while you do nothing in it", onclick: () => {
    remember("follow", address.get("follow") === "0" ? "" : "0");
    button.setAttribute("aria-pressed", address.get("follow") !== "0");
  } }, "Follow the run");
  return button;
}

function figures() {
  return make("div", { class: "figures" }, (content.scores || []).map(({ name, before, after, detail }) => {
    const at = value => 100 * Math.min(1, Math.max(0, value)), from = before ?? 0, delta = before == null ? 0 : after - before;
    const track = make("i", { style: { left: `${at(Math.min(from, after))}%`, width: `${Math.abs(at(after) - at(from))}%`, background: before == null ? "var(--accent)" : delta >= 0 ? "var(--good)" : "var(--bad)" } });
    return make("div", { class: "figure" }, make("div", { class: "label" }, visible(name)),
      make("div", { class: "value" }, before == null ? null : make("span", { class: "from" }, `${score(before)} → `), score(after),
        before == null ? null : make("span", { class: `delta ${delta > 0 ? "good" : delta < 0 ? "bad" : "soft"}` }, signed(delta))),
      make("div", { class: "track", "aria-hidden": "true" }, track), make("div", { class: "detail" }, visible(detail)));
  }));
}

function facts() {
  const write = { seconds, count: number };
  return make("dl", { class: "facts" }, (content.facts || []).map(fact => make("div", {}, make("dt", {}, fact.label),
    make("dd", {}, write[fact.unit](fact.value), make("small", {}, visible(fact.detail))))));
}

function help() {
  const close = make("button", { type: "button", class: "plain", onclick: () => box.close() }, "Close");
  const rows = [...keys].map(([key, [what]]) => [key, what]).concat([["↑ ↓", "in the list: one trajectory after the other; Page Up, Page Down, Home, End too"], ["Enter", "from the list to what it says"], ["Esc", "back to the list"], ["← →", "in a chart or among tokens: one step, one token"], ["?", "this help"]]);
  const box = make("dialog", { "aria-label": "Keys", onclose: () => box.remove() }, make("h2", {}, "Keys"),
    make("dl", { class: "keys" }, rows.map(([key, what]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, what)])), close);
  document.body.append(box);
  box.showModal();
}

document.addEventListener("keydown", event => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || document.querySelector("dialog[open]")) return;
  if (event.key === "?") { event.preventDefault(); help(); }
  else if (keys.has(event.key)) { event.preventDefault(); keys.get(event.key)[1](); }
});

const notes = content.notes.length ? make("ul", { class: "notes" }, content.notes.map(note => make("li", {}, visible(note)))) : null;
const papers = [content.recipe ? folded("The recipe, resolved", () => make("pre", { class: "paper", tabindex: 0 }, visible(content.recipe))) : null,
  content.log ? folded("The log's last lines", () => make("pre", { class: "paper", tabindex: 0 }, visible(content.log))) : null].filter(Boolean);
const main = document.getElementById("page");
main.append(...[header(), content.scores && content.scores.length ? figures() : null, content.facts && content.facts.length ? facts() : null, notes, sweepSection(), pairsSection(),
  content.kind === "run" ? null : scoresSection(), curvesSection(), explorer(), papers.length ? section(content.log ? "Recipe and log" : "Recipe", "", papers) : null].filter(Boolean));
document.body.append(tip);
main.dataset.drawn = "1";
