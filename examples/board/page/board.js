// Shows what the server's events say. Whatever comes from there is set as text, never as HTML.

const cards = new Map(); // by the name of the lock
let connected = false;

function connect() {
  const events = new EventSource("events");
  events.onmessage = (event) => {
    const board = JSON.parse(event.data);
    const others = board.watchers - 1;
    tell(true, others ? `live, and open in ${others} other ${others === 1 ? "window" : "windows"}` : "live");
    board.locks.forEach(draw);
    tick();
  };
  events.onerror = () => {
    tell(false, "The server of this page is gone. Trying again …");
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, 1000); // this browser would not try again
  };
}

function tell(live, text) {
  connected = live;
  document.body.classList.toggle("gone", !live);
  set(document.getElementById("connection"), text);
}

function draw(lock) {
  const card = cards.get(lock.name) ?? make(lock.name);
  const { holder, trouble } = lock;
  card.classList.toggle("free", !holder);
  card.classList.toggle("stolen", Boolean(holder?.who.startsWith("thief")));
  set(card.querySelector(".holder strong"), holder ? holder.who : "free");
  count(card.querySelector(".holder .clock"), holder);
  set(card.querySelector(".since"), holder ? `since ${timeOfDay(holder)}` : "");
  card.querySelector("ol").replaceChildren(...lock.waiting.map((entry) => {
    const row = copy("waiting");
    set(row.querySelector(".who"), entry.who);
    count(row.querySelector(".clock"), entry);
    return row;
  }));
  set(card.querySelector(".trouble [role=status]"), trouble ? `${trouble.who} ${trouble.why}` : "");
  count(card.querySelector(".trouble .clock"), trouble, (time) => `, ${time} ago`);
}

function make(name) {
  const card = copy("lock");
  const button = card.querySelector("button");
  set(card.querySelector("h2"), name);
  button.setAttribute("aria-label", `Steal ${name}`);
  button.addEventListener("click", () => steal(name, button));
  document.getElementById("locks").append(card);
  cards.set(name, card);
  return card;
}

async function steal(name, button) {
  const problem = document.getElementById("problem");
  button.disabled = true;
  try {
    const response = await fetch(`locks/${encodeURIComponent(name)}/steal`, { method: "POST" });
    problem.hidden = response.ok; // the events tell the rest
    if (!response.ok) set(problem, `${name} was not stolen: the server answered ${response.status}`);
  } catch {
    problem.hidden = false;
    set(problem, `${name} was not stolen: the server does not answer`);
  } finally {
    button.disabled = false;
  }
}

// Clocks: elements with the time since which they count, by the clock of this page.

function count(element, entry, words = (time) => time) {
  element.since = entry ? performance.now() - entry.ago * 1000 : null;
  element.words = words;
}

function tick() {
  if (!connected) return; // nobody knows
  for (const clock of document.querySelectorAll(".clock")) {
    set(clock, clock.since === null ? "" : clock.words(duration((performance.now() - clock.since) / 1000)));
  }
}

function duration(seconds) {
  return seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
}

function timeOfDay(entry) {
  return new Date(Date.now() - entry.ago * 1000).toLocaleTimeString("en-GB");
}

function copy(template) {
  return document.getElementById(template).content.firstElementChild.cloneNode(true);
}

function set(element, text) {
  if (element.textContent !== text) element.textContent = text; // a screen reader reads what is set
}

connect();
setInterval(tick, 100);
