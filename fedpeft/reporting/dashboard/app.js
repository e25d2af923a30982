"use strict";
// Shows what /events tells. Everything is text: nothing that a run says becomes markup.
const at = id => document.getElementById(id);
const put = (id, text) => { at(id).textContent = text; };
const known = x => x !== null && x !== undefined;
const fixed = (x, digits) => known(x) ? x.toFixed(digits) : "-";
const SVG = "http://www.w3.org/2000/svg";

function size(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (Math.abs(count) < 1000 || unit === "GB") return count.toFixed(unit === "B" ? 0 : 1) + " " + unit;
    count /= 1000;
  }
}

function duration(seconds) {
  if (!known(seconds)) return "-";
  const s = Math.round(seconds), h = Math.floor(s / 3600), m = Math.floor(s % 3600 / 60);
  return h ? h + " h " + m + " min" : m ? m + " min " + s % 60 + " s" : s + " s";
}

function draw(parent, kind, attributes, text) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
}

// Lines, or bars side by side, over rounds; series: [{name, points: [[round, value], ...]}]. No value exceeds `most`.
function plot(id, series, total, format, bars, most = Infinity) {
  const svg = at(id), width = svg.clientWidth || 460, height = svg.clientHeight || 220;
  const left = 62, right = 10, top = 8, bottom = 24;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const values = series.flatMap(one => one.points.map(point => point[1]));
  if (!values.length) { draw(svg, "text", {x: left, y: height / 2}, "nothing yet"); return; }
  const last = Math.max(total, 1, ...series.flatMap(one => one.points.map(point => point[0])));
  let low = bars ? 0 : Math.min(...values), high = Math.max(...values);
  if (high - low < 1e-9) { high += Math.abs(high) * 0.1 || 1; low -= bars ? 0 : Math.abs(low) * 0.1 || 1; }
  high = Math.min(high, most);
  const first = bars ? 0.5 : 0, span = bars ? last : last - first;
  const x = round => left + (round - first) / span * (width - left - right);
  const y = value => top + (high - value) / (high - low) * (height - top - bottom);
  for (const share of [0, 0.5, 1]) {
    const value = low + share * (high - low);
    draw(svg, "line", {x1: left, x2: width - right, y1: y(value), y2: y(value)});
    draw(svg, "text", {x: left - 6, y: y(value) + 4, "text-anchor": "end"}, format(value));
  }
  draw(svg, "text", {x: x(bars ? 1 : 0), y: height - 6, "text-anchor": "middle"}, bars ? 1 : 0);
  if (last > 1) draw(svg, "text", {x: x(last) - 2, y: height - 6, "text-anchor": "end"}, "round " + last);
  series.forEach((one, i) => {
    if (bars) {
      const room = (width - left - right) / last, wide = Math.max(1, room * 0.38);
      for (const [round, value] of one.points) {
        draw(svg, "rect", {class: one.name, x: x(round) + (i - 1) * wide, y: y(value), width: wide, height: y(0) - y(value)});
      }
      return;
    }
    draw(svg, "polyline", {class: one.name, points: one.points.map(([r, v]) => x(r) + "," + y(v)).join(" ")});
    for (const [r, v] of one.points) draw(svg, "circle", {class: one.name, cx: x(r), cy: y(v), r: 2.5});
  });
}

const series = (rounds, key, name) =>
  ({name, points: rounds.filter(r => known(r[key])).map(r => [r.round, r[key]])});

function show(state) {
  const rounds = state.rounds, trained = rounds.filter(r => r.round > 0), last = rounds[rounds.length - 1] || {};
  const judged = rounds.filter(r => known(r.judged)).pop() || {};
  const told = trained.filter(r => known(r.train_loss)).pop() || {};
  const sum = key => rounds.reduce((all, r) => all + (r[key] || 0), 0);
  document.title = state.title + " - fedpeft";
  put("title", state.title);
  put("status", (state.ended || "running") + ", " + duration(state.running));
  put("round", (last.round || 0) + " / " + (state.total || "-"));
  put("left", state.ended ? "-" : duration(state.left));
  put("metric", "validation " + state.metric);
  put("metrics", state.metric[0].toUpperCase() + state.metric.slice(1));
  put("judged", fixed(judged.judged, 3));
  put("loss", fixed(told.train_loss, 3));
  put("bytes", size(sum("uplink_bytes")) + " / " + size(sum("downlink_bytes")));
  put("epsilon", known(state.epsilon) ? state.epsilon.toPrecision(3) : "none");
  const phase = state.phase;
  put("phase", state.ended || (phase.total ? `${phase.name}: ${phase.done} of ${phase.total}` : phase.name));
  at("progress").max = phase.total || 1;
  at("progress").value = state.ended ? phase.total || 1 : phase.done;
  plot("losses", [series(rounds, "train_loss", "one"), series(rounds, "loss", "two")], state.total, v => v.toPrecision(3));
  at("curve").setAttribute("aria-label", `validation ${state.metric} by round`);
  const most = state.metric === "perplexity" ? Infinity : 1;
  plot("curve", [series(rounds, "judged", "one")], state.total, v => v.toPrecision(3), false, most);
  plot("traffic", [series(trained, "uplink_bytes", "one"), series(trained, "downlink_bytes", "two")], state.total, size, true);
  const numbers = Object.entries(state.connected).map(([word, n]) => n + " " + word).join(", ");
  const hidden = state.clients === null ? "; who takes part is confidential" : "";
  const cut = state.clients && state.clients.length < state.population ? `; the first ${state.clients.length} are shown` : "";
  put("connected", `${state.population} clients${numbers ? ": " + numbers : ""}${hidden}${cut}`);
  at("map").replaceChildren(...(state.clients || []).map((word, client) => {
    const square = document.createElement("span");
    square.className = word;
    square.title = `client ${client}`;
    return square;
  }));
  const log = at("log"), below = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
  put("log", state.log.join("\n"));
  if (below) log.scrollTop = log.scrollHeight;
}

let state = null, waiting = false;
function later(next) {
  state = next;
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; show(state); });
}
const source = new EventSource("events");
source.onmessage = event => {
  later(JSON.parse(event.data));
  if (state.ended) source.close();
};
source.onerror = () => { if (!(state && state.ended)) put("status", "not connected: the run has ended, or its machine is away"); };
addEventListener("resize", () => state && later(state));
