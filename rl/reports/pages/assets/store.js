// The trajectories: a list of all of them in columns, and what they say in chunks that are read when they are needed.

const store = (() => {
  const { count: size, names, columns, faults, text: textStarts, tokens: tokenStarts } = content.index;
  const name = (key, row) => names[key][columns[key][row]];
  const value = (key, row) => columns[key][row];
  const gained = row => columns.reward[row] ?? columns.score[row];
  const fault = row => faults[name("stop", row)];
  const failed = row => fault(row) !== "none" || !(gained(row) > 0);
  const place = row => { const [what, step] = name("place", row); return placed(what, step); };
  const placed = (what, step) => step < 0 ? what : what === "Training" ? `step ${step}` : step ? `${what}, step ${step}` : `${what}, before training`;

  const short = row => { const [what, step] = name("place", row); return step < 0 ? what : what === "Training" ? `step ${step}` : `${what} ${step}`; };

  const siblings = new Map(); // task -> its rows
  columns.task.forEach((task, row) => siblings.has(task) ? siblings.get(task).push(row) : siblings.set(task, [row]));

  /** The element of a chunk; the end of a large page may still be on its way. */
  async function element(id) {
    for (;;) {
      const found = document.getElementById(id);
      if (found && (found.nextSibling || document.readyState !== "loading")) return found;
      if (document.readyState !== "loading") throw new Error("This page is cut off: a part of it is missing.");
      await new Promise(done => setTimeout(done, 20));
    }
  }

  async function unpacked(id) {
    const packed = (await element(id)).textContent;
    const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(packed) : Uint8Array.from(atob(packed), c => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
  }

  const cache = new Map(); // id -> promise of a chunk, the last used last
  function chunk(id) {
    const found = cache.get(id) || unpacked(id).then(JSON.parse);
    cache.delete(id);
    cache.set(id, found);
    if (cache.size > 12) cache.delete(cache.keys().next().value);
    return found;
  }

  function chunkOf(starts, row) {
    let low = 0, high = starts.length;
    while (low < high) { const middle = (low + high) >> 1; if (starts[middle] <= row) low = middle + 1; else high = middle; }
    return low - 1;
  }

  /** What row says; null where the page has no room for it. */
  async function text(row) {
    const at = chunkOf(textStarts, row);
    return at < 0 ? null : (await chunk(`text${at}`)).rows[row] ?? null;
  }

  /** Its spans of tokens, each token as [id, text]; null where it has none. */
  async function tokens(row) {
    const at = chunkOf(tokenStarts, row);
    if (at < 0) return null;
    const { table, rows } = await chunk(`tokens${at}`);
    return rows[row] ? rows[row].map(span => ({ ...span, tokens: span.tokens.map(i => table[i]) })) : null;
  }

  const LISTED = ["task", "question", "answer", "gold", "source", "stop"];
  const lowered = Object.fromEntries(LISTED.map(key => [key, names[key].map(text => String(text).toLowerCase())]));
  const listed = (row, needle) => LISTED.some(key => lowered[key][columns[key][row]].includes(needle));

  function* said(value) {
    if (typeof value === "string") yield value;
    else if (value && typeof value === "object") for (const one of Object.values(value)) yield* said(one);
  }

  /** Rows of chunk `at` that say `needle` (lower case) anywhere, among those that `wanted` takes. */
  async function searched(at, needle, wanted) {
    const raw = await unpacked(`text${at}`);
    const escaped = JSON.stringify(needle).slice(1, -1).replace(/[^\x20-\x7e]/g, c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
    if (/^[\x20-\x7e]*$/.test(needle) && !/[<>&]/.test(needle) && !raw.toLowerCase().includes(escaped.toLowerCase())) return [];
    const { rows } = JSON.parse(raw);
    return Object.keys(rows).map(Number).filter(row => wanted(row) && [...said(rows[row])].some(text => text.toLowerCase().includes(needle)));
  }

  return { size, names, name, value, gained, fault, failed, place, placed, short, siblings, text, tokens, listed, searched, numChunks: textStarts.length, hasTokens: tokenStarts.length > 0 };
})();
