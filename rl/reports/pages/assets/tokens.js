// The tokens one by one: what was sampled and how surprising it was, loss mask, log-probabilities of engine and learner.

const of = (values, i) => Array.isArray(values) ? values[i] : values;
const tokenOf = new WeakMap(); // element -> [row, span, index]
const SHADES = [["surprise", "expected", "surprising (log-probability −5 or less)"], ["mismatch", "engine and learner differ by a millionth", "by 1 % or more"], ["version", "older weights", "newest"]];
let shade = Math.max(0, SHADES.findIndex(([name]) => name === address.get("shade")));

/** How strongly a token is coloured, 0 to 1. */
function heat(span, i, newest) {
  if (!of(span.mask, i)) return 0;
  const logprob = span.logprobs[i], mismatch = span.mismatch && span.mismatch[i];
  if (SHADES[shade][0] === "surprise") return logprob == null ? 1 : Math.min(1, -logprob / 5) ** 0.7;
  if (SHADES[shade][0] === "mismatch") return mismatch ? Math.max(0, Math.min(1, (Math.log10(Math.abs(mismatch)) + 6) / 4)) : 0;
  return newest[1] > newest[0] ? (of(span.versions, i) - newest[0]) / (newest[1] - newest[0]) : 0;
}

function drawTokens(row, spans) {
  const title = { prompt: () => "Prompt", turn: span => `Turn ${span.turn + 1}`, observation: span => `Environment after turn ${span.turn + 1}` };
  const seen = spans.flatMap(span => span.tokens.map((_, i) => of(span.mask, i) ? of(span.versions, i) : null)).filter(value => value != null);
  const newest = seen.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  const body = make("div", { class: "tokens" }, spans.map(span => {
    const sampled = span.kind === "turn", written = span.tokens.some(([, text]) => text != null);
    const stream = make("div", { class: `stream ${sampled ? "sampled" : ""} ${written ? "" : "ids"}` });
    span.tokens.forEach(([id, text], i) => {
      if (span.omitted && i === span.omitted_at) stream.append(gap(span));
      const strength = heat(span, i, newest);
      const token = make("u", { class: of(span.mask, i) ? "on" : "", ...(strength > 0.02 ? { style: { background: `color-mix(in srgb, var(--heat) ${(70 * strength).toFixed(0)}%, transparent)` } } : {}) });
      for (const [j, piece] of (text != null ? visible(text) : String(id)).split("\n").entries()) {
        if (j) token.append(make("span", { class: "nl" }, "↵"), "\n");
        token.append(piece);
      }
      tokenOf.set(token, [row, span, i]);
      stream.append(token, text != null ? "" : " ");
    });
    if (span.omitted && span.omitted_at >= span.tokens.length) stream.append(gap(span));
    const long = !sampled && span.tokens.length > 60;
    const unfold = long ? make("button", { type: "button", class: "plain", onclick: () => { stream.classList.remove("folded"); unfold.remove(); } }, "Show all of it") : null;
    if (long) stream.classList.add("folded");
    const known = sampled && span.logprobs && !span.logprobs.includes(null) ? average(span.logprobs) : null;
    return make("div", { class: "span" }, make("div", { class: "cap" }, make("b", {}, title[span.kind](span)),
      make("span", {}, count(span.tokens.length + span.omitted, "token") + (known == null ? "" : `, mean log-probability ${number(known)}`))), stream, unfold);
  }));
  body.tabIndex = 0;
  body.setAttribute("role", "group");
  body.setAttribute("aria-label", "Tokens. Left and right arrow keys read one token after the other.");
  body.addEventListener("keydown", event => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const all = [...body.querySelectorAll("u")].filter(one => !one.closest(".folded")), now = all.indexOf(body.querySelector("u.here"));
    const next = all[Math.max(0, Math.min(all.length - 1, now < 0 ? (by > 0 ? 0 : all.length - 1) : now + by))];
    if (!next) return;
    body.querySelectorAll("u.here").forEach(one => one.classList.remove("here"));
    next.classList.add("here");
    next.scrollIntoView({ block: "nearest" });
    readOut(next);
  });
  body.addEventListener("blur", () => { body.querySelectorAll("u.here").forEach(one => one.classList.remove("here")); tip.hidden = true; });
  return body;
}

const gap = span => make("div", { class: "gap" }, `${count(span.omitted, "token")} left out`);

const tip = make("div", { id: "tip", role: "status", hidden: "" });

/** Show what is known of a token. */
function readOut(node) {
  const [row, span, i] = tokenOf.get(node), [id, text] = span.tokens[i], sampled = of(span.mask, i);
  const logprob = span.logprobs && span.logprobs[i], mismatch = span.mismatch && span.mismatch[i], advantage = store.value("advantage", row);
  const facts = [["token id", id], ["position", span.start + i + (span.omitted && i >= span.omitted_at ? span.omitted : 0)], ["loss mask", sampled]];
  if (sampled) facts.push(
    ["log-prob, engine", logprob == null ? "not finite" : fixed(logprob, 4)], ["probability", logprob == null ? "–" : percent(Math.exp(logprob))],
    ["log-prob, learner", mismatch == null ? "not recorded" : fixed(logprob + mismatch, 4)], ["mismatch", mismatch == null ? "–" : (mismatch > 0 ? "+" : "") + mismatch.toExponential(1).replaceAll("-", "−")],
    ["weight version", of(span.versions, i)], ["advantage", advantage == null ? "–" : signed(advantage)]);
  tip.replaceChildren(make("b", {}, text != null ? JSON.stringify(visible(text)) : "text not recorded"),
    make("dl", {}, facts.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, String(value))])));
  tip.hidden = false;
  const box = node.getClientRects()[0], size = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - size.width - 8))}px`;
  tip.style.top = `${box.bottom + size.height + 14 < innerHeight ? box.bottom + 8 : Math.max(8, box.top - size.height - 8)}px`;
}

document.addEventListener("pointerover", event => {
  const node = event.target.closest && event.target.closest("u");
  if (tokenOf.has(node)) readOut(node);
  else if (!document.querySelector("u.here")) tip.hidden = true;
});
document.addEventListener("scroll", () => { if (!document.querySelector("u.here")) tip.hidden = true; }, true);
