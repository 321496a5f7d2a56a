// The page of one or two monitored trainings.
//
// A source has `runs()`, the names of trainings, and `data(name)`, the document of one; both are
// asynchronous. It may have `every`, the milliseconds after which it is asked again.

import { formula, html } from "./svg.js";
import { bars, kernelMap, lines, scatter, spectrum } from "./charts.js";

const FIRST = ["drift", "kernel_distance", "linearization_gap"];
const COLOURS = ["first", "second"];
const NONE = "";

/** A source of the documents in an element of this page. */
export function embedded(element) {
  const found = new Map();
  for (const run of JSON.parse(element.textContent)) {
    const same = [...found.keys()].filter((name) => name === run.name || name.startsWith(`${run.name} (`)).length;
    found.set(same ? `${run.name} (${same + 1})` : run.name, run);
  }
  return { runs: async () => [...found.keys()], data: async (name) => found.get(name), isPair: found.size > 1 };
}

/** Show what a source has in an element. */
export async function show(root, source) {
  const chosen = [NONE, NONE];
  const kept = { step: Infinity, isSame: true, isOpen: false };
  let before = null;

  async function update(isForced) {
    let runs;
    let documents;
    try {
      runs = await source.runs();
      if (!runs.includes(chosen[0])) chosen[0] = runs[0] ?? NONE;
      if (before === null && source.isPair) chosen[1] = runs[1];
      if (!runs.includes(chosen[1]) || chosen[1] === chosen[0]) chosen[1] = NONE;
      const names = chosen.filter((name) => name !== NONE);
      documents = await Promise.all(names.map((name) => source.data(name)));
    } catch (error) {
      root.replaceChildren(html("p", { class: "empty" }, `The runs could not be read: ${error.message}`));
      before = "";
      return;
    }
    const now = JSON.stringify([runs, documents]);
    if (now === before && !isForced) return;
    before = now;
    const shown = documents.map((data, i) => ({ data, name: chosen[i], colour: COLOURS[i] }));
    root.replaceChildren(
      head(runs, chosen, () => update(true)),
      ...(shown.length ? body(shown, kept) : [nothing()]),
    );
  }

  root.classList.add("ntk");
  await update(true);
  if (source.every) setInterval(() => document.visibilityState === "visible" && update(false), source.every);
}

function nothing() {
  return html("p", { class: "empty" },
    "There is no monitored run here yet. Train with the callback torch_ntk.callbacks.NTKMonitor() and a " +
    "TensorBoardLogger; the first measurement appears here.");
}

function head(runs, chosen, changed) {
  const choice = (k, words, options) => {
    const list = html("select", { id: `run-${k}` }, ...options.map((name) => {
      const option = html("option", { value: name }, name === NONE ? "no other run" : name);
      option.selected = name === chosen[k];
      return option;
    }));
    list.addEventListener("change", () => {
      chosen[k] = list.value;
      changed();
    });
    return html("label", { class: COLOURS[k] }, `${words} `, list);
  };
  const choices = [];
  if (runs.length > 0) choices.push(choice(0, "Run", runs));
  if (runs.length > 1) choices.push(choice(1, "compared with", [NONE, ...runs.filter((name) => name !== chosen[0])]));
  return html("header", {}, html("h1", {}, "Neural Tangent Kernel"), html("div", { class: "choices" }, ...choices));
}

function body(shown, kept) {
  const pair = shown.length > 1;
  return [
    html("section", { class: "grid two", "aria-label": "verdict" }, ...shown.map((run) => verdict(run, pair))),
    html("section", { class: "grid three", "aria-label": "is it lazy?" }, ...FIRST.map((name) => firstChart(name, shown))),
    ...kernelSection(shown, kept, [
      ...shown.map((run) => scatterCard(run, pair)),
      ...shown.map((run) => spectrumCard(run, pair)),
      ...shown.map((run) => moduleCard(run, pair)),
    ]),
    moreCurves(shown, kept),
  ];
}

/** A card with a title and a note below; `run` is named where there are two. */
function card(title, run, note, ...children) {
  const heading = html("h2", {}, title);
  if (run) heading.append(" ", html("span", { class: `of ${run.colour}` }, run.name));
  return html("article", {}, heading, ...children, note ? html("p", { class: "note" }, ...formula(note)) : null);
}

const missing = (words) => html("p", { class: "empty" }, words);

function verdict(run, pair) {
  const { regime, reason, meaning, limits } = run.data.verdict;
  const count = run.data.steps.length;
  const about = run.data.step === null
    ? "nothing measured yet"
    : `${count} measurement${count === 1 ? "" : "s"} up to step ${run.data.step}`;
  return html("article", { class: `verdict ${regime.replace(" ", "-")}` },
    html("h2", {}, html("b", {}, regime), " ", html("span", { class: `of ${run.colour}` }, pair ? run.name : "")),
    html("p", { class: "reason" }, sentence(reason)),
    meaning ? html("p", {}, meaning) : null,
    html("p", { class: "note" }, [limits, sentence(about)].filter(Boolean).join(" ")));
}

