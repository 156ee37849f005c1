"use strict";
const byId = (id) => document.getElementById(id);
const items = JSON.parse(byId("data").textContent);
byId("data").remove(); // megabytes, of thousands of requests
const list = byId("cards");
const cards = [...list.children]; // in the order that is shown
const large = byId("large");
const links = [...list.querySelectorAll("a[data-at]")];
const place = "kie4o:" + location.pathname;
let marked = new Set();
let current = null; // "item.variant"
let comparing = false;
let fitting = cards; // those that pass the filter
const SLICE = 200; // cards that are shown at once: 5,000 take Chromium half a second

const itemAt = (at) => items[+at.split(".")[0]];
const variantOf = (at) => +at.split(".")[1];
const fileAt = (at) => itemAt(at).files[variantOf(at)]; // [name, url], undefined without an image
const linkAt = (at) => list.querySelector(`a[data-at="${at}"]`);
const pressed = (button) => button.getAttribute("aria-pressed") === "true";
for (const item of items) {
  const names = item.files.map(([name]) => name);
  item.words = [item.prompt, item.key, item.task, ...names].join("\n").toLowerCase();
}

function load() {
  try {
    marked = new Set(JSON.parse(localStorage.getItem(place) || "[]"));
  } catch {
    marked = new Set();
  }
}

function showMarks() {
  for (const link of links) {
    const file = fileAt(link.dataset.at);
    link.classList.toggle("marked", Boolean(file) && marked.has(file[0]));
  }
  byId("marked").textContent = marked.size;
  byId("save").disabled = !marked.size;
}

function mark(at) {
  const file = fileAt(at);
  if (!file) return;
  if (!marked.delete(file[0])) marked.add(file[0]);
  try {
    localStorage.setItem(place, JSON.stringify([...marked]));
  } catch {} // the browser keeps nothing: the marks last as long as the page
  showMarks();
  byId("mark").setAttribute("aria-pressed", marked.has(file[0]));
}

function filter() {
  const words = byId("query").value.toLowerCase().split(/\s+/);
  const state = byId("state").value;
  const only = pressed(byId("only"));
  const fits = (item) =>
    words.every((word) => item.words.includes(word)) &&
    (!state || item.state === state) &&
    (!only || item.files.some(([name]) => marked.has(name)));
  fitting = [];
  for (const card of cards) {
    if (fits(items[card.dataset.q])) fitting.push(card);
    else card.hidden = true;
  }
  reveal(fitting, 0);
  byId("count").textContent = `${fitting.length} of ${cards.length} request${cards.length === 1 ? "" : "s"}`;
  byId("nothing").hidden = fitting.length > 0;
}

function reveal(wanted, from) {
  if (wanted !== fitting) return; // the filter has changed
  let shown = 0;
  while (from < wanted.length && shown < SLICE) {
    shown += wanted[from].hidden;
    wanted[from++].hidden = false;
  }
  if (from < wanted.length) setTimeout(reveal, 0, wanted, from);
}

const orders = {
  index: (item, index) => index,
  prompt: (item) => item.prompt.toLowerCase(),
  submitted: (item) => -(item.submitted ?? 0),
  seconds: (item) => -(item.seconds ?? 0),
  credits: (item) => -(item.credits ?? 0),
};

function sort() {
  const order = orders[byId("order").value];
  const ranked = cards.map((card) => [order(items[card.dataset.q], +card.dataset.q), +card.dataset.q, card]);
  ranked.sort((a, b) => (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : a[1] - b[1]));
  cards.splice(0, cards.length, ...ranked.map(([, , card]) => card));
  list.append(...cards);
  filter();
}

function picture(at) {
  const [name, url] = fileAt(at);
  const link = document.createElement("a");
  const image = new Image();
  link.href = image.src = url;
  link.target = "_blank";
  link.rel = "noopener";
  image.alt = itemAt(at).prompt.slice(0, 120);
  link.append(image);
  if (comparing && itemAt(at).files.length > 1) {
    const label = document.createElement("span");
    label.textContent = `${variantOf(at) + 1}${marked.has(name) ? " ★" : ""}`;
    label.className = at === current ? "shown" : "";
    link.append(label);
  }
  return link;
}

