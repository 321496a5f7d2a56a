// The charts: curves, the spectrum, the kernel's map, the linearization, bars.

import { fitted, formula, html, logTicks, scale, short, svg, ticks } from "./svg.js";

const LEFT = 50;
const RIGHT = 12;
const TOP = 8;
const BOTTOM = 36;
// Perceptually even from dark to light; and from blue through grey to red, for both signs.
const SEQUENTIAL = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const DIVERGING = [[33, 82, 163], [128, 171, 212], [243, 243, 243], [229, 144, 112], [165, 25, 38]];
// Of lines on light and on dark paper.
const RANKS = [[74, 112, 205], [30, 150, 150], [120, 178, 62]];
const UNKNOWN = [128, 128, 128];

/** The colour at t in [0, 1] of a list of colours. */
export function blend(colours, t) {
  const place = Math.min(Math.max(t, 0), 1) * (colours.length - 1);
  const k = Math.min(Math.floor(place), colours.length - 2);
  return colours[k].map((from, i) => Math.round(from + (place - k) * (colours[k + 1][i] - from)));
}

const css = (colour) => `rgb(${colour.join(" ")})`;
const isKnown = (value) => value !== null && value !== undefined;

/** Axes with grid and labels, and the two maps into them. */
function axes({ width, height, x, y, xLog = false, yLog = false, xLabel, yLabel, label }) {
  const toX = scale(x[0], x[1], LEFT, width - RIGHT, xLog);
  const toY = scale(y[0], y[1], height - BOTTOM, TOP, yLog);
  const picture = svg("svg", { width, height, role: "img", "aria-label": label });
  const few = Math.max(2, Math.floor((width - LEFT) / 60));
  for (const value of (yLog ? logTicks : ticks)(...y, 4)) {
    picture.append(
      svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: toY(value), y2: toY(value) }),
      svg("text", { class: "tick", x: LEFT - 6, y: toY(value) + 4, "text-anchor": "end" }, short(value)),
    );
  }
  for (const value of ticks(...x, few)) {
    const anchor = toX(value) > width - 28 ? "end" : "middle";
    picture.append(
      svg("text", { class: "tick", x: toX(value), y: height - BOTTOM + 16, "text-anchor": anchor }, short(value)),
    );
  }
  picture.append(
    svg("path", { class: "axis", d: `M${LEFT} ${TOP}V${height - BOTTOM}H${width - RIGHT}` }),
    svg("text", { class: "name", x: (LEFT + width - RIGHT) / 2, y: height - 4, "text-anchor": "middle" }, xLabel),
  );
  if (yLabel) {
    const middle = (TOP + height - BOTTOM) / 2;
    picture.append(
      svg("text", { class: "name", transform: `translate(11 ${middle}) rotate(-90)`, "text-anchor": "middle" }, yLabel),
    );
  }
  return { picture, toX, toY };
}

/** A path through the points; where a value is not known the line is interrupted. */
function path(steps, values, toX, toY, isLog) {
  let isOpen = false;
  return steps
    .map((step, i) => {
      const is = isKnown(values[i]) && (!isLog || values[i] > 0);
      const command = is ? `${isOpen ? "L" : "M"}${toX(step).toFixed(1)} ${toY(values[i]).toFixed(1)}` : "";
      isOpen = is;
      return command;
    })
    .join("");
}

/** Room around [low, high], which begins at 0 where that is near. */
function around(low, high, isLog) {
  if (isLog) return low < high ? [low / 1.3, high * 1.3] : [low / 3, high * 3];
  const from = low >= 0 && low < 0.6 * high ? 0 : low - 0.06 * (high - low || Math.abs(high) || 1);
  return [from, high + 0.06 * (high - from || Math.abs(high) || 1)];
}

/**
 * Curves against steps. Each series has `label` (a formula, unless `isRun`), `steps`, `values` and
 * a class of colours; thresholds have `value` and `says`.
 */
