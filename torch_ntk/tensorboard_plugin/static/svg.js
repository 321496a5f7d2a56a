// Elements, scales and ticks, of which the charts are made.

/** An HTML element with attributes, and children that are nodes or text. */
export function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A map from [low, high] to [from, to]; on a logarithmic axis both are positive. */
export function scale(low, high, from, to, isLog = false) {
  const of = isLog ? Math.log10 : (value) => value;
  const width = of(high) - of(low) || 1;
  return (value) => from + ((of(value) - of(low)) / width) * (to - from);
}

/** Round numbers between low and high, about `count` of them. */
export function ticks(low, high, count = 5) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-9); k += 1) found.push(k * step);
  return found;
}

/** Powers of ten between low and high, or few enough of them. */
export function logTicks(low, high, count = 5) {
  const first = Math.ceil(Math.log10(low) - 1e-9);
  const last = Math.floor(Math.log10(high) + 1e-9);
  if (last - first < 1) return ticks(low, high, 3).filter((value) => value > 0);
  const stride = Math.max(1, Math.ceil((last - first) / count));
  const found = [];
  for (let k = first; k <= last; k += stride) found.push(10 ** k);
  return found;
}

/** A number in three digits. */
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) {
    return value.toExponential(1).replace(".0e", "e").replace("e+", "e").replace("-", "−");
  }
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

/** Text in which what follows _ and ^ stands lower and higher, as nodes. */
export function formula(text) {
  return text.split(/([_^][\p{L}\p{N}]+)/u).map((part) => {
    if (part.length < 2 || !"_^".includes(part[0])) return document.createTextNode(part);
    return html(part[0] === "_" ? "sub" : "sup", {}, part.slice(1));
  });
}

/** An element that is drawn again, by `draw(width)`, whenever its width changes. */
export function fitted(draw, className = "chart") {
  const box = html("div", { class: className });
  let width = 0;
  new ResizeObserver(() => {
    if (box.clientWidth === width || box.clientWidth === 0) return;
    width = box.clientWidth;
    box.replaceChildren(...[draw(width)].flat());
  }).observe(box);
  return box;
}
