// One attempt, or all of its group side by side.
const look = { colour: "advantage", group: false };
const open = new Map(); // from the box on screen to its attempt

function badge(row) {
  const kind = row.reward >= 1 ? "right" : row.reward > 0 ? "part" : "wrong";
  return make("span", `badge ${kind}`, row.reward === null ? "·" : String(+row.reward.toFixed(3)));
}

function facts(one, { brief = false } = {}) {
  const { row, about } = one;
  const first = [
    ["advantage", row.advantage === null ? null : signed(row.advantage)],
    ["raw reward", row.raw !== null && row.raw !== row.reward ? amount(row.raw, 2) : null],
    ...Object.entries(about.terms ?? {}).map(([name, value]) => [name, typeof value === "number" ? signed(value) : String(value)]),
    ["status", brief && row.status === "completed" ? null : row.status],
    ["tokens", row.tokens],
    ["clipped", one.c?.length || null],
    ["age", row.age || null],
  ];
  const more = [
    ["turns", row.turns > 1 ? row.turns : null],
    ["temperature", about.temperature],
    ["weights", about.version],
    ["updates", about.updates],
    ["answer", one.w === undefined ? null : typeof one.w === "string" ? one.w : JSON.stringify(one.w)],
  ];
  const list = make("dl", "told");
  for (const [name, value] of brief ? first : [...first, ...more]) {
    if (value === null || value === undefined || value === "") continue;
    const pair = make("div");
    pair.append(make("dt", "", name), make("dd", "", String(value)));
    list.append(pair);
  }
  return list;
}

function block(kind, title, ...inside) {
  const box = make("div", `turn ${kind}`);
  const head = make("header");
  head.append(make("span", "who", title));
  box.append(head, ...inside);
  return box;
}

function words(one, first, behind) {
  const box = make("pre");
  box.append(tokens(one, first, behind));
  return box;
}

function opening(one) {
  const end = one.m.length ? one.m[0][0] : one.p.length;
  const text = one.p.slice(0, end).map((n) => store.pieces[n][1]).join("");
  const box = make("details", "turn prompt");
  box.open = text.length <= 700;
  const title = make("summary");
  title.append(make("span", "who", "prompt"), make("small", "", box.open || one.about.older ? "" : `${end} tokens`));
  if (!box.open) title.append(make("span", "end", `… ${text.slice(-80)}`));
  box.append(title, words(one, 0, end));
  return box;
}

function call([name, given]) {
  const inside = Object.entries(given ?? {}).map(([key, value]) => `${key}=${JSON.stringify(value)}`);
  return make("code", "call", `${name}(${inside.join(", ")})`);
}

// Spans of the policy's tokens are its turns; what stands between them it was told.
function conversation(one) {
  const box = make("div", "turns");
  const turns = one.t ?? [];
  const whole = turns.length === one.m.length;
  one.m.forEach(([first, behind], n) => {
    const turn = whole ? turns[n] : {};
    const notes = make("div", "notes");
    for (const made of turn.calls ?? []) notes.append(call(made));
    for (const text of turn.problems ?? []) notes.append(make("span", "problem", text));
    const name = one.m.length > 1 ? `policy, turn ${n + 1}` : "policy";
    box.append(block("policy", name, words(one, first, behind), ...(notes.children.length ? [notes] : [])));
    const next = n + 1 < one.m.length ? one.m[n + 1][0] : one.p.length;
    const heard = turn.heard ?? [];
    const who = heard.length ? [...new Set(heard)].join(", ") : whole ? "observation" : "not in the loss";
    if (next > behind) box.append(block("heard", who, words(one, behind, next)));
  });
  return box;
}

function column(one, chosen) {
  const box = make("section", chosen ? "column chosen" : "column");
  const head = make("header");
  const link = make("a", "", one.row.key);
  link.href = `#${linkTo(one.row.at)}`;
  head.append(badge(one.row), link);
  box.append(head, facts(one, { brief: true }), conversation(one));
  open.set(box, one);
  return box;
}

function rest(one) {
  if (!one.i) return [];
  const box = make("details", "info");
  box.append(make("summary", "", "what the environment noted"), make("pre", "", JSON.stringify(one.i, null, 1)));
  return [box];
}

function bar(row, size) {
  const box = make("div", "tools");
  const press = (label, title, act) => {
    const button = make("button", "", label);
    button.type = "button";
    button.title = title;
    button.addEventListener("click", act);
    box.append(button);
    return button;
  };
  press("‹ list", "back to the list (Esc)", close).classList.add("back");
  press("↑", "the one before (k)", () => move(-1));
  press("↓", "the next (j)", () => move(1));
  const group = press(look.group ? "this one" : `group of ${size}`, "all attempts at this problem (g)", toggle);
  group.setAttribute("aria-pressed", look.group);
  group.disabled = size < 2;
  const choice = make("select");
  choice.setAttribute("aria-label", "colour of the tokens");
  for (const name of Object.keys(COLOURS)) choice.append(new Option(name === "none" ? "no colour" : name, name, false, name === look.colour));
  choice.addEventListener("change", () => { look.colour = choice.value; recolour(); address(); });
  box.append(choice, make("span", "key"));
  return box;
}

function recolour() {
  let known = false;
  for (const [box, one] of open) known = paint(box, one, look.colour) || known;
  const key = document.querySelector("#detail .key");
  if (key) key.replaceChildren(legend(look.colour, known));
  const choice = document.querySelector("#detail .tools select");
  if (choice) choice.value = look.colour;
}

// Shows an attempt in the right pane.
function show(at) {
  const pane = document.getElementById("detail");
  const one = attempt(at);
  const { row } = one;
  const members = store.groups.get(row.group);
  const title = make("h2", "", `${store.tasks[row.task] || "task"}${row.level === "" ? "" : ` ${row.level}`}`);
  title.append(make("small", "", `${store.stages[row.stage]} · step ${row.step} · ${row.key}`));
  open.clear();
  const shown = [bar(row, members.length), title];
  if (look.group) {
    const all = members.map((other) => (other === at ? one : attempt(other)));
    const rewards = all.map((other) => other.row.reward);
    const mean = rewards.reduce((a, b) => a + b, 0) / rewards.length;
    const told = `${all.length} recorded attempts, mean reward ${amount(mean, 2)}${row.signal ? "" : ", all equal: no signal"}`;
    const side = make("div", "side");
    side.append(...all.map((other) => column(other, other === one)));
    shown.push(make("p", "note", told), opening(one), side);
  } else {
    title.prepend(badge(row));
    const box = make("div", "single");
    box.append(facts(one), opening(one), conversation(one), ...rest(one));
    open.set(box, one);
    shown.push(box);
  }
  pane.replaceChildren(...shown);
  pane.scrollTop = 0;
  const here = pane.querySelector(".column.chosen");
  if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 40;
  recolour();
}