export function lines({ series, thresholds = [], isLog = false, label, height = 210 }) {
  const known = series.flatMap((s) => s.values.filter((v) => isKnown(v) && (!isLog || v > 0)));
  if (known.length === 0) return html("p", { class: "empty" }, "No value that could be drawn.");
  const limits = thresholds.map((threshold) => threshold.value);
  const x = [Math.min(...series.map((s) => s.steps[0])), Math.max(...series.map((s) => s.steps.at(-1)))];
  if (x[0] === x[1]) x[1] += 1;
  const y = around(Math.min(...known, ...limits), Math.max(...known, ...limits), isLog);
  const { box, write } = legend(series);
  const atLast = () => write(series.map((s) => s.values.findLastIndex(isKnown)));
  const chart = fitted((width) => {
    const { picture, toX, toY } = axes({ width, height, x, y, yLog: isLog, xLabel: "optimizer step", label });
    for (const { value } of thresholds) {
      const place = { x1: LEFT, x2: width - RIGHT, y1: toY(value), y2: toY(value) };
      picture.append(svg("line", { class: "threshold", ...place }));
    }
    for (const s of series) {
      picture.append(svg("path", { class: `curve ${s.colour}`, d: path(s.steps, s.values, toX, toY, isLog) }));
      if (s.steps.length > 24 || s.colour.includes(" ")) continue; // dots would hide the dashes
      s.steps.forEach((step, i) => {
        if (!isKnown(s.values[i]) || (isLog && s.values[i] <= 0)) return;
        picture.append(svg("circle", { class: `dot ${s.colour}`, cx: toX(step), cy: toY(s.values[i]), r: 2.4 }));
      });
    }
    for (const { value, says } of thresholds) { // last, so that no curve crosses the words
      const place = { x: width - RIGHT - 2, y: toY(value) - 4, "text-anchor": "end" };
      picture.append(svg("text", { class: "threshold", ...place }, `${says} ${short(value)}`));
    }
    const cursor = svg("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
    picture.append(cursor);
    picture.addEventListener("pointermove", (event) => {
      const at = event.clientX - picture.getBoundingClientRect().left;
      const seen = series.map((s) => nearest(s.steps, at, toX));
      const place = toX(series[0].steps[seen[0]]);
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      cursor.setAttribute("visibility", "visible");
      write(seen);
    });
    picture.addEventListener("pointerleave", () => {
      cursor.setAttribute("visibility", "hidden");
      atLast();
    });
    return picture;
  });
  atLast();
  return html("div", {}, chart, box);
}

function nearest(steps, at, toX) {
  let best = 0;
  steps.forEach((step, i) => {
    if (Math.abs(toX(step) - at) < Math.abs(toX(steps[best]) - at)) best = i;
  });
  return best;
}

/** The names of the series with their values at one step each; `write` shows others. */
function legend(series) {
  const values = series.map(() => html("b", {}));
  const step = html("span", { class: "note" });
  const entries = series.map((s, i) => html("li", { class: s.colour }, ...(s.isRun ? [s.label] : formula(s.label)), " ", values[i]));
  function write(places) {
    places.forEach((at, i) => {
      values[i].textContent = at < 0 ? "–" : short(series[i].values[at]);
    });
    const steps = [...new Set(places.map((at, i) => series[i].steps[at]).filter(isKnown))];
    step.textContent = `at step ${steps.join(" and ")}`;
  }
  return { box: html("ul", { class: "legend" }, ...entries, html("li", { class: "says" }, step)), write };
}

/** Eigenvalues against steps on a logarithmic axis, a line for each rank. */
export function spectrum(spectra, label, height = 260) {
  const steps = spectra.steps.map((entry) => entry.step);
  const positive = spectra.steps.flatMap((entry) => entry.eigenvalues.filter((v) => v > 0));
  if (positive.length === 0) return html("p", { class: "empty" }, "No positive eigenvalue.");
  const x = [steps[0], steps.at(-1) === steps[0] ? steps[0] + 1 : steps.at(-1)];
  const y = around(Math.min(...positive), Math.max(...positive), true);
  const { ranks } = spectra;
  const colour = (k) => css(blend(RANKS, ranks.length > 1 ? k / (ranks.length - 1) : 0));
  const chart = fitted((width) => {
    const { picture, toX, toY } = axes({
      width, height, x, y, yLog: true, xLabel: "optimizer step", yLabel: "eigenvalue of Θ", label,
    });
    ranks.forEach((rank, k) => {
      const values = spectra.steps.map((entry) => entry.eigenvalues[k]);
      const d = path(steps, values, toX, toY, true);
      picture.append(
        svg("path", { class: "eigenvalue", d, stroke: colour(k) }, svg("title", {}, `rank ${rank}`)),
      );
      if (steps.length === 1 && values[0] > 0) {
        picture.append(svg("circle", { cx: toX(x[0]), cy: toY(values[0]), r: 2, fill: colour(k) }));
      }
    });
    return picture;
  });
  const bar = ramp(RANKS.map(css), `rank ${ranks[0]}`, ranks.at(-1));
  return html("div", {}, chart, bar);
}

/** A bar of colours between two words. */
function ramp(colours, from, to) {
  const style = `background: linear-gradient(to right, ${colours.join(", ")})`;
  return html("p", { class: "ramp" }, html("span", {}, String(from)), html("i", { style }), html("span", {}, String(to)));
}

/** The kernel's map at the step of `maps.steps[at]`; `isSame` scales all steps alike. */
export function kernelMap(maps, at, isSame, label) {
  const entry = maps.steps[at];
  const count = (Math.sqrt(8 * entry.entries.length + 1) - 1) / 2;
  const [low, high] = rangeOf(isSame ? maps.steps : [entry]);
  const isSigned = low < 0 && -low > 0.02 * high;
  const top = Math.max(-low, high);
  const from = isSigned ? -top : low;
  const to = isSigned ? top : high;
  const colours = isSigned ? DIVERGING : SEQUENTIAL;
  const canvas = html("canvas", { width: count, height: count, class: "map", role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  const image = context.createImageData(count, count);
  let k = 0;
  for (let i = 0; i < count; i += 1) {
    for (let j = i; j < count; j += 1, k += 1) {
      const level = entry.entries[k];
      const colour = level === null ? UNKNOWN : blend(colours, (level * entry.unit - from) / (to - from || 1));
      image.data.set([...colour, 255], 4 * (i * count + j));
      image.data.set([...colour, 255], 4 * (j * count + i));
    }
  }
  context.putImageData(image, 0, 0);
  const parts = [html("div", { class: "square" }, canvas, maps.classes ? borders(maps.classes) : null)];
  if (maps.classes) parts.unshift(classNames(maps.classes));
  return html("div", { class: "mapbox" }, ...parts, ramp(colours.map(css), short(from), short(to)));
}

function rangeOf(entries) {
  let low = Infinity;
  let high = -Infinity;
  for (const { entries: levels, unit } of entries) {
    for (const level of levels) {
      if (level === null) continue;
      low = Math.min(low, level * unit);
      high = Math.max(high, level * unit);
    }
  }
  return low > high ? [0, 1] : [low, high];
}

/** First and end of each run of equal classes. */
function groups(classes) {
  const found = [];
  classes.forEach((name, i) => {
    if (i === 0 || name !== classes[i - 1]) found.push({ name, from: i, to: i });
    found.at(-1).to = i + 1;
  });
  return found;
}

function borders(classes) {
  const lines = groups(classes).slice(1).map(({ from }) => `M${from} 0V${classes.length}M0 ${from}H${classes.length}`);
  if (lines.length > 24) return null;
  const box = { viewBox: `0 0 ${classes.length} ${classes.length}`, class: "borders", "aria-hidden": "true" };
  return svg("svg", box, svg("path", { d: lines.join("") }));
}

function classNames(classes) {
  const found = groups(classes);
  if (found.length > 16) return null;
  const names = found.map(({ name, from, to }) => html("span", { style: `flex: ${to - from}` }, String(name)));
  return html("div", { class: "classes", title: "class of the sample" }, ...names);
}

/** The network's outputs against those of its linearization; lazy training is the diagonal. */
export function scatter(points, label, height = 360) {
  const all = [...points.network, ...points.linearized].filter(isKnown);
  if (all.length === 0) return html("p", { class: "empty" }, "No finite output.");
  const low = Math.min(...all);
  const high = Math.max(...all);
  const margin = 0.05 * (high - low) || 1;
  const ends = [low - margin, high + margin];
  const chart = fitted((width) => {
    const { picture, toX, toY } = axes({
      width, height, x: ends, y: ends, xLabel: "linearized network", yLabel: "network", label,
    });
    const diagonal = { class: "diagonal", x1: toX(ends[0]), y1: toY(ends[0]), x2: toX(ends[1]), y2: toY(ends[1]) };
    picture.append(svg("line", diagonal));
    points.network.forEach((value, i) => {
      if (!isKnown(value) || !isKnown(points.linearized[i])) return;
      const colour = outputColour(points.output[i], points.outputs);
      const isOwn = points.own === null || points.own[i];
      const place = { cx: toX(points.linearized[i]), cy: toY(value), r: isOwn ? 3.2 : 2.2 };
      const look = isOwn ? { fill: colour, "fill-opacity": 0.85 } : { fill: colour, "fill-opacity": 0.3 };
      const words = `output ${points.output[i]}${points.own?.[i] ? ", the sample's class" : ""}`;
      picture.append(svg("circle", { ...place, ...look }, svg("title", {}, words)));
    });
    return picture;
  });
  return html("div", {}, chart, outputLegend(points));
}

const outputColour = (k, count) => (count > 1 ? `hsl(${Math.round((360 * k) / count)} 70% 50%)` : "var(--first)");

function outputLegend(points) {
  if (points.outputs < 2) return null;
  const words = points.own === null ? "output" : "output (strong: the sample's own class)";
  if (points.outputs > 12) return html("p", { class: "legend" }, `colour: one of ${points.outputs} outputs`);
  const entries = Array.from({ length: points.outputs }, (_, k) =>
    html("li", { style: `--dot: ${outputColour(k, points.outputs)}` }, String(k)));
  return html("ul", { class: "legend dots", "aria-label": words }, html("li", { class: "says" }, words), ...entries);
}

/** A bar for each name. */
export function bars(names, values, colour, label) {
  const top = Math.max(...values.filter(isKnown), 0) || 1;
  const rows = names.map((name, i) =>
    html("tr", {},
      html("th", { scope: "row", title: name }, name),
      html("td", { class: "bar" }, html("i", { class: colour, style: `width: ${(100 * (values[i] ?? 0)) / top}%` })),
      html("td", { class: "value" }, short(values[i]))));
  return html("table", { class: "bars", "aria-label": label }, html("tbody", {}, ...rows));
}
