"use strict";
const root = document.documentElement;
const make = (name, kind, text) => {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  return made;
};

document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// One way of asking at a time; without a script all rows are there.
for (const choose of document.querySelectorAll(".choose")) {
  const names = choose.dataset.names.split(" ").filter(Boolean);
  if (names.length < 2) continue;
  const rows = choose.parentElement.querySelectorAll("tr[data-metric]");
  const show = (name) => {
    for (const row of rows) row.hidden = row.dataset.metric !== name;
    for (const button of choose.children) button.setAttribute("aria-pressed", button.dataset.name === name);
  };
  for (const name of names) {
    const button = make("button", "", name === "pass" ? "pass@k" : name);
    button.type = "button";
    button.dataset.name = name;
    button.addEventListener("click", () => show(name));
    choose.append(button);
  }
  show(names[0]);
}

// On a phone the newest stages are the ones to see first.
for (const scroll of document.querySelectorAll(".choose + .scroll")) scroll.scrollLeft = scroll.scrollWidth;

// The point under the pointer of a curve.
for (const plot of document.querySelectorAll(".plot")) {
  const points = JSON.parse(plot.dataset.points);
  const labels = plot.dataset.labels ? JSON.parse(plot.dataset.labels) : null;
  const names = plot.dataset.names ? JSON.parse(plot.dataset.names) : null; // of several lines
  const mark = make("i", "mark");
  const tip = make("span", "tip");
  const leave = () => { mark.remove(); tip.remove(); };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const at = 100 * (event.clientX - box.left) / box.width;
    const down = names ? (100 * (event.clientY - box.top)) / box.height : 0;
    const far = (p) => Math.abs(p[2] - at) + (names ? Math.abs(p[3] - down) / 50 : 0);
    const near = points.reduce((a, b) => (far(b) < far(a) ? b : a));
    const step = `${plot.dataset.unit} ${near[0].toLocaleString("en")}`;
    const place = labels ? labels[near[0]] : names ? `${names[near[4]]}, ${step}` : step;
    tip.textContent = `${place}: ${near[1].toLocaleString("en", { maximumSignificantDigits: 4 })}`;
    for (const shown of [mark, tip]) {
      shown.style.left = `${near[2]}%`;
      shown.style.top = `${near[3]}%`;
      plot.append(shown);
    }
    const over = tip.getBoundingClientRect();
    const shift = Math.max(0, 8 - over.left) - Math.max(0, over.right - innerWidth + 8);
    if (shift) tip.style.left = `calc(${near[2]}% + ${shift}px)`;
  });
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("pointercancel", leave);
}

// The section in view, in the list on top.
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const watch = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) links.get(target.id).classList.toggle("here", isIntersecting);
}, { rootMargin: "-15% 0px -75% 0px" });
for (const section of document.querySelectorAll("section")) watch.observe(section);
