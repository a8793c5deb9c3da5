// The list, the filters, the keyboard and the address.
const HEIGHT = 46; // of a row, in pixels; the style sheet has the same
const field = (id) => document.getElementById(id);
const list = field("list");
const sizer = field("sizer");
let shown = []; // what passes the filters
let chosen = null; // place in store.rows

const figure = (id) => (field(id).value === "" ? null : Number(field(id).value));
const choice = (id) => (field(id).value === "" ? null : field(id).value);
const wanted = () => ({
  search: field("search").value,
  stage: figure("stage"),
  task: figure("task"),
  status: choice("status"),
  low: figure("low"),
  high: figure("high"),
  first: figure("first"),
  last: figure("last"),
  signal: field("signal").checked,
  sort: field("sort").value,
});

function refresh() {
  shown = select(wanted());
  const mean = shown.reduce((sum, row) => sum + (row.reward ?? 0), 0) / (shown.length || 1);
  const signal = shown.filter((row) => row.signal).length / (shown.length || 1);
  field("count").textContent = shown.length
    ? `${shown.length.toLocaleString("en")} of ${store.rows.length.toLocaleString("en")} · reward ${mean.toFixed(2)} · ${(100 * signal).toFixed(0)} % with signal`
    : "none passes the filters";
  sizer.style.height = `${shown.length * HEIGHT}px`;
  list.scrollTop = 0;
  draw();
}

// Only the rows in view exist.
function draw() {
  const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - 4);
  const behind = Math.min(shown.length, first + Math.ceil(list.clientHeight / HEIGHT) + 8);
  sizer.replaceChildren(...shown.slice(first, behind).map((row, n) => line(row, first + n)));
}

function line(row, n) {
  const box = make("div", row.at === chosen ? "item here" : "item");
  box.style.top = `${n * HEIGHT}px`;
  box.dataset.at = row.at;
  box.setAttribute("role", "option");
  box.setAttribute("aria-selected", row.at === chosen);
  const name = make("b", "", `${store.tasks[row.task] || "task"}${row.level === "" ? "" : ` ${row.level}`}`);
  const about = `${store.stages.length > 1 ? `${store.stages[row.stage]} · ` : ""}step ${row.step} · ${row.tokens ?? "·"} tokens${row.turns > 1 ? ` · ${row.turns} turns` : ""}`;
  const left = make("div", "name");
  left.append(name, make("small", "", about));
  const ended = row.status && row.status !== "completed" ? [make("span", "mode", row.status)] : [];
  const push = row.advantage === null ? [] : [make("span", row.advantage > 0 ? "push up" : row.advantage < 0 ? "push down" : "push", signed(row.advantage))];
  box.append(left, ...ended, ...push, badge(row));
  return box;
}

const linkTo = (at) => `rollout=${encodeURIComponent(store.rows[at].place)}`;
const whole = () => `#${linkTo(chosen)}${look.group ? "&group=1" : ""}${look.colour === "advantage" ? "" : `&colour=${look.colour}`}`;

function address() { if (chosen !== null) history.replaceState(null, "", whole()); }

function pick(at, { push = false } = {}) {
  chosen = at;
  if (push) history.pushState(null, "", whole()); else address();
  document.body.classList.add("reading");
  show(at);
  reveal();
  draw();
}

// Brings the chosen row into view.
function reveal() {
  const n = shown.findIndex((row) => row.at === chosen);
  if (n < 0) return;
  const top = n * HEIGHT;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
}

function move(by) {
  const n = shown.findIndex((row) => row.at === chosen);
  const next = shown[n < 0 ? 0 : Math.max(0, Math.min(shown.length - 1, n + by))];
  if (next && next.at !== chosen) pick(next.at);
}

function toggle() {
  if (chosen === null || store.groups.get(store.rows[chosen].group).length < 2) return;
  look.group = !look.group;
  pick(chosen);
}

function close() {
  document.body.classList.remove("reading");
  if (innerWidth < 900) history.replaceState(null, "", location.pathname + location.search);
  draw();
}

// From the address to the page.
function follow() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const at = store.places.get(asked.get("rollout"));
  if (Object.hasOwn(COLOURS, asked.get("colour") ?? "")) look.colour = asked.get("colour");
  if (at !== undefined) {
    look.group = asked.has("group") && store.groups.get(store.rows[at].group).length > 1;
    return pick(at);
  }
  document.body.classList.remove("reading");
  if (asked.has("rollout")) field("detail").replaceChildren(make("p", "note", `No rollout ${asked.get("rollout")} is on this page.`));
  else if (innerWidth >= 900 && shown.length) { chosen = shown[0].at; show(chosen); draw(); }
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  g: toggle,
  c: () => {
    const names = Object.keys(COLOURS);
    look.colour = names[(names.indexOf(look.colour) + 1) % names.length];
    recolour();
    address();
  },
  "/": () => field("search").focus(),
  Escape: close,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input, select, textarea");
  if (typing && event.key === "Escape") return event.target.blur();
  if (typing || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

function options(id, names, all) {
  field(id).replaceChildren(new Option(all, ""), ...names.map(([name, value]) => new Option(name, value)));
  field(id).parentElement.hidden = names.length < 2;
}

function start() {
  options("stage", store.stages.map((name, n) => [name, n]), "all");
  options("task", store.tasks.map((name, n) => [name || "task", n]), "all");
  options("status", [...new Set(store.rows.map((row) => row.status))].sort().map((name) => [name || "·", name]), "all");
  let timer = 0;
  field("filters").addEventListener("submit", (event) => event.preventDefault());
  field("filters").addEventListener("input", (event) => {
    clearTimeout(timer);
    timer = setTimeout(refresh, event.target.id === "search" ? 250 : 0);
  });
  field("clear").addEventListener("click", () => { field("filters").reset(); refresh(); });
  field("more").addEventListener("click", (event) => {
    event.target.setAttribute("aria-expanded", event.target.getAttribute("aria-expanded") !== "true");
    draw();
  });
  list.addEventListener("scroll", draw);
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".item");
    if (row) pick(Number(row.dataset.at), { push: true });
  });
  addEventListener("resize", draw);
  addEventListener("popstate", follow);
  tips((span) => open.get([...open.keys()].find((box) => box.contains(span))) ?? [...open.values()][0]);
  refresh();
  follow();
  document.documentElement.dataset.ready = Math.round(performance.now());
}

unpack().then(start).catch((error) => field("detail").replaceChildren(make("p", "note problem", error.message)));