function message(item) {
  const text = document.createElement("p");
  text.textContent = item.error || item.label;
  return text;
}

function address(hash) {
  try {
    history.replaceState(null, "", location.href.split("#")[0] + hash);
  } catch {} // some browsers refuse it for files
}

function show(at) {
  current = at;
  const q = at.split(".")[0];
  const item = itemAt(at);
  const file = fileAt(at);
  const shown = comparing ? item.files.map((_, index) => `${q}.${index}`) : [at];
  byId("stage").replaceChildren(...(file ? shown.map(picture) : [message(item)]));
  byId("text").textContent = item.prompt;
  byId("problem").textContent = file ? item.error : "";
  byId("facts").textContent = item.facts;
  byId("task").textContent = item.task;
  byId("copytask").hidden = !item.task;
  byId("file").textContent = file ? file[0] : "";
  if (file) byId("file").href = file[1];
  else byId("file").removeAttribute("href");
  byId("mark").disabled = !file;
  byId("mark").setAttribute("aria-pressed", Boolean(file) && marked.has(file[0]));
  byId("compare").disabled = item.files.length < 2;
  byId("compare").setAttribute("aria-pressed", comparing);
  address("#" + item.anchor);
  if (large.open) return;
  large.showModal();
  large.focus(); // not its first link: keys work at once, and no frame is around the image
}

function step(by) {
  const shots = fitting.flatMap((card) => [...card.querySelectorAll("a[data-at]")]).map((link) => link.dataset.at);
  if (shots.length) show(shots.at((shots.indexOf(current) + by) % shots.length));
}

function compare() {
  if (itemAt(current).files.length < 2) return;
  comparing = !comparing;
  show(current);
}

function follow() {
  const wanted = location.hash.slice(1);
  const q = wanted ? items.findIndex((item) => item.anchor === wanted) : -1;
  if (q >= 0) show(`${q}.0`);
}

async function copy(button) {
  const source = byId(button.dataset.copy);
  const said = button.dataset.said ?? (button.dataset.said = button.textContent);
  let done = true;
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    getSelection().selectAllChildren(source);
    done = document.execCommand("copy");
  }
  button.textContent = done ? "copied" : "select and copy it";
  setTimeout(() => (button.textContent = said), 1500);
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([...marked].map((name) => name + "\n"), { type: "text/plain" }));
  link.download = "favourites.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

list.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-at]");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey) return;
  event.preventDefault();
  show(link.dataset.at);
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-copy]");
  if (button) copy(button);
});
byId("query").addEventListener("input", filter);
byId("state").addEventListener("change", filter);
byId("order").addEventListener("change", sort);
byId("only").addEventListener("click", ({ currentTarget }) => {
  currentTarget.setAttribute("aria-pressed", !pressed(currentTarget));
  filter();
});
byId("fold").addEventListener("click", ({ currentTarget }) => {
  currentTarget.setAttribute("aria-expanded", currentTarget.getAttribute("aria-expanded") !== "true");
});
byId("size").addEventListener("input", ({ target }) => {
  document.documentElement.style.setProperty("--width", `${target.value}px`);
});
byId("save").addEventListener("click", save);
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("mark").addEventListener("click", () => mark(current));
byId("compare").addEventListener("click", compare);
byId("close").addEventListener("click", () => large.close());
large.addEventListener("close", () => {
  address("");
  linkAt(current)?.focus();
});
addEventListener("hashchange", follow);
addEventListener("storage", (event) => {
  if (event.key !== place) return;
  load();
  showMarks();
});
addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey) return;
  const here = event.target;
  if (here.matches("input, select")) {
    if (event.key === "Escape") here.blur();
    return;
  }
  const focused = large.open ? current : here.dataset?.at;
  const keys = large.open ? { ArrowRight: () => step(1), ArrowLeft: () => step(-1), c: compare } : {};
  if (focused) keys.f = () => mark(focused);
  if (!large.open) keys["/"] = () => byId("query").focus();
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
});

load();
showMarks();
filter();
follow();
