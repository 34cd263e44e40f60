"use strict";
// Draws /status.json every few seconds. Whatever comes from the node is text: nothing of it becomes markup.

const INTERVAL_MS = 3000;
const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let paused = false;
let lastSeen = null;
let timer = null;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Local time with the year first: day and month of no country can be confused.
function clock(seconds) {
  const two = (value) => String(value).padStart(2, "0");
  const when = new Date(seconds * 1000);
  const day = [when.getFullYear(), two(when.getMonth() + 1), two(when.getDate())].join("-");
  return `${day} ${two(when.getHours())}:${two(when.getMinutes())}:${two(when.getSeconds())}`;
}

function fill(body, rows, columns, nothing) {
  if (rows.length) {
    body.replaceChildren(...rows);
    return;
  }
  const cell = element("td", nothing, "quiet");
  cell.colSpan = columns;
  const row = element("tr");
  row.append(cell);
  body.replaceChildren(row);
}

function drawTiles(status) {
  const dead = status.destinations.reduce((sum, row) => sum + row.dead, 0) + (status.receipts.dead || 0);
  const tiles = {
    "images-waiting": (status.receipts.received || 0) + (status.receipts.working || 0),
    "results-waiting": status.destinations.reduce((sum, row) => sum + row.waiting + row.sending, 0),
    "images-day": status.per_hour.reduce((sum, count) => sum + count, 0),
    dead,
  };
  for (const [id, value] of Object.entries(tiles)) at(id).textContent = value;
  at("dead").classList.toggle("bad", dead > 0);
}

function drawThroughput(perHour) {
  const top = Math.max(1, ...perHour);
  const step = 720 / perHour.length;
  const shapes = [["line", { x1: 0, y1: 89.5, x2: 720, y2: 89.5 }]];
  perHour.forEach((count, index) => {
    const height = (count / top) * 85;
    shapes.push(["rect", { x: index * step + 2, y: 89 - height, width: step - 4, height }]);
  });
  at("throughput").replaceChildren(
    ...shapes.map(([name, attributes]) => {
      const shape = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value);
      return shape;
    }),
  );
  const total = perHour.reduce((sum, count) => sum + count, 0);
  at("throughput-text").textContent = `${total} images in the last 24 hours, ${perHour[perHour.length - 1]} in the last one, at most ${Math.max(...perHour)}`;
}

function drawQueue(destinations) {
  const states = ["waiting", "sending", "stored", "committed", "dead"];
  const rows = destinations.map((destination) => {
    const row = element("tr");
    const head = element("th", destination.name);
    head.scope = "row";
    row.append(head);
    for (const state of states) {
      row.append(element("td", destination[state], state === "dead" && destination.dead ? "number bad" : "number"));
    }
    return row;
  });
  fill(at("queue"), rows, 6, "Nothing was queued yet");
}

function drawResult(result) {
  const item = element("li");
  item.tabIndex = -1;
  item.dataset.receipt = result.receipt;
  const frame = element("div", undefined, "frame");
  if (result.thumbnail) {
    const picture = element("img");
    picture.src = `/thumbnails/${encodeURIComponent(result.receipt)}.png`;
    picture.alt = `Outline of the result of receipt ${result.receipt}`;
    frame.append(picture);
  } else {
    frame.textContent = "no picture";
  }
  item.append(frame, element("p", clock(result.received_at)));
  item.append(element("p", `from ${result.from}, ${result.seconds.toFixed(1)} s`, "quiet"));
  for (const delivery of result.deliveries) {
    const good = delivery.state === "stored" || delivery.state === "committed";
    const className = good ? "good" : delivery.state === "dead" ? "bad" : "quiet";
    item.append(element("p", `${delivery.kind} ${delivery.state}: ${delivery.destination}`, className));
  }
  return item;
}

function drawResults(results) {
  const list = at("results");
  const drawn = JSON.stringify(results);
  if (list.dataset.drawn === drawn) return; // pictures that did not change do not flicker, and the focus stays
  list.dataset.drawn = drawn;
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.receipt : null;
  const items = results.map(drawResult);
  list.replaceChildren(...(items.length ? items : [element("li", "Nothing was segmented yet")]));
  const again = items.find((item) => item.dataset.receipt === focused);
  if (items.length) (again || items[0]).tabIndex = 0;
  if (again) again.focus();
}

function drawErrors(errors) {
  const rows = errors.map((error) => {
    const row = element("tr");
    row.append(element("td", clock(error.at), "time"), element("td", error.what));
    row.append(element("td", error.where), element("td", error.why));
    return row;
  });
  fill(at("errors"), rows, 4, "None");
}

function draw(status) {
  document.title = `${status.node}: unetx-opt node`;
  at("node").textContent = status.node;
  at("version").textContent = `unetx-opt ${status.version}`;
  drawTiles(status);
  drawThroughput(status.per_hour);
  drawQueue(status.destinations);
  drawResults(status.results);
  drawErrors(status.errors);
}

function tellFreshness() {
  const seen = lastSeen === null ? "Not loaded yet" : `As of ${clock(lastSeen)}`;
  at("freshness").textContent = paused ? `${seen}, paused` : seen;
}

async function load() {
  try {
    const answer = await fetch("/status.json", { cache: "no-store", signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(`the node answers ${answer.status}`);
    const status = await answer.json();
    draw(status);
    lastSeen = status.now;
    at("trouble").hidden = true;
  } catch (error) {
    at("trouble").textContent = `The node is not reached: what is shown here is old (${error.message})`;
    at("trouble").hidden = false;
  }
  tellFreshness();
}

async function keepLoading() {
  clearTimeout(timer);
  if (paused) return;
  if (!document.hidden) await load();
  clearTimeout(timer);
  if (!paused) timer = setTimeout(keepLoading, INTERVAL_MS);
}

function togglePause() {
  paused = !paused;
  at("pause").setAttribute("aria-pressed", String(paused));
  at("pause").textContent = paused ? "Go on" : "Pause";
  tellFreshness();
  keepLoading();
}

at("pause").addEventListener("click", togglePause);
document.addEventListener("visibilitychange", keepLoading);
document.addEventListener("keydown", (event) => {
  if (event.key === "p" && !event.ctrlKey && !event.metaKey && !event.altKey) togglePause();
});
at("results").addEventListener("keydown", (event) => {
  const items = [...at("results").children];
  const index = items.indexOf(document.activeElement);
  const moves = { ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1, Home: 0, End: items.length - 1 };
  if (index < 0 || !(event.key in moves)) return;
  event.preventDefault();
  const next = items[Math.min(Math.max(moves[event.key], 0), items.length - 1)];
  items[index].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
keepLoading();
