// What TensorBoard loads into the frame of the tab: it calls `render`.

import { show } from "./page.js";

const EVERY = 30000; // milliseconds; TensorBoard itself looks for new data as often

/** An address beside this module, whatever TensorBoard is served under. */
const beside = (path) => new URL(path, import.meta.url);

async function asked(path) {
  const reply = await fetch(beside(path));
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

/** Be dark whenever TensorBoard is: it has a switch of its own, and says so by a class of its body. */
function follow(body) {
  const root = document.documentElement;
  const set = () => { root.dataset.theme = body.classList.contains("dark-mode") ? "dark" : "light"; };
  set();
  new MutationObserver(set).observe(body, { attributes: true, attributeFilter: ["class"] });
}

/** Show the runs of the log folder. */
export async function render() {
  if (window.parent !== window) follow(window.parent.document.body);
  const style = document.createElement("link");
  style.rel = "stylesheet";
  style.href = beside("page.css");
  const root = document.createElement("main");
  document.head.append(style);
  document.body.append(root);
  await show(root, {
    every: EVERY,
    runs: () => asked("runs"),
    data: (name) => asked(`data?run=${encodeURIComponent(name)}`),
  });
}
