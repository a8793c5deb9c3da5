// What the page holds: a line for the list of all attempts, then one with the tokens of each.
const FIELDS = ["stage", "task", "key", "group", "step", "level", "status", "turns", "advantage", "reward", "raw", "tokens", "age"];
const store = { rows: [], lines: [], pieces: [], scales: {}, stages: [], tasks: [], groups: new Map(), places: new Map(), texts: [] };

async function unpack() {
  const block = document.getElementById("data");
  let text = block.textContent;
  if (block.type === "application/gzip") {
    if (typeof DecompressionStream === "undefined")
      throw new Error("This browser cannot unpack the data. Write the page with: etude rollouts … --plain");
    const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
    text = await new Response(stream).text();
  }
  block.remove();
  const [head, ...lines] = text.split("\n");
  const { rows, ...rest } = JSON.parse(head);
  Object.assign(store, rest, { lines });
  store.rows = rows.map((values, at) => {
    const row = { at };
    FIELDS.forEach((name, n) => { row[name] = values[n]; });
    if (row.advantage !== null) row.advantage /= 1000;
    row.place = `${store.stages[row.stage]}/${row.key}`;
    row.group = `${store.stages[row.stage]}/${row.group}`;
    store.places.set(row.place, at);
    if (!store.groups.has(row.group)) store.groups.set(row.group, []);
    store.groups.get(row.group).push(at);
    return row;
  });
  for (const members of store.groups.values()) {
    const signal = new Set(members.map((at) => store.rows[at].reward)).size > 1;
    for (const at of members) store.rows[at].signal = signal;
  }
}

function bytes(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const found = new Uint8Array(letters.length);
  for (let n = 0; n < letters.length; n++) found[n] = letters.charCodeAt(n);
  return found;
}

// An attempt whole; `own` is each token's place among those the policy produced, or -1.
function attempt(at) {
  const body = JSON.parse(store.lines[at]);
  const own = new Int32Array(body.p.length).fill(-1);
  let n = 0;
  for (const [first, behind] of body.m) for (let t = first; t < behind; t++) own[t] = n++;
  return { ...body, own, row: store.rows[at], clips: new Set(body.c) };
}

function textOf(at) {
  store.texts[at] ??= JSON.parse(store.lines[at]).p.map((n) => store.pieces[n][1]).join("").toLowerCase();
  return store.texts[at];
}

const ORDERS = {
  run: (a, b) => a.at - b.at,
  late: (a, b) => b.step - a.step || b.at - a.at,
  best: (a, b) => b.reward - a.reward || a.at - b.at,
  worst: (a, b) => a.reward - b.reward || a.at - b.at,
  push: (a, b) => Math.abs(b.advantage ?? 0) - Math.abs(a.advantage ?? 0) || a.at - b.at,
  long: (a, b) => b.tokens - a.tokens || a.at - b.at,
  short: (a, b) => a.tokens - b.tokens || a.at - b.at,
};

// The attempts that pass, in order. What is null asks for nothing.
function select(wanted) {
  const words = wanted.search.toLowerCase();
  const passes = (row) =>
    (wanted.stage === null || row.stage === wanted.stage) &&
    (wanted.task === null || row.task === wanted.task) &&
    (wanted.status === null || row.status === wanted.status) &&
    (wanted.low === null || row.reward >= wanted.low) &&
    (wanted.high === null || row.reward <= wanted.high) &&
    (wanted.first === null || row.step >= wanted.first) &&
    (wanted.last === null || row.step <= wanted.last) &&
    (!wanted.signal || row.signal) &&
    (!words || textOf(row.at).includes(words)); // last: it takes tokens apart
  return store.rows.filter(passes).sort(ORDERS[wanted.sort]);
}
