// Tokens: their colours, the legend, and the numbers under the pointer.
const amount = (value, digits = 3) => (value === null || value === undefined ? "·" : Number(value).toFixed(digits));
const signed = (value, digits = 2) => (value > 0 ? "+" : "") + amount(value, digits);
const at = (values, n) => (values === undefined ? null : Array.isArray(values) ? values[n] : values);
const milli = (values, n) => { const value = at(values, n); return value === null || value === undefined ? null : value / 1000; };
const ratioOf = (one, n) => { const value = at(one.r, n); return value === null || value === undefined ? null : 1 + value / 10000; };
const part = (value, whole) => (value === null || !whole ? null : Math.max(-1, Math.min(1, value / whole)));

// `shade` gives -1 to 1, or null where nothing is known; n is the place among the policy's tokens.
const COLOURS = {
  advantage: {
    kinds: ["good", "bad"],
    shade: (one, n) => part(milli(one.a, n), store.scales.advantage),
    ends: () => [signed(-store.scales.advantage), "0", signed(store.scales.advantage)],
    none: "no advantages are recorded",
  },
  ratio: {
    kinds: ["warm", "cold"],
    shade: (one, n) => { const ratio = ratioOf(one, n); return ratio > 0 ? part(Math.log(ratio), store.scales.ratio) : null; },
    ends: () => [amount(Math.exp(-store.scales.ratio), 4), "1", amount(Math.exp(store.scales.ratio), 4)],
    none: "no ratios are recorded, or all are 1",
  },
  clip: {
    kinds: ["warm", "cold"],
    shade: (one, n) => (one.r === undefined ? null : one.clips.has(n) ? 1 : 0),
    ends: () => ["kept", "clipped"],
    none: "not trained on",
  },
  mask: {
    kinds: ["accent", "cold"],
    shade: () => 0.6,
    ends: () => ["read", "produced"],
  },
  entropy: {
    kinds: ["unify", "cold"],
    shade: (one, n) => part(milli(one.e, n), store.scales.entropy),
    ends: () => ["0", `${amount(store.scales.entropy, 2)} nats`],
    none: "no entropies are recorded",
  },
  probability: {
    kinds: ["warm", "cold"],
    shade: (one, n) => { const logp = milli(one.l, n); return logp === null ? null : 1 - Math.exp(logp); },
    ends: () => ["1", "0"],
    none: "no log-probabilities are recorded",
  },
  none: { kinds: ["accent", "cold"], shade: () => 0, ends: () => [] },
};

function tokens(one, first, behind) {
  const shown = document.createDocumentFragment();
  for (let t = first; t < behind; t++) {
    const own = one.own[t] >= 0;
    const text = store.pieces[one.p[t]][1];
    const span = make("span", own ? "t own" : "t", (own ? text.replaceAll("\n", "↵\n") : text) || "·");
    if (!text) span.classList.add("half"); // the first bytes of a letter that the next token ends
    span.dataset.t = t;
    shown.append(span);
  }
  return shown;
}

// Sets the colours of all tokens below `box`, which shows one attempt.
function paint(box, one, name) {
  const { kinds, shade } = COLOURS[name];
  let known = false;
  for (const span of box.querySelectorAll(".t.own")) {
    const value = shade(one, one.own[span.dataset.t]);
    known ||= value !== null;
    span.style.setProperty("--s", value === null ? 0 : Math.abs(value).toFixed(3));
    span.style.setProperty("--hue", `var(--${value >= 0 ? kinds[0] : kinds[1]})`);
  }
  return known;
}

function legend(name, known) {
  const { kinds, ends, none } = COLOURS[name];
  const words = ends();
  const box = make("div", "legend");
  if (!words.length) return box;
  if (!known) return box.append(make("span", "", none)), box;
  const bar = make("i", words.length === 3 ? "bar two" : "bar");
  bar.style.setProperty("--up", `var(--${kinds[0]})`);
  bar.style.setProperty("--down", `var(--${kinds[1]})`);
  box.append(make("span", "", words[0]), bar, make("span", "", words.at(-1)));
  return box;
}

function numbers(one, t) {
  const [id] = store.pieces[one.p[t]];
  const n = one.own[t];
  const lines = [["token", `${JSON.stringify(store.pieces[one.p[t]][1])}${id >= 0 ? `  id ${id}` : ""}`], ["place", String(t)]];
  if (n < 0) return [...lines, ["mask", "read, not produced"]];
  const add = (label, value, digits) => { if (value !== null && value !== undefined) lines.push([label, amount(value, digits)]); };
  const logp = milli(one.l, n);
  if (logp !== null) lines.push(["probability", `${amount(Math.exp(logp), 4)}  (log ${amount(logp)})`]);
  add("advantage", milli(one.a, n));
  add("ratio", ratioOf(one, n), 4);
  if (one.r !== undefined) lines.push(["clip", one.clips.has(n) ? "clipped" : "kept"]);
  add("entropy", milli(one.e, n));
  add("log at the start of the update", milli(one.o, n));
  add("log of the reference", milli(one.f, n));
  add("value", milli(one.u, n));
  lines.push(["weights", `version ${at(one.v, n) ?? one.about.version ?? "·"}`]);
  return lines;
}

// One tip for all: follows the pointer, a tap or the focus.
function tips(find) {
  const tip = document.getElementById("tip");
  const hide = () => { tip.hidden = true; };
  const show = (span) => {
    const one = find(span);
    if (!one) return hide();
    tip.replaceChildren(...numbers(one, Number(span.dataset.t)).flatMap(([label, value]) => [make("b", "", label), make("span", "", value)]));
    tip.hidden = false;
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const above = box.top - size.height - 6;
    tip.style.left = `${Math.max(6, Math.min(innerWidth - size.width - 6, box.left))}px`;
    tip.style.top = `${above > 6 ? above : Math.min(box.bottom + 6, innerHeight - size.height - 6)}px`;
  };
  const look = (event) => { const span = event.target.closest?.(".t"); if (span) show(span); else hide(); };
  document.addEventListener("pointerover", look);
  document.addEventListener("click", look);
  document.addEventListener("scroll", hide, true);
  document.addEventListener("keydown", hide);
}
