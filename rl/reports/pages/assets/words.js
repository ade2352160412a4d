// Elements, words and the page's address. Everything the page is given is hostile: text reaches it as text nodes only.

const content = JSON.parse(document.getElementById("content").textContent);
const address = new URLSearchParams(location.hash.slice(1)); // what a person has chosen; kept when the page is made anew
const SVG = new Set(["svg", "g", "path", "line", "circle", "text", "rect"]);

/** An element with attributes (`on…`: a listener, `style`: properties) and children (nodes, texts, nothing, arrays). */
function make(tag, attributes, ...children) {
  const node = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "style") Object.assign(node.style, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  for (const child of children.flat(Infinity)) if (child != null && child !== "" && child !== false) node.append(child);
  return node;
}

/** Text as a person may see it: control and direction characters become visible, so nothing can hide or reorder. */
function visible(text) {
  return String(text)
    .replace(/[\0-\x08\x0b-\x1f\x7f]/g, c => String.fromCharCode(c === "\x7f" ? 0x2421 : 0x2400 + c.charCodeAt(0)))
    .replace(/[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, c => `⟨${c.charCodeAt(0).toString(16)}⟩`);
}

/** One line of it, for a list. */
const line = text => visible(String(text).replace(/\s+/g, " ").trim());

function number(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toFixed(size < 1e7 ? 2 : 1) + "M";
  if (size >= 1e4) return (value / 1e3).toFixed(size < 1e5 ? 1 : 0) + "k";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  if (size < 1e-3) return value.toExponential(1).replaceAll("-", "−");
  return value.toPrecision(3).replace("-", "−");
}
const fixed = (value, digits) => value == null ? "–" : value.toFixed(digits).replace("-", "−");
const score = value => fixed(value, 3);
const signed = (value, digits = 3) => (value > 0 ? "+" : "") + fixed(value, digits);
const percent = value => value == null ? "–" : (100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0) + "%";
const plural = noun => noun.endsWith("y") ? noun.slice(0, -1) + "ies" : noun + "s";
const count = (value, noun) => `${value < 1e5 ? value.toLocaleString("en-US") : number(value)} ${value === 1 ? noun : plural(noun)}`;
const words = key => key.split("/").pop().replace(/_s$/, "").replaceAll("_", " ");
const tone = value => value == null ? "" : value >= 0.75 ? "good" : value > 0 ? "warn" : "bad";

function seconds(value) {
  if (value == null) return "–";
  if (value < 10) return value.toFixed(value < 1 ? 2 : 1) + " s";
  if (value < 60) return Math.round(value) + " s";
  const total = Math.round(value), hours = Math.floor(total / 3600), minutes = Math.floor(total / 60) % 60;
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${total % 60} s`;
}

function remember(key, value) {
  if (value == null || value === "" || value === false) address.delete(key);
  else address.set(key, value);
  history.replaceState(null, "", "#" + address);
}

/** A number from the address, which anyone may have typed: a whole one from 0 to `most`, else 0. */
function noted(key, most) {
  const value = Number(address.get(key));
  return Number.isInteger(value) && value >= 0 && value <= most ? value : 0;
}

/** Buttons of which one is pressed. `act` gets the place of the one that a person presses. */
function choice(label, names, chosen, act) {
  const buttons = names.map((name, i) => make("button", { type: "button", "aria-pressed": i === chosen ? "true" : "false", onclick: () => { set(i); act(i); } }, visible(name)));
  const set = i => buttons.forEach((button, j) => button.setAttribute("aria-pressed", i === j ? "true" : "false"));
  return Object.assign(make("span", { class: "switch", role: "group", "aria-label": label }, buttons), { set });
}

/** A section whose heading stands over what it holds. */
function section(title, hint, ...children) {
  const kept = children.flat(Infinity).filter(Boolean);
  if (!kept.length) return null;
  const id = "h-" + title.toLowerCase().replace(/\W+/g, "-");
  return make("section", { "aria-labelledby": id },
    make("div", { class: "bar" }, make("h2", { id }, title), hint ? make("span", { class: "hint" }, hint) : null), kept);
}

/** Something that opens, and that is made only then. */
function folded(title, build, open = false) {
  const node = make("details", { class: "more" }, make("summary", {}, title));
  const fill = () => { if (node.open && node.children.length === 1) node.append(build()); };
  node.addEventListener("toggle", fill);
  if (open) { node.open = true; fill(); }
  return node;
}
