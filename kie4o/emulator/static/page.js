// Replaces the fragments that the server renders anew, keeps times running, and posts what buttons say.
"use strict";

const live = document.getElementById("live");
const notice = document.getElementById("notice");
const cards = document.getElementById("cards");
let clock = null; // emulated seconds, when they were read, and how fast they pass

function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor(whole / 60) % 60} min`;
}

function now() {
  return clock.now + ((performance.now() - clock.read) / 1000) * clock.speed;
}

function tick() {
  if (clock === null) return;
  const moment = now();
  for (const part of document.querySelectorAll("[data-since]")) {
    part.textContent = span(moment - Number(part.dataset.since));
  }
  for (const part of document.querySelectorAll("[data-until]")) {
    part.textContent = span(Math.ceil(Number(part.dataset.until) - moment));
  }
  for (const bar of document.querySelectorAll("progress[data-from]")) {
    bar.value = moment - Number(bar.dataset.from);
  }
}

function parsed(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content.firstElementChild;
}

// What had the focus keeps it, or its card does if the button is gone.
function keepingFocus(change) {
  const focused = document.activeElement;
  const [id, card] = [focused?.id, focused?.closest(".card")?.id];
  change();
  if (focused?.isConnected) return;
  (document.getElementById(id) ?? document.getElementById(card) ?? document.body).focus({ preventScroll: true });
}

function show(update) {
  clock = { now: update.now, speed: update.speed, read: performance.now() };
  keepingFocus(() => {
    for (const [id, html] of Object.entries(update.fragments)) {
      document.getElementById(id)?.replaceWith(parsed(html));
    }
    const kept = new Set(update.order);
    for (const card of [...cards.children]) if (!kept.has(card.id)) card.remove();
    update.order.forEach((id, index) => {
      const card = document.getElementById(id) ?? parsed(update.cards[id]);
      if (cards.children[index] !== card) cards.insertBefore(card, cards.children[index] ?? null);
    });
    for (const [id, html] of Object.entries(update.cards)) {
      const card = document.getElementById(id);
      if (card !== null && card.outerHTML !== html) card.replaceWith(parsed(html));
    }
  });
  tick();
}

function say(text) {
  notice.textContent = text;
  notice.hidden = text === "";
}

async function post(button) {
  const question = button.dataset.confirm;
  if (question !== undefined && !window.confirm(question)) return;
  const how = { method: "POST", headers: { "Content-Type": "application/json" }, body: button.dataset.body ?? "{}" };
  say("");
  try {
    const response = await fetch(button.dataset.post, how);
    const answer = await response.json();
    if (!response.ok) say(answer.error);
    else if (answer.error) say(`The callback was not delivered: ${answer.error}`);
  } catch {
    say("The emulator does not answer.");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (button !== null) post(button);
});

function setLive(on) {
  live.textContent = on ? "Live" : "Not live";
  live.classList.toggle("on", on);
}

const events = new EventSource("/-/events");
events.onopen = () => setLive(true);
events.onerror = () => {
  setLive(false);
  clock = null;
};
events.onmessage = (event) => show(JSON.parse(event.data));
setInterval(tick, 500);
