// What a trajectory says: the question, what was graded beside the right answer, and its turns.

function badges(row, spans, used) {
  const badge = (label, value, look) => make("span", { class: `badge ${look || ""}` }, label, label ? " " : "", make("b", {}, value));
  const gained = store.value("reward", row), advantage = store.value("advantage", row), versions = new Set();
  for (const span of spans || []) for (let i = 0; i < span.tokens.length; i++) if (of(span.mask, i)) versions.add(of(span.versions, i));
  const sorted = [...versions].sort((a, b) => a - b);
  return make("div", { class: "badges" },
    badge("", visible(store.name("stop", row)).replaceAll("_", " "), { none: "good", policy: "warn", machine: "bad" }[store.fault(row)]),
    badge("score", score(store.value("score", row)), tone(store.value("score", row))),
    badge("reward", score(gained), tone(gained)),
    advantage == null ? null : badge("advantage", signed(advantage), advantage > 0 ? "good" : advantage < 0 ? "bad" : ""),
    badge("turns", number(store.value("turns", row))),
    badge("tokens", `${number(store.value("sampled", row))} sampled, ${number(store.value("environment", row))} environment`),
    sorted.length ? badge(sorted.length > 1 ? "weights" : "weight version", sorted.length > 1 ? `${sorted[0]} to ${sorted.at(-1)}` : `${sorted[0]}`) : null,
    badge("time", seconds(store.value("wall", row))),
    used ? badge("sandbox", visible(used)) : null);
}

/** The question, and what was graded beside the right answer. */
function asked(row, said) {
  const gained = store.value("score", row);
  return make("div", { class: "asked" },
    said.question ? make("div", { class: "question" }, make("h4", {}, "Question"), make("div", { class: "say" }, visible(said.question))) : null,
    make("div", { class: "answers" },
      make("div", { class: `answer ${tone(gained)}` }, make("h4", {}, "What was graded"), said.answer ? make("div", { class: "say mono" }, visible(said.answer)) : make("em", {}, "nothing")),
      said.gold ? make("div", { class: "answer right" }, make("h4", {}, "Right answer"), make("div", { class: "say mono" }, visible(said.gold))) : null));
}

function drawText(said, spans) {
  const parts = [];
  const prompt = spans && spans.find(span => span.kind === "prompt" && span.tokens.some(([, text]) => text != null));
  if (prompt) parts.push(folded(`Prompt, ${count(prompt.tokens.length + prompt.omitted, "token")}`, () => make("pre", { class: "say boxed" }, visible(prompt.tokens.map(([, text]) => text ?? "").join("")))));
  let expected = 0;
  for (const turn of said.turns) {
    if (turn.index > expected) parts.push(make("div", { class: "gap" }, `${count(turn.index - expected, "turn")} left out`));
    expected = turn.index + 1;
    parts.push(make("div", { class: "turn" }, make("div", { class: "no", title: `Turn ${turn.index + 1}` }, turn.index + 1), make("div", {},
      turn.reasoning ? make("div", { class: "say think" }, visible(turn.reasoning)) : null,
      prose(turn), turn.calls.map(callCard), turn.observations.map(observationCard),
      turn.cut ? make("div", { class: "warn" }, "The reply was cut at its limit.") : null)));
  }
  if (!said.turns.length) parts.push(make("div", { class: "gap" }, "No turn was taken."));
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
    seen.exit_code ? make("span", { class: "warn" }, `exit code ${visible(seen.exit_code)}`) : null,
    seen.finished ? make("span", { class: "good" }, "finished") : null,
  ].filter(Boolean);
  if (!seen.text && !facts.length) return null;
  return make("div", { class: `seen ${seen.is_error ? "error" : ""}` },
    make("div", { class: "cap" }, facts.length ? make("span", {}, facts) : make("span", {}, "observation"), make("span", {}, seen.duration_s ? seconds(seen.duration_s) : "")),
    seen.text ? make("pre", { class: "text" }, visible(seen.text)) : null);
}