const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}.` : "");

const curveOf = (run, name) => run.data.curves.find((curve) => curve.name === name);

function firstChart(name, shown) {
  const found = shown.map((run) => ({ run, curve: curveOf(run, name) })).filter(({ curve }) => curve);
  if (found.length === 0) {
    return card(name.replaceAll("_", " "), null, "", missing(`Not measured: metrics= has no "${name}".`));
  }
  const { curve } = found[0];
  const series = [];
  for (const { run, curve: own } of found) {
    const words = shown.length > 1 ? run.name : own.label;
    const common = { steps: run.data.steps, isRun: shown.length > 1 };
    series.push({ ...common, label: words, values: own.values, colour: run.colour });
    const held = curveOf(run, `val_${name}`);
    if (held) series.push({ ...common, label: `${words}, validation`, values: held.values, colour: `${run.colour} held` });
  }
  return card(curve.label, null, curve.meaning, lines({ series, thresholds: curve.thresholds, label: `${curve.label} against steps` }));
}

/** The kernels under one slider, and the cards beside them. */
function kernelSection(shown, kept, beside) {
  const steps = [...new Set(shown.flatMap((run) => run.data.maps?.steps.map((entry) => entry.step) ?? []))];
  steps.sort((a, b) => a - b);
  const cards = shown.map((run) => {
    const box = html("div", {});
    return { run, box, card: card("Kernel", shown.length > 1 ? run : null, "", box) };
  });
  if (steps.length === 0) {
    const words = 'No kernel was measured: metrics= has none that needs it, such as "drift".';
    cards.forEach(({ box }) => box.append(missing(words)));
    return [html("section", { class: "grid two" }, ...cards.map((one) => one.card), ...beside)];
  }
  const start = steps.findLastIndex((step) => step <= kept.step);
  const slider = html("input", {
    type: "range", id: "map-step", min: 0, max: steps.length - 1, step: 1, "aria-label": "step of the kernel",
  });
  slider.value = String(start < 0 ? steps.length - 1 : start);
  const output = html("output", { for: "map-step" });
  const same = html("input", { type: "checkbox", id: "same-scale" });
  same.checked = kept.isSame;
  function draw() {
    const step = steps[Number(slider.value)];
    kept.isSame = same.checked;
    kept.step = Number(slider.value) === steps.length - 1 ? Infinity : step;
    output.textContent = `step ${step}`;
    slider.setAttribute("aria-valuetext", `step ${step}`);
    for (const { run, box } of cards) {
      const at = run.data.maps ? run.data.maps.steps.findLastIndex((entry) => entry.step <= step) : -1;
      if (at < 0) {
        box.replaceChildren(missing(run.data.maps ? `Not measured up to step ${step}.` : "No kernel was measured."));
        continue;
      }
      const own = run.data.maps.steps[at].step;
      const words = run.data.maps.classes ? "samples by their class" : "samples in their order";
      box.replaceChildren(
        kernelMap(run.data.maps, at, same.checked, `kernel at step ${own}`),
        html("p", { class: "note" }, `Θ(x, x′) at step ${own}, ${words}`),
      );
    }
  }
  slider.addEventListener("input", draw);
  same.addEventListener("change", draw);
  draw();
  const control = html("div", { class: "control" },
    html("label", { for: "map-step" }, "Kernel at"), output, slider,
    html("label", { class: "check" }, same, " one scale for all steps"));
  const grid = html("div", { class: "grid two" }, ...cards.map((one) => one.card), ...beside);
  return [html("section", { "aria-label": "the kernel" }, control, grid)];
}

function spectrumCard(run, pair) {
  const name = pair ? run : null;
  if (!run.data.spectra) {
    return card("Spectrum", name, "", missing('Not measured: add a metric of the spectrum, such as "lambda_max".'));
  }
  const label = "eigenvalues of the kernel against steps";
  return card("Spectrum", name, "Eigenvalues of Θ over the training", spectrum(run.data.spectra, label));
}

function scatterCard(run, pair) {
  const name = pair ? run : null;
  const points = run.data.linearization;
  if (!points) return card("Linearization", name, "", missing('Not measured: metrics= has no "linearization_gap".'));
  const note = `Outputs on the probe at step ${points.step}; a lazy network stays on the diagonal`;
  return card("Linearization", name, note, scatter(points, "outputs of the network against its linearization"));
}

function moduleCard(run, pair) {
  const name = pair ? run : null;
  const { modules } = run.data;
  if (!modules) {
    return card("Drift of each module", name, "", missing('Not measured: pass metrics=(*METRICS, "module_drift") to see which layers move.'));
  }
  const note = `How far the kernel's part of each module moved, at step ${modules.step}`;
  return card("Drift of each module", name, note, bars(modules.names, modules.values, run.colour, "drift of each module"));
}

function moreCurves(shown, kept) {
  const [{ data }] = shown;
  const charts = data.panels
    .map(({ title, logarithmic }) => {
      const series = shown.flatMap((run, which) =>
        run.data.curves
          .filter((curve) => curve.panel === title && !FIRST.includes(curve.name.replace(/^val_/, "")))
          .map((curve, k) => ({
            label: shown.length > 1 ? `${curve.label} (${which ? "second" : "first"})` : curve.label,
            steps: run.data.steps,
            values: curve.values,
            colour: curve.is_limit ? "limit" : `${run.colour} tone${k}`,
          })));
      const drawn = logarithmic ? withoutFarLimits(series) : series;
      return series.length ? card(title, null, "", lines({ series: drawn, isLog: logarithmic, label: title, height: 180 })) : null;
    })
    .filter((one) => one !== null);
  if (charts.length === 0) return html("span");
  const more = html("details", {}, html("summary", {}, `More curves (${charts.length})`), html("div", { class: "grid three" }, ...charts));
  more.open = kept.isOpen;
  more.addEventListener("toggle", () => {
    kept.isOpen = more.open;
  });
  return more;
}

/** A floor far below would only press the other curves together. */
function withoutFarLimits(series) {
  const positive = (s) => s.values.filter((value) => value > 0);
  const lowest = Math.min(...series.filter((s) => s.colour !== "limit").flatMap(positive));
  return series.filter((s) => s.colour !== "limit" || Math.max(...positive(s)) > 1e-3 * lowest);
}
